"""Precision of weights: which types a model may be loaded in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")
}
AUTO = "auto"

WIDER = "float16 overflows beyond 65504: load the model in dtype='bfloat16' or 'float32'"
"""What to do where numbers are no longer finite."""


def read_dtype(dtype: Any, error: type[ValueError]) -> torch.dtype | None:
    """The type that a name or a type stands for; None for "auto".

    Raises:
        ValueError: As `error`: it is no type that a model can be run in.
    """
    if dtype == AUTO:
        return None
    found = DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None or not isinstance(dtype, (str, torch.dtype)):
        raise error(
            f"expected a dtype such as 'float32' or 'bfloat16', one of {[*DTYPES, AUTO]}, got "
            f"{dtype!r} (for 8 and 4 bits load a quantized model, and pass it as hf_model=...)"
        )
    return found


def widened(x: Tensor) -> Tensor:
    """In float32 or wider: what sums and logarithms are computed in."""
    return x if x.dtype == torch.float64 else x.float()


def own_dtype(config: Any) -> torch.dtype:
    """The type that a checkpoint's configuration says its weights are of; float32 for none."""
    for part in (config.get_text_config(), config):
        found = DTYPES.get(str(getattr(part, "dtype", None)).removeprefix("torch."))
        if found is not None:
            return found
    return torch.float32
