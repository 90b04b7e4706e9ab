"""What a model's configuration says of its size: parameters, and the cache that a token needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stepflow_tl.errors import EstimateError
from stepflow_tl.models.decoder import decoder_layers, without_weights
from stepflow_tl.models.gguf import is_gguf, read_gguf_config
from stepflow_tl.models.view import view
from stepflow_tl.reasoner import WEIGHTS

DTYPE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.5}
"""Bytes of a parameter; of quantized ones without their scales and what is left unquantized."""

_KINDS = ("full_attention", "sliding_attention")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The sizes of a decoder.

    Attributes:
        name: What it is shown as.
        dtype: Precision of its weights, as its configuration has it.
        parameters: All of them.
        experts: Those in experts, of which a token meets a part.
        expert_share: That part: experts of a token by experts of a layer; 1 without experts.
        looked_up: Those of an input embedding that nothing is multiplied with.
        windows: Keys that each layer keeps at most; None for all.
        kv_width: Numbers that a layer keeps of a token: keys and values, over their heads.
        query_width: Query heads times their dimension.
        widths: Layers times the width of the residual stream and of the MLP.
    """

    name: str
    dtype: str
    parameters: int
    experts: int
    expert_share: float
    looked_up: int
    windows: tuple[int | None, ...]
    kv_width: int
    query_width: int
    widths: int

    @property
    def active(self) -> float:
        """Parameters that a token is multiplied with."""
        always = self.parameters - self.experts - self.looked_up
        return always + self.experts * self.expert_share

    def read(self, batch: int) -> float:
        """Parameters that a decoding step reads, where tokens choose experts evenly."""
        always = self.parameters - self.experts - self.looked_up
        return always + self.experts * (1.0 - (1.0 - self.expert_share) ** batch)

    def kept(self, length: int) -> int:
        """Numbers in the cache of one sequence."""
        return self.kv_width * sum(min(length, w or length) for w in self.windows)

    def kept_on_average(self, first: int, last: int) -> float:
        """The same, averaged over lengths from `first` to `last`."""
        total = 0.0
        for window in self.windows:
            cut = last if window is None else min(max(window, first), last)
            rising = (cut - first) * (first + cut) / 2
            flat = (last - cut) * min(window or last, cut)
            total += (rising + flat) / (last - first) if last > first else min(first, cut)
        return self.kv_width * total

    def scored_on_average(self, first: int, last: int) -> float:
        """Multiplications and additions of one token's attention, averaged likewise."""
        keys = self.kept_on_average(first, last) / self.kv_width
        return 4.0 * self.query_width * keys


def read_architecture(source: str | Path) -> Architecture:
    """Read a configuration, and count parameters in a model built of it without weights.

    Args:
        source: ``reasoner``, a Hugging Face name, a local folder, a ``config.json``, or a .gguf
            file.

    Raises:
        EstimateError: There is no configuration, or it is no decoder whose cache is understood.
    """
    config = _read_config(source)
    text = config.get_text_config()
    _refuse(config, text, source)
    try:
        model = without_weights(config)
    except (ValueError, AttributeError, TypeError) as error:
        raise EstimateError(
            f"expected the configuration of a decoder in {str(source)!r}, got model_type="
            f"{config.model_type!r}: {str(error).splitlines()[0]}"
        ) from error
    layers = int(text.num_hidden_layers)
    if len(decoder_layers(model)) != layers:
        raise EstimateError(
            f"expected {layers} layers with attention in {str(source)!r}, found "
            f"{len(decoder_layers(model))}: its cache is not understood"
        )
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    heads = int(text.num_attention_heads)
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embedding
    mlp = int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size)
    return Architecture(
        name=_shown(source),
        dtype=str(getattr(text, "dtype", None) or torch.bfloat16).removeprefix("torch."),
        parameters=sum(p.numel() for p in model.parameters()),
        experts=experts,
        expert_share=_expert_share(text) if experts else 1.0,
        looked_up=0 if tied else embedding.numel(),
        windows=tuple(view(model).attention_window(layer) for layer in range(layers)),
        kv_width=2 * kv_heads * width,
        query_width=heads * width,
        widths=layers * (int(text.hidden_size) + mlp),
    )


def _read_config(source: str | Path) -> Any:
    from transformers import AutoConfig

    path = WEIGHTS if str(source) == "reasoner" else Path(source)
    try:
        if is_gguf(path):
            return read_gguf_config(path)
        if path.is_file():
            settings = json.loads(path.read_text(encoding="utf-8"))
            return AutoConfig.for_model(**settings)
        return AutoConfig.from_pretrained(str(path) if path.is_dir() else str(source))
    except (OSError, ValueError, TypeError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EstimateError(
            f"no configuration of {str(source)!r}: expected a Hugging Face name that is cached or "
            f"can be fetched, a folder with config.json, or such a file ({first})"
        ) from error


def _refuse(config: Any, text: Any, source: str | Path) -> None:
    """Refuse what is no decoder, and caches that are counted otherwise."""
    architectures: Sequence[str] = getattr(config, "architectures", None) or ()
    decodes = ("CausalLM", "LMHeadModel", "ConditionalGeneration")
    if getattr(config, "is_encoder_decoder", False) or (
        architectures and not any(name.endswith(decodes) for name in architectures)
    ):
        raise EstimateError(
            f"expected a decoder in {str(source)!r}, got model_type={config.model_type!r} "
            f"({', '.join(architectures) or 'with an encoder'})"
        )
    kinds = sorted(set(getattr(text, "layer_types", None) or ()) - set(_KINDS))
    if getattr(text, "kv_lora_rank", None):
        kinds = ["multi-head latent attention"]
    if kinds:
        raise EstimateError(
            f"the cache of {', '.join(kinds)} is not understood ({str(source)!r}): expected layers "
            f"of {', '.join(_KINDS)}"
        )


def _expert_share(text: Any) -> float:
    counts = [getattr(text, name, None) for name in ("num_local_experts", "num_experts")]
    total = next((count for count in counts if count), None)
    chosen = getattr(text, "num_experts_per_tok", None)
    if not total or not chosen:
        raise EstimateError(
            f"expected num_experts_per_tok and the number of experts in the configuration, got "
            f"{chosen} of {total}"
        )
    return float(chosen) / float(total)


def _shown(source: str | Path) -> str:
    path = Path(source)
    if path.is_file():
        return path.parent.name if path.name == "config.json" else path.stem
    return path.name
