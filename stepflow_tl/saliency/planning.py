"""Deciding how a trace is scored: through hooks, or inside the attention of its decoder."""

from __future__ import annotations

import logging
from typing import Any, Literal

from stepflow_tl.errors import SettingError
from stepflow_tl.models.base import ModelView
from stepflow_tl.models.decoder import decoder_layers, text_config
from stepflow_tl.saliency.plan import Backend, Plan, in_chunks
from stepflow_tl.saliency.probe import difference
from stepflow_tl.saliency.rules import (
    Objective,
    TokenRule,
    gain_of,
    needs_gradient,
    objective_weights,
)
from stepflow_tl.traces.trace import Trace

_FUSED_FROM = 1024  # tokens, where attention alone is read: patterns of shorter ones fit in memory
_FUSED_CHUNK = 512
_PATTERNS_AT_ONCE = 1 << 27  # entries of the patterns of all layers and heads, for one chunk
_SOFT_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
_LENGTH_DEPENDENT = ("dynamic", "longrope")  # rotary embeddings that change with the length

_log = logging.getLogger(__name__)


def plan_scores(
    view: ModelView,
    trace: Trace,
    layers: tuple[int, ...],
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
    weights = objective_weights(trace, objective)
    gain = gain_of(weights) if needs_gradient(rule) else 1.0
    streamed = in_chunks(rule, objective)
    chosen = _backend(view, trace, rule, backend, streamed)
    if chunk is not None and not (streamed and chunk >= 1):
        raise SettingError(
            "expected chunk >= 1, for objective='token', 'logit' or 'margin' or a rule without "
            "gradient, whose rows can be scored in chunks; "
            f"got chunk={chunk}, objective={objective!r}, rule={rule!r}"
        )
    if checkpointing and (chosen == "hooks" or streamed):
        raise SettingError(
            "checkpointing is for backend='fused' and one loss for the whole trace, got "
            f"backend={chosen!r}, objective={objective!r}, rule={rule!r}"
        )
    size = chunk or (_chunk(view, trace, chosen) if streamed else len(trace))
    chunks = (range(a, min(len(trace), a + size)) for a in range(0, len(trace), size))
    return Plan(rule, objective, chosen, layers, tuple(chunks), checkpointing, weights * gain, gain)


def _backend(
    view: ModelView, trace: Trace, rule: TokenRule, wanted: Backend, streamed: bool
) -> Literal["hooks", "fused"]:
    """The backend that a trace is scored by."""
    hooks_serve = "attn_scores" in view.sites
    quicker = needs_gradient(rule) or len(trace) >= _FUSED_FROM
    fused = wanted == "fused" or (wanted == "auto" and (not hooks_serve or quicker))
    reason = why_not_fused(view, trace, streamed) if fused else None
    if not hooks_serve and (not fused or reason):
        raise SettingError(
            "expected a TransformerLens model for backend='hooks', got a plain "
            f"{type(view.model).__name__}; load it with stepflow_tl.load_model"
            + (f" (backend='fused' cannot score it: {reason})" if reason else "")
        )
    if wanted == "fused" and reason:
        raise SettingError(
            f"backend='fused' cannot score this model: {reason}; use backend='hooks'"
        )
    if reason:
        _log.info("a trace of %d tokens goes through hooks: %s", len(trace), reason)
    return "fused" if fused and not reason else "hooks"


def _chunk(view: ModelView, trace: Trace, backend: str) -> int:
    """Queries of a chunk, where the caller names none."""
    if backend == "fused":
        return _FUSED_CHUNK
    if view.hooks_on():
        return len(trace)  # a user's hook may count on seeing the whole trace
    per_query = view.n_layers * view.n_heads * len(trace)
    return min(len(trace), max(16, _PATTERNS_AT_ONCE // per_query))


def why_not_fused(view: ModelView, trace: Trace, streamed: bool) -> str | None:
    """Why the fused backend cannot score a model; None where it can.

    Args:
        view: The model.
        trace: The trace.
        streamed: Whether it would be run in chunks.
    """
    decoder = view.decoder
    if decoder is None:
        return "a HookedTransformer has no Hugging Face attention inside"
    if view.hooks_on():
        return f"hooks live on it, at {view.hooks_on()[0]}, which it would not reach as they expect"
    if decoder.training:
        return "it is in training mode; call model.eval()"
    config, name = text_config(decoder), type(decoder).__name__
    if not getattr(decoder, "_supports_attention_backend", False):
        return f"{name} does not attend through transformers' AttentionInterface (ALiBi, for one)"
    capped = [n for n in _SOFT_CAPS if getattr(config, n, None) is not None]
    if capped:
        return f"{name} soft-caps its scores or logits ({', '.join(capped)})"
    kinds = set(getattr(config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
    }
    if kinds or len(decoder_layers(decoder)) != view.n_layers:
        return f"not all layers of {name} are full or sliding attention (others: {sorted(kinds)})"
    if streamed and any(f"'{rope}'" in repr(_rope(config)) for rope in _LENGTH_DEPENDENT):
        return f"the rotary embedding of {name} changes with the length of what is run"
    return difference(view, trace)


def _rope(config: Any) -> Any:
    return getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
