"""The numbers that a model consists of, wherever they are and however they are packed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_PACKED_EXPERTS = "Mxfp4"  # transformers' experts in MXFP4 on a GPU


def weights_in_order(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Name and numbers of each parameter, on the CPU, in the order of the names.

    Of a quantized model the rest of its state follows: scales, code books, packed weights.
    """
    named = sorted(model.named_parameters(), key=lambda pair: pair[0])
    owners = _owners(model) if any(parameter.is_meta for _, parameter in named) else {}
    for name, parameter in named:
        module, own_name = owners.get(id(parameter), (None, ""))
        with _in_memory(module) if parameter.is_meta else nullcontext():
            held = parameter if module is None else getattr(module, own_name)
            yield name, held.detach().cpu().contiguous()
    if is_quantized(model):
        known = {name for name, _ in named}
        for name, value in sorted(_saved(model).items()):
            if name not in known:
                yield from ((name, tensor) for tensor in _tensors(value))


def is_quantized(model: nn.Module) -> bool:
    """Whether some of the weights are packed, and stand for others."""
    return any(True for _ in packed_layers(model))


def packed_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of each layer whose weights are no floating-point matrix: linear, experts."""
    for name, module in model.named_modules():
        if type(module).__name__.startswith(_PACKED_EXPERTS):
            yield name, module
        if not hasattr(module, "in_features") or hasattr(module, "original_component"):
            continue
        weight = getattr(module, "weight", None)
        if not (isinstance(weight, Tensor) and weight.dtype.is_floating_point):
            yield name, module


def let_gradients_through(model: nn.Module, error: type[ValueError]) -> None:
    """Make sure that a backward pass goes through the packed layers of a quantized model.

    bitsandbytes repacks its 4-bit weights for fast decoding on some CPUs, and what is packed so
    gives no gradient: it is unpacked when the layer's state is asked for.

    Raises:
        ValueError: As `error`: a layer gives no gradient; it is named.
    """
    for name, layer in packed_layers(model):
        if not hasattr(layer, "in_features"):
            raise _gives_none(layer, name, "its kernels have no backward pass", error)
        layer.state_dict()
        dtype = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), None)
        device = next((t.device for t in (*layer.parameters(), *layer.buffers())), None)
        probe = torch.ones(1, int(layer.in_features), dtype=dtype, device=device)  # type: ignore[arg-type]
        why = "its output carries no gradient"
        try:
            if _gives_gradient(layer, probe):
                continue
        except RuntimeError as reason:
            why = str(reason).splitlines()[0]
        raise _gives_none(layer, name, why, error)


def _gives_none(layer: nn.Module, name: str, why: str, error: type[ValueError]) -> ValueError:
    return error(
        f"expected layers that a gradient goes through, got {type(layer).__name__} at {name} "
        f"({why}); score the model unquantized, or by rule='attention'"
    )


def _gives_gradient(layer: nn.Module, probe: Float[Tensor, "1 d_in"]) -> bool:
    with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, of an operation without a gradient
        output = layer(probe.requires_grad_())
        if not output.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(output.sum(), probe, allow_unused=True)
        return gradient is not None


def _owners(model: nn.Module) -> dict[int, tuple[nn.Module, str]]:
    return {
        id(parameter): (module, name)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
    }


def _in_memory(module: nn.Module | None) -> Any:
    """Inside, a module that accelerate keeps elsewhere has its numbers."""
    from accelerate.utils import align_module_device  # type: ignore[import-untyped]

    return nullcontext() if module is None else align_module_device(module)


def _saved(model: Any) -> Mapping[str, Any]:
    state: Mapping[str, Any] = nn.Module.state_dict(model)
    return state


def _tensors(value: Any) -> Iterator[Tensor]:
    """The plain tensors in a part of a module's state."""
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, Tensor) and value.is_quantized:
        yield value.int_repr().contiguous()
        if value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            yield torch.tensor([value.q_scale(), float(value.q_zero_point())])
        else:
            yield value.q_per_channel_scales().contiguous()
            yield value.q_per_channel_zero_points().contiguous()
    elif isinstance(value, Tensor):
        yield value.detach().cpu().contiguous()
