"""The work of a sweep: decode, grade, and say what it cost."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import pandas as pd

from stepflow_tl.decoding.settings import Decoding
from stepflow_tl.errors import InterventionWarning, SettingError
from stepflow_tl.interventions import Run, StepFlow
from stepflow_tl.models.base import Model
from stepflow_tl.sweep.cells import Batch, Cell, cells_together
from stepflow_tl.sweep.grid import to_spec
from stepflow_tl.tasks import Task
from stepflow_tl.tasks.strategies import Attempt
from stepflow_tl.traces.formats import AUTO, Format
from stepflow_tl.traces.trace import Trace

Row = dict[str, Any]

_BOTH_WAYS = 3  # a backward pass costs as much as two forward passes


def solve_batches(
    model: Model,
    task: Task,
    decoding: Decoding,
    identity: Mapping[str, Any],
    batches: Sequence[Batch],
) -> Generator[list[Row], None, None]:
    """Decode and grade batches of one arm and one seed, which wait in one queue.

    Close the iterator (`contextlib.closing`) where it may be left early.

    Yields:
        Rows with the columns of `stepflow_tl.sweep.store.COLUMNS`, one for each cell: as many
        together as a batch has, whichever were finished first.
    """
    arm, seed = batches[0].arm, batches[0].seed
    cells = [cell for batch in batches for cell in batch.cells]
    size = cells_together(arm.strategy, decoding)
    is_vote = arm.strategy.traces_per_answer > 1
    votes = [task.vote(cell.item) for cell in cells] if is_vote else []
    shared = {
        "arm": arm.label,
        "setting": arm.setting.label,
        "strategy": arm.strategy.label,
        "flow": json.dumps(to_spec(arm.setting.flow)),
        "seed": seed,
        "identity": identity_hash(identity),
    }
    with _attached(arm.setting.flow, model) as run:
        solved = arm.strategy.solve_each(
            model,
            [task.ask(cell.item, seed) for cell in cells],
            replace(decoding, seed=seed),
            same_answer=[vote.same for vote in votes] or task.same_answer,
            read_answer=[vote.read for vote in votes] or task.read_answer,
        )
        before = 0.0
        with closing(solved):
            while finished := list(islice(solved, size)):
                seconds = sum(attempt.seconds for _, attempt in finished) / len(finished)
                unsaid, before = run.actions_on_none - before, run.actions_on_none
                yield [
                    shared
                    | {"fired": _fired(run, attempt) + unsaid / len(finished), "seconds": seconds}
                    | _outcome(task, cells[number], seed, attempt, _extra(run, attempt))
                    for number, attempt in finished
                ]


@contextmanager
def _attached(flow: StepFlow, model: Model) -> Iterator[Run]:
    """A flow at work; a few cells may well be too few for it, of which the sweep warns by arm."""
    with ExitStack() as stack:
        run = stack.enter_context(flow.attach(model))
        try:
            yield run
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", InterventionWarning)
                stack.close()


def _fired(run: Run, attempt: Attempt) -> float:
    return sum(run.actions_on(trace) for trace in attempt.traces)


def _extra(run: Run, attempt: Attempt) -> float:
    """Passes over single tokens that interventions cost beside the decoding."""
    return _BOTH_WAYS * sum(run.extra_tokens_of(trace) for trace in attempt.traces)


def identity_hash(identity: Mapping[str, Any]) -> str:
    """8 hex digits that name what a row came from."""
    return hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()[:8]


def _format_of(row: pd.Series | Mapping[str, Any]) -> Format:
    """How a row was read while decoding."""
    said = row.get("format")
    if not isinstance(said, str):
        raise SettingError(
            "expected a row that says in what format it was read, got one of an older store: pass "
            "format= (such as Format(..., thinking_cutter='full_stop'), which cut its sentences)"
        )
    spec = dict(json.loads(said))
    if spec.pop(AUTO, False):
        spec["name"] = AUTO
    return Format.from_description(spec)


def _outcome(task: Task, cell: Cell, seed: int, attempt: Attempt, extra_forwards: float) -> Row:
    trace = attempt.trace
    grade = task.grade_parts(cell.item, trace.parts, trace.response, seed)
    return {
        "hash": cell.hash,
        "group": cell.item.group,
        "problem": cell.item.key,
        "correct": grade.correct,
        "answer": grade.answer,
        "error": grade.error,
        "error_step": grade.error_step,
        "reason": grade.reason,
        "tied": attempt.tied,
        "ended": trace.ended,
        "cut": trace.metadata.get("cut"),
        "steps": len(trace.steps_in("thinking")),
        "tokens": attempt.tokens,
        "forward_passes": attempt.tokens + extra_forwards,
        "response": trace.response,
        "token_ids": json.dumps(trace.token_ids.tolist()),
        "prompt_length": trace.prompt_length,
        "format": json.dumps(trace.read_as),
    }


def trace_of(
    model: object, row: pd.Series | Mapping[str, Any], *, format: str | Format | None = None
) -> Trace:
    """The trace of a row, token by token and step by step: what Step-Saliency reads.

    Args:
        model: The model that the row was decoded with.
        row: A row of `Sweep.run` or `Store.to_dataframe`, such as ``rows.iloc[0]``.
        format: How to read it; None for as it was read while decoding.

    Raises:
        ValueError: It was cut by a caller's own cutter, or the row does not say how, and no
            format is given.
    """
    if format is None:
        format = _format_of(row)
    return Trace.from_token_ids(
        model,
        json.loads(row["token_ids"]),
        prompt_length=int(row["prompt_length"]),
        format=format,
        strict=False,
    )
