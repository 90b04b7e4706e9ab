"""Reading files of transcripts one response at a time, whatever wrote them.

Each row says itself what it is; a folder is read file by file. Nothing is held but the row at hand.
"""

from __future__ import annotations

import json
import sqlite3
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from stepflow_tl.errors import BenchmarkError, SettingError, StepFlowError, TraceError
from stepflow_tl.integrations.transcripts.inspect_logs import (
    is_inspect,
    read_inspect,
    rows_of_archive,
)
from stepflow_tl.integrations.transcripts.lighteval import is_lighteval, read_lighteval
from stepflow_tl.integrations.transcripts.lines import Fields, is_written, read_line, read_written
from stepflow_tl.integrations.transcripts.lm_eval import is_lm_eval, read_lm_eval
from stepflow_tl.integrations.transcripts.openai import Requests, is_openai, read_openai
from stepflow_tl.integrations.transcripts.thought_anchors import is_problem, read_problem
from stepflow_tl.integrations.transcripts.transcript import Found, Transcript, why
from stepflow_tl.tasks.tables import At, Row, rows_of_file, shown

KINDS = ("lm-eval", "lighteval", "inspect", "openai", "thought-anchors", "stepflow-tl", "lines")
"""What is read: `Found.kind`."""

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".eval", ".gz", ".csv")

TABLE = "transcripts.csv"
"""What an import says of what it read; it is no transcript itself."""

_WAYS: dict[str, Callable[[Row], bool]] = {
    "stepflow-tl": is_written,
    "lm-eval": is_lm_eval,
    "lighteval": is_lighteval,
    "inspect": is_inspect,
    "openai": is_openai,
}


def read_transcripts(
    path: str | Path,
    *,
    kind: str | None = None,
    fields: Fields | None = None,
    requests: str | Path | None = None,
    rollouts: bool = False,
    seen: Callable[[int], None] | None = None,
) -> Iterator[Found]:
    """Every response in a file or a folder, and why some are not read. Bad rows stop nothing.

    Args:
        path: JSON lines (also ``.jsonl.gz``), JSON, Parquet, CSV, an ``.eval`` archive, or a folder
            of these or of thought-anchors' problems.
        kind: One of `KINDS`, where rows do not say it themselves; None to ask each row.
        fields: Where rows of kind "lines" hold prompt and response.
        requests: A batch's input, whose output `path` is (OpenAI).
        rollouts: Whether to read the rollouts of thought-anchors, too.
        seen: Told how many bytes are behind, for a progress bar.

    Raises:
        FileNotFoundError: There is no such file or folder.
        SettingError: The kind is unknown, or nothing there has a name that is read.
    """
    path = Path(path)
    if kind is not None and kind not in KINDS:
        raise SettingError(f"expected kind to be one of {list(KINDS)}, got {kind!r}")
    if not path.exists():
        raise FileNotFoundError(f"no transcripts at {path}")

    def at(before: int) -> At:
        return lambda position: None if seen is None else seen(before + position)

    done = 0
    with _asked(requests) as find:
        for place in places_of(path):
            where = str(place.relative_to(path)) if place != path else place.name
            if place.is_dir():
                for row, found in read_problem(place, rollouts=rollouts):
                    yield _found(where, row, "thought-anchors", found)
            else:
                yield from _file(place, where, kind, fields or Fields(), find, at(done))
            done += size_of(place)
            at(done)(0)


def places_of(path: Path) -> Iterator[Path]:
    """The files to read in a folder, and the folders that are problems, in order of their names.

    Raises:
        SettingError: There is none.
    """
    if path.is_dir() and not is_problem(path):
        found = list(_below(path))
        if not found:
            raise SettingError(
                f"expected files of {', '.join(SUFFIXES)} or folders of thought-anchors in {path}, "
                "got none"
            )
        yield from found
        return
    if not path.is_dir() and path.suffix.lower() not in SUFFIXES:
        raise SettingError(f"expected a file of {', '.join(SUFFIXES)}, got {path.name!r}")
    yield path


def size_of(place: Path) -> int:
    """Bytes of a file, or of a folder's files."""
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files if file.is_file())


def _below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """What is to be read in a folder and those in it; a link back to one above it is not taken."""
    above = (*above, folder.resolve())
    for one in sorted(folder.iterdir()):
        if one.is_dir() and not one.name.startswith("."):
            if is_problem(one):
                yield one
            elif one.resolve() not in above:
                yield from _below(one, above)
        elif one.is_file() and one.suffix.lower() in SUFFIXES and one.name != TABLE:
            yield one


