"""Folders of thought-anchors: traces with labeled sentences, importance scores, and rollouts.

A problem's folder has ``base_solution.json`` (prompt and response), ``chunks_labeled.json`` or
``chunks.json`` (its sentences), ``chunk_<i>/solutions.json`` (what was written when sentence i was
drawn again), and more. Whatever else lies there as JSON is kept as it is, and written back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepflow_tl.errors import TraceError
from stepflow_tl.integrations.transcripts.as_traces import START
from stepflow_tl.integrations.transcripts.transcript import Transcript, why
from stepflow_tl.traces.trace import Trace

BASE = "base_solution.json"
LABELED = "chunks_labeled.json"
FACTS = "thought_anchors"
"""Under which a trace's metadata has the files of its folder."""

PROBLEM = "problem"
"""Under which it has the last two parts of the folder's path."""

_CHUNK = re.compile(r"chunk_(\d+)")
_ROLLOUT = "solutions.json"
_PLACE = re.compile(r"\w+/problem_\w+")
_SIDES = {"True": "correct_base_solution", "False": "incorrect_base_solution"}


def is_problem(folder: Path) -> bool:
    """Whether a folder is that of a problem."""
    return (folder / BASE).is_file()


def read_problem(folder: Path, *, rollouts: bool = False) -> Iterator[tuple[str, Transcript | str]]:
    """The base solution of a problem, then its rollouts.

    Args:
        folder: The problem's.
        rollouts: Whether to read these, too: each is a response of its own.

    Yields:
        Where it stands in the folder, and the transcript, or why it is not read.
    """
    try:
        base = _read(folder / BASE)
        if not isinstance(base, Mapping) or not isinstance(base.get("prompt"), str):
            raise TraceError("expected an object with a prompt and a solution")
        response = base.get("solution")
        if not isinstance(response, str) or "error" in base:
            raise TraceError(f"expected a solution, got the error {base.get('error')!r}")
        yield BASE, _base(folder, base, rollouts)
    except Exception as error:  # whatever it is, it costs this row alone
        yield BASE, why(error)
        return
    if not rollouts:
        return
    for path in _rollout_files(folder):
        where = f"{path.parent.name}/{_ROLLOUT}"
        try:
            listed = _read(path)
        except TraceError as error:
            yield where, str(error)
            continue
        for number, rollout in enumerate(listed if isinstance(listed, list) else [listed]):
            try:
                found = _rollout(base["prompt"], rollout, path.parent, number)
            except Exception as error:  # whatever it is, it costs this row alone
                found = why(error)
            yield f"{where} {number}", found


def _base(folder: Path, base: Mapping[str, Any], rollouts: bool) -> Transcript:
    files = {
        path.name: _read(path)
        for path in sorted(folder.glob("*.json"))
        if path.name not in (BASE, LABELED)
    }
    labeled = _read(folder / LABELED) if (folder / LABELED).is_file() else None
    chunks = [row.get("chunk") for row in labeled] if labeled else None
    if chunks is None and isinstance(files.get("chunks.json"), Mapping):
        chunks = files["chunks.json"].get("chunks")
    prompt, response = base["prompt"], base["solution"]
    facts: dict[str, Any] = {
        PROBLEM: _place(folder),
        "gold": (files.get("problem.json") or {}).get("gt_answer"),
        "correct": base.get("is_correct"),
    }
    failed = list(_failed(folder)) if rollouts else []
    kept = {BASE: {k: v for k, v in base.items() if k not in ("prompt", "solution")}, **files}
    if chunks is None:
        facts[FACTS] = {"files": kept, "failed": failed}
        return Transcript(prompt=prompt, rendered=True, content=response, facts=facts)
    places = found_in(response, chunks)
    rows: Sequence[Mapping[str, Any]] = labeled or [{"chunk": chunk} for chunk in chunks]
    cuts: list[int] = []
    labels: list[Mapping[str, Any]] = []
    lost: dict[str, Any] = {}
    for number, (place, row) in enumerate(zip(places, rows, strict=True)):
        if place is None or (cuts and len(prompt) + place <= cuts[-1]):
            lost[str(number)] = row
        else:
            cuts.append(len(prompt) + place)
            labels.append({"chunk_idx": number, **row})
    facts[FACTS] = {
        "files": kept,
        "is_labeled": labeled is not None,
        "without_a_step": lost,
        "failed": failed,
    }
    return Transcript(
        prompt=prompt,
        rendered=True,
        content=response,
        cuts=tuple(cuts),
        labels=tuple(labels),
        facts=facts,
    )


