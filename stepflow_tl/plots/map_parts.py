"""What maps share: their values, the scale of their colors, and how much room they have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from torch import Tensor

from stepflow_tl.plots.labels import Along, name_steps
from stepflow_tl.plots.segments import mark_segments, segments_of_steps, separate_segments
from stepflow_tl.plots.style import POINTS, STYLE
from stepflow_tl.saliency.maps import StepMap
from stepflow_tl.traces.trace import Step

COLOR_MAP = "magma_r"
_SHARE_OF = "share of the reader's {}"
SHARE = _SHARE_OF.format("saliency")
_NAME_SHARE = 0.42  # of a map's side, that names beside it may be long
_SHORTEST, _LONGEST = 45.0, 140.0  # points of a name
_GAMMA = 0.5  # color follows the square root, so that faint flow stays visible


def saliency_label(step_map: StepMap) -> str:
    """What the colors of a map show."""
    what = "attention" if step_map.settings.get("rule") == "attention" else "saliency"
    return _SHARE_OF.format(what) if step_map.settings.get("normalized") == "row" else what


def mean_scores(step_map: StepMap) -> Float[np.ndarray, "query_step key_step"]:
    """A map's magnitudes, averaged over heads and layers."""
    scores: np.ndarray = step_map.mean_over_heads().scores.double().abs().mean(0).numpy()
    return scores


def row_shares(scores: Float[Tensor, "query key"]) -> Float[np.ndarray, "query key"]:
    """Magnitudes, each row divided by its sum."""
    values = scores.double().abs()
    shares: np.ndarray = (values / values.sum(-1, keepdim=True).clamp_min(1e-300)).numpy()
    return shares


def color_scale(maps: Iterable[np.ndarray], vmax: float | None = None) -> Normalize:
    """The scale that maps share: up to the 99.5th percentile of what flows between, not within.

    Args:
        maps: Values of each map; of several, the highest percentile counts.
        vmax: Value of the darkest color, if it is given.
    """
    return PowerNorm(_GAMMA, vmin=0.0, vmax=vmax or max(_darkest_value(one) for one in maps))


def _darkest_value(values: np.ndarray) -> float:
    between = np.abs(np.tril(values, -1))
    positive = between[np.isfinite(between) & (between > 0)]
    return float(np.quantile(positive, 0.995)) if positive.size else 1.0


def draw_lower_triangle(ax: Axes, values: np.ndarray, scale: Normalize) -> None:
    """Draw a map without what lies above its diagonal, and without a frame."""
    above = np.triu(np.ones_like(values, dtype=bool), 1)
    ax.imshow(np.ma.array(values, mask=above), cmap=COLOR_MAP, norm=scale, interpolation="nearest")
    for side in ax.spines.values():
        side.set_visible(False)


def draw_steps(
    ax: Axes,
    steps: Sequence[Step],
    values: Float[np.ndarray, "query_step key_step"],
    scale: Normalize,
    *,
    side: float,
    names: str = "xy",
    aspect: Literal["equal", "auto"] = "equal",
) -> None:
    """Draw a map of steps, its segments marked and its steps named.

    Args:
        ax: Where to.
        steps: The steps.
        values: What to draw of them.
        scale: Of the colors.
        side: Points that the map's side will take, at least.
        names: The axes along which steps are named.
        aspect: "auto" to fill the axes, which a layout of several of them settles on.
    """
    draw_lower_triangle(ax, values, scale)
    ax.set_aspect(aspect)
    segments, each = segments_of_steps(steps), side / max(1, len(steps))
    separate_segments(ax, segments)
    axes: Mapping[Along, str] = {"x": "key step (source)", "y": "query step (reader)"}
    for along, label in axes.items():
        mark_segments(ax, along, segments, points_per_unit=each)
        if along in names:
            length = name_length(side)
            name_steps(ax, along, steps, label, points_per_unit=each, length=length)
        else:
            ax.set(**{f"{along}ticks": []})


def color_bar(axes: Axes | Sequence[Axes], scale: Normalize, label: str) -> None:
    """Draw the color scale of a map, or that of several, with what it shows."""
    one = isinstance(axes, Axes)
    figure = (axes if isinstance(axes, Axes) else axes[0]).get_figure()
    assert figure is not None
    bar = figure.colorbar(
        ScalarMappable(scale, COLOR_MAP),
        ax=axes,
        shrink=0.8 if one else 0.5,
        aspect=25 if one else 30,
        extend="max",
        extendfrac=0.04,
        format="%g",
    )
    bar.set_label(label)
    bar.outline.set_visible(False)


def new_axes(inches: tuple[float, float]) -> Axes:
    """Axes of a figure of their own."""
    with mpl.rc_context(STYLE):
        return plt.subplots(figsize=inches)[1]


def axes_size(ax: Axes) -> tuple[float, float]:
    """Width and height of axes in points, before a layout makes room for what is around them."""
    box, dots = ax.get_window_extent(), ax.figure.get_dpi()
    return box.width * POINTS / dots, box.height * POINTS / dots


def expected_side(ax: Axes, *, colorbar: bool) -> float:
    """Points that a map's side will take, at least, once a layout has made room around it.

    Args:
        ax: The map's axes.
        colorbar: Whether a color bar will stand beside it.
    """
    width, height = axes_size(ax)
    spec = ax.get_subplotspec()
    if spec is None or ax.figure.get_layout_engine() is None:
        return max(_SHORTEST, min(0.85 * width if colorbar else width, height))
    rows, columns = spec.get_gridspec().get_geometry()
    across, down = (size * POINTS / ax.figure.get_dpi() for size in ax.figure.bbox.size)
    room = min(
        min(1.5 * width, across * len(spec.colspan) / columns) - (125.0 if colorbar else 55.0),
        min(1.5 * height, down * len(spec.rowspan) / rows) - 70.0,
    )
    return max(_SHORTEST, min(room / (1 + _NAME_SHARE), room - _SHORTEST))


def name_length(side: float) -> float:
    """Points that names beside a map of this size may be long."""
    return min(max(_NAME_SHARE * side, _SHORTEST), _LONGEST)
