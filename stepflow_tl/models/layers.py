"""Naming layers: bands, fractions, depth intervals and indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from stepflow_tl.errors import SettingError

Band = Literal["shallow", "middle", "deep", "all", "deep-onset"]
LayerSpec = Band | float | tuple[float | int, float | int] | int | range | Sequence[int]
"""How layers are named: a band, a fraction (0.25: the bottom quarter; -0.25: the top quarter), a
depth interval (0.0, 0.25), a range, one index, or indices (negative ones count from the top)."""

BAND_FRACTION = 0.25


def resolve_layers(spec: LayerSpec, count: int) -> tuple[int, ...]:
    """Layer indices that a specification names.

    Bands follow the paper (Table 8): "shallow" is the bottom quarter and "deep" the top quarter
    (28 layers: 0-6 and 21-27), "middle" what lies between; "deep-onset" is the first deep layer.

    Args:
        spec: See `LayerSpec`.
        count: Number of layers of the model.

    Returns:
        The indices, ascending, none twice.

    Raises:
        ValueError: The specification names nothing, or a layer that the model does not have.
    """
    if isinstance(spec, str):
        return _band(spec, count)
    if isinstance(spec, float):
        return _fraction(spec, count)
    if isinstance(spec, tuple) and len(spec) == 2 and any(isinstance(x, float) for x in spec):
        return _depth_interval((spec[0], spec[1]), count)
    layers = [spec] if isinstance(spec, int) else list(spec)
    if not layers or not all(isinstance(x, int) and not isinstance(x, bool) for x in layers):
        raise SettingError(
            f"layers={spec!r}: expected at least one layer index, a band or a fraction"
        )
    wrong = [x for x in layers if not -count <= x < count]
    if wrong:
        raise SettingError(
            f"expected layers of the model: layers={spec!r} names layer {wrong[0]}, but the model "
            f"has {count} layers (0 to {count - 1})"
        )
    return tuple(sorted({int(x) % count for x in layers}))


def _band(name: str, count: int) -> tuple[int, ...]:
    width = max(1, int(BAND_FRACTION * count + 0.5))
    bands = {
        "shallow": range(width),
        "middle": range(width, max(width, count - width)),
        "deep": range(count - width, count),
        "all": range(count),
        "deep-onset": range(count - width, count - width + 1),
    }
    if name not in bands:
        raise SettingError(f"layers={name!r}: expected one of {list(get_args(Band))}")
    if not bands[name]:
        raise SettingError(
            f"expected a band with layers in it: layers={name!r} is empty in a model of {count} "
            "layers"
        )
    return tuple(bands[name])


def _fraction(fraction: float, count: int) -> tuple[int, ...]:
    if not 0.0 < abs(fraction) <= 1.0:
        raise SettingError(f"layers={fraction!r}: expected a fraction in (0, 1] or [-1, 0)")
    width = max(1, int(abs(fraction) * count + 0.5))
    return tuple(range(width) if fraction > 0 else range(count - width, count))


def _depth_interval(interval: tuple[float | int, float | int], count: int) -> tuple[int, ...]:
    low, high = interval
    if not 0.0 <= low < high <= 1.0:
        raise SettingError(
            f"layers={interval!r}: expected a depth interval (low, high) with 0 <= low < high <= 1"
        )
    first = min(int(low * count + 0.5), count - 1)
    return tuple(range(first, max(int(high * count + 0.5), first + 1)))


def check_layer_spec(spec: LayerSpec) -> None:
    """Refuse at construction what no model could satisfy.

    Raises:
        ValueError: The band is unknown, a fraction is out of range, or no layer is named.
    """
    if isinstance(spec, (str, float)) or (
        isinstance(spec, tuple) and any(isinstance(x, float) for x in spec)
    ):
        resolve_layers(spec, 1000)
    elif not isinstance(spec, int) and not list(spec):
        raise SettingError(
            f"layers={spec!r}: expected at least one layer index, a band or a fraction"
        )