def write_problems(traces: Iterable[Trace], folder: Path) -> int:
    """Write traces in thought-anchors' layout; those that came from there as they were.

    A trace from elsewhere is a problem of its own, whose sentences are the steps of its thinking.
    Rollouts go beside the base solution that they were read with.

    Args:
        traces: The traces.
        folder: Where the problems' folders are made.

    Returns:
        How many problems there are.

    Raises:
        TraceError: There are rollouts without their base solution.
    """
    solutions: dict[str, dict[int, list[tuple[int, Any]]]] = {}
    places: set[str] = set()
    bases: dict[str, str] = {}  # where the base solution went that rollouts were read with
    for number, trace in enumerate(traces):
        known = str(trace.metadata.get(PROBLEM, ""))
        kept = trace.metadata.get(FACTS)
        try:
            if kept is not None and "rollout" in kept:
                rows = solutions.setdefault(bases.get(known, known), {}).setdefault(
                    int(kept["chunk"]), []
                )
                rows.append((int(kept["number"]), _row_of(trace)))
                continue
            files = _files_of(trace) if kept is None else _files_kept(trace)
            failed = [] if kept is None else [tuple(row) for row in kept["failed"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TraceError(
                f"expected metadata[{FACTS!r}] of trace {number} as an import left it, got one "
                f"with {error!r}"
            ) from None
        side = _SIDES.get(str(trace.metadata.get("correct")), "base_solution")
        place = known if _PLACE.fullmatch(known) else f"{side}/problem_{number}"
        while place in places:
            place += "_again"
        bases[known] = place
        places.add(place)
        (folder / place).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _write(folder / place / Path(name).name, content)
        for chunk, sample, row in failed:
            solutions.setdefault(place, {}).setdefault(int(chunk), []).append((sample, row))
    without = sorted(set(solutions) - places)
    if without:
        raise TraceError(f"expected the base solution beside its rollouts, got none of {without}")
    for place, chunks in solutions.items():
        for chunk, rows in chunks.items():
            (folder / place / f"chunk_{chunk}").mkdir(exist_ok=True)
            ordered = [row for _, row in sorted(rows, key=lambda pair: pair[0])]
            _write(folder / place / f"chunk_{chunk}" / _ROLLOUT, ordered)
    return len(places)


def _files_kept(trace: Trace) -> dict[str, Any]:
    """The files of a problem's folder, with the labels that the steps have now."""
    kept = trace.metadata[FACTS]
    prompt = "".join(trace.token_texts[: trace.prompt_length])
    prompt = prompt.removeprefix(str(trace.metadata.get(START, "")))
    files = dict(kept["files"])
    files[BASE] = {"prompt": prompt, "solution": trace.response, **files[BASE]}
    if kept.get("is_labeled"):
        rows = {int(number): row for number, row in kept["without_a_step"].items()}
        rows |= {s.labels["chunk_idx"]: dict(s.labels) for s in trace.steps if "chunk" in s.labels}
        files[LABELED] = [row for _, row in sorted(rows.items())]
    return files


def _files_of(trace: Trace) -> dict[str, Any]:
    """The files of a trace that came from elsewhere."""
    prompt = "".join(trace.token_texts[: trace.prompt_length])
    steps = trace.steps_in("thinking")
    rows = [
        {
            "chunk": step.text.strip(),
            "chunk_idx": number,
            "function_tags": [step.labels["kind"]] if "kind" in step.labels else [],
            "depends_on": [],
            **step.labels,
        }
        for number, step in enumerate(steps)
    ]
    base = {
        "prompt": prompt,
        "solution": trace.response,
        "full_cot": trace.text,
        "answer": trace.answer or "",
        "is_correct": trace.metadata.get("correct"),
    }
    asked = {"problem": trace.steps_in("question")[0].text} if trace.steps_in("question") else {}
    problem = {**asked, "gt_answer": trace.metadata.get("gold")}
    chunks = {
        "source_text": trace.text,
        "solution_text": trace.text_of(trace.thinking),
        "chunks": [row["chunk"] for row in rows],
    }
    return {BASE: base, "problem.json": problem, "chunks.json": chunks, LABELED: rows}


def _row_of(trace: Trace) -> dict[str, Any]:
    text = trace.text.removeprefix(str(trace.metadata.get(START, "")))
    return {**trace.metadata[FACTS]["rollout"], "full_cot": text}


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def found_in(text: str, chunks: Sequence[Any]) -> list[int | None]:
    """Where each chunk begins in a text, one after the other; None for one that is not found.

    White space counts as white space, whatever kind and however much of it.
    """
    places: list[int | None] = []
    at = 0
    for chunk in chunks:
        words = str(chunk).split()
        found = re.compile(r"\s+".join(map(re.escape, words))).search(text, at) if words else None
        places.append(found.start() if found else None)
        at = found.end() if found else at
    return places


def _rollout_files(folder: Path) -> list[Path]:
    found = folder.glob("chunk_*/" + _ROLLOUT)
    return sorted(found, key=lambda path: _number(path.parent))


def _failed(folder: Path) -> Iterator[list[Any]]:
    """Chunk, number and row of each rollout that failed: they are no traces."""
    for path in _rollout_files(folder):
        try:
            rows = _read(path)
        except TraceError:
            continue
        for number, row in enumerate(rows if isinstance(rows, list) else []):
            if not isinstance(row, Mapping) or "error" in row:
                yield [_number(path.parent), number, row]


def _rollout(prompt: str, rollout: Any, folder: Path, number: int) -> Transcript | str:
    if not isinstance(rollout, Mapping) or "error" in rollout:
        told = rollout.get("error") if isinstance(rollout, Mapping) else rollout
        return f"the rollout failed: {told}"
    whole = rollout.get("full_cot")
    if not isinstance(whole, str) or not whole.startswith(prompt):
        return "expected a rollout whose full_cot begins with the prompt of its base solution"
    facts = {
        PROBLEM: _place(folder.parent),
        "chunk": _number(folder),
        "sample": number,
        "correct": rollout.get("is_correct"),
        FACTS: {
            "rollout": {name: value for name, value in rollout.items() if name != "full_cot"},
            "chunk": _number(folder),
            "number": number,
        },
    }
    return Transcript(prompt=prompt, rendered=True, content=whole[len(prompt) :], facts=facts)


def _place(folder: Path) -> str:
    return f"{folder.resolve().parent.name}/{folder.resolve().name}"


def _number(folder: Path) -> int:
    found = _CHUNK.fullmatch(folder.name)
    return int(found[1]) if found else -1


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise TraceError(f"{path.name} could not be read as JSON: {error}") from None
