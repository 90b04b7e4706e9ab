"""Step-Saliency through TransformerLens hooks: exact, on any model the hooks reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepflow_tl.models import (
    attention_window,
    hook_name,
    n_layers,
    score_scale,
    score_softcap,
)
from stepflow_tl.saliency.rules import (
    Objective,
    TokenRule,
    next_token_loss,
    objective_weights,
    token_scores,
)
from stepflow_tl.trace import Trace
from stepflow_tl.tracking import declare_trace

Sink = Callable[[int, Float[Tensor, "head query key"]], None]
"""Receives a layer and its token scores, which must not outlive the call."""


def hooked_scores(
    model: Any,
    trace: Trace,
    *,
    rule: TokenRule,
    objective: Objective,
    layers: Sequence[int],
    sink: Sink,
) -> None:
    """Run the model once forward and once backward, and hand each layer's token scores to `sink`.

    The gradient of a pattern is caught inside the backward pass, so that one layer's scores are
    alive at a time. Parameters are frozen meanwhile, and the graph starts at the embeddings.

    For ``objective="token"`` row t's score must use L_t alone, Eq. (1). Row t's attention reaches
    L_t only through position t itself, so that dL_t/dA[t] for all t at once is the gradient of
    sum_t L_t in a network whose keys and values are constants but for each row's own. Hooks give
    that network: values unchanged, gradients exact.
    """
    needs_gradient = rule != "attention"
    weights = objective_weights(trace, objective)
    tokens = own_tokens(model, trace)
    hooks: list[tuple[str, Callable[..., Tensor | None]]] = []
    if needs_gradient:
        hooks.append((hook_name("embed"), start_graph))
        if objective == "token":
            for layer in range(n_layers(model)):
                hooks += _own_row_only(model, layer)
    for layer in layers:
        visible = _visible_keys(len(trace), attention_window(model, layer))
        hooks.append((hook_name("pattern", layer), _catcher(layer, rule, visible, sink)))
    with (
        declare_trace(trace),
        frozen(model),
        torch.inference_mode(False),
        torch.set_grad_enabled(needs_gradient),
        model.hooks(fwd_hooks=hooks),
    ):
        logits = model(tokens, return_type="logits")
        if needs_gradient:
            torch.autograd.backward(next_token_loss(logits, tokens, weights))


def own_tokens(model: Any, trace: Trace) -> Int[Tensor, "1 pos"]:
    """A copy of the trace's tokens on the model's device that autograd may keep."""
    with torch.inference_mode(False):
        return trace.tokens.to(next(model.parameters()).device, copy=True)


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """No parameter takes a gradient inside; afterwards each is as it was."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def start_graph(embedded: Tensor, hook: Any) -> Tensor:
    """Hook that lets the graph begin at the embeddings."""
    return embedded.detach().requires_grad_()


class _CatchGradient(torch.autograd.Function):
    """Identity that hands its input and the gradient arriving there to a callback."""

    @staticmethod
    def forward(ctx: Any, pattern: Tensor, callback: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.save_for_backward(pattern)
        ctx.callback = callback
        return pattern.view_as(pattern)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (pattern,) = ctx.saved_tensors
        ctx.callback(pattern, gradient)
        return gradient, None


def _visible_keys(length: int, window: int | None) -> Bool[Tensor, "query key"]:
    """Keys that a query attends to; the gradient of a pattern does not vanish elsewhere."""
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    return visible if window is None else visible.triu(1 - window)


def _catcher(
    layer: int, rule: TokenRule, visible: Bool[Tensor, "query key"], sink: Sink
) -> Callable[..., Tensor | None]:
    def give(pattern: Tensor, gradient: Tensor) -> None:
        exact = pattern.dtype == torch.float64
        a, g = (x[0] if exact else x[0].float() for x in (pattern, gradient))
        sink(layer, token_scores(a, g, rule).masked_fill(~visible.to(a.device), 0.0))

    def catch(pattern: Float[Tensor, "1 head query key"], hook: Any) -> Tensor | None:
        if rule == "attention":
            give(pattern.detach(), pattern.detach())
            return None
        caught: Tensor = _CatchGradient.apply(pattern, give)  # type: ignore[no-untyped-call]
        return caught

    return catch


def _own_row_only(model: Any, layer: int) -> list[tuple[str, Callable[..., Tensor | None]]]:
    """Make keys and values of a layer constants, but for each row's own key and value."""
    scale, cap = score_scale(model, layer), score_softcap(model, layer)
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook_fn(x: Tensor, hook: Any) -> None:
            seen[name] = x

        return hook_fn

    def constant(name: str) -> Callable[..., Tensor]:
        def hook_fn(x: Tensor, hook: Any) -> Tensor:
            seen[name] = x
            return x.detach()

        return hook_fn

    def own_key(scores: Float[Tensor, "1 head query key"], hook: Any) -> Tensor:
        q, k = seen.pop("q").detach(), _per_query_head(seen.pop("k"), scores.shape[1])
        own = torch.einsum("bphd,bphd->bhp", q, k - k.detach()) * scale
        if cap is not None:
            at = torch.diagonal(scores.detach(), dim1=-2, dim2=-1) / cap
            own = own * (1 - at**2)
        return scores + torch.diag_embed(own)

    def own_value(z: Float[Tensor, "1 pos head d_head"], hook: Any) -> Tensor:
        v = _per_query_head(seen.pop("v"), z.shape[2])
        weight = torch.diagonal(seen.pop("pattern").detach(), dim1=-2, dim2=-1)
        return z + torch.einsum("bhp,bphd->bphd", weight, v - v.detach())

    return [
        (hook_name("rot_q", layer), keep("q")),
        (hook_name("rot_k", layer), constant("k")),
        (hook_name("v", layer), constant("v")),
        (hook_name("attn_scores", layer), own_key),
        (hook_name("pattern", layer), keep("pattern")),
        (hook_name("z", layer), own_value),
    ]


def _per_query_head(
    x: Float[Tensor, "1 pos kv_head d_head"], heads: int
) -> Float[Tensor, "1 pos head d_head"]:
    return x.repeat_interleave(heads // x.shape[2], dim=2)
