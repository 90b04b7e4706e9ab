"""Readers of files: saved traces and maps, and the store of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stepflow_tl.errors import SettingError, StepMapError, TraceError
from stepflow_tl.models.base import Model
from stepflow_tl.saliency.maps import StepMap
from stepflow_tl.sweep.store import Store
from stepflow_tl.traces.trace import Trace
from stepflow_tl.views.contents import Contents
from stepflow_tl.views.reader import Reader
from stepflow_tl.views.reading import Reading


def reading_of(paths: Sequence[str | Path], name: str = "trace") -> Reading:
    """A trace and maps of it, saved in any order.

    A map is named by its file.

    Raises:
        FileNotFoundError: There is no such file.
        SettingError: A file is neither a trace nor a map, or there are two traces.
    """
    trace, maps = None, dict[str, StepMap]()
    for path in map(Path, paths):
        found = _loaded(path)
        if isinstance(found, StepMap):
            maps[path.stem] = found
        elif trace is None:
            trace = found
        else:
            raise SettingError(f"expected one trace and its maps, got a second trace, {path}")
    return Reading(trace=trace, maps=maps, name=name)


def read_files(
    paths: Sequence[str | Path], after: Sequence[str | Path] = (), title: str | None = None
) -> Reader:
    """The reader of a saved trace and its maps, beside those `after`.

    Maps of both sides are compared by the names of their files, or, where each side has one map,
    with each other.

    Raises:
        FileNotFoundError: There is no such file.
        SettingError: As `reading_of`.
    """
    first = reading_of(paths, "before" if after else "trace")
    second = reading_of(after, "after") if after else None
    if second is not None and len(first.maps) == len(second.maps) == 1:
        maps = dict(zip(first.maps, second.maps.values(), strict=True))
        second = Reading(trace=second.trace, maps=maps, name="after")
    return Reader(first, second, title or Path(paths[0]).stem)


def read_sweep(path: str | Path, model: Model, title: str | None = None) -> Contents:
    """The page of a sweep's store.

    Raises:
        StoreError: It is no store.
    """
    return Contents.of_sweep(Store(path).to_dataframe(), model, title=title or Path(path).stem)


def _loaded(path: Path) -> Trace | StepMap:
    try:
        return Trace.load(path)
    except TraceError as as_trace:
        try:
            return StepMap.load(path)
        except StepMapError:
            raise SettingError(
                f"expected a saved trace or step map (.safetensors), got {path}: {as_trace}"
            ) from None
