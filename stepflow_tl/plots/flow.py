"""Step-to-step flow: arcs from sources to readers, alone or under the maps that they are from."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc

from stepflow_tl.models.layers import Band
from stepflow_tl.plots.labels import name_steps
from stepflow_tl.plots.map_parts import (
    SHARE,
    axes_size,
    color_bar,
    color_scale,
    draw_steps,
    mean_scores,
    name_length,
    new_axes,
)
from stepflow_tl.plots.segments import (
    SEGMENT_COLORS,
    SEGMENT_MARKERS,
    STRIP_WIDTH,
    mark_segments,
    segment_legend,
    segments_of_steps,
)
from stepflow_tl.plots.style import POINTS, STYLE, literal_lines
from stepflow_tl.saliency.maps import StepMap


def plot_step_flow(
    step_map: StepMap,
    *,
    ax: Axes | None = None,
    title: str = "",
    strongest: int = 2,
    least_share: float = 0.05,
    legend: bool = True,
) -> Axes:
    """Draw step-to-step flow as arcs over the line of steps.

    Each query step receives arcs from its strongest sources other than itself; width and opacity
    follow the share of the query step's saliency, color the source's segment.

    Args:
        step_map: The map; its rows are normalized here, its layers averaged.
        ax: Where to, in a figure of constrained layout; None for a new figure.
        title: Above the arcs.
        strongest: Arcs per query step.
        least_share: Shares below this draw no arc.
        legend: Say above the arcs which color and marker is which segment.
    """
    ax = new_axes((9.0, 4.4)) if ax is None else ax
    width, height = axes_size(ax)
    _draw_flow(ax, step_map, strongest, least_share, width=width, length=0.4 * height)
    ax.set_title(literal_lines(title))
    if legend:
        ax.set_ylim(top=1.08)
        segment_legend(ax, step_map.steps, loc="upper center", ncols=3, fontsize=8)
    return ax


def figure_step_flow(examples: Mapping[str, StepMap]) -> Figure:
    """Shallow and deep step maps on one scale, over their arcs (the paper's Figure 2).

    Args:
        examples: For each pair of rows' title, a map of all layers.
    """
    bands: tuple[Band, ...] = ("shallow", "deep")
    parts = {
        (name, band): step_map.band(band).normalize("row")
        for name, step_map in examples.items()
        for band in bands
    }
    values = {key: mean_scores(part) for key, part in parts.items()}
    scale, side = color_scale(values.values()), 4.4
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            2 * len(examples),
            2,
            figsize=(2 * side + 2.8, (1.35 * side + 2.2) * len(examples) + 0.3),
            gridspec_kw={"height_ratios": [1, 0.35] * len(examples)},
            squeeze=False,
        )
        for i, name in enumerate(examples):
            for j, band in enumerate(bands):
                part, room = parts[name, band], 0.92 * side * POINTS
                above, below = axes[2 * i, j], axes[2 * i + 1, j]
                draw_steps(
                    above,
                    part.steps,
                    values[name, band],
                    scale,
                    side=room,
                    names="" if j else "y",
                    aspect="auto",
                )
                above.set_xlabel("key step (source)", labelpad=STRIP_WIDTH + 5)
                layers = part.settings["band_layers"]
                above.set_title(literal_lines(f"{name}, {band} layers {layers[0]}-{layers[-1]}"))
                _draw_flow(below, part, width=room, length=name_length(room))
        color_bar(list(axes[::2].flat), scale, SHARE)
        steps = [step for step_map in examples.values() for step in step_map.steps]
        segment_legend(figure, steps, loc="outside upper center", ncols=3)
    return figure


def _draw_flow(
    ax: Axes,
    step_map: StepMap,
    strongest: int = 2,
    least_share: float = 0.05,
    *,
    width: float,
    length: float,
) -> None:
    """Draw arcs over named steps: axes so many points wide, labels so many long."""
    shares = mean_scores(step_map.mean_over_heads().normalize("row"))
    steps, count = step_map.steps, len(step_map.steps)
    for query in range(1, count):
        for key in np.argsort(shares[query, :query])[::-1][:strongest]:
            if (share := float(shares[query, key])) >= least_share:
                _draw_arc(ax, int(key), query, share, SEGMENT_COLORS[steps[key].segment], count)
    each = width / max(1, count)
    segments = segments_of_steps(steps)
    for segment in segments:
        at, color = range(segment.start, segment.stop), SEGMENT_COLORS[segment.name]
        size, marker = min(28.0, (0.7 * each) ** 2), SEGMENT_MARKERS[segment.name]
        ax.scatter(at, np.zeros(len(segment)), s=size, color=color, marker=marker, zorder=3)
    mark_segments(ax, "x", segments, points_per_unit=each)
    name_steps(ax, "x", steps, "step", points_per_unit=each, length=length)
    ax.set(xlim=(-0.5, count - 0.5), ylim=(-0.06, 0.98), yticks=[])
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)


def _draw_arc(ax: Axes, key: int, query: int, share: float, color: str, count: int) -> None:
    ax.add_patch(
        Arc(
            ((query + key) / 2, 0),
            query - key,
            1.6 * (query - key) / max(1, count - 1) + 0.12,
            theta1=0,
            theta2=180,
            lw=0.5 + 6 * share,
            alpha=min(1.0, 0.25 + 1.2 * share),
            color=color,
        )
    )
