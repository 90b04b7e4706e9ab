"""Rows of a benchmark: from a local file, or from the Hugging Face Hub."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from stepflow_tl.errors import BenchmarkError
from stepflow_tl.tasks.sources import Source
from stepflow_tl.text import escaped

Row = Mapping[str, Any]
At = Callable[[int], None]
Skip = Callable[[str], None]
"""What is told of a row that is left out: which one, and what was wrong with it."""


def rows_of_file(
    path: str | Path, skip: Skip | None = None, at: At = lambda position: None
) -> Iterator[tuple[int, Row]]:
    """The rows of a local file, numbered from 1 (of JSON lines: the line's number).

    Args:
        path: A file of JSON lines (.jsonl, .jsonl.gz), JSON (.json: a list of rows), CSV or
            Parquet.
        skip: What is told of a row that is none, which is left out then; None to refuse it.
        at: Told how many bytes of the file are behind, for a progress bar.

    Raises:
        FileNotFoundError: There is no such file.
        BenchmarkError: It is of another kind, or not what its name says.
    """
    path = Path(path)
    if path.suffix.lower() not in _READERS:
        known = ", ".join(name for name in _READERS if name != ".gz")
        raise BenchmarkError(
            f"expected a file of {known}, got {str(path)!r}; a benchmark's name is given as name="
        )
    if not path.is_file():
        raise FileNotFoundError(f"no benchmark file at {path}")
    try:
        for number, row in _READERS[path.suffix.lower()](path, at):
            if isinstance(row, Mapping):
                yield number, row
                continue
            wrong = f"{path.name}, row {number}: expected columns by name, got {shown(row)}"
            if isinstance(row, BenchmarkError):
                wrong = str(row)
            if skip is None:
                raise BenchmarkError(wrong)
            skip(wrong)
    except BenchmarkError:
        raise
    except (ValueError, OSError, EOFError, RecursionError) as error:  # also pandas', Arrow's
        raise BenchmarkError(
            f"{path} could not be read as {path.suffix}: {shown(str(error))}"
        ) from None


def rows_of_hub(source: Source) -> Iterator[tuple[int, Row]]:
    """The rows of a benchmark on the Hub, or in its cache on this machine.

    Raises:
        BenchmarkError: It cannot be had: no network, or a licence to be accepted first.
    """
    try:
        if source.files:
            yield from _repository_files(source)
            return
        from datasets import load_dataset

        table = load_dataset(source.dataset, source.config, split=source.split)
    except BenchmarkError:
        raise
    except ImportError as error:
        raise BenchmarkError(
            f"{source.name} is loaded through datasets, which could not be imported ({error}); "
            f"expected pip install datasets, or path= to a local file"
        ) from None
    except Exception as error:
        # datasets and huggingface_hub raise dozens of kinds, from OSError to RuntimeError
        raise BenchmarkError(_why_not(source, error)) from error
    yield from enumerate(table, 1)


def _repository_files(source: Source) -> Iterator[tuple[int, Row]]:
    from huggingface_hub import hf_hub_download

    done = 0
    for name in source.files:
        path = hf_hub_download(source.dataset, name, repo_type="dataset")
        number = 0
        for number, row in rows_of_file(path):
            yield done + number, row
        done += number


def _why_not(source: Source, error: Exception) -> str:
    """What a user should do about a benchmark that the Hub does not give."""
    kind, told = type(error).__name__, shown(str(error))
    local = f"path= to a local file with the columns {list(source.columns.needed)}"
    licence = (
        f"its licence must be accepted at {source.page} while logged in, and this machine must be "
        f"logged in, too (hf auth login)"
    )
    if "gated" in f"{kind} {told}".lower():
        return f"{source.name} could not be loaded: {licence}; or pass {local}; got {kind}: {told}"
    too = f" ({licence})" if source.licence else ""
    return (
        f"{source.name} could not be loaded from {source.page}, nor from this machine's cache: "
        f"expected a network{too}, or {local}; got {kind}: {told}"
    )


def check_columns(row: Row, needed: Sequence[str]) -> None:
    """Refuse rows that lack a column.

    Raises:
        BenchmarkError: One is missing; it says which came.
    """
    missing = [name for name in needed if name not in row]
    if missing:
        raise BenchmarkError(
            f"expected the columns {list(needed)}, found no {missing} among "
            f"{shown(list(row))}; other names are given as columns={{'question': ...}}"
        )


_NEEDED = object()


def cell(row: Row, path: str, *, missing: Any = _NEEDED) -> Any:
    """What a row holds at a path such as ``resps.0.0``; a column's whole name is one, too.

    Args:
        row: The row.
        path: Names and numbers, which go into objects and lists.
        missing: What to give where there is nothing; an error without it.

    Raises:
        BenchmarkError: There is nothing.
    """
    if path in row:
        return row[path]
    found: Any = row
    for name in path.split("."):
        if isinstance(found, Mapping) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        elif missing is _NEEDED:
            raise BenchmarkError(f"expected {path!r}, found none among {shown(list(row))}")
        else:
            return missing
    return found


def shown(value: Any, longest: int = 160) -> str:
    """Untrusted content in a message: on one line, escaped, and cut."""
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    text = escaped(text)
    return text if len(text) <= longest else f"{text[:longest]}..."


def _opened(path: Path) -> BufferedIOBase:
    """A file's bytes, which may be packed by gzip."""
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _json_lines(path: Path, at: At) -> Iterator[tuple[int, Any]]:
    with _opened(path) as lines:
        packed = getattr(lines, "fileobj", lines)
        for number, line in enumerate(lines, 1):
            at(packed.tell())
            if line.strip():
                try:
                    yield number, json.loads(line.decode("utf-8-sig"))
                except UnicodeDecodeError as error:
                    wrong = f"could not be read as .jsonl: {error}"
                    yield number, BenchmarkError(f"{path.name} {wrong} (line {number})")
                except (ValueError, RecursionError) as error:
                    wrong = f"expected JSON, got {shown(line.decode(), 60)!r} ({shown(str(error))})"
                    yield number, BenchmarkError(f"{path.name}, line {number}: {wrong}")


def _json(path: Path, at: At) -> Iterator[tuple[int, Any]]:
    rows = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(rows, list):
        raise BenchmarkError(f"{path.name}: expected a list of rows, got {shown(rows, 60)}")
    yield from enumerate(rows, 1)


def _csv(path: Path, at: At) -> Iterator[tuple[int, Any]]:
    import pandas as pd

    table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    yield from enumerate(table.to_dict("records"), 1)


def _parquet(path: Path, at: At) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        number, size, rows = 0, path.stat().st_size, max(1, file.metadata.num_rows)
        for batch in file.iter_batches(batch_size=64):
            for row in batch.to_pylist():
                number += 1
                yield number, row
            at(size * number // rows)


_READERS: dict[str, Callable[[Path, At], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".gz": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
