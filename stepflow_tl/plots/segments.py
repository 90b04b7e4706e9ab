"""Which segment a step or token lies in: colors, a labeled strip along the axes, a legend.

The colors differ in lightness, so that they can be told apart in gray and by the color-blind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from stepflow_tl.plots.labels import Along, text_width
from stepflow_tl.plots.style import INK, POINTS
from stepflow_tl.traces.formats import SegmentName
from stepflow_tl.traces.trace import Segment, Step

SEGMENT_COLORS: Mapping[SegmentName, str] = {
    "question": "#1d3b6f",
    "thinking": "#cc6a2a",
    "summary": "#74c7b0",
}
SEGMENT_MARKERS: Mapping[SegmentName, str] = {"question": "s", "thinking": "o", "summary": "^"}

STRIP_WIDTH = 9.0
"""Points that a strip takes beside its axis."""
_TEXT_COLORS: Mapping[SegmentName, str] = {
    "question": "white",
    "thinking": "white",
    "summary": INK,
}


def segments_of_steps(steps: Sequence[Step]) -> list[Segment]:
    """Runs of steps of one segment, as spans of steps rather than tokens."""
    runs = groupby(range(len(steps)), key=lambda i: steps[i].segment)
    spans = [(name, list(run)) for name, run in runs]
    return [Segment(name, run[0], run[-1] + 1) for name, run in spans]


def mark_segments(
    ax: Axes, along: Along, segments: Iterable[Segment], *, points_per_unit: float
) -> None:
    """Draw a strip outside an axis, in the color of each segment and with its name in it.

    Args:
        ax: Where to.
        along: The x axis, below, or the y axis, at the left; its units are steps or tokens.
        segments: The segments, in these units.
        points_per_unit: Points that a unit takes: where a name is longer, it is left out.
    """
    sideways, away = along == "y", -(1 + STRIP_WIDTH / 2) / POINTS
    grid = ax.get_yaxis_transform() if sideways else ax.get_xaxis_transform()
    left, down = (away, 0.0) if sideways else (0.0, away)
    outside = grid + ScaledTranslation(left, down, ax.figure.dpi_scale_trans)
    style: dict[str, Any] = {"transform": outside, "clip_on": False}
    for segment in (one for one in segments if len(one)):
        ends, across = (segment.start - 0.5, segment.stop - 0.5), (0.0, 0.0)
        x, y = (across, ends) if sideways else (ends, across)
        color = SEGMENT_COLORS[segment.name]
        strip = Line2D(x, y, color=color, lw=STRIP_WIDTH, solid_capstyle="butt", **style)
        ax.add_artist(strip)
        if len(segment) * points_per_unit > text_width(segment.name) + 4:
            ax.text(
                sum(x) / 2,
                sum(y) / 2,
                segment.name,
                color=_TEXT_COLORS[segment.name],
                fontsize=6.5,
                ha="center",
                va="center" if sideways else "center_baseline",
                rotation=90 if sideways else 0,
                **style,
            )
    ax.tick_params(along, length=0, pad=STRIP_WIDTH + 4)


def separate_segments(ax: Axes, segments: Sequence[Segment]) -> None:
    """Dotted lines across the lower triangle of a map, where a segment ends."""
    last = max((segment.stop for segment in segments), default=0) - 0.5
    for end in sorted({segment.stop - 0.5 for segment in segments} - {-0.5, last}):
        line = Line2D([-0.5, end, end], [end, end, last], color="#777777", lw=0.6, ls=":")
        ax.add_artist(line)


def segment_legend(on: Axes | FigureBase, steps: Iterable[Step], **options: Any) -> None:
    """Draw a legend: for each segment that has steps, its color and the marker of its steps.

    Args:
        on: Axes or a figure.
        steps: The steps that are drawn.
        options: Of the legend.
    """
    drawn = {step.segment for step in steps}
    look: dict[str, Any] = {"lw": STRIP_WIDTH, "solid_capstyle": "butt", "ms": 5, "mfc": "white"}
    entries = [
        Line2D([], [], color=color, mec=color, marker=SEGMENT_MARKERS[name], label=name, **look)
        for name, color in SEGMENT_COLORS.items()
        if name in drawn
    ]
    on.legend(handles=entries, facecolor="white", edgecolor="none", framealpha=1.0, **options)
