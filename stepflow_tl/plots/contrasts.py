"""Correct against wrong responses to the same problems: changes by arm, measures by rule."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stepflow_tl.plots.curves import MEASURE_LABELS
from stepflow_tl.plots.marks import (
    checked_table,
    draw_points,
    draw_zero,
    interval_columns,
    significance_legend,
    significant,
)
from stepflow_tl.plots.style import BASELINE_COLOR, OUTCOME_COLORS, STYLE, literal, wrapped

_SHIFT = 0.17  # of two points that share a line
_COLUMNS = 3  # of panels


def figure_contrasts(table: pd.DataFrame, *, value: str = "change") -> Figure:
    """What each arm does to correct and to wrong responses (left), and their difference (right).

    Args:
        table: A row per arm, top to bottom, as `stepflow_tl.analysis.contrast` makes it: ``arm``,
            ``correct``, ``wrong`` and ``contrast`` with ``_low`` and ``_high``, ``p_holm``.
        value: What is drawn, with its unit.

    Raises:
        ValueError: The table is empty or lacks columns.
    """
    names = ("correct", "wrong", "contrast")
    columns = ["arm", *(c for name in names for c in interval_columns(name)), "p_holm"]
    table = checked_table(table, "figure_contrasts", "arm", columns)
    at = np.arange(len(table), dtype=float)
    with mpl.rc_context(STYLE):
        figure, (both, gap) = plt.subplots(
            1, 2, figsize=(10.4, 1.9 + 0.27 * max(len(table), 3)), sharey=True
        )
        for name, shift in (("correct", -_SHIFT), ("wrong", _SHIFT)):
            color = OUTCOME_COLORS[name]
            draw_points(both, at + shift, _bounds(table, name), color=color, horizontal=True)
            both.scatter([], [], c=color, label=f"{name} responses")
        draw_points(gap, at, _bounds(table, "contrast"), filled=significant(table), horizontal=True)
        for ax in (both, gap):
            draw_zero(ax, horizontal=True)
            ax.xaxis.set_major_locator(MaxNLocator(4))
        both.set_yticks(at, [wrapped(arm, 52, lines=1) for arm in table["arm"]], fontsize=8)
        both.set(xlabel=literal(value), ylim=(len(table) - 0.5, -0.5))
        gap.set(xlabel=f"correct − wrong: {literal(value)}")
        both.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        significance_legend(figure)
    return figure


def figure_controlled(table: pd.DataFrame) -> Figure:
    """Measures of maps in correct minus wrong responses, as they are and controlled, by rule.

    Args:
        table: A row per rule and measure: ``rule``, ``measure`` (a name of `MEASURE_LABELS`),
            ``band`` (of layers), ``difference`` and ``controlled`` with ``_low`` and ``_high``,
            ``p_holm`` of the controlled one. A panel for each measure and band.

    Raises:
        ValueError: The table is empty or lacks columns.
    """
    columns = ["rule", "measure", "band"]
    columns += [c for name in ("difference", "controlled") for c in interval_columns(name)]
    table = checked_table(table, "figure_controlled", "rule and measure", [*columns, "p_holm"])
    rules = list(dict.fromkeys(table["rule"]))
    panels = list(dict.fromkeys(zip(table["measure"], table["band"], strict=True)))
    lines = -(-len(panels) // _COLUMNS)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            lines,
            min(_COLUMNS, len(panels)),
            figsize=(12.4, 1.2 + lines * (0.9 + 0.27 * len(rules))),
            sharey=True,
            squeeze=False,
        )
        for ax, (measure, band) in zip(axes.flat, panels, strict=False):
            _draw_rules(ax, table[(table["measure"] == measure) & (table["band"] == band)], rules)
            label = MEASURE_LABELS.get(measure, measure)
            ax.set_title(wrapped(f"{label}, {band} layers", 44, lines=2), fontsize=9, loc="left")
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
        for ax in axes[(len(panels) - 1) // _COLUMNS]:
            ax.set_xlabel("correct − wrong", fontsize=9)
        figure.suptitle("gray: as it is; blue: at equal length and loss", fontsize=9)
        significance_legend(figure)
    return figure


def _draw_rules(ax: Axes, rows: pd.DataFrame, rules: list[str]) -> None:
    at = np.array([rules.index(rule) for rule in rows["rule"]], dtype=float)
    plain, controlled = (_bounds(rows, name) for name in ("difference", "controlled"))
    draw_points(ax, at - _SHIFT, plain, color=BASELINE_COLOR, horizontal=True, marker="D")
    draw_points(ax, at + _SHIFT, controlled, filled=significant(rows), horizontal=True)
    draw_zero(ax, horizontal=True)
    ax.set_yticks(range(len(rules)), [wrapped(rule, 40, lines=1) for rule in rules], fontsize=8)
    ax.set_ylim(len(rules) - 0.5, -0.5)
    ax.tick_params(axis="x", labelsize=8)
    ax.xaxis.set_major_locator(MaxNLocator(3))


def _bounds(table: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    value, low, high = (table[c].to_numpy(dtype=float) for c in interval_columns(name))
    return value, low, high
