"""Numbers and texts as a page carries them: quantized, deflated, and no markup whatever they say.

Everything ends as base64, whose letters cannot end an element of the page. The page inflates it
with the browser's own ``DecompressionStream``.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl.errors import NonFiniteError

LEVELS = 127
"""Largest number of a cell: seven bits, so that even noise of 300 x 300 x 28 stays under 1.5 MB."""


def packed_json(facts: Any) -> str:
    """Facts as base64 of deflated JSON; broken surrogates become replacement characters."""
    text = json.dumps(facts, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return deflated(text.encode("utf-8", "replace"))


def packed_scores(scores: Float[Tensor, "plane query_step key_step"]) -> str:
    """Scores at or below the diagonal, each row relative to its largest magnitude.

    A row's scale is a float32; a cell is the square root of its magnitude in 127 levels, so that
    small scores keep what large ones can spare, with its sign in the eighth bit: an error of at
    most 1/127 of the row's largest score (and 1/64,516 near zero). First come all scales, then all
    cells, plane by plane, row by row.

    Raises:
        NonFiniteError: A score is NaN or infinite.
    """
    if not bool(scores.isfinite().all()):
        raise NonFiniteError("expected scores that are numbers, got a map with NaN or infinity")
    values = scores.detach().double().tril().numpy()
    scale = np.abs(values).max(-1, initial=0.0).astype("<f4")
    relative = np.abs(values) / np.maximum(scale.astype(float), 1e-300)[..., None]
    cells = np.rint(np.sqrt(relative.clip(0.0, 1.0)) * LEVELS).astype(np.uint8)
    cells |= np.where((values < 0) & (cells > 0), 128, 0).astype(np.uint8)
    rows, keys = np.tril_indices(values.shape[-1])
    return deflated(scale.tobytes() + cells[:, rows, keys].tobytes())


def deflated(data: bytes) -> str:
    """Base64 of the data, deflated (RFC 1951)."""
    press = zlib.compressobj(9, zlib.DEFLATED, -15)
    return base64.b64encode(press.compress(data) + press.flush()).decode("ascii")


def unpacked_scores(data: str, planes: int, steps: int) -> Float[Tensor, "plane query step"]:
    """What the page reads of `packed_scores`: for tests, and for whoever reads a page."""
    raw = zlib.decompress(base64.b64decode(data), -15)
    split = 4 * planes * steps
    scale = np.frombuffer(raw[:split], "<f4").reshape(planes, steps, 1).astype(float)
    cells = np.frombuffer(raw[split:], np.uint8).reshape(planes, -1)
    values = np.zeros((planes, steps, steps))
    rows, keys = np.tril_indices(steps)
    sign = np.where(cells & 128, -1.0, 1.0)
    values[:, rows, keys] = sign * ((cells & LEVELS) / LEVELS) ** 2
    return torch.from_numpy(values * scale)
