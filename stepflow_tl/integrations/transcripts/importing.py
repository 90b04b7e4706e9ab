"""Importing: a file or folder of transcripts becomes saved traces, and a table of what was read."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from stepflow_tl.integrations.transcripts.as_traces import as_trace
from stepflow_tl.integrations.transcripts.files import (
    TABLE,
    places_of,
    read_transcripts,
    size_of,
)
from stepflow_tl.integrations.transcripts.lines import Fields
from stepflow_tl.integrations.transcripts.transcript import Found, why
from stepflow_tl.text import one_line
from stepflow_tl.traces.chat import Chat
from stepflow_tl.traces.formats import Format, named_format
from stepflow_tl.traces.trace import Trace

COLUMNS = (
    *("file", "row", "sample", "kind", "trace", "reason"),
    *("tokens", "prompt", "thinking", "summary", "steps", "ended", "closed", "answer", "gold"),
)
"""Of the table: where a response stands, the trace's file or why there is none, and its sizes."""

_REASONS = 30  # different ones that are counted apart
_SHOWN = 5


@dataclass
class Imported:
    """What came of an import.

    Attributes:
        folder: Where the traces and the table are.
        read: How many responses became traces.
        unread: How many rows did not.
        reasons: Why, and how often, up to 30 of them.
        kinds: How many responses of each kind of file.
    """

    folder: Path
    read: int = 0
    unread: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def table(self) -> Path:
        """The table: a row per response."""
        return self.folder / TABLE

    def __str__(self) -> str:
        """Counts, and the commonest reasons; untrusted text is on one line each."""
        kinds = ", ".join(f"{count} of {kind}" for kind, count in self.kinds.most_common())
        lines = [f"{self.read} traces ({kinds or 'none'}), {self.unread} rows not read"]
        shown = self.reasons.most_common(_SHOWN)
        lines += [f"  {count:6d}  {one_line(reason)}" for reason, count in shown]
        return "\n".join(lines)


def traces_of(
    model: object,
    path: str | Path,
    *,
    chat: Chat | None = None,
    format: str | Format = "auto",
    **reading: Any,
) -> Iterator[tuple[Found, Trace | None]]:
    """The traces of a file or folder of transcripts, one at a time.

    Args:
        model: A model with a ``tokenizer``, or a tokenizer.
        path: As `read_transcripts` takes it.
        chat: What else the chat template takes.
        format: As in `Trace.from_token_ids`.
        **reading: What else `read_transcripts` takes: kind, fields, requests, rollouts, seen.

    Yields:
        A response, and its trace; None where it could not be read: `Found.reason` says why.

    Raises:
        FileNotFoundError: There is no such file or folder.
        SettingError: An option is unknown.
    """
    form = named_format(format)
    for found in read_transcripts(path, **reading):
        if found.transcript is None:
            yield found, None
            continue
        try:
            trace = as_trace(model, found.transcript, chat=chat, format=form)
            _sizes(trace)  # a row that claims to be a trace may be none
        except Exception as error:  # whatever it is, it costs this row alone
            yield replace(found, transcript=None, reason=why(error)), None
            continue
        if found.kind != "stepflow-tl":
            source = {"file": found.file, "row": found.row, "kind": found.kind}
            trace = trace.with_metadata(read_from=source)
        yield found, trace


def import_transcripts(
    model: object,
    path: str | Path,
    out: str | Path,
    *,
    limit: int | None = None,
    progress: bool = False,
    fields: Fields | None = None,
    **options: Any,
) -> Imported:
    """Save the traces of a file or folder of transcripts, and a table of what was read.

    Memory does not grow with the file: a trace is saved, and its row of the table written, before
    the next is read.

    Args:
        model: A model with a ``tokenizer``, or a tokenizer (`load_tokenizer`).
        path: As `read_transcripts` takes it.
        out: The folder for ``trace_000001.safetensors``, ... and ``transcripts.csv``; those of an
            earlier import are replaced.
        limit: Stop after so many responses.
        progress: Show a progress bar, in bytes read.
        fields: Where rows hold prompt and response.
        **options: What else `traces_of` takes.

    Returns:
        The counts.

    Raises:
        FileNotFoundError: There is no such file or folder.
        SettingError: An option is unknown, or nothing there has a name that is read.
        OSError: The folder cannot be written to.
    """
    path, out = Path(path), Path(out)
    done = Imported(out)
    total = sum(map(size_of, places_of(path))) if path.exists() else 0
    with tqdm(total=total, unit="B", unit_scale=True, disable=not progress) as bar:
        found = traces_of(
            model,
            path,
            fields=fields,
            seen=lambda size: bar.update(size - bar.n),
            **options,
        )
        first = next(found, None)  # what is wrong with the arguments is raised here
        out.mkdir(parents=True, exist_ok=True)
        if done.table.is_file():  # of an earlier import, whose traces would be taken for these
            for old in out.glob("trace_*.safetensors"):
                old.unlink()
        with done.table.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, restval="")
            table.writeheader()
            for each, trace in islice(_and(first, found), limit):
                row = {"file": each.file, "row": each.row, "kind": each.kind}
                if trace is None:
                    done.unread += 1
                    _count(done.reasons, str(each.reason))
                    row["reason"] = str(each.reason)
                else:
                    done.read += 1
                    done.kinds[each.kind] += 1
                    name = f"trace_{done.read:06d}.safetensors"
                    trace.save(out / name)
                    row |= {"trace": name} | _sizes(trace)
                table.writerow({name: _cell(value) for name, value in row.items()})
                file.flush()
                bar.set_postfix(traces=done.read, unread=done.unread, refresh=False)
    return done


def _and(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    if first is not None:
        yield first
        yield from rest


def _count(reasons: Counter[str], reason: str) -> None:
    known = reason in reasons or len(reasons) < _REASONS
    reasons[reason if known else "other reasons"] += 1


def _sizes(trace: Trace) -> dict[str, Any]:
    return {
        "sample": trace.metadata.get("sample"),
        "tokens": len(trace),
        "prompt": trace.prompt_length,
        "thinking": len(trace.thinking),
        "summary": len(trace.summary),
        "steps": len(trace.steps),
        "ended": trace.ended,
        "closed": trace.closed,
        "answer": trace.answer,
        "gold": trace.metadata.get("gold"),
    }


def _cell(value: Any) -> str:
    """A cell on one line, which no spreadsheet takes for a formula."""
    text = "" if value is None else one_line(str(value))
    return f"'{text}" if text.startswith(tuple("=+-@")) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
