"""Choosing how a trace is scored: through hooks, or inside the attention of its decoder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from stepflow_tl.errors import NonFiniteError, SettingError, StepMapError
from stepflow_tl.models.huggingface import (
    decoder_layers,
    has_attention_function,
    huggingface_model,
    is_huggingface,
    text_config,
)
from stepflow_tl.models.memory import enough_memory
from stepflow_tl.models.view import (
    hooks_on,
    model_name,
    n_heads,
    n_layers,
    weights_hash,
)
from stepflow_tl.models.weights import let_gradients_through
from stepflow_tl.saliency.attention import KeyValues
from stepflow_tl.saliency.collect import Collector
from stepflow_tl.saliency.finite import diagnosed, non_finite
from stepflow_tl.saliency.fused import fused_scores, fused_states, streamed_scores
from stepflow_tl.saliency.hooked import hooked_scores, own_tokens
from stepflow_tl.saliency.probe import difference
from stepflow_tl.saliency.rules import Objective, TokenRule, gain_of, objective_weights
from stepflow_tl.saliency.workfile import WorkFile, open_work_file
from stepflow_tl.traces.trace import Trace
from stepflow_tl.version import __version__

Backend = Literal["auto", "hooks", "fused"]

_FUSED_FROM = 1024  # tokens; the patterns of shorter traces fit in memory
_FUSED_CHUNK = 512
_PATTERNS_AT_ONCE = 1 << 27  # entries of the patterns of all layers and heads, for one chunk
_SOFT_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
_OR_FUSED = " or backend='fused', which keeps no pattern"
_LENGTH_DEPENDENT = ("dynamic", "longrope")  # rotary embeddings that change with the length

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How a trace is to be scored.

    Attributes:
        rule: How a pattern and its gradient give a score.
        objective: Whose gradient.
        backend: "hooks" or "fused".
        chunks: The queries of each chunk; one chunk for the whole trace.
        checkpointing: Whether layers run again in the backward pass.
    """

    rule: TokenRule
    objective: Objective
    backend: Literal["hooks", "fused"]
    chunks: tuple[range, ...]
    checkpointing: bool

    @property
    def streamed(self) -> bool:
        """Whether rows are scored by their own losses or by attention alone: chunk by chunk."""
        return _in_chunks(self.rule, self.objective)

    def advice(self) -> str:
        """What would need less memory."""
        got = f"backend={self.backend!r}, objective={self.objective!r}"
        if self.streamed:
            size = len(self.chunks[0])
            less = f"chunk={max(1, size // 2)}" + ("" if self.backend == "fused" else _OR_FUSED)
            return f"expected a chunk that fits, got chunk={size} with {got}; try {less}"
        if self.backend == "hooks":
            less = "backend='fused', with checkpointing=True, or objective='token' with a chunk=..."
        elif not self.checkpointing:
            less = "checkpointing=True, or objective='token' with a chunk=..."
        else:
            less = "objective='token' with a chunk=..., or a model in dtype='bfloat16'"
        return (
            f"expected a trace that fits whole, got {self.chunks[-1].stop} tokens with {got}, "
            f"checkpointing={self.checkpointing}; try {less}"
        )


def _in_chunks(rule: TokenRule, objective: Objective) -> bool:
    return objective == "token" or rule == "attention"


def plan(
    model: Any,
    trace: Trace,
    *,
    rule: TokenRule,
    objective: Objective,
    backend: Backend,
    chunk: int | None,
    checkpointing: bool,
) -> Plan:
    """Decide once how a trace is to be scored.

    Raises:
        ValueError: The backend cannot score this model, a setting means nothing to it, or the
            trace lacks the tokens that the objective needs.
    """
    objective_weights(trace, objective)
    streamed = _in_chunks(rule, objective)
    plain, long = is_huggingface(model), len(trace) >= _FUSED_FROM
    fused = backend == "fused" or (backend == "auto" and (plain or long))
    reason = why_not_fused(model, trace, streamed) if fused else None
    if plain and (not fused or reason):
        raise SettingError(
            "expected a TransformerLens model for backend='hooks', got a plain "
            f"{type(model).__name__}; load it with stepflow_tl.load_model"
            + (f" (backend='fused' cannot score it: {reason})" if reason else "")
        )
    if backend == "fused" and reason:
        raise SettingError(
            f"backend='fused' cannot score this model: {reason}; use backend='hooks'"
        )
    chosen: Literal["hooks", "fused"] = "fused" if fused and not reason else "hooks"
    if reason:
        _log.info("a trace of %d tokens goes through hooks: %s", len(trace), reason)
    if chunk is not None and not (streamed and chunk >= 1):
        raise SettingError(
            "expected chunk >= 1, for objective='token' or rule='attention', whose rows can be "
            f"scored in chunks; got chunk={chunk}, objective={objective!r}, rule={rule!r}"
        )
    if checkpointing and (chosen == "hooks" or streamed):
        raise SettingError(
            "checkpointing is for backend='fused' and one loss for the whole trace, got "
            f"backend={chosen!r}, objective={objective!r}, rule={rule!r}"
        )
    if chunk is None:
        chunk = _chunk(model, trace, chosen) if streamed else len(trace)
    chunks = (range(a, min(len(trace), a + chunk)) for a in range(0, len(trace), chunk))
    return Plan(rule, objective, chosen, tuple(chunks), checkpointing)


