"""Loading models and tokenizers, with an error for each thing that can go wrong."""

from __future__ import annotations

import inspect
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from stepflow_tl.errors import ModelError
from stepflow_tl.models.gguf import PLACEMENT, is_gguf, read_gguf, read_gguf_tokenizer
from stepflow_tl.models.hub import explain, weights_size
from stepflow_tl.models.locked_in import NAME as LOCKED_IN
from stepflow_tl.models.locked_in import locked_in_decoder
from stepflow_tl.models.memory import in_gib, out_of_memory_as
from stepflow_tl.models.precision import AUTO, own_dtype, read_dtype
from stepflow_tl.reasoner import WEIGHTS
from stepflow_tl.version import check_versions


def load_model(
    name: str | Path = "reasoner",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **boot_options: Any,
) -> Any:
    """Load a model as a `TransformerBridge`.

    Args:
        name: ``"reasoner"`` (the bundled model), ``"reasoner-locked-in"`` (the same, fine-tuned to
            fail by Shallow Lock-in), a Hugging Face name, a local folder, or a .gguf file (extra
            ``gguf``). Weights that are packed there, or in MXFP4 (GPT-OSS), are unpacked; to keep
            them packed, load the model elsewhere, and give it as ``hf_model``.
        device: Where to; None for a GPU where there is one.
        dtype: Precision of the weights: "float32", "bfloat16", "float16", "float64" or such a
            type; "auto" for the checkpoint's own (of a .gguf file's, which are packed, float32);
            None for float32, or for that of ``hf_model``.
        **boot_options: Passed on to ``TransformerBridge.boot_transformers`` (`revision`,
            `hf_model` for a model loaded elsewhere, such as a quantized one, `device_map`, ...).

    Returns:
        The bridge, in evaluation mode.

    Raises:
        ModelError: There is no such model, folder or usable checkpoint; it is gated; there is no
            room for it on the disk or in memory; `dtype` is no precision to run a model in; or the
            installed transformer-lens has no such option.
        ImportError: A library that runs models is missing, or of a version that is not supported.
    """
    check_versions()
    if str(name) == LOCKED_IN:
        return _locked_in(device, dtype, boot_options)
    from transformer_lens.model_bridge import TransformerBridge
    from transformers.utils import logging as hf_logging

    path = WEIGHTS if str(name) == "reasoner" else Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(
            f"expected a Hugging Face checkpoint in {path}, found no config.json there"
        )
    source = str(path) if path.is_dir() else str(name)
    _check_options(TransformerBridge.boot_transformers, boot_options)
    if device is not None:
        boot_options["device"] = str(device)
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        exact = _load_dtype(source, dtype, boot_options)
        with _nothing_installed(), out_of_memory_as(ModelError, lambda: _smaller(source, exact)):
            if "hf_model" not in boot_options:
                boot_options = (
                    _read(Path(source), exact, boot_options)
                    if is_gguf(source)
                    else _unpacked(source, boot_options)
                )
            model = TransformerBridge.boot_transformers(source, dtype=exact, **boot_options)
    except ModelError:
        raise
    except (OSError, ValueError, SafetensorError, RuntimeError, AssertionError) as error:
        raise ModelError(explain(str(name), error)) from error
    finally:
        if bars:
            hf_logging.enable_progress_bar()
    model.eval()
    return model


def load_tokenizer(name: str | Path = "reasoner") -> Any:
    """Load a model's tokenizer, and nothing else of it.

    Args:
        name: As for `load_model`.

    Raises:
        ModelError: There is no such model, or no usable tokenizer in it.
    """
    from transformers import AutoTokenizer

    source = WEIGHTS if str(name) in ("reasoner", LOCKED_IN) else name
    if is_gguf(source):
        return read_gguf_tokenizer(Path(source))
    try:
        return AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"no tokenizer: {explain(str(name), error)}") from error


def _locked_in(
    device: str | torch.device | None, dtype: str | torch.dtype | None, options: dict[str, Any]
) -> Any:
    """The reasoner that locks in, under its name."""
    if "hf_model" in options:
        raise ModelError(
            f"expected hf_model beside the name of its own weights, got it beside {LOCKED_IN!r}, "
            'which brings its own; a dose is load_model("reasoner", hf_model=locked_in_decoder(48))'
        )
    exact = torch.float32 if dtype is None else read_dtype(dtype, ModelError)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    decoder = locked_in_decoder().to(device=place, dtype=exact or torch.float32)
    model = load_model(hf_model=decoder, device=device, **options)
    model.cfg.model_name = LOCKED_IN
    return model


def _unpacked(source: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options to boot a checkpoint with: one in MXFP4 (GPT-OSS) is unpacked on every device.

    Its kernels for GPUs have no backward pass, and what goes through them would be left out of a
    gradient without a word.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, **_where_from(options))
    except Exception:  # whoever loads the model says why
        return dict(options)
    packed = getattr(config, "quantization_config", None)
    if not isinstance(packed, dict) or packed.get("quant_method") != "mxfp4":
        return dict(options)
    overrides = {"quantization_config": {**packed, "dequantize": True}}
    return {
        **options,
        "hf_config_overrides": overrides | (options.get("hf_config_overrides") or {}),
    }


def _where_from(options: Mapping[str, Any]) -> dict[str, Any]:
    revision = {"revision": options["revision"]} if "revision" in options else {}
    return {"trust_remote_code": bool(options.get("trust_remote_code")), **revision}


def _read(path: Path, dtype: torch.dtype, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options to boot the model of a .gguf file with."""
    model, tokenizer = read_gguf(path, dtype, {k: options[k] for k in PLACEMENT if k in options})
    rest = {name: value for name, value in options.items() if name not in PLACEMENT}
    if "device_map" not in options:
        device = options.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
        model.to(device)
    return {"tokenizer": tokenizer, **rest, "hf_model": model}


def _check_options(boot: Callable[..., Any], options: Mapping[str, Any]) -> None:
    known = inspect.signature(boot).parameters
    unknown = [name for name in options if name not in known]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        raise ModelError(
            f"the installed transformer-lens loads a model with none of {unknown}: expected some "
            f"of {[name for name in known if name not in ('model_name', 'dtype')]}"
        )


def _load_dtype(
    source: str, dtype: str | torch.dtype | None, options: dict[str, Any]
) -> torch.dtype:
    """The precision to load in, or of the model that is given."""
    given = options.get("hf_model")
    if given is not None:
        read_dtype(AUTO if dtype is None else dtype, ModelError)
        own: torch.dtype = given.dtype
        return own
    exact = torch.float32 if dtype is None else read_dtype(dtype, ModelError)
    if exact is not None:
        return exact
    if is_gguf(source):
        return torch.float32
    from transformers import AutoConfig

    return own_dtype(AutoConfig.from_pretrained(source, **_where_from(options)))


def _smaller(source: str, dtype: torch.dtype) -> str:
    size = weights_size(source, dtype)
    exact = str(dtype).removeprefix("torch.")
    weights = "the weights" if size is None else f"weights of {in_gib(size)}"
    return (
        f"expected room for {weights} in {exact}; load with dtype='bfloat16' (half of float32), "
        "over several devices with device_map='auto', or quantized, as hf_model=..."
    )


@contextmanager
def _nothing_installed() -> Iterator[None]:
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
