"""Scoring a trace as planned, with progress, a work file, and words for what went wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from stepflow_tl.errors import NonFiniteError, StepMapError
from stepflow_tl.models.base import ModelView
from stepflow_tl.models.memory import out_of_memory_as
from stepflow_tl.models.weights import let_gradients_through
from stepflow_tl.saliency.attention import KeyValues
from stepflow_tl.saliency.collect import Collector
from stepflow_tl.saliency.finite import diagnosed, non_finite
from stepflow_tl.saliency.fused import fused_scores, fused_states, streamed_scores
from stepflow_tl.saliency.hooked import hooked_scores, own_tokens
from stepflow_tl.saliency.plan import Plan
from stepflow_tl.saliency.workfile import WorkFile, open_work_file
from stepflow_tl.traces.trace import Trace
from stepflow_tl.version import __version__


def score(
    view: ModelView,
    trace: Trace,
    plan: Plan,
    collector: Collector,
    *,
    work_file: str | Path | None,
    progress: bool,
) -> None:
    """Score a trace as planned, going on with what a work file holds.

    Raises:
        WorkFileError: The work file is of another run, or no work file.
        StepMapError: A score is NaN or infinite, memory does not suffice, or the layers of a
            quantized model give no gradient.
    """
    if plan.needs_gradient:
        let_gradients_through(view.model, StepMapError)
    made_of = {} if work_file is None else _made_of(view, trace, plan, collector)
    try:
        with (
            out_of_memory_as(StepMapError, plan.advice),
            open_work_file(work_file, made_of) as work,
            tqdm(total=len(trace), unit="token", disable=not progress) as bar,
        ):
            _score(view, trace, plan, collector, work, bar)
    except NonFiniteError as error:
        fused, tokens = plan.backend == "fused", own_tokens(view, trace)
        again = partial(fused_states, view) if fused else view.logits
        raise diagnosed(error, view, trace, partial(again, tokens), inside=fused) from None


def _score(
    view: ModelView,
    trace: Trace,
    plan: Plan,
    collector: Collector,
    work: WorkFile | None,
    bar: Any,
) -> None:
    start = 0 if work is None else work.restore(collector)
    bar.update(start)

    def scored(layer: int, queries: range) -> None:
        position = collector.first_not_finite(layer, queries)
        if position is not None:
            raise non_finite(trace, layer, position)
        if work is not None:
            work.write_sums(collector, layer, queries, keep=not plan.streamed)

    def chunk_done(queries: range, stores: Sequence[KeyValues] = ()) -> None:
        bar.update(len(queries))
        if work is not None:
            work.write_chunk(queries, [store.last for store in stores])

    if start == len(trace):
        return
    if plan.backend == "hooks":
        hooked_scores(
            view, trace, plan, collector, scored=scored, chunk_done=chunk_done, next_query=start
        )
    elif plan.streamed:
        stored = () if work is None else work.stored()
        streamed_scores(
            view,
            trace,
            plan,
            collector,
            scored=scored,
            stored=stored,
            chunk_done=chunk_done,
            next_query=start,
        )
    else:
        fused_scores(view, trace, plan, collector, scored=scored)
        chunk_done(plan.chunks[0])
    if work is not None:
        work.forget_stored()


def _made_of(view: ModelView, trace: Trace, plan: Plan, collector: Collector) -> dict[str, Any]:
    """What the sums in a work file depend on."""
    read = hashlib.sha256(repr((trace.token_ids.tolist(), trace.step_of_token.tolist())).encode())
    return {
        "trace": read.hexdigest()[:16],
        "model": view.name,
        "weights": view.weights_hash(),
        "rule": plan.rule,
        "objective": plan.objective,
        "layers": list(plan.layers),
        "per_head": collector.per_head,
        "scores": collector.kind,
        "backend": plan.backend,
        "chunk": len(plan.chunks[0]),
        "version": __version__,
    }