def _chunk(model: Any, trace: Trace, backend: str) -> int:
    """Queries of a chunk, where the caller names none."""
    if backend == "fused":
        return _FUSED_CHUNK
    if hooks_on(model):
        return len(trace)  # a user's hook may count on seeing the whole trace
    per_query = n_layers(model) * n_heads(model) * len(trace)
    return min(len(trace), max(16, _PATTERNS_AT_ONCE // per_query))


def score(
    model: Any,
    trace: Trace,
    collector: Collector,
    how: Plan,
    *,
    work_file: str | Path | None,
    progress: bool,
) -> None:
    """Score a trace as planned, going on with what a work file holds.

    Raises:
        WorkFileError: The work file is of another run, or no work file.
        StepMapError: A score is NaN or infinite, memory does not suffice, or the layers of a
            quantised model give no gradient.
    """
    if how.rule != "attention":
        let_gradients_through(model, StepMapError)
        collector.gain = gain_of(objective_weights(trace, how.objective))
    made_of = {} if work_file is None else _made_of(model, trace, collector, how)
    try:
        with (
            enough_memory(StepMapError, how.advice),
            open_work_file(work_file, made_of) as work,
            tqdm(total=len(trace), unit="token", disable=not progress) as bar,
        ):
            _score(model, trace, collector, how, work, bar)
    except NonFiniteError as error:
        fused = how.backend == "fused"
        tokens = own_tokens(model, trace)
        again = partial(fused_states, model) if fused else partial(model, return_type="logits")
        raise diagnosed(error, model, trace, partial(again, tokens), inside=fused) from None


def _score(
    model: Any, trace: Trace, collector: Collector, how: Plan, work: WorkFile | None, bar: Any
) -> None:
    start = 0 if work is None else work.restore(collector)
    bar.update(start)

    def scored(layer: int, queries: range) -> None:
        position = collector.first_not_finite(layer, queries)
        if position is not None:
            raise non_finite(trace, layer, position)
        if work is not None:
            work.write_sums(collector, layer, queries, keep=not how.streamed)

    def chunk_done(queries: range, stores: Sequence[KeyValues] = ()) -> None:
        bar.update(len(queries))
        if work is not None:
            work.write_chunk(queries, [store.last for store in stores])

    common: dict[str, Any] = {"rule": how.rule, "collector": collector, "scored": scored}
    if start == len(trace):
        return
    if how.backend == "hooks":
        hooked_scores(
            model,
            trace,
            objective=how.objective,
            chunks=how.chunks,
            next_query=start,
            chunk_done=chunk_done,
            **common,
        )
    elif how.streamed:
        streamed_scores(
            model,
            trace,
            chunks=[chunk for chunk in how.chunks if chunk.start >= start],
            stored=() if work is None else work.stored(),
            chunk_done=chunk_done,
            **common,
        )
    else:
        fused_scores(
            model, trace, objective=how.objective, checkpointing=how.checkpointing, **common
        )
        chunk_done(how.chunks[0])
    if work is not None:
        work.forget_stored()


def _made_of(
    model: Any,
    trace: Trace,
    collector: Collector,
    how: Plan,
) -> dict[str, Any]:
    """What the sums in a work file depend on."""
    read = hashlib.sha256(repr((trace.token_ids.tolist(), trace.step_of_token.tolist())).encode())
    return {
        "trace": read.hexdigest()[:16],
        "model": model_name(model),
        "weights": weights_hash(model),
        "rule": how.rule,
        "objective": how.objective,
        "layers": list(collector.layers),
        "per_head": collector.per_head,
        "scores": type(collector).__name__,
        "backend": how.backend,
        "chunk": len(how.chunks[0]),
        "version": __version__,
    }


def why_not_fused(model: Any, trace: Trace, streamed: bool) -> str | None:
    """Why the fused backend cannot score a model; None where it can.

    Args:
        model: Any model.
        trace: The trace.
        streamed: Whether it would be run in chunks.
    """
    original = huggingface_model(model)
    if original is None:
        return "a HookedTransformer has no Hugging Face attention inside"
    if hooks_on(model):
        return f"hooks live on it, at {hooks_on(model)[0]}, which it would not reach as they expect"
    if has_attention_function(original):
        return "StepFlow is attached to its attention"
    if original.training:
        return "it is in training mode; call model.eval()"
    config, name = text_config(original), type(original).__name__
    if not getattr(original, "_supports_attention_backend", False):
        return f"{name} does not attend through transformers' AttentionInterface (ALiBi, for one)"
    capped = [n for n in _SOFT_CAPS if getattr(config, n, None) is not None]
    if capped:
        return f"{name} soft-caps its scores or logits ({', '.join(capped)})"
    kinds = set(getattr(config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
    }
    if kinds or len(decoder_layers(original)) != n_layers(model):
        return f"not all layers of {name} are full or sliding attention (others: {sorted(kinds)})"
    if streamed and any(f"'{rope}'" in repr(_rope(config)) for rope in _LENGTH_DEPENDENT):
        return f"the rotary embedding of {name} changes with the length of what is run"
    return difference(model, original, trace)


def _rope(config: Any) -> Any:
    return getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
