"""Views of TransformerLens's models: what both classes share, and `HookedTransformer`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stepflow_tl.errors import ModelError
from stepflow_tl.models.base import ARRIVAL, LOGITS, Arrival, FirstQuery, ModelView, Place, Seen
from stepflow_tl.models.foreign_hooks import HOOK_DICTS, hook_numbers, in_place, own_hooks
from stepflow_tl.models.sites import SITES, Hook, Site, hook_name


class HookPointsView(ModelView):
    """A model with TransformerLens's hook points."""

    sites = frozenset(SITES)

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return int(self.model.cfg.n_layers)

    @property
    def n_heads(self) -> int:
        """Number of query heads of a layer."""
        return int(self.model.cfg.n_heads)

    @property
    def embedding(self) -> nn.Module:
        """The module that token ids enter first."""
        module: nn.Module = self.model.embed
        return module

    def logits(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
        """One forward pass without a cache."""
        logits: Tensor = self.model(tokens, return_type="logits")
        return logits

    @contextmanager
    def hooks(
        self,
        hooks: Sequence[Hook],
        first_query: FirstQuery = lambda: 0,
        place: Place = "in turn",
    ) -> Iterator[None]:
        """Inside, the model runs these hook functions, after those that live on it already."""
        points = self._points()
        before = hook_numbers(points)
        with self.model.hooks(fwd_hooks=at_hook_points(hooks)):
            mine = hook_numbers(points) - before
            with own_hooks(mine), in_place(points, mine, place), self._showing_logits(hooks):
                yield

    def keys_hidden(self, seen: Seen) -> AbstractContextManager[None]:
        """Inside, queries see no keys but these, in all layers and heads."""

        def hide(scores: Float[Tensor, "row head query key"], hook: Any) -> Tensor:
            keep = seen(*scores.shape[2:]).to(scores.device)
            return scores.masked_fill(~keep, torch.finfo(scores.dtype).min)

        return self.hooks([(hook_name("attn_scores", n), hide) for n in range(self.n_layers)])

    @contextmanager
    def only_hooks(self, hooks: Sequence[Hook]) -> Iterator[None]:
        """Inside, the model runs these hook functions and no others, whatever lives on it."""
        model = self.model
        aside = [(p, name, getattr(p, name)) for p in self._points() for name in HOOK_DICTS]
        aside.append((model.embed, "_forward_pre_hooks", model.embed._forward_pre_hooks))
        aside.append((self.output, "_forward_hooks", self.output._forward_hooks))
        for block in model.blocks:  # a bridge's outer pass may be told to stop early: not this one
            if getattr(block, "_stop_at_layer_idx", None) is not None:
                aside.append((block, "_stop_at_layer_idx", block._stop_at_layer_idx))
        try:
            for module, name, held in aside:
                setattr(module, name, type(held)() if name != "_stop_at_layer_idx" else None)
            with model.hooks(fwd_hooks=at_hook_points(hooks)), self._showing_logits(hooks):
                yield
        finally:
            for module, name, held in aside:
                setattr(module, name, held)

    def hooks_on(self) -> list[str]:
        """Names of the hook points that carry hooks, and "embed" for a tracker."""
        names = {id(point): name for name, point in reversed(self.model.hook_dict.items())}
        found = [
            names[id(point)]
            for point in self._points()
            if any(getattr(point, hooks) for hooks in HOOK_DICTS)
        ]
        return found + (["embed"] if self.model.embed._forward_pre_hooks else [])

    def no_queries_and_keys(self, layer: int) -> ModelError:
        """The error for a layer that does not show what its scores are made of."""
        return ModelError(
            f"expected the attention of layer {layer} to show its queries and keys at "
            f"{hook_name('rot_q', layer)} and {hook_name('rot_k', layer)}, got no such pair from a "
            f"{type(self._attention(layer)).__name__}: pass backend='fused', or an objective other "
            "than 'token'"
        )

    def query_key_sites(self, layer: int) -> tuple[Site, ...]:
        """Sites at which a layer shows what its scores are made of: queries, keys, rotations."""
        sites: tuple[Site, ...] = ("rot_q", "rot_k")
        if not self._has(layer, *sites):
            raise self.no_queries_and_keys(layer)
        return sites

    def _has(self, layer: int, *sites: Site) -> bool:
        return all(hook_name(site, layer) in self.model.hook_dict for site in sites)

    def _points(self) -> list[nn.Module]:
        """The hook points, each once."""
        return list({id(point): point for point in self.model.hook_dict.values()}.values())

    def _attention(self, layer: int) -> Any:
        return self.model.blocks[layer].attn

    def _given_name(self) -> str:
        return str(getattr(self.model.cfg, "model_name", "unknown"))


def at_hook_points(hooks: Sequence[Hook]) -> list[Hook]:
    """Hooks as TransformerLens takes them: an arrival is seen at the first layer's pattern.

    Functions at `LOGITS` are left out: a view shows them logits.
    """

    def arrival(see: Callable[..., Any]) -> Callable[..., None]:
        def seen(pattern: Float[Tensor, "batch head query key"], hook: Any) -> None:
            see(Arrival(pattern.shape[0], pattern.shape[2], pattern.device, keys=pattern.shape[3]))

        return seen

    return [
        (hook_name("pattern", 0), arrival(function)) if name == ARRIVAL else (name, function)
        for name, function in hooks
        if name != LOGITS
    ]


class HookedView(HookPointsView):
    """A `HookedTransformer` of TransformerLens 3.x."""

    @property
    def context_length(self) -> int | None:
        """``cfg.n_ctx``, beyond which its masks and rotations end."""
        return int(self.model.cfg.n_ctx)

    @property
    def padding_takes_positions(self) -> bool:
        """True: its masks end at the context."""
        return True

    @property
    def decoder(self) -> None:
        """None."""
        return

    @property
    def output(self) -> nn.Module:
        """Its unembedding."""
        module: nn.Module = self.model.unembed
        return module

    def _logits_of(self, given: Any) -> Float[Tensor, "batch pos vocab"]:
        logits: Tensor = given
        cap = float(getattr(self.model.cfg, "output_logits_soft_cap", -1.0) or -1.0)
        return cap * torch.tanh(logits / cap) if cap > 0 else logits

    def attention_window(self, layer: int) -> int | None:
        """Number of keys a query of this layer sees at most, its own included; None for all."""
        types = getattr(self.model.cfg, "attn_types", None)
        local = types is not None and types[layer] == "local"
        return int(self.model.cfg.window_size) if local else None

    def run_cached(
        self,
        tokens: Int[Tensor, "batch new"],
        attention_mask: Int[Tensor, "batch pos"],
        cache: Any | None,
    ) -> tuple[Float[Tensor, "batch new vocab"], Any]:
        """One forward pass against a KV cache."""
        if cache is None:
            from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

            cache = TransformerLensKeyValueCache.init_cache(
                self.model.cfg, tokens.device, tokens.shape[0]
            )
        logits = self.model(
            tokens,
            attention_mask=attention_mask[:, -tokens.shape[1] :],
            past_kv_cache=cache,
            return_type="logits",
        )
        return logits, cache

    def detach(self, cache: Any) -> None:
        """Cut the keys and values of a KV cache off the graph that computed them."""
        for entry in cache.entries:
            entry.past_keys = entry.past_keys.detach()
            entry.past_values = entry.past_values.detach()

    def repeated(self, cache: Any, rows: int) -> Any:
        """The KV cache of one row as that of so many; the one given is used up."""
        for entry in cache.entries:
            entry.past_keys = entry.past_keys.repeat_interleave(rows, dim=0)
            entry.past_values = entry.past_values.repeat_interleave(rows, dim=0)
        mask = cache.previous_attention_mask
        cache.previous_attention_mask = mask.repeat_interleave(rows, dim=0)
        return cache

    def heads_to_residual(
        self, layer: int, z: Float[Tensor, "rows head d_head"]
    ) -> Float[Tensor, "rows d_model"]:
        """What per-head outputs add to the residual stream: z W_O, summed over heads, no bias."""
        weight = self._output_projection(layer)
        return torch.einsum("rhd,hdm->rm", z.to(weight.dtype), weight)

    def score_scale(self, layer: int) -> float:
        """Factor between q . k and the attention scores of a layer."""
        return 1.0 / float(self._attention(layer).attn_scale)

    def score_softcap(self, layer: int) -> float | None:
        """Bound of a layer's soft-capped attention scores; None where they are not capped."""
        cap = getattr(self.model.cfg, "attn_scores_soft_cap", -1.0)
        return float(cap) if cap is not None and cap > 0 else None

    def _output_projection(self, layer: int) -> Tensor:
        weight: Tensor = self._attention(layer).W_O
        return weight
