"""How many positions a model was made for, rotary scaling respected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ALREADY_SCALED = ("default", "llama3", "longrope", "su", "proportional")
"""Kinds of rotary embedding whose ``max_position_embeddings`` is what they allow."""


def context_length_of(config: Any) -> int | None:
    """Number of positions that a decoder may be run on; None where nothing limits it.

    It is ``max_position_embeddings``, multiplied by the factor of linear, dynamic or YaRN scaling
    where the configuration gives the length before it.

    Args:
        config: The decoder's configuration.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    return max(int(positions), _scaled(int(positions), getattr(config, "rope_parameters", None)))


def _scaled(positions: int, rope: Any) -> int:
    """What a rotary scaling stretches a length to; 0 for none, or one by kinds of layer."""
    if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
        return 0  # of kinds of layer (Gemma 3), the configuration gives the length after scaling
    kind = rope.get("rope_type", rope.get("type", "default"))
    factor = rope.get("factor")
    if kind in _ALREADY_SCALED or not isinstance(factor, (int, float)):
        return 0
    before = rope.get("original_max_position_embeddings") or positions
    return int(before * factor)
