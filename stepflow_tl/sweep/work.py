"""The work of one batch: decode, grade, and say what it cost."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from stepflow_tl.decoding.settings import Decoding
from stepflow_tl.errors import InterventionWarning, SettingError
from stepflow_tl.models.base import Model
from stepflow_tl.sweep.cells import Batch, Cell
from stepflow_tl.sweep.grid import to_spec
from stepflow_tl.tasks import Task
from stepflow_tl.tasks.strategies import Attempt
from stepflow_tl.traces.formats import AUTO, Format
from stepflow_tl.traces.trace import Trace

Row = dict[str, Any]

_BOTH_WAYS = 3  # a backward pass costs as much as two forward passes


def solve_batch(
    model: Model, task: Task, decoding: Decoding, identity: Mapping[str, Any], batch: Batch
) -> list[Row]:
    """Decode and grade one batch.

    Returns:
        One row per cell, with the columns of `stepflow_tl.sweep.store.COLUMNS`.
    """
    is_vote = batch.arm.strategy.traces_per_answer > 1
    votes = [task.vote(cell.item) for cell in batch.cells] if is_vote else []
    with warnings.catch_warnings():
        # One batch may well be too short for an intervention; the sweep warns of whole arms.
        warnings.simplefilter("ignore", InterventionWarning)
        with batch.arm.setting.flow.attach(model) as run:
            attempts = batch.arm.strategy.solve(
                model,
                [task.ask(cell.item, batch.seed) for cell in batch.cells],
                replace(decoding, seed=batch.seed),
                same_answer=[vote.same for vote in votes] or task.same_answer,
                read_answer=[vote.read for vote in votes] or task.read_answer,
            )
    shared = {
        "arm": batch.arm.label,
        "setting": batch.arm.setting.label,
        "strategy": batch.arm.strategy.label,
        "flow": json.dumps(to_spec(batch.arm.setting.flow)),
        "seed": batch.seed,
        "fired": run.actions / len(batch.cells),
        "identity": identity_hash(identity),
    }
    extra = _BOTH_WAYS * run.extra_tokens / len(batch.cells)
    return [
        shared | _outcome(task, cell, batch.seed, attempt, extra)
        for cell, attempt in zip(batch.cells, attempts, strict=True)
    ]


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
        "seconds": attempt.seconds,
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
