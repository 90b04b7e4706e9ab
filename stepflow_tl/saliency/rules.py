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

TokenRule = Literal["attention_x_gradient", "signed", "gradient", "attention", "attention_x_value"]
"""How pattern A and gradient G give a token score: |A G| (the default), A G, |G|, or A; or A times
the norm of what the key's value adds to the residual stream (`stepflow_tl.saliency.values`)."""

Rule = Literal[
    "attention_x_gradient",
    "signed",
    "gradient",
    "attention",
    "attention_x_value",
    "jacobian",
    "rollout",
]
"""A `TokenRule`, whose scores are pooled into steps; or "jacobian" or "rollout", which score steps
in a way of their own."""

Objective = Literal["token", "logit", "margin", "sequence", "summary", "answer"]
"""Whose gradient: each row's own loss L_t (the paper), its logit of the token that follows, or that
logit's margin over the runner-up; or one mean loss over all predictions (the authors' code), over
the summary's, or over the answer's."""

OWN_ROW: tuple[Objective, ...] = ("token", "logit", "margin")
"""Objectives of which each row has its own."""


def needs_gradient(rule: TokenRule) -> bool:
    """Whether a rule's scores need a backward pass."""
    return rule not in ("attention", "attention_x_value")


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
    """Token influence of each key on each query, per head (inside the mean of Eq. 1).

    Of a rule without gradients it is the pattern, which "attention_x_value" weights elsewhere.
    """
    if not needs_gradient(rule):
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
    """Weight of each row's own part in the objective: its loss L_t, its logit, or its margin.

    Raises:
        ValueError: The trace has no summary, no answer, or nothing to predict.
    """
    length = len(trace)
    if length < 2:
        raise SettingError(
            f"Step-Saliency needs a next token to predict: expected >= 2 tokens, got {length}"
        )
    weights = torch.zeros(length, dtype=torch.float64)
    if objective in OWN_ROW:
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


def weighted_objective(
    logits: Float[Tensor, "1 pos vocab"],
    targets: Int[Tensor, "1 pos"],
    weights: Float[Tensor, "pos"],
    objective: Objective = "token",
) -> Float[Tensor, ""]:
    """Weighted sum of what the rows say of the tokens that follow them.

    With z_t the logits of row t and x the token that follows: its negative log-likelihood; for
    "logit" z_t[x]; for "margin" z_t[x] - max_{v != x} z_t[v].

    Args:
        logits: The rows' logits.
        targets: The token that follows each row; of no matter where the weight is zero.
        weights: Weight of each row.
        objective: Which of them.
    """
    rows = _weighted(weights)
    said, following = widened(logits[0, rows]), targets[0, rows].to(logits.device)
    if objective in ("logit", "margin"):
        values = said.gather(-1, following[:, None])[:, 0]
        if objective == "margin":
            others = said.scatter(-1, following[:, None], -torch.inf)
            values = values - others.amax(-1)
    else:
        values = torch.nn.functional.cross_entropy(said, following, reduction="none")
    return (values * weights[rows].to(values)).sum()


def objective_gradient(
    hidden: Float[Tensor, "pos d_model"],
    unembed: Callable[[Float[Tensor, "1 row d_model"]], Float[Tensor, "1 row vocab"]],
    targets: Int[Tensor, "pos"],
    weights: Float[Tensor, "pos"],
    rows_at_once: int,
    objective: Objective = "token",
) -> Float[Tensor, "pos d_model"]:
    """Gradient of `weighted_objective` by the last hidden states, a few rows of logits at a time.

    Args:
        hidden: What the model unembeds.
        unembed: From hidden states to logits.
        targets: The token that follows each row; of no matter where the weight is zero.
        weights: Weight of each row.
        rows_at_once: Rows whose logits are alive together.
        objective: What the rows say.
    """
    gradient = torch.zeros_like(hidden)
    some = _weighted(weights)
    for first in range(some.start, some.stop, rows_at_once):
        rows = slice(first, min(some.stop, first + rows_at_once))
        with torch.enable_grad():
            states = hidden[rows].detach().requires_grad_()
            total = weighted_objective(
                unembed(states[None]), targets[None, rows], weights[rows], objective
            )
            (gradient[rows],) = torch.autograd.grad(total, states)
    return gradient


def _weighted(weights: Float[Tensor, "pos"]) -> slice:
    """From the first row of some weight to the last."""
    rows = weights.nonzero()[:, 0].tolist()
    return slice(rows[0], rows[-1] + 1) if rows else slice(0, 0)
