"""Hugging Face decoders: their layers, and attention functions of our own inside them.

A `TransformerBridge` holds such a decoder too (``original_model``), with its attention modules
replaced by bridges; `original_attention` puts the modules themselves back for a while.
"""

from __future__ import annotations

import subprocess
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


def is_huggingface(model: Any) -> bool:
    """Whether this is a plain Hugging Face model, not one of TransformerLens's classes."""
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)


def huggingface_model(model: Any) -> Any | None:
    """The Hugging Face model that is, or is inside, a model; None for a `HookedTransformer`."""
    return model if is_huggingface(model) else getattr(model, "original_model", None)


def text_config(model: Any) -> Any:
    """Configuration of a Hugging Face model's decoder."""
    return model.config.get_text_config()


def without_weights(config: Any) -> Any:
    """The decoder of a configuration on the meta device: every parameter, and not one number.

    Raises:
        ValueError: It is no decoder's configuration.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def decoder_layers(model: Any) -> list[nn.Module]:
    """The decoder layers of a Hugging Face model, in order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    found = {
        int(attention.layer_idx): module
        for module in model.modules()
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
def original_attention(model: Any) -> Iterator[None]:
    """Inside, a bridge's Hugging Face model attends with its own modules, not with bridges.

    Hook points of the attention bridges themselves (scores, pattern, rotated queries and keys)
    are then not reached; all others are. Nothing happens to a plain Hugging Face model.
    """
    swapped = [
        (block.original_component, name, child)
        for block in ([] if is_huggingface(model) else model.blocks)
        for name, child in block.original_component.named_children()
        if child is block.attn
    ]
    try:
        for layer, name, bridge in swapped:
            layer._modules[name] = bridge.original_component
        yield
    finally:
        for layer, name, bridge in swapped:
            layer._modules[name] = bridge


@contextmanager
def attention_function(
    model: Any, function: AttentionFunction, *, masks_of: str | None = None
) -> Iterator[None]:
    """Inside, every attention module of a Hugging Face model calls `function`.

    Args:
        model: The Hugging Face model.
        function: See `AttentionFunction`.
        masks_of: The attention implementation whose kind of mask it takes; None for no mask.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    config, name = text_config(model), f"{_PREFIX}{next(_numbers)}"
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


def has_attention_function(model: Any) -> bool:
    """Whether an `attention_function` of ours is at work in a Hugging Face model."""
    return str(text_config(model)._attn_implementation).startswith(_PREFIX)


@contextmanager
def nothing_installed() -> Iterator[None]:
    """Inside, no package is installed by a child process.

    TransformerLens runs ``pip install torchvision`` where it finds no processor beside a multimodal
    checkpoint, and with it pip may replace torch itself. Refused, it goes on without a processor.
    """
    original = subprocess.check_call

    def refuse(command: Any, *args: Any, **kwargs: Any) -> int:
        if "install" in command:
            raise PermissionError(
                f"stepflow_tl installs nothing while a model loads, got the command {command}"
            )
        return original(command, *args, **kwargs)

    subprocess.check_call = refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        subprocess.check_call = original
