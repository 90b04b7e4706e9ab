"""Score rules and objectives of Step-Saliency."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepflow_tl.errors import SettingError
from stepflow_tl.models.precision import widened
from stepflow_tl.traces.trace import Trace

TokenRule = Literal["attention_x_gradient", "signed", "gradient", "attention"]
"""How pattern A and gradient G give a token score: |A G| (the default), A G, |G|, or A."""

Rule = Literal["attention_x_gradient", "signed", "gradient", "attention", "jacobian"]
"""A `TokenRule`, whose scores are pooled into steps; or "jacobian", which scores steps at once."""

Objective = Literal["token", "sequence", "summary", "answer"]
"""Whose gradient: each row's own loss L_t (the paper), or one mean loss over all predictions (the
authors' code), over the summary's, or over the answer's."""


def check_choice(name: str, value: str, choices: object) -> None:
    """Refuse a setting that is none of the choices.

    Raises:
        ValueError: Naming what was expected and what came.
    """
    if value not in get_args(choices):
        raise SettingError(f"expected {name} in {list(get_args(choices))}, got {value!r}")


def token_scores(
    pattern: Float[Tensor, "*batch query key"],
    gradient: Float[Tensor, "*batch query key"],
    rule: TokenRule,
) -> Float[Tensor, "*batch query key"]:
    """Token influence of each key on each query, per head (inside the mean of Eq. 1)."""
    if rule == "attention":
        return pattern
    if rule == "gradient":
        return gradient.abs()
    product = pattern * gradient
    return product if rule == "signed" else product.abs()


def visible_keys(
    queries: range, keys: range, window: int | None, device: torch.device
) -> Bool[Tensor, "query key"]:
    """Keys that each query attends to: those up to it, within its window."""
    query = torch.arange(queries.start, queries.stop, device=device)[:, None]
    key = torch.arange(keys.start, keys.stop, device=device)
    visible = key <= query
    return visible if window is None else visible & (key > query - window)


def objective_weights(trace: Trace, objective: Objective) -> Float[Tensor, "pos"]:
    """Weight of each row's next-token negative log-likelihood L_t in the loss.

    Raises:
        ValueError: The trace has no summary, no answer, or nothing to predict.
    """
    length = len(trace)
    if length < 2:
        raise SettingError(
            f"Step-Saliency needs a next token to predict: expected >= 2 tokens, got {length}"
        )
    weights = torch.zeros(length, dtype=torch.float64)
    if objective == "token":
        weights[:-1] = 1.0
        return weights
    span = {
        "sequence": (1, length),
        "summary": (trace.summary.start, trace.summary.stop),
        "answer": trace.answer_span,
    }[objective]
    if span is None or span[0] >= span[1]:
        needed = "a boxed answer in the response" if objective == "answer" else "a summary"
        raise SettingError(
            f"objective={objective!r} needs {needed}, found none in {trace!r}{_why_not(trace)}"
        )
    weights[span[0] - 1 : span[1] - 1] = 1.0 / (span[1] - span[0])
    return weights


def _why_not(trace: Trace) -> str:
    if not trace.unclosed:
        return ""
    cut = "" if trace.ended else ", and it was cut: generate it with more max_new_tokens"
    return f"; its thinking never closed{cut} (or score it with objective='token')"


def gain_of(weights: Float[Tensor, "pos"]) -> float:
    """A power of two that brings the largest weight to between a half and one.

    The mean loss of a long trace has gradients that float16 cannot hold (it ends at 6e-8). They are
    computed for the loss times this, and scores divided by it: which is exact.
    """
    largest = float(weights.max())
    return 2.0 ** math.floor(-math.log2(largest)) if largest > 0 else 1.0


def next_token_loss(
    logits: Float[Tensor, "1 pos vocab"],
    targets: Int[Tensor, "1 pos"],
    weights: Float[Tensor, "pos"],
) -> Float[Tensor, ""]:
    """Weighted sum of the rows' negative log-likelihoods of the tokens that follow them.

    Args:
        logits: The rows' logits.
        targets: The token that follows each row; of no matter where the weight is zero.
        weights: Weight of each row.
    """
    rows = _weighted(weights)
    losses = torch.nn.functional.cross_entropy(
        widened(logits[0, rows]),
        targets[0, rows].to(logits.device),
        reduction="none",
    )
    return (losses * weights[rows].to(losses)).sum()


def loss_gradient(
    hidden: Float[Tensor, "pos d_model"],
    unembed: Callable[[Float[Tensor, "1 row d_model"]], Float[Tensor, "1 row vocab"]],
    targets: Int[Tensor, "pos"],
    weights: Float[Tensor, "pos"],
    rows_at_once: int,
) -> Float[Tensor, "pos d_model"]:
    """Gradient of the weighted losses by the last hidden states, a few rows of logits at a time.

    Args:
        hidden: What the model unembeds.
        unembed: From hidden states to logits.
        targets: The token that follows each row; of no matter where the weight is zero.
        weights: Weight of each row's negative log-likelihood.
        rows_at_once: Rows whose logits are alive together.
    """
    gradient = torch.zeros_like(hidden)
    some = _weighted(weights)
    for first in range(some.start, some.stop, rows_at_once):
        rows = slice(first, min(some.stop, first + rows_at_once))
        with torch.enable_grad():
            states = hidden[rows].detach().requires_grad_()
            loss = next_token_loss(unembed(states[None]), targets[None, rows], weights[rows])
            (gradient[rows],) = torch.autograd.grad(loss, states)
    return gradient


def _weighted(weights: Float[Tensor, "pos"]) -> slice:
    """From the first row of some weight to the last."""
    rows = weights.nonzero()[:, 0].tolist()
    return slice(rows[0], rows[-1] + 1) if rows else slice(0, 0)
