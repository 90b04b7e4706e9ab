"""Models in .gguf files, by transformers' own reader: weights unpacked, tokenizer from the file."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from stepflow_tl.errors import ModelError
from stepflow_tl.models.memory import is_out_of_memory

PLACEMENT = ("device_map", "max_memory", "offload_folder")
"""What a model is laid out by while it is read."""

_SPLIT = re.compile(r"-\d{5}-of-\d{5}$")
_UNKNOWN_ARCHITECTURE = re.compile(r"architecture '?([\w.-]+)'? is not supported")


def is_gguf(name: str | Path) -> bool:
    """Whether a model's name is that of a .gguf file."""
    return Path(name).suffix.lower() == ".gguf"


def read_gguf(path: Path, dtype: torch.dtype, placement: Mapping[str, Any]) -> tuple[Any, Any]:
    """The Hugging Face decoder and the tokenizer of a .gguf file.

    Args:
        path: The file.
        dtype: What its packed weights are unpacked to.
        placement: Options of `PLACEMENT`.

    Raises:
        ModelError: There is no such file, it is damaged, or the reader does not know its
            architecture, the packing of one of its weights, or one part of several.
        ImportError: The extra ``gguf`` is not installed.
    """
    from transformers import AutoModelForCausalLM

    given = _given(path)
    with _parsed_once():
        config = read_gguf_config(path)
        try:
            model, told = AutoModelForCausalLM.from_pretrained(
                **given, config=config, dtype=dtype, output_loading_info=True, **placement
            )
        except _REFUSALS as error:
            raise _explained(path, error) from error
        tokenizer = read_gguf_tokenizer(path)
    lacking = sorted(told["missing_keys"]) + sorted(told["mismatched_keys"])
    if lacking:  # they would be random
        raise ModelError(
            f"{path}: expected all weights of a {config.model_type} model, got none that fit "
            f"{len(lacking)} of them, such as {lacking[0]}"
        )
    _as_plain(model)
    model.config.name_or_path = model.name_or_path = str(path)
    model.config.architectures = [type(model).__name__]  # which TransformerLens goes by
    return model, tokenizer


def read_gguf_config(path: Path) -> Any:
    """The configuration that the metadata of a .gguf file say.

    Raises:
        ModelError: There is no such file, it is damaged, or the reader does not know its
            architecture.
        ImportError: The extra ``gguf`` is not installed.
    """
    from transformers import AutoConfig

    given = _given(path)
    try:
        return AutoConfig.from_pretrained(**given)
    except _REFUSALS as error:
        raise _explained(path, error) from error


def read_gguf_tokenizer(path: Path) -> Any:
    """The tokenizer of a .gguf file, with its chat template if it has one.

    Raises:
        ModelError: There is no such file, it is damaged, or the reader does not know its tokenizer.
        ImportError: The extra ``gguf`` is not installed.
    """
    from transformers import AutoTokenizer

    given = _given(path)
    try:
        return AutoTokenizer.from_pretrained(**given)
    except (*_REFUSALS, AttributeError) as error:
        raise _explained(path, error) from error


_REFUSALS = (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, struct.error)
"""What transformers' and gguf's readers raise at files that they do not understand."""


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Inside, a file's header is parsed once; transformers would three times, 13 s each (Gemma)."""
    import gguf

    reader = gguf.GGUFReader
    gguf.GGUFReader = lru_cache(maxsize=1)(reader)
    try:
        yield
    finally:
        gguf.GGUFReader = reader


def _given(path: Path) -> dict[str, Any]:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"reading {path.name} needs pip install 'stepflow-tl[gguf]'", name="gguf"
        ) from error
    if not path.is_file():
        raise ModelError(f"no model {str(path)!r}: expected a .gguf file, found none there")
    if _SPLIT.search(path.stem):
        raise ModelError(
            f"{path.name} is one part of a model: expected a single file; join its parts with "
            "llama.cpp's 'llama-gguf-split --merge'"
        )
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}


def _as_plain(model: Any) -> None:
    """Take off what says that the weights are packed: they are plain numbers now."""
    model.hf_quantizer = None
    for owner, name in (
        (model.config, "quantization_config"),
        (model, "quantization_method"),
        (model, "is_quantized"),
    ):
        if name in vars(owner):
            delattr(owner, name)


def _explained(path: Path, error: Exception) -> Exception:
    if is_out_of_memory(error):
        return error
    said = " ".join(str(error).split()) or type(error).__name__
    unknown = _UNKNOWN_ARCHITECTURE.search(said)
    if unknown:
        from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

        known = sorted(set(GGUF_SUPPORTED_ARCHITECTURES) - {"general", "tokenizer"})
        return ModelError(
            f"{path.name}: expected an architecture that transformers reads from .gguf files, "
            f"some of {', '.join(known)}, got {unknown[1]!r}; load its Hugging Face checkpoint"
        )
    if isinstance(error, NotImplementedError):
        return ModelError(
            f"{path.name}: expected weights in a packing that transformers unpacks (such as Q4_K, "
            f"Q8_0, F16), got one that it does not: {said}"
        )
    if "magic" in said or not path.stat().st_size:
        return ModelError(f"{path} is no .gguf file: {said}")
    return ModelError(
        f"{path} could not be read: expected a whole .gguf file of a model that transformers "
        f"reads, got {type(error).__name__}: {said} (truncated?)"
    )
