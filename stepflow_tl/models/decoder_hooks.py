"""Inside a plain Hugging Face decoder: the hook functions of TransformerLens, without its model.

Such a model has no hook points, and with PyTorch's own attention no attention pattern. So its
attention modules call a function of ours for a while, which computes the pattern only where a hook
function wants to see it: in the layers that have one at ``hook_pattern``, and there for the queries
that are asked for, some of them at a time. All else is left to the model's own attention.

==================== ============================= =============================================
hook                 shape                         note
==================== ============================= =============================================
``hook_resid_pre``   [batch, pos, d_model]
``attn.hook_v``      [batch, pos, kv_head, d_head] to be read only
``attn.hook_pattern``  [batch, head, query, key]   the queries of ``hook.queries`` alone
``attn.hook_z``      [batch, pos, head, d_head]
``hook_resid_post``  [batch, pos, d_model]
==================== ============================= =============================================
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepflow_tl.errors import ModelError
from stepflow_tl.models.base import ARRIVAL, LOGITS, Arrival, FirstQuery, Place
from stepflow_tl.models.decoder import (
    AttentionFunction,
    attention_function,
    attention_module,
    decoder_layers,
    has_attention_function,
    text_config,
)
from stepflow_tl.models.foreign_hooks import own_hooks
from stepflow_tl.models.sites import Hook, Site, hook_name

DECODER_SITES: tuple[Site, ...] = ("resid_pre", "v", "pattern", "z", "resid_post")

_IMPLEMENTATIONS = ("sdpa", "eager")
_NONE: list[Any] = []
_TILE = 64  # queries whose patterns are held at a time

_PLACES: tuple[Place, ...] = ("first", "in turn", "last")

Functions = Sequence[Callable[..., Tensor | None]]


class InsideHook(NamedTuple):
    """What a hook function inside a decoder is told, as TransformerLens tells the hook point.

    Attributes:
        name: Name of the hook point.
        queries: The queries of the pass that the tensor holds.
    """

    name: str
    queries: range


class _HookSet:
    """The hook functions of one `hooks_inside` block."""

    def __init__(
        self,
        decoder: Any,
        hooks: Sequence[Hook],
        first_query: FirstQuery,
        place: Place = "in turn",
    ) -> None:
        self.place = place
        layers = range(len(decoder_layers(decoder)))
        known = {hook_name(s, layer): (layer, s) for s in DECODER_SITES for layer in layers}
        self.first_query = first_query
        self.arrivals = [function for name, function in hooks if name == ARRIVAL]
        self.functions: dict[tuple[int, Site], list[Any]] = {}
        for name, function in hooks:
            if name in (ARRIVAL, LOGITS):
                continue
            if name not in known:
                raise ModelError(
                    f"expected hooks at {', '.join(DECODER_SITES)} inside a plain Hugging Face "
                    f"model, got {name!r}: use a TransformerBridge (stepflow_tl.load_model)"
                )
            self.functions.setdefault(known[name], []).append(function)


class _Inside:
    """All hook functions at work in one decoder, block by block in the order of their attaching.

    Attributes:
        sets: The functions of each block.
        seen: Number of positions up to the last of the present pass.
    """

    def __init__(self, decoder: Any) -> None:
        self.sets: list[_HookSet] = []
        self._decoder = decoder
        self._original = own_attention(decoder)
        self.seen = 0
        self._sites: dict[tuple[int, Site], list[Any]] = {}
        self._inside: set[int] = set()
        self._installed = ExitStack()
        self._reached: set[tuple[int, Site]] = set()  # where layers hand on their streams

    def install(self) -> None:
        layers = decoder_layers(self._decoder)
        stack = self._installed
        self._own(layers[0].register_forward_pre_hook(self._arrive, with_kwargs=True))
        masks_of = text_config(self._decoder)._attn_implementation
        stack.enter_context(attention_function(self._decoder, self, masks_of=masks_of))

    def add(self, held: _HookSet) -> None:
        """Put a block's functions to work, after those that are."""
        layers = decoder_layers(self._decoder)
        for layer, site in held.functions.keys() - self._reached:
            if site == "resid_pre":
                hook = layers[layer].register_forward_pre_hook(
                    self._before(layer), with_kwargs=True
                )
            elif site == "resid_post":
                hook = layers[layer].register_forward_hook(self._after(layer))
            else:
                continue
            self._own(hook)
            self._reached.add((layer, site))
        self.use([*self.sets, held])

    def use(self, sets: list[_HookSet]) -> None:
        """Have these blocks at work and no others."""
        self.sets, self._sites, self._inside = sets, {}, set()
        for held in sorted(sets, key=lambda one: _PLACES.index(one.place)):
            for at, functions in held.functions.items():
                self._sites.setdefault(at, []).extend(functions)
                if not at[1].startswith("resid"):  # whatever passes through attention
                    self._inside.add(at[0])

    def remove(self) -> None:
        self._installed.close()

    def _own(self, handle: Any) -> None:
        """Remove this hook of torch's at the end, and know it until then."""
        self._installed.callback(handle.remove)
        self._installed.enter_context(own_hooks([handle.id]))

    def functions(self, layer: int, site: Site) -> list[Any]:
        """The hook functions of a layer's site, of all blocks."""
        return self._sites.get((layer, site), _NONE)

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
        layer = getattr(module, "layer_idx", -1)
        if layer not in self._inside:
            return self._original(module, query, key, value, mask, **options)
        queries = query.shape[2]
        filled = min(key.shape[2], self.seen)  # a static cache has room for more
        values = self.functions(layer, "v")
        if values:  # a copy: a cache may be written to in place
            new = value[:, :, filled - queries : filled].transpose(1, 2).clone()
            _through(values, new, InsideHook(hook_name("v", layer), range(queries)))
        pattern = self.functions(layer, "pattern")
        first = self._first_query(layer) if pattern else None
        if first is not None and queries == 1:
            key, value = key[:, :, :filled], value[:, :, :filled]
            at = InsideHook(hook_name("pattern", layer), range(1))
            seen = None if mask is None else mask[:, :, :, :filled]
            z = attend_through(pattern, query, key, value, seen, hook=at, **options)
        elif first is not None and first < queries:
            key, value = key[:, :, :filled], value[:, :, :filled]
            z = torch.cat(
                list(self._parts(layer, first, module, query, key, value, mask, **options)), dim=1
            )
        else:
            z = self._original(module, query, key, value, mask, **options)[0]
        changing = self.functions(layer, "z")
        if changing:
            z = _through(changing, z, InsideHook(hook_name("z", layer), range(queries)))
        return z, None

    def _first_query(self, layer: int) -> int | None:
        """The first query whose pattern some function of a layer wants; None for none."""
        at: tuple[int, Site] = (layer, "pattern")
        wanted = (held.first_query() for held in self.sets if at in held.functions)
        return min((query for query in wanted if query is not None), default=None)

    def _parts(
        self,
        layer: int,
        wanted_from: int,
        module: Any,
        query: Float[Tensor, "batch head query d_head"],
        key: Float[Tensor, "batch kv_head key d_head"],
        value: Float[Tensor, "batch kv_head key d_head"],
        mask: Tensor | None,
        **options: Any,
    ) -> Iterator[Float[Tensor, "batch rows head d_head"]]:
        """Outputs of the queries whose pattern nobody wants, then of the others, tile by tile."""
        queries, functions = query.shape[2], self.functions(layer, "pattern")

        def rows(first: int, stop: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
            """Queries, keys, values and mask, as if the pass ended after these queries."""
            seen = key.shape[2] - queries + stop
            shown = None if mask is None else mask[:, :, first:stop, :seen]
            return query[:, :, first:stop], key[:, :, :seen], value[:, :, :seen], shown

        if wanted_from:
            yield self._original(module, *rows(0, wanted_from), **options)[0]
        for first in range(wanted_from, queries, _TILE):
            stop = min(first + _TILE, queries)
            at = InsideHook(hook_name("pattern", layer), range(first, stop))
            yield attend_through(functions, *rows(first, stop), hook=at, **options)

    def _arrive(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream: Tensor = args[0] if args else kwargs["hidden_states"]
        given = (*args, *kwargs.values())
        cache = next((value for value in given if hasattr(value, "get_seq_length")), None)
        past = 0 if cache is None else int(cache.get_seq_length())
        batch, queries = stream.shape[:2]
        self.seen = past + queries
        for held in self.sets:
            for see in held.arrivals:
                see(Arrival(batch, queries, stream.device, past=past, cache=cache))

    def _before(self, layer: int) -> Callable[..., tuple[Any, Any] | None]:
        def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            functions = self.functions(layer, "resid_pre")
            if not functions:
                return None
            stream: Tensor = args[0] if args else kwargs["hidden_states"]
            at = InsideHook(hook_name("resid_pre", layer), range(stream.shape[1]))
            stream = _through(functions, stream, at)
            if args:
                return (stream, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": stream}

        return run

    def _after(self, layer: int) -> Callable[..., Any]:
        def run(module: nn.Module, args: Any, output: Any) -> Any:
            functions = self.functions(layer, "resid_post")
            if not functions:
                return None
            stream: Tensor = output if isinstance(output, Tensor) else output[0]
            at = InsideHook(hook_name("resid_post", layer), range(stream.shape[1]))
            stream = _through(functions, stream, at)
            return stream if isinstance(output, Tensor) else (stream, *output[1:])

        return run


_at_work: WeakKeyDictionary[Any, _Inside] = WeakKeyDictionary()


@contextmanager
def hooks_inside(
    decoder: Any, hooks: Sequence[Hook], first_query: FirstQuery, place: Place = "in turn"
) -> Iterator[None]:
    """Inside, a plain Hugging Face model runs these hook functions; blocks nest.

    Args:
        decoder: The model; its attention implementation is "sdpa" or "eager".
        hooks: Pairs of a TransformerLens hook name and a function, at the sites named above.
        first_query: Of each pass, the first query whose pattern the functions want to see.
        place: Where they stand among those of other blocks, later ones included.

    Raises:
        ModelError: The model, its attention implementation or a hook is none that this can serve.
    """
    inside = _at_work.get(decoder)
    fresh = _Inside(decoder) if inside is None else inside
    held = _HookSet(decoder, hooks, first_query, place)
    if inside is None:
        fresh.install()
        _at_work[decoder] = fresh
    fresh.add(held)
    try:
        yield
    finally:
        fresh.use([other for other in fresh.sets if other is not held])
        if not fresh.sets:
            del _at_work[decoder]
            fresh.remove()


@contextmanager
def only_hooks_inside(decoder: Any, hooks: Sequence[Hook]) -> Iterator[None]:
    """Inside, a plain Hugging Face model runs these hook functions and none of other blocks."""
    embedding = decoder.get_input_embeddings()
    watchers, inside = embedding._forward_pre_hooks, _at_work.get(decoder)
    outputs = decoder._forward_hooks
    outer = ([], 0) if inside is None else (inside.sets, inside.seen)
    try:
        embedding._forward_pre_hooks, decoder._forward_hooks = type(watchers)(), type(outputs)()
        if inside is not None:
            inside.use([_HookSet(decoder, [], lambda: None)])  # so that it stays installed
        with hooks_inside(decoder, hooks, lambda: 0):
            yield
    finally:
        embedding._forward_pre_hooks, decoder._forward_hooks = watchers, outputs
        if inside is not None:
            inside.use(outer[0])
            inside.seen = outer[1]


def hooks_at_work(decoder: Any) -> list[str]:
    """Names of the hook points at which functions are at work in a decoder."""
    inside = _at_work.get(decoder)
    sets = [] if inside is None else inside.sets
    return [hook_name(site, layer) for held in sets for layer, site in held.functions]


def attend_through(
    functions: Functions,
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    mask: Float[Tensor, "#batch #head query key"] | Bool[Tensor, "#batch #head query key"] | None,
    *,
    hook: InsideHook | None = None,
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
        hook: What the functions are told.
        scaling: Factor of the scores; None for d_head^-0.5.
        softcap: Bound of the scores.
        s_aux: Attention sinks: each head's logit of an extra key without a value.
        dropout: Share of the pattern to drop.
    """
    batch, heads, queries, d_head = query.shape
    grouped = (query * (d_head**-0.5 if scaling is None else scaling)).reshape(
        batch, key.shape[1], -1, d_head
    )
    exact = torch.promote_types(query.dtype, torch.float32)
    scores = (grouped @ key.transpose(2, 3)).view(batch, heads, queries, -1).to(exact)
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
    pattern = _through(functions, pattern, hook)
    z = pattern.reshape(batch, key.shape[1], -1, key.shape[2]) @ value
    return z.view(batch, heads, queries, -1).transpose(1, 2)


def _through(functions: Functions, x: Tensor, hook: InsideHook | None) -> Tensor:
    """What hook functions make of a tensor, one after the other."""
    for function in functions:
        changed = function(x, hook)
        x = x if changed is None else changed
    return x


def own_attention(decoder: Any) -> AttentionFunction:
    """What a model's attention modules call by themselves, found once it is known to serve.

    Raises:
        ModelError: It does not serve.
    """
    layers, kind = decoder_layers(decoder), type(decoder).__name__
    if not layers or not getattr(decoder, "_supports_attention_backend", False):
        raise ModelError(
            "expected a decoder whose attention goes through transformers' AttentionInterface, "
            f"got {kind}: attach to a TransformerBridge (stepflow_tl.load_model)"
        )
    if has_attention_function(decoder):
        raise ModelError(
            f"expected the attention of this {kind} to be its own, got one that saliency is "
            "computed in: attach before or after it"
        )
    attention = attention_module(layers[0])
    if not any(child is attention for child in layers[0].children()):
        raise ModelError(
            f"this {kind} is inside a TransformerBridge: attach to the bridge, or load it anew; "
            "got layers whose attention the bridge has replaced"
        )
    name = text_config(decoder)._attn_implementation
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
