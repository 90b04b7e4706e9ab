"""Accuracy against what it cost."""

from __future__ import annotations

from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from stepflow_tl.errors import SettingError
from stepflow_tl.plots.marks import checked_table, draw_points, interval_columns, percentages
from stepflow_tl.plots.style import FAMILY_COLORS, FAMILY_MARKERS, STYLE, wrapped


def figure_compute(table: pd.DataFrame) -> Figure:
    """Accuracy with its interval against relative compute, arms of a family joined by a line.

    Args:
        table: A row per arm: ``arm, family`` (arms that are joined, by compute), ``compute``
            (tokens or forward passes per problem, as a multiple of the baseline's), ``accuracy,
            accuracy_low, accuracy_high`` (fractions, drawn as percentages).

    Raises:
        ValueError: The table is empty or lacks columns, or compute is not positive.
    """
    columns = ("arm", "family", "compute", *interval_columns("accuracy"))
    table = checked_table(table, "figure_compute", "arm", columns)
    if not (table["compute"] > 0).all():
        raise SettingError(f"expected compute above 0, got {table['compute'].min()}")
    families = list(dict.fromkeys(table["family"]))
    with mpl.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(7.6, 4.8))
        ax.set_xscale("log", base=2)
        colors = {}
        for i, family in enumerate(families):
            color = colors[family] = FAMILY_COLORS[i % len(FAMILY_COLORS)]
            marker = FAMILY_MARKERS[i % len(FAMILY_MARKERS)]
            rows = table[table["family"] == family].sort_values("compute", kind="stable")
            bounds, at = percentages(rows, "accuracy"), rows["compute"].to_numpy(dtype=float)
            ax.plot(at, bounds[0], color=color, lw=1.2, alpha=0.6)
            draw_points(ax, at, bounds, color=color, marker=marker)
        low, high = np.log2(table["compute"].min()), np.log2(table["compute"].max())
        ax.set_xlim(2 ** (low - 0.35), 2 ** (max(high, low + 1) + 0.35))
        ax.xaxis.set_major_locator(LogLocator(base=2, numticks=12))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
        ax.set(
            xlabel="compute per problem, relative to the baseline",
            ylabel="accuracy (%, 95% interval)",
        )
        ax.margins(y=0.12)
        _label_points(figure, ax, table, [colors[family] for family in table["family"]])
    return figure


def _label_points(figure: Figure, ax: Axes, table: pd.DataFrame, colors: list[str]) -> None:
    """Write each arm's name beside its point or interval, where it covers least of the drawing."""
    figure.draw_without_rendering()  # places the axes
    pixels = figure.dpi / 72.0
    value, low, high = percentages(table, "accuracy")
    at = table["compute"].to_numpy(dtype=float)
    x, y = ax.transData.transform(np.column_stack([at, value])).T
    bottom, top = (
        ax.transData.transform(np.column_stack([at, np.where(np.isnan(end), value, end)]))[:, 1]
        for end in (low, high)
    )
    drawn = [(x - 6, y - 6, x + 6, y + 6), (x - 4, bottom, x + 4, top)]
    for line in ax.lines:
        for start, end in pairwise(ax.transData.transform(line.get_xydata())):
            spots = np.linspace(start, end, 24).T
            drawn.append((*(spots - 2), *(spots + 2)))
    marks = np.concatenate([np.column_stack(boxes) for boxes in drawn])
    labels = [
        ax.annotate(
            wrapped(arm, 29), xy, xytext=(0, 0), textcoords="offset points", fontsize=8.5, color=c
        )
        for arm, xy, c in zip(table["arm"], zip(at, value, strict=True), colors, strict=True)
    ]
    places, boxes = [], []
    for i, label in enumerate(labels):
        extent = label.get_window_extent()
        options = _label_offsets((top[i] - y[i]) / pixels, (bottom[i] - y[i]) / pixels)
        places.append(options)
        centers = np.array([x[i], y[i]]) + options * pixels
        size = np.array([extent.width, extent.height])
        corner = centers + (np.sign(options) - 1) * size / 2
        boxes.append(np.column_stack([corner, corner + size]))
    inside = np.asarray(ax.get_window_extent().extents)
    chosen = [0] * len(labels)
    for _ in range(4):  # each label in turn, given where the others stand
        for i in range(len(labels)):
            others = [boxes[k][chosen[k]] for k in range(len(labels)) if k != i]
            taken = np.vstack([marks, *others])
            far = np.hypot(*places[i].T)
            cost = _covered(boxes[i], taken) - 4 * _covered(boxes[i], inside[None]) + far
            chosen[i] = int(np.argmin(cost))
    for label, options, choice in zip(labels, places, chosen, strict=True):
        dx, dy = options[choice]
        label.set_position((dx, dy))
        label.set_horizontalalignment("center" if dx == 0 else "left" if dx > 0 else "right")
        label.set_verticalalignment("center" if dy == 0 else "bottom" if dy > 0 else "top")


def _label_offsets(up: float, down: float) -> Float[np.ndarray, "place xy"]:
    """Where a label may stand around its point and the ends of its interval, in points."""
    heights = (0, 6, -6, 14, -14, 24, -24, up - 8, down + 8)
    beside = [(dx, dy) for dx in (8, -8, 16, -16) for dy in heights]
    return np.array([*beside, (0, up + 4), (0, down - 4), (0, up + 16), (0, down - 16)])


def _covered(
    boxes: Float[np.ndarray, "box corners"], others: Float[np.ndarray, "other corners"]
) -> Float[np.ndarray, "box"]:
    """How much of each box the others cover, in pixels."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    covered: np.ndarray = np.maximum(high - low, 0.0).prod(-1).sum(1)
    return covered
