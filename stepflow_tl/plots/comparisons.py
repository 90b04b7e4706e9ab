"""Accuracy, and how far arms of an experiment lie from their baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stepflow_tl.plots.marks import (
    checked_table,
    draw_points,
    draw_zero,
    interval_columns,
    percentages,
    significance_legend,
    significant,
)
from stepflow_tl.plots.style import (
    ARM_COLOR,
    BASELINE_COLOR,
    INK,
    STYLE,
    literal,
    literal_lines,
    percent,
    signed,
    wrapped,
)

PUBLISHED_NOTE = "paper (Xu et al.), other models and benchmarks – not ours"


def figure_accuracy(table: pd.DataFrame, *, names: Sequence[str]) -> Figure:
    """Accuracy by set of problems and setting, with Wilson intervals.

    Args:
        table: Columns ``problems`` (the set's label) and, for each of `names`, ``NAME``,
            ``NAME_low`` and ``NAME_high``.
        names: The settings to draw.
    """
    with mpl.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(6.4, 4.0))
        for i, name in enumerate(names):
            x = np.arange(len(table)) + 0.12 * (i - (len(names) - 1) / 2)
            value = table[name].to_numpy()
            error = np.abs(table[[f"{name}_low", f"{name}_high"]].to_numpy().T - value)
            ax.errorbar(x, value, np.maximum(error, 0.0), fmt="o", capsize=3, label=literal(name))
        ax.set_xticks(range(len(table)), [literal(name) for name in table["problems"]])
        ax.set(xlabel="operations in the problem", ylabel="accuracy (95% Wilson)", ylim=(0, 1.03))
        ax.legend(frameon=False, loc="lower left")
    return figure


def figure_arms(
    comparison: pd.DataFrame,
    *,
    published: pd.DataFrame | None = None,
    published_as: str = PUBLISHED_NOTE,
    title: str | None = None,
) -> Figure:
    """Difference of each arm to the baseline, with 95% intervals: a forest plot.

    Args:
        comparison: A row per arm, top to bottom: ``arm, n, difference, difference_low,
            difference_high, accuracy, baseline, p_holm``, fractions drawn as percentage points.
            Of a table with a column ``group``, the rows of group ``all``.
        published: The paper's own numbers, for a panel marked as such: ``label, benchmark, model,
            difference`` (a fraction).
        published_as: What that panel is marked as.
        title: Above the plot.

    Raises:
        ValueError: A table is empty or lacks columns, or no row is of group ``all``.
    """
    columns = ["arm", "n", *interval_columns("difference"), "accuracy", "baseline", "p_holm"]
    table = checked_table(comparison, "figure_arms", "arm", columns)
    if "group" in table.columns:
        table = checked_table(
            table[table["group"] == "all"], "figure_arms", "arm of group all", columns
        )
    labels = [wrapped(arm) for arm in table["arm"]]
    rows = [len(table)]
    if published is not None:
        published = checked_table(
            published,
            "figure_arms",
            "published number",
            ("label", "benchmark", "model", "difference"),
        )
        rows.append(len(published))
    heights = [0.36 * rows[0] + 0.2, *(0.27 * count + 0.2 for count in rows[1:])]
    heights[0] += 0.12 * sum(label.count("\n") for label in labels)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(rows),
            1,
            figsize=(9.2, sum(heights) + 1.35 + 0.35 * len(rows)),
            gridspec_kw={"height_ratios": heights},
            sharex=True,
            squeeze=False,
        )
        ours = axes[0, 0]
        at = np.arange(len(table))
        bounds = percentages(table, "difference")
        draw_points(ours, at, bounds, filled=significant(table), horizontal=True)
        _name_rows(ours, labels)
        draw_zero(ours, horizontal=True)
        _text_column(ours, 64, "difference", [signed(value) for value in bounds[0]])
        pairs = zip(table["baseline"], table["accuracy"], strict=True)
        _text_column(ours, 148, "accuracy (%)", [f"{percent(a)} → {percent(b)}" for a, b in pairs])
        _text_column(ours, 190, "n", [f"{n:,.0f}" for n in table["n"]])
        if published is not None:
            _draw_published(axes[1, 0], published, published_as)
        axes[-1, 0].set_xlabel("difference to the baseline (percentage points, 95% interval)")
        significance_legend(figure)
        if title:
            figure.suptitle(literal_lines(title), fontsize=12)
    return figure


def figure_strategies(comparison: pd.DataFrame) -> Figure:
    """Accuracy of each decoding strategy, without and with StepFlow, a panel per group.

    Args:
        comparison: A row per strategy, group and setting: ``strategy``, ``stepflow`` (whether
            StepFlow was on), ``accuracy, accuracy_low, accuracy_high`` (fractions, drawn as
            percentages) and, where there are groups, ``group``.

    Raises:
        ValueError: The table is empty or lacks columns.
    """
    columns = ("strategy", "stepflow", *interval_columns("accuracy"))
    table = checked_table(comparison, "figure_strategies", "strategy, group and setting", columns)
    if "group" not in table.columns:
        table = table.assign(group="")
    groups, strategies = list(dict.fromkeys(table["group"])), list(dict.fromkeys(table["strategy"]))
    labels = [wrapped(strategy, 26) for strategy in strategies]
    down = -(-len(groups) // 4)
    across = -(-len(groups) // down)
    height = 0.5 * len(strategies) + 0.12 * sum(label.count("\n") for label in labels) + 0.5
    settings = ((False, "without StepFlow", BASELINE_COLOR), (True, "with StepFlow", ARM_COLOR))
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            down,
            across,
            figsize=(2.6 + 2.4 * across, down * height + 1.0),
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        for ax, group in zip(axes.flat, groups, strict=False):
            rows = table[table["group"] == group]
            for on, _, color in settings:
                chosen = rows[rows["stepflow"].astype(bool) == on]
                at = np.array([strategies.index(name) for name in chosen["strategy"]], dtype=float)
                at += 0.14 if on else -0.14
                bounds = percentages(chosen, "accuracy")
                draw_points(ax, at, bounds, filled=on, color=color, horizontal=True)
            ax.set_title(wrapped(group, 28, lines=2))
            _name_rows(ax, labels)
        for ax in axes.flat[len(groups) :]:
            ax.set_visible(False)
        for ax in axes.flat[max(0, len(groups) - across) : len(groups)]:
            ax.tick_params(axis="x", labelbottom=True)  # the lowest of its column
        figure.supxlabel("accuracy (%, 95% interval)", fontsize=10)
        figure.legend(
            handles=[
                Line2D(
                    [],
                    [],
                    ls="",
                    marker="o",
                    mec=color,
                    mfc=color if on else "white",
                    mew=1.4,
                    label=label,
                )
                for on, label, color in settings
            ],
            loc="outside upper center",
            ncols=2,
            frameon=False,
            handletextpad=0.3,
        )
    return figure


def _name_rows(ax: Axes, labels: Sequence[str]) -> None:
    """Name the rows, first on top, every second one shaded."""
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    for row in range(1, len(labels), 2):
        ax.axhspan(row - 0.5, row + 0.5, color="#f6f6f6", lw=0, zorder=0)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def _text_column(ax: Axes, points: int, head: str, cells: Sequence[str]) -> None:
    """A column of text whose right edge is so many points to the right of the axes."""
    style: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "fontsize": 9}
    ax.annotate(
        head, (1, 1), xytext=(points, 3), xycoords="axes fraction", color=BASELINE_COLOR, **style
    )
    by_row = ax.get_yaxis_transform()
    for row, cell in enumerate(cells):
        ax.annotate(
            cell, (1, row), xytext=(points, 0), xycoords=by_row, va="center", color=INK, **style
        )


def _draw_published(ax: Axes, published: pd.DataFrame, marked: str) -> None:
    values = 100.0 * published["difference"].to_numpy(dtype=float)
    ax.scatter(values, range(len(values)), marker="D", s=30, c="#a6a6a6", zorder=3)
    named = zip(published["label"], published["benchmark"], published["model"], strict=True)
    _name_rows(
        ax, [wrapped(f"{label}: {benchmark}, {model}", 44) for label, benchmark, model in named]
    )
    _text_column(ax, 64, "", [signed(value) for value in values])
    ax.tick_params(axis="y", labelcolor=BASELINE_COLOR, labelsize=9)
    ax.set_title(
        literal_lines(marked), fontsize=9, color=BASELINE_COLOR, loc="left", style="italic"
    )
    draw_zero(ax, horizontal=True)
