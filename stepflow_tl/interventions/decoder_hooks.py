"""Inside a plain Hugging Face decoder: the hook functions of TransformerLens, without its model.

Such a model has no hook points, and with PyTorch's own attention no attention pattern. So its
attention modules call a function of ours for a while, which computes the pattern only where a hook
function wants to see it: in the layers that have one at ``hook_pattern``, and there for the queries
from the first one in thinking or summary on, some of them at a time. All else is left to the
model's own attention.

==================== ============================= =============================================
hook                 shape                         note
==================== ============================= =============================================
``hook_resid_pre``   [batch, pos, d_model]
``attn.hook_v``      [batch, pos, kv_head, d_head] to be read only
``attn.hook_pattern``  [batch, head, query, key]   `Tracker.here` stands at these queries alone
``attn.hook_z``      [batch, pos, head, d_head]
==================== ============================= =============================================
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepflow_tl.errors import ModelError
from stepflow_tl.interventions.base import Hook
from stepflow_tl.interventions.tracker import Tracker
from stepflow_tl.models.huggingface import (
    AttentionFunction,
    attention_function,
    attention_module,
    decoder_layers,
    has_attention_function,
    text_config,
)
from stepflow_tl.models.view import SiteName, hook_name

_SITES: tuple[SiteName, ...] = ("resid_pre", "v", "pattern", "z")
_IMPLEMENTATIONS = ("sdpa", "eager")
_TILE = 64  # queries whose patterns are held at a time

Functions = Sequence[Callable[..., Tensor | None]]


@contextmanager
def hooks_inside(model: Any, hooks: Sequence[Hook], tracker: Tracker) -> Iterator[None]:
    """Inside, a plain Hugging Face model runs these hook functions.

    Args:
        model: The model; its attention implementation is "sdpa" or "eager".
        hooks: Pairs of a TransformerLens hook name and a function, at the sites named above.
        tracker: Follows the model meanwhile.

    Raises:
        ModelError: The model, its attention implementation or a hook is none that this can serve.
    """
    attention = _Attention(_own_attention(model), _by_layer(model, hooks), tracker)
    layers = decoder_layers(model)
    with ExitStack() as stack:
        stack.enter_context(tracker.watch(model))  # first: hooks at layer 0 ask where it stands
        for layer, functions in attention.functions.items():
            if functions["resid_pre"]:
                handle = layers[layer].register_forward_pre_hook(
                    _before_layer(functions["resid_pre"]), with_kwargs=True
                )
                stack.callback(handle.remove)
        masks_of = text_config(model)._attn_implementation
        stack.enter_context(attention_function(model, attention, masks_of=masks_of))
        yield


@dataclass(frozen=True)
class _Attention:
    """The attention function of all layers: an `AttentionFunction`.

    Attributes:
        original: The model's own.
        functions: Hook functions by layer and site.
        tracker: Follows the model.
    """

    original: AttentionFunction
    functions: dict[int, dict[SiteName, list[Any]]]
    tracker: Tracker

    def __call__(
        self,
        module: Any,
        query: Float[Tensor, "batch head query d_head"],
        key: Float[Tensor, "batch kv_head key d_head"],
        value: Float[Tensor, "batch kv_head key d_head"],
        mask: Tensor | None,
        **options: Any,
    ) -> tuple[Float[Tensor, "batch query head d_head"], Tensor | None]:
        """Attend as the model does, through the hook functions of the layer."""
        functions = self.functions.get(getattr(module, "layer_idx", -1))
        if functions is None:
            return self.original(module, query, key, value, mask, **options)
        here, queries = self.tracker.here, query.shape[2]
        filled = min(key.shape[2], here.segment.shape[1])  # a static cache has room for more
        if functions["v"]:  # a copy: a cache may be written to in place
            new = value[:, :, filled - queries : filled].transpose(1, 2).clone()
            _through(functions["v"], new)
        if functions["pattern"] and here.reasoning:
            key, value = key[:, :, :filled], value[:, :, :filled]
            parts = self._parts(functions["pattern"], module, query, key, value, mask, **options)
            z = torch.cat(list(parts), dim=1)
        else:
            z = self.original(module, query, key, value, mask, **options)[0]
        return _through(functions["z"], z), None

    def _parts(
        self,
        functions: Functions,
        module: Any,
        query: Float[Tensor, "batch head query d_head"],
        key: Float[Tensor, "batch kv_head key d_head"],
        value: Float[Tensor, "batch kv_head key d_head"],
        mask: Tensor | None,
        **options: Any,
    ) -> Iterator[Float[Tensor, "batch rows head d_head"]]:
        """Outputs of the queries before the first in thinking or summary, then tile by tile."""
        here, queries = self.tracker.here, query.shape[2]

        def rows(first: int, stop: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
            """Queries, keys, values and mask, as if the pass ended after these queries."""
            seen = key.shape[2] - queries + stop
            shown = None if mask is None else mask[:, :, first:stop, :seen]
            return query[:, :, first:stop], key[:, :, :seen], value[:, :, :seen], shown

        plain = here.reasoning_from - here.start
        if plain:
            yield self.original(module, *rows(0, plain), **options)[0]
        for first in range(plain, queries, _TILE):
            stop = min(first + _TILE, queries)
            with self.tracker.standing(here.part(first, stop)):
                tile = attend_through(functions, *rows(first, stop), **options)
            yield tile


def attend_through(
    functions: Functions,
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    mask: Float[Tensor, "#batch #head query key"] | Bool[Tensor, "#batch #head query key"] | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, "head"] | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> Float[Tensor, "batch query head d_head"]:
    """Attention whose pattern goes through hook functions, computed in float32 or wider.

    Args:
        functions: Take and may replace the pattern [batch, head, query, key].
        query: The queries, the last ones of those so far.
        key: The keys up to the last query, not repeated over the query heads of a group.
        value: The values, likewise.
        mask: What is added to the scores, or which keys are seen; None for all up to the query.
        scaling: Factor of the scores; None for d_head^-0.5.
        softcap: Bound of the scores.
        s_aux: Attention sinks: each head's logit of an extra key without a value.
        dropout: Share of the pattern to drop.
    """
    batch, heads, queries, d_head = query.shape
    grouped = query.reshape(batch, key.shape[1], -1, d_head)
    exact = torch.promote_types(query.dtype, torch.float32)
    scores = grouped @ key.transpose(2, 3) * (d_head**-0.5 if scaling is None else scaling)
    scores = scores.view(batch, heads, queries, -1).to(exact)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None and queries > 1:
        mask = scores.new_ones(scores.shape[2:], dtype=torch.bool).tril(scores.shape[3] - queries)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    if s_aux is not None:
        sink = s_aux.to(scores.dtype)[:, None, None].expand(batch, -1, queries, 1)
        scores = torch.cat([scores, sink], dim=-1)
    pattern = scores.softmax(-1)[..., : key.shape[2]].to(query.dtype)
    if dropout:
        pattern = nn.functional.dropout(pattern, dropout)
    pattern = _through(functions, pattern)
    z = pattern.reshape(batch, key.shape[1], -1, key.shape[2]) @ value
    return z.view(batch, heads, queries, -1).transpose(1, 2)


def _through(functions: Functions, x: Tensor) -> Tensor:
    """What hook functions make of a tensor, one after the other."""
    for function in functions:
        changed = function(x, None)
        x = x if changed is None else changed
    return x


def _before_layer(functions: Functions) -> Callable[..., tuple[Any, Any]]:
    """A forward pre-hook of a decoder layer that runs hook functions on its residual stream."""

    def run(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (_through(functions, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": _through(functions, kwargs["hidden_states"])}

    return run


def _by_layer(model: Any, hooks: Sequence[Hook]) -> dict[int, dict[SiteName, list[Any]]]:
    """The hook functions of each layer that has any, by site."""
    layers = range(len(decoder_layers(model)))
    places = {hook_name(site, layer): (layer, site) for layer in layers for site in _SITES}
    found: dict[int, dict[SiteName, list[Any]]] = defaultdict(lambda: {s: [] for s in _SITES})
    for name, function in hooks:
        if name not in places:
            raise ModelError(
                f"expected hooks at {', '.join(_SITES)} inside a plain Hugging Face model, got "
                f"{name!r}: for interventions that need it, such as GradientMomentum, attach to a "
                "TransformerBridge (stepflow_tl.load_model)"
            )
        layer, site = places[name]
        found[layer][site].append(function)
    return dict(found)


def _own_attention(model: Any) -> AttentionFunction:
    """What a model's attention modules call by themselves, found once it is known to serve.

    Raises:
        ModelError: It does not serve.
    """
    layers, kind = decoder_layers(model), type(model).__name__
    if not layers or not getattr(model, "_supports_attention_backend", False):
        raise ModelError(
            "expected a decoder whose attention goes through transformers' AttentionInterface, "
            f"got {kind}: attach to a TransformerBridge (stepflow_tl.load_model)"
        )
    if has_attention_function(model):
        raise ModelError(
            f"another attention function of stepflow_tl is at work inside this {kind}: expected a "
            "plain Hugging Face model to be attached to once, all interventions in one StepFlow"
        )
    attention = attention_module(layers[0])
    if not any(child is attention for child in layers[0].children()):
        raise ModelError(
            f"this {kind} is inside a TransformerBridge: attach to the bridge, or load it anew; "
            "got layers whose attention the bridge has replaced"
        )
    name = text_config(model)._attn_implementation
    if name not in _IMPLEMENTATIONS:
        raise ModelError(
            f"expected attention implementation 'sdpa' or 'eager', got {name!r}: "
            "call model.set_attn_implementation('sdpa') first"
        )
    if name == "sdpa":
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        sdpa: AttentionFunction = sdpa_attention_forward
        return sdpa
    eager: AttentionFunction = sys.modules[type(attention).__module__].eager_attention_forward
    return eager
