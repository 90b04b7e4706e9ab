"""The view of a `TransformerBridge`: hook points around a Hugging Face decoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from stepflow_tl.models.context import context_length_of
from stepflow_tl.models.decoder import attention_window_of, text_config
from stepflow_tl.models.hooked import HookPointsView
from stepflow_tl.models.huggingface import HuggingFaceView
from stepflow_tl.models.sites import Site


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
        try:
            for parent, name, bridge in swapped:
                parent._modules[name] = _without_bridge(bridge)
            yield HuggingFaceView(self.decoder)
        finally:
            for parent, name, bridge in swapped:
                parent._modules[name] = bridge

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
