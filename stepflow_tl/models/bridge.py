"""The view of a `TransformerBridge`: hook points around a Hugging Face decoder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stepflow_tl.errors import ModelError
from stepflow_tl.models.base import FirstQuery, ModelView, Place
from stepflow_tl.models.context import context_length_of
from stepflow_tl.models.decoder import attention_window_of, default_attention, text_config
from stepflow_tl.models.foreign_hooks import foreign_hooks, without_recorders
from stepflow_tl.models.hooked import HookPointsView
from stepflow_tl.models.huggingface import HuggingFaceView
from stepflow_tl.models.sites import Hook, Site

logger = logging.getLogger(__name__)

_Watcher = Callable[[Int[Tensor, "batch new"]], None]


@dataclass
class _Known:
    """What is remembered of one bridge.

    Attributes:
        blocks: Hook functions that its views have put on it, from which query they are wanted, and
            where they stand among others.
        watchers: Those who see its tokens.
        bare: The decoder inside, while it runs without bridges.
        agrees: Whether it gives the bridge's logits, and for which state of the weights.
    """

    blocks: list[tuple[Sequence[Hook], FirstQuery, Place]] = field(default_factory=list)
    watchers: list[_Watcher] = field(default_factory=list)
    bare: HuggingFaceView | None = None
    agrees: tuple[int, bool] | None = None


_known: WeakKeyDictionary[Any, _Known] = WeakKeyDictionary()


class BridgeView(HookPointsView):
    """A `TransformerBridge` of TransformerLens 3.x or 4.x."""

    @property
    def context_length(self) -> int | None:
        """As of the decoder inside."""
        return context_length_of(text_config(self.decoder))

    @property
    def padding_takes_positions(self) -> bool:
        """True for learned positions.

        A bridge counts rows without padding through, also behind their end, into them.
        """
        return hasattr(self.model, "pos_embed")

    @property
    def decoder(self) -> Any:
        """The Hugging Face model inside, its modules replaced by bridges."""
        return self.model.original_model

    def attention_window(self, layer: int) -> int | None:
        """Number of keys a query of this layer sees at most, its own included; None for all."""
        return attention_window_of(text_config(self.decoder), layer)

    def run_cached(
        self,
        tokens: Int[Tensor, "batch new"],
        attention_mask: Int[Tensor, "batch pos"],
        cache: Any | None,
    ) -> tuple[Float[Tensor, "batch new vocab"], Any]:
        """One forward pass against a KV cache."""
        logits, cache = self.model(
            tokens,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
            return_type="logits_and_cache",
        )
        return logits, cache

    @contextmanager
    def bare(self) -> Iterator[HuggingFaceView]:
        """Inside, the decoder runs with its own modules in place of all bridges.

        No hook point is reached meanwhile. Whatever is raised inside, every bridge is back in its
        place afterwards.
        """
        swapped = list(_bridges(self.decoder))
        known, plain = self._known, HuggingFaceView(self.decoder)
        before, known.bare = known.bare, plain
        try:
            for parent, name, bridge in swapped:
                parent._modules[name] = _without_bridge(bridge)
            yield plain
        finally:
            known.bare = before
            for parent, name, bridge in swapped:
                parent._modules[name] = bridge

    @property
    def running(self) -> ModelView:
        """The view of what runs at present: itself, or the decoder inside while that is bare."""
        return self._known.bare or self

    @contextmanager
    def for_decoding(self, probe: Int[Tensor, "1 pos"]) -> Iterator[ModelView]:
        """Inside, the plain decoder, where it gives this bridge's logits and nobody else looks on.

        Hook functions of this package act inside the decoder's attention, which is the one that
        transformers chooses by itself. The bridge's own forward pass is left to a user's hooks,
        to processed weights (compatibility mode), and to what the decoder cannot serve; a debug
        log says so. Logits of both are compared once for each state of the weights.

        Args:
            probe: Some tokens, on which logits are compared.
        """
        reason = self._why_not_bare(probe)
        if reason is not None:
            logger.debug("decoding %s through its bridge: %s", self.name, reason)
            yield self
            return
        known = self._known
        with self.bare() as plain, default_attention(plain.model), ExitStack() as stack:
            plain.known_alone = True
            stack.enter_context(without_recorders(plain.model))
            for see in known.watchers:
                stack.enter_context(plain.watch_tokens(see))
            for block in known.blocks:
                stack.enter_context(plain.hooks(*block))
            yield plain

    @contextmanager
    def hooks(
        self,
        hooks: Sequence[Hook],
        first_query: FirstQuery = lambda: 0,
        place: Place = "in turn",
    ) -> Iterator[None]:
        """Inside, the model runs these hook functions, after those that live on it already."""
        block = (list(hooks), first_query, place)
        with super().hooks(*block), _kept(self._known.blocks, block):
            yield

    @contextmanager
    def watch_tokens(self, see: _Watcher) -> Iterator[None]:
        """Inside, token ids are seen on their way into the embedding."""
        with super().watch_tokens(see), _kept(self._known.watchers, see):
            yield

    @property
    def output(self) -> nn.Module:
        """The decoder inside."""
        module: nn.Module = self.decoder
        return module

    def _show_logits(self, see: Any, module: nn.Module, args: Any, given: Any) -> None:
        if self._known.bare is None:  # else it sees the decoder's by itself
            super()._show_logits(see, module, args, given)

    @property
    def _known(self) -> _Known:
        return _known.setdefault(self.model, _Known())

    def _why_not_bare(self, probe: Int[Tensor, "1 pos"]) -> str | None:
        """Why the decoder inside may not stand for the bridge; None where it may."""
        model = self.model
        if model.training or self.decoder.training:
            return "it is in training mode"
        if any(
            getattr(model, name, False) for name in ("compatibility_mode", "_weights_processed")
        ):
            return "its weights are processed (compatibility mode)"
        others = foreign_hooks(model, self.decoder)
        if others:
            return f"hooks at {others[0]} and {len(others) - 1} others would not be reached"
        if self._known.blocks:
            try:
                with self.bare() as plain, default_attention(plain.model), ExitStack() as stack:
                    for block in self._known.blocks:
                        stack.enter_context(plain.hooks(*block))
            except ModelError as error:
                return str(error)
        return None if self._agrees(probe) else "the decoder inside gives other logits"

    def _agrees(self, probe: Int[Tensor, "1 pos"]) -> bool:
        """Whether the decoder inside gives the bridge's logits; remembered until weights change."""
        state = sum(p._version for p in self.model.parameters() if not p.is_inference())
        agrees = self._known.agrees
        if agrees is None or agrees[0] != state:
            with torch.no_grad(), self.only_hooks([]):
                expected = self.logits(probe)
                with self.bare() as plain, default_attention(plain.model):
                    found = plain.logits(probe)
            allowed = _rounding(expected)
            close = torch.allclose(found, expected, rtol=0.0, atol=allowed, equal_nan=True)
            agrees = self._known.agrees = (state, close)
        return agrees[1]

    def score_scale(self, layer: int) -> float:
        """Factor between q . k and the attention scores of a layer."""
        original = self._attention(layer).original_component
        scaling = getattr(original, "scaling", None)
        return float(scaling) if scaling is not None else float(original.head_dim) ** -0.5

    def score_softcap(self, layer: int) -> float | None:
        """Bound of a layer's soft-capped attention scores; None where they are not capped."""
        cap = getattr(self._attention(layer).original_component, "attn_logit_softcapping", None)
        return float(cap) if cap is not None else None

    def query_key_sites(self, layer: int) -> tuple[Site, ...]:
        """Sites at which a layer shows what its scores are made of: queries, keys, rotations."""
        attention = self._attention(layer)
        fused = hasattr(attention, "split_qkv_matrix")
        latent = hasattr(getattr(attention, "original_component", None), "kv_lora_rank")
        normed = hasattr(attention, "q_norm") or hasattr(attention, "k_norm")
        if latent or (fused and normed):
            raise self.no_queries_and_keys(layer)
        if not fused:
            return super().query_key_sites(layer)
        if not self._has(layer, "q", "k"):
            raise self.no_queries_and_keys(layer)
        rotations: tuple[Site, ...] = ("cos", "sin")
        return ("q", "k", *(site for site in rotations if self._has(layer, site)))

    def _output_projection(self, layer: int) -> Any:
        output = self._attention(layer).o
        return getattr(output, "original_component", output)


@contextmanager
def _kept(held: list[Any], one: Any) -> Iterator[None]:
    """Inside, it is held among the others."""
    held.append(one)
    try:
        yield
    finally:
        held.remove(one)


def _rounding(logits: Tensor) -> float:
    """By how much logits may differ that are computed in another order."""
    steps = 8 if logits.dtype in (torch.float16, torch.bfloat16) else 64
    largest = float(logits.nan_to_num().abs().max())
    return max(1e-4, steps * torch.finfo(logits.dtype).eps * largest)


def _is_bridge(module: nn.Module) -> bool:
    return isinstance(getattr(module, "original_component", None), nn.Module)


def _without_bridge(module: nn.Module) -> nn.Module:
    while _is_bridge(module):
        module = module.original_component  # type: ignore[assignment]
    return module


def _bridges(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Parent, name and module of every bridge in a Hugging Face model, outermost first."""
    for name, child in module._modules.items():
        if child is None:
            continue
        if _is_bridge(child):
            yield module, name, child
        yield from _bridges(_without_bridge(child))
