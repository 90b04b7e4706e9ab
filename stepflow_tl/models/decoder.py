"""Hugging Face decoders from inside: their layers, and attention functions of our own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import nn

AttentionFunction = Callable[..., tuple[Any, Any]]
"""What transformers' ``AttentionInterface`` calls: ``(module, query, key, value, mask, **kwargs)``
to (output [batch, pos, head, d_head], None)."""

_PREFIX = "stepflow_tl_"
_numbers = count()


def text_config(decoder: Any) -> Any:
    """Configuration of a Hugging Face model's decoder."""
    return decoder.config.get_text_config()


def attention_window_of(config: Any, layer: int) -> int | None:
    """Number of keys a query of a layer sees at most, by a configuration; None for all."""
    window = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return None
    types = getattr(config, "layer_types", None)
    return int(window) if types is None or types[layer] == "sliding_attention" else None


def without_weights(config: Any) -> Any:
    """The decoder of a configuration on the meta device: every parameter, and not one number.

    Raises:
        ValueError: It is no decoder's configuration.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def decoder_layers(decoder: Any) -> list[nn.Module]:
    """The decoder layers of a Hugging Face model, in order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    found = {
        int(attention.layer_idx): module
        for module in decoder.modules()
        if isinstance(module, GradientCheckpointingLayer)
        and (attention := attention_module(module)) is not None
    }
    return [found[layer] for layer in sorted(found)]


def attention_module(layer: nn.Module) -> Any | None:
    """The attention module of a decoder layer; None where it has none."""
    for child in layer.children():
        module = getattr(child, "original_component", None) or child
        if hasattr(module, "layer_idx") and hasattr(module, "is_causal"):
            return module
    return None


@contextmanager
def attention_function(
    decoder: Any, function: AttentionFunction, *, masks_of: str | None = None
) -> Iterator[None]:
    """Inside, every attention module of a Hugging Face model calls `function`.

    Args:
        decoder: The Hugging Face model.
        function: See `AttentionFunction`.
        masks_of: The attention implementation whose kind of mask it takes; None for no mask.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    config, name = text_config(decoder), f"{_PREFIX}{next(_numbers)}"
    before = config._attn_implementation
    AttentionInterface._global_mapping[name] = function
    if masks_of is not None:
        AttentionMaskInterface._global_mapping[name] = ALL_MASK_ATTENTION_FUNCTIONS[masks_of]
    try:
        config._attn_implementation = name
        yield
    finally:
        config._attn_implementation = before
        AttentionInterface._global_mapping.pop(name, None)
        AttentionMaskInterface._global_mapping.pop(name, None)


@contextmanager
def default_attention(decoder: Any) -> Iterator[None]:
    """Inside, a Hugging Face model has the attention that transformers chooses where nobody does.

    TransformerLens loads models with "eager", whose patterns its hooks show.
    """
    config = text_config(decoder)
    before = config._attn_implementation
    try:
        config._attn_implementation = _default_implementation(decoder, before)
        yield
    finally:
        config._attn_implementation = before


def _default_implementation(decoder: Any, own: str) -> str:
    config, choose = text_config(decoder), getattr(decoder, "get_correct_attn_implementation", None)
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    if choose is None or capped or own != "eager":  # "sdpa" knows no cap; another was asked for
        return own
    return str(choose(None))


def has_attention_function(decoder: Any) -> bool:
    """Whether an `attention_function` of ours is at work in a Hugging Face model."""
    return str(text_config(decoder)._attn_implementation).startswith(_PREFIX)
