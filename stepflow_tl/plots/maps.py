"""Token maps and step maps, alone or side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from stepflow_tl.errors import SettingError
from stepflow_tl.plots.labels import Along, name_steps
from stepflow_tl.plots.map_parts import (
    SHARE,
    color_bar,
    color_scale,
    draw_lower_triangle,
    draw_steps,
    expected_side,
    mean_scores,
    name_length,
    new_axes,
    row_shares,
    saliency_label,
)
from stepflow_tl.plots.segments import mark_segments, segment_legend, separate_segments
from stepflow_tl.plots.style import POINTS, STYLE, literal_lines
from stepflow_tl.saliency.maps import StepMap
from stepflow_tl.traces.trace import Trace

_SIDE, _BESIDE = 3.7, 1.9  # inches: of a map beside others, and of what is named beside it


def plot_step_map(
    step_map: StepMap,
    *,
    ax: Axes | None = None,
    title: str = "",
    vmax: float | None = None,
    colorbar: bool = True,
    legend: bool = True,
) -> Axes:
    """Draw a step map, averaged over its layers and heads.

    Args:
        step_map: The map; `StepMap.normalize("row")` makes rows comparable.
        ax: Where to, in a figure of constrained layout; None for a new figure.
        title: Above the map.
        vmax: Value of the darkest color, to share a scale between maps.
        colorbar: Draw the labeled color scale; `figure_step_maps` draws one for several maps.
        legend: Say, in the map's empty half, which color is which segment.
    """
    ax = new_axes((7.0, 6.2)) if ax is None else ax
    values = mean_scores(step_map)
    scale = color_scale([values], vmax)
    draw_steps(ax, step_map.steps, values, scale, side=expected_side(ax, colorbar=colorbar))
    ax.set_title(literal_lines(title))
    if legend:
        segment_legend(ax, step_map.steps, loc="upper right", fontsize=8)
    if colorbar:
        color_bar(ax, scale, saliency_label(step_map))
    return ax


def plot_token_map(
    scores: Float[Tensor, "query key"],
    trace: Trace,
    *,
    ax: Axes | None = None,
    title: str = "",
    vmax: float | None = None,
    colorbar: bool = True,
    legend: bool = True,
) -> Axes:
    """Draw a token map, rows normalized to sum to one, segments marked, steps outlined and named.

    Args:
        scores: Token scores of one layer, or a mean over layers.
        trace: The trace they belong to.
        ax: Where to, in a figure of constrained layout; None for a new figure.
        title: Above the map.
        vmax: Value of the darkest color, to share a scale between maps.
        colorbar: Draw the labeled color scale.
        legend: Say, in the map's empty half, which color is which segment.
    """
    ax = new_axes((7.0, 6.2)) if ax is None else ax
    values = row_shares(scores)
    scale = color_scale([values], vmax)
    _draw_tokens(ax, trace, values, scale, side=expected_side(ax, colorbar=colorbar))
    ax.set_title(literal_lines(title))
    if legend:
        segment_legend(ax, trace.steps, loc="upper right", fontsize=8)
    if colorbar:
        color_bar(ax, scale, SHARE)
    return ax


def figure_step_maps(maps: Mapping[str, StepMap], *, vmax: float | None = None) -> Figure:
    """Step maps side by side, on one scale with one color bar.

    Maps that show different things (shares of a row, and saliency as it is) share no scale: each
    then has a color bar of its own, which says so.

    Args:
        maps: For each map's title, the map.
        vmax: Value of the darkest color.

    Raises:
        ValueError: There is no map.
    """
    if not maps:
        raise SettingError("figure_step_maps expects a title and a map at least, got none")
    drawn = list(maps.values())
    values, shown = [mean_scores(one) for one in drawn], [saliency_label(one) for one in drawn]
    shared = len(set(shown)) == 1
    scales = [color_scale(values if shared else [one], vmax) for one in values]
    across = min(3, len(drawn))
    names = [
        "x" if i % across and one.steps == drawn[i - 1].steps else "xy"
        for i, one in enumerate(drawn)
    ]
    with mpl.rc_context(STYLE):
        figure, axes = _grid_of_maps(len(drawn), across, names, bars=1 if shared else across)
        for i, (ax, title) in enumerate(zip(axes, maps, strict=True)):
            side = 0.95 * _SIDE * POINTS
            draw_steps(
                ax, drawn[i].steps, values[i], scales[i], side=side, names=names[i], aspect="auto"
            )
            ax.set_title(literal_lines(title))
            if not shared:
                color_bar(ax, scales[i], f"{shown[i]}, on a scale of its own")
        if shared:
            color_bar(axes, scales[0], shown[0])
        steps = [step for one in drawn for step in one.steps]
        segment_legend(figure, steps, loc="outside upper center", ncols=3)
    return figure


def _grid_of_maps(
    count: int, across: int, names: Sequence[str], *, bars: int
) -> tuple[Figure, list[Axes]]:
    """A figure with room for maps of one size, for names beside them, and for color bars."""
    down = -(-count // across)
    columns = {i % across for i, along in enumerate(names) if "y" in along}
    figure, axes = plt.subplots(
        down,
        across,
        figsize=(
            across * (_SIDE + 0.4) + _BESIDE * len(columns) + bars,
            down * (_SIDE + _BESIDE) + 0.4,
        ),
        squeeze=False,
    )
    for ax in axes.flat[count:]:
        ax.set_visible(False)
    return figure, list(axes.flat[:count])


def figure_token_and_step_maps(
    examples: Mapping[str, tuple[Float[Tensor, "query key"], Trace, StepMap]],
) -> Figure:
    """Token map beside step map, one row per example (the paper's Figure 1).

    Args:
        examples: For each row's title, its token map, trace and step map.
    """
    side = 4.2
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(examples),
            2,
            figsize=(2 * (side + 2.5), (side + 1.9) * len(examples) + 0.3),
            squeeze=False,
        )
        tokens = [row_shares(scores) for scores, _, _ in examples.values()]
        shares = [mean_scores(one.normalize("row")) for _, _, one in examples.values()]
        token_scale, step_scale = color_scale(tokens), color_scale(shares)
        for i, (name, (_, trace, step_map)) in enumerate(examples.items()):
            by_token, by_step = axes[i]
            room = 0.9 * side * POINTS
            _draw_tokens(by_token, trace, tokens[i], token_scale, side=room)
            draw_steps(by_step, step_map.steps, shares[i], step_scale, side=room)
            by_token.set_title(literal_lines(f"{name}: tokens"))
            by_step.set_title(literal_lines(f"{name}: steps"))
        color_bar(list(axes[:, 0]), token_scale, f"token maps: {SHARE}")
        color_bar(list(axes[:, 1]), step_scale, f"step maps: {SHARE}")
        steps = [step for _, trace, _ in examples.values() for step in trace.steps]
        segment_legend(figure, steps, loc="outside upper center", ncols=3)
    return figure


def _draw_tokens(
    ax: Axes,
    trace: Trace,
    values: Float[np.ndarray, "query key"],
    scale: Normalize,
    *,
    side: float,
) -> None:
    """Draw a map of tokens, its segments marked, its steps outlined and named."""
    draw_lower_triangle(ax, values, scale)
    each = side / max(1, len(trace))
    separate_segments(ax, trace.segments)
    for step in trace.steps:
        corner = (step.start - 0.5, step.start - 0.5)
        ax.add_patch(Rectangle(corner, len(step), len(step), fill=False, lw=0.5, ec="#5577aa"))
    middles = [(step.start + step.stop - 1) / 2 for step in trace.steps]
    axes: Mapping[Along, str] = {"x": "key token", "y": "query token"}
    for along, label in axes.items():
        mark_segments(ax, along, trace.segments, points_per_unit=each)
        name_steps(
            ax,
            along,
            trace.steps,
            f"{label} (of {len(trace):,}), by step",
            points_per_unit=each,
            length=name_length(side),
            positions=middles,
        )
