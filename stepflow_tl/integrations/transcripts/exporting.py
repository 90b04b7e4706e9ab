"""Exporting: traces as JSON lines that anybody reads, or in thought-anchors' layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, get_args

from stepflow_tl.errors import SettingError
from stepflow_tl.files import replacing
from stepflow_tl.integrations.transcripts.lines import LAYOUT
from stepflow_tl.integrations.transcripts.thought_anchors import write_problems
from stepflow_tl.traces.trace import Trace

Layout = Literal["lines", "thought-anchors"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


def export_traces(traces: Iterable[Trace], out: str | Path, *, layout: Layout = "lines") -> int:
    """Write traces so that others can read them; imported again, they are the same traces.

    Args:
        traces: The traces; an iterator is read one at a time.
        out: Of layout "lines" the file of JSON lines, which is there whole or as it was before: a
            row has ``prompt`` and ``response`` as texts, ``token_ids``, and all else that a trace
            is (`Trace.to_dict`). Of "thought-anchors" a folder, with a problem's folder for each
            trace.
        layout: Which.

    Returns:
        How many rows or problems were written.

    Raises:
        SettingError: There is no such layout.
        TraceError: A rollout of thought-anchors comes without its base solution.
        OSError: The place cannot be written to.
    """
    if layout not in LAYOUTS:
        raise SettingError(f"expected layout to be one of {list(LAYOUTS)}, got {layout!r}")
    out = Path(out)
    if layout == "thought-anchors":
        return write_problems(traces, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with replacing(out) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for trace in traces:
            file.write(json.dumps(_row(trace)) + "\n")
            count += 1
    return count


def saved_traces(paths: Iterable[str | Path]) -> Iterator[Trace]:
    """Saved traces, from files and folders of these, one at a time.

    Raises:
        FileNotFoundError: There is no such file, or none in a folder.
        TraceError: A file is no trace.
    """
    for path in map(Path, paths):
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(f"no traces (.safetensors) in {path}")
        yield from map(Trace.load, files)


def _row(trace: Trace) -> dict[str, object]:
    prompt = "".join(trace.token_texts[: trace.prompt_length])
    return {"layout": LAYOUT, "prompt": prompt, "response": trace.response, **trace.to_dict()}
