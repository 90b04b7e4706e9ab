"""Step-Saliency through TransformerLens hooks: exact, on any model the hooks reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepflow_tl.models.base import ModelView
from stepflow_tl.models.precision import widened
from stepflow_tl.models.sites import Hook, hook_name
from stepflow_tl.saliency.collect import Collector
from stepflow_tl.saliency.plan import Plan
from stepflow_tl.saliency.rules import (
    OWN_ROW,
    needs_gradient,
    token_scores,
    visible_keys,
    weighted_objective,
)
from stepflow_tl.saliency.values import ValueNorms
from stepflow_tl.traces.rows import publish
from stepflow_tl.traces.trace import Trace


@dataclass
class _Pass:
    """The queries that the present forward pass runs, and whether they are scored."""

    queries: range
    scored: bool = True


def hooked_scores(
    view: ModelView,
    trace: Trace,
    plan: Plan,
    collector: Collector,
    *,
    scored: Callable[[int, range], None] = lambda layer, queries: None,
    chunk_done: Callable[[range], None] = lambda queries: None,
    next_query: int = 0,
) -> None:
    """Run the model forward and backward, and collect each layer's token scores.

    The gradient of a pattern is caught inside the backward pass, so that one layer's scores are
    alive at a time. Parameters are frozen meanwhile, and the graph starts at the embeddings.

    For ``objective="token"`` (and "logit", "margin") row t's score must use L_t alone, Eq. (1). Row
    t's attention reaches L_t only through position t itself, so that dL_t/dA[t] for all t at once
    is the gradient of sum_t L_t in a network whose keys and values are constants but for each row's
    own. Hooks give that network: values unchanged, gradients exact. Rows are then independent given
    the keys and values of earlier ones, and can be run in chunks against a KV cache.

    Args:
        view: The model; hook functions reach all of its sites.
        trace: The trace.
        plan: How it is scored; one chunk runs the whole trace without a cache.
        collector: Where scores go.
        scored: Told each layer whose scores of some queries are complete.
        chunk_done: Told each chunk that is complete.
        next_query: Chunks before this query only fill the cache.
    """
    tokens = own_tokens(view, trace)
    at = _Pass(range(len(trace)))
    hooks: list[Hook] = []
    if plan.needs_gradient:
        hooks.append((hook_name("embed"), start_graph))
        if plan.objective in OWN_ROW:
            for layer in range(view.n_layers):
                hooks += _own_row_only(view, layer)
    for layer in plan.layers:
        catcher = _Catcher(view, layer, plan, at, collector, scored)
        if plan.rule == "attention_x_value":
            hooks.append((hook_name("v", layer), catcher.see_values))
        hooks.append((hook_name("pattern", layer), catcher.catch))
    cache = None
    with (
        publish(view.model, trace),
        view.frozen(),
        torch.inference_mode(False),
        torch.set_grad_enabled(plan.needs_gradient),
        view.hooks(hooks),
    ):
        for queries in plan.chunks:
            rows, at.queries = slice(queries.start, queries.stop), queries
            at.scored = queries.start >= next_query
            if len(plan.chunks) == 1:
                logits = view.logits(tokens)
            else:
                mask = torch.ones_like(tokens[:, : rows.stop])
                logits, cache = view.run_cached(tokens[:, rows], mask, cache)
            if plan.needs_gradient and at.scored and plan.weights[rows].any():
                torch.autograd.backward(
                    weighted_objective(
                        logits, tokens.roll(-1, 1)[:, rows], plan.weights[rows], plan.objective
                    )
                )
            if cache is not None:
                view.detach(cache)
            if at.scored:
                chunk_done(queries)


def own_tokens(view: ModelView, trace: Trace) -> Int[Tensor, "1 pos"]:
    """A copy of the trace's tokens on the model's device that autograd may keep."""
    with torch.inference_mode(False):
        return trace.tokens.to(view.device, copy=True)


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


class _Catcher:
    """Scores a layer as its pattern, or the gradient there, comes by."""

    def __init__(
        self,
        view: ModelView,
        layer: int,
        plan: Plan,
        at: _Pass,
        collector: Collector,
        scored: Callable[[int, range], None],
    ) -> None:
        self._layer, self._rule, self._at = layer, plan.rule, at
        self._window = view.attention_window(layer)
        self._collector, self._scored = collector, scored
        self._norms_of = ValueNorms(view)
        self._norms: Float[Tensor, "head key"] | None = None

    def see_values(self, v: Float[Tensor, "1 pos kv_head d_head"], hook: Any) -> None:
        """Keep the norms of what the values of the pass add to the residual stream."""
        new = self._norms_of(self._layer, v.detach()[0].transpose(0, 1)).flatten(0, 1)
        self._norms = new if self._norms is None else torch.cat([self._norms, new], -1)

    def catch(self, pattern: Float[Tensor, "1 head query key"], hook: Any) -> Tensor | None:
        """Score the pattern at once, or as its gradient arrives."""
        if not self._at.scored:
            return None
        if not needs_gradient(self._rule):
            self._give(pattern.detach(), pattern.detach())
            return None
        caught: Tensor = _CatchGradient.apply(pattern, self._give)  # type: ignore[no-untyped-call]
        return caught

    def _give(self, pattern: Tensor, gradient: Tensor) -> None:
        a, g = widened(pattern[0]), widened(gradient[0])
        queries = self._at.queries
        keys = range(queries.stop - a.shape[-1], queries.stop)
        visible = visible_keys(queries, keys, self._window, a.device)
        scores = token_scores(a, g, self._rule)
        if self._norms is not None:
            scores = scores * self._norms[:, None, -a.shape[-1] :].to(scores)
        with self._collector.rows(self._layer, queries) as add:
            add(slice(0, a.shape[0]), keys.start, scores.masked_fill(~visible, 0.0))
        self._scored(self._layer, queries)


def _own_row_only(view: ModelView, layer: int) -> list[Hook]:
    """Make keys and values of a layer constants, but for each row's own key and value."""
    scale, cap = view.score_scale(layer), view.score_softcap(layer)
    query_site, key_site, *rotations = view.query_key_sites(layer)
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
        heads, n = scores.shape[1:3]
        if query_site not in seen or seen[query_site].shape[1:3] != (n, heads):
            raise view.no_queries_and_keys(layer)
        q = seen.pop(query_site).detach()
        if "cos" in seen:
            q = _turned_with_its_key(q, seen.pop("cos"), seen.pop("sin"))
        k = _per_query_head(seen.pop(key_site)[:, -n:], heads)
        own = torch.einsum("bphd,bphd->bhp", q, k - k.detach()) * scale
        if cap is not None:
            own = own * (1 - (_own(scores.detach()) / cap) ** 2)
        return scores + torch.nn.functional.pad(torch.diag_embed(own), (scores.shape[-1] - n, 0))

    def own_value(z: Float[Tensor, "1 pos head d_head"], hook: Any) -> Tensor:
        v = _per_query_head(seen.pop("v"), z.shape[2])
        weight = _own(seen.pop("pattern").detach())
        return z + torch.einsum("bhp,bphd->bphd", weight, v - v.detach())

    return [
        (hook_name(query_site, layer), keep(query_site)),
        (hook_name(key_site, layer), constant(key_site)),
        *((hook_name(site, layer), keep(site)) for site in rotations),
        (hook_name("v", layer), constant("v")),
        (hook_name("attn_scores", layer), own_key),
        (hook_name("pattern", layer), keep("pattern")),
        (hook_name("z", layer), own_value),
    ]


def _turned_with_its_key(
    q: Float[Tensor, "1 pos head d_head"],
    cos: Float[Tensor, "1 pos d_rotary"],
    sin: Float[Tensor, "1 pos d_rotary"],
) -> Float[Tensor, "1 pos head d_head"]:
    """Queries before rotation that have the product with their own keys that rotated ones have.

    The same rotation of both leaves the product as it is: (R q) . (R k) = q . k. What remains are
    the lengths of R, which long-context embeddings change, and dimensions that it leaves alone.
    """
    lengths = torch.nn.functional.pad(cos**2 + sin**2, (0, q.shape[-1] - cos.shape[-1]), value=1.0)
    return q * lengths[:, :, None].to(q.dtype)


def _own(x: Float[Tensor, "1 head query key"]) -> Float[Tensor, "1 head query"]:
    """What each query has of itself: queries are the last keys."""
    return torch.diagonal(x, offset=x.shape[-1] - x.shape[-2], dim1=-2, dim2=-1)


def _per_query_head(
    x: Float[Tensor, "1 pos kv_head d_head"], heads: int
) -> Float[Tensor, "1 pos head d_head"]:
    return x.repeat_interleave(heads // x.shape[2], dim=2)