def _file(
    path: Path, where: str, kind: str | None, fields: Fields, requests: Requests | None, at: At
) -> Iterator[Found]:
    seen: dict[str, Any] = {}
    try:
        for row, content in _rows(path, at):
            name = kind or next((n for n, fits in _WAYS.items() if _fits(fits, content)), "lines")
            if isinstance(content, Exception):
                yield Found(file=where, row=row, kind=name, reason=why(content))
                continue
            try:
                for found in _responses(name, content, fields, requests, seen):
                    yield _found(where, row, name, found)
            except Exception as error:  # whatever it is, it costs this row alone
                yield Found(file=where, row=row, kind=name, reason=why(error))
    except (StepFlowError, OSError) as error:
        yield Found(file=where, row="", kind=kind or "", reason=why(error))


def _fits(fits: Callable[[Row], bool], content: Any) -> bool:
    return isinstance(content, Mapping) and fits(content)


def _responses(
    kind: str, row: Any, fields: Fields, requests: Requests | None, seen: dict[str, Any]
) -> Iterator[Transcript | str]:
    if not isinstance(row, Mapping):
        raise TraceError(f"expected an object, got {shown(row, 60)}")
    if kind == "lm-eval":
        return read_lm_eval(row, seen)
    if kind == "lighteval":
        return read_lighteval(row)
    if kind == "inspect":
        return read_inspect(row)
    if kind == "openai":
        return read_openai(row, requests)
    if kind == "stepflow-tl":
        return read_written(row)
    if kind == "thought-anchors":
        raise TraceError("expected the folder of a problem, with base_solution.json in it")
    return read_line(row, fields)


def _found(where: str, row: str, kind: str, found: Transcript | str) -> Found:
    if isinstance(found, str):
        return Found(file=where, row=row, kind=kind, reason=found)
    return Found(file=where, row=row, kind=kind, transcript=found)


def _rows(path: Path, at: At) -> Iterator[tuple[str, Any]]:
    """The rows of a file, and where they stand; what is wrong with a row stands in its place."""
    suffix = path.suffix.lower()
    if suffix == ".eval":
        yield from rows_of_archive(path, at)
    elif suffix == ".json":
        yield from _json(path, at)
    else:
        bad: list[str] = []
        for number, row in rows_of_file(path, bad.append, at):
            yield from (("", BenchmarkError(text)) for text in bad)
            bad.clear()
            yield f"row {number}", row
        yield from (("", BenchmarkError(text)) for text in bad)


def _json(path: Path, at: At) -> Iterator[tuple[str, Any]]:
    """The rows of a JSON file: the items of a list or of "samples", or the object itself."""
    try:
        with _open_json(path) as file:
            place = _rows_at(ijson.parse(file))
        if place is None:
            yield "", json.loads(path.read_bytes().removeprefix(BOM_UTF8))
            return
        with _open_json(path) as file:
            for number, row in enumerate(ijson.items(file, place, use_float=True), 1):
                at(file.tell())
                yield f"row {number}", row
    except (ijson.JSONError, ValueError, RecursionError, StopIteration) as error:
        yield "", TraceError(f"{path.name} is no JSON: {shown(str(error) or 'empty')}")


def _rows_at(events: Iterator[tuple[str, str, Any]]) -> str | None:
    """Where a JSON file has its rows, as ijson calls it; None where it is a row itself.

    Of a log of Inspect's no more is read than what stands before its samples.
    """
    _, first, _ = next(events)
    if first == "start_array":
        return "item"
    names = set()
    for prefix, event, value in events:
        if (prefix, event) == ("", "map_key"):
            names.add(value)
            if {"eval", "samples"} <= names:
                return "samples.item"
    return None


def _open_json(path: Path) -> BinaryIO:
    file = path.open("rb")
    if file.read(len(BOM_UTF8)) != BOM_UTF8:
        file.seek(0)
    return file


@contextmanager
def _asked(path: str | Path | None) -> Iterator[Requests | None]:
    """The bodies of a batch's requests, in a database that needs no memory.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if path is None:
        yield None
        return
    with closing(sqlite3.connect("")) as database:
        database.execute("CREATE TABLE requests (id TEXT PRIMARY KEY, body TEXT)")
        rows = rows_of_file(path, lambda told: None)
        with database:
            database.executemany(
                "INSERT OR REPLACE INTO requests VALUES (?, ?)",
                (
                    (str(row["custom_id"]), json.dumps(row["body"]))
                    for _, row in rows
                    if "custom_id" in row and isinstance(row.get("body"), Mapping)
                ),
            )

        def find(name: str) -> Any:
            query = "SELECT body FROM requests WHERE id = ?"
            found = database.execute(query, (name,)).fetchone()
            return None if found is None else json.loads(found[0])

        yield find
