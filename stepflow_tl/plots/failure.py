"""One page: a failure that was planted, seen and repaired, and what the repair does to no plant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from stepflow_tl.errors import SettingError
from stepflow_tl.plots.map_parts import (
    color_bar,
    color_scale,
    draw_steps,
    mean_scores,
    saliency_label,
)
from stepflow_tl.plots.marks import checked_table, draw_points, interval_columns, percentages
from stepflow_tl.plots.segments import segment_legend
from stepflow_tl.plots.style import (
    ARM_COLOR,
    BASELINE_COLOR,
    FAMILY_COLORS,
    FAMILY_MARKERS,
    POINTS,
    STYLE,
    literal,
    literal_lines,
    wrapped,
)
from stepflow_tl.saliency.maps import StepMap

_SIDE = 3.1  # inches of a map


def figure_failure(
    maps: Mapping[str, StepMap],
    by_layer: pd.DataFrame,
    accuracy: pd.DataFrame,
    unplanted: pd.DataFrame,
    *,
    planted_in: Sequence[int],
    measure: str = "lock_in: share on own step + neighbor",
    verdict: str = "",
) -> Figure:
    """Maps of one text in several models, a measure by layer, accuracies; a null result beside.

    Args:
        maps: For each model its map of the same text; rows should be shares.
        by_layer: ``model, layer, value, value_low, value_high``.
        accuracy: ``model, n, accuracy, accuracy_low, accuracy_high`` (fractions).
        unplanted: ``problems, n`` and ``baseline``, ``StepFlow`` with their intervals.
        planted_in: Layers of the failure, shaded.
        measure: What `by_layer` is of.
        verdict: What is said above the last panel.

    Raises:
        ValueError: There is no map, or a table is empty or lacks columns.
    """
    if not maps:
        raise SettingError("figure_failure expects a title and a map at least, got none")
    by_layer = checked_table(
        by_layer,
        "figure_failure",
        "model and layer",
        ["model", "layer", *interval_columns("value")],
    )
    accuracy = checked_table(
        accuracy, "figure_failure", "model", ["model", "n", *interval_columns("accuracy")]
    )
    arms = ("baseline", "StepFlow")
    unplanted = checked_table(
        unplanted,
        "figure_failure",
        "set of problems",
        ["problems", "n", *(column for arm in arms for column in interval_columns(arm))],
    )
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=(1.4 + len(maps) * (_SIDE + 0.6), 9.4))
        upper, lower = figure.subfigures(2, 1, height_ratios=[1.25, 1], squeeze=False)[:, 0]
        _draw_maps(upper, maps)
        left, middle, right = lower.subplots(1, 3, width_ratios=[1.15, 0.8, 1.2])
        _draw_layers(left, by_layer, planted_in, measure)
        _draw_accuracy(middle, accuracy)
        _draw_unplanted(right, unplanted, arms, verdict)
    return figure


def _draw_maps(figure: FigureBase, maps: Mapping[str, StepMap]) -> None:
    """The maps on one scale; the first one's steps are named along both axes."""
    values = {name: mean_scores(one) for name, one in maps.items()}
    scale = color_scale(values.values())
    axes = list(np.atleast_1d(figure.subplots(1, len(maps))))
    for number, (ax, (name, one)) in enumerate(zip(axes, maps.items(), strict=True)):
        draw_steps(
            ax,
            one.steps,
            values[name],
            scale,
            side=_SIDE * POINTS,
            names="x" if number else "xy",
            aspect="auto",
        )
        ax.set_title(literal_lines(name))
    first = next(iter(maps.values()))
    layers = f"layers {first.layers[0]}-{first.layers[-1]}"
    color_bar(axes, scale, f"{saliency_label(first)}, {layers}")
    steps = [step for one in maps.values() for step in one.steps]
    segment_legend(figure, steps, loc="outside upper center", ncols=3)


def _draw_layers(ax: Axes, table: pd.DataFrame, planted_in: Sequence[int], measure: str) -> None:
    """The measure by layer, a curve per model."""
    if len(planted_in):
        ax.axvspan(min(planted_in) - 0.5, max(planted_in) + 0.5, color="#eeeeee", zorder=0)
    kinds = zip(table.groupby("model", sort=False), FAMILY_COLORS, FAMILY_MARKERS, strict=False)
    for (model, mine), color, marker in kinds:
        value, low, high = (mine[c].to_numpy(dtype=float) for c in interval_columns("value"))
        layers = mine["layer"].to_numpy(dtype=float)
        ax.plot(layers, value, color=color, marker=marker, ms=4.5, label=literal(str(model)))
        ax.fill_between(layers, low, high, color=color, alpha=0.18, lw=0)
    ax.set(xlabel="layer (gray: planted)", ylabel=literal(measure), ylim=(0, 1.03))
    ax.set_title("seen in the maps")
    ax.legend(frameon=False, loc="lower right", fontsize=9)


def _draw_accuracy(ax: Axes, table: pd.DataFrame) -> None:
    """Accuracy of each model."""
    for at, (color, marker) in enumerate(
        zip(FAMILY_COLORS[: len(table)], FAMILY_MARKERS, strict=False)
    ):
        bounds = percentages(table.iloc[[at]], "accuracy")
        draw_points(ax, np.array([at]), bounds, color=color, marker=marker)
    names = [wrapped(str(model), 11) for model in table["model"]]
    ax.set_xticks(range(len(table)), names)
    ax.set(xlim=(-0.6, len(table) - 0.4), ylim=(0, 103), ylabel="accuracy (%, 95% Wilson)")
    ax.set_title(f"in the answers, n = {int(table['n'].min())}")


def _draw_unplanted(ax: Axes, table: pd.DataFrame, arms: tuple[str, str], verdict: str) -> None:
    """The paper's repair where nothing was planted."""
    for arm, color, shift in zip(arms, (BASELINE_COLOR, ARM_COLOR), (-0.1, 0.1), strict=True):
        draw_points(ax, np.arange(len(table)) + shift, percentages(table, arm), color=color)
        ax.scatter([], [], s=38, c=color, label=arm)
    ax.set_xticks(range(len(table)), [wrapped(str(name), 9) for name in table["problems"]])
    ax.set(xlabel=f"operations (n = {int(table['n'].min())} each)", ylim=(0, 103))
    ax.set_title(literal_lines(f"nothing planted: {verdict}" if verdict else "nothing planted"))
    ax.legend(frameon=False, loc="lower left", fontsize=9)
