"""Repairs that act always, when triggered, or at random: what they bring, and what they cost."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stepflow_tl.plots.marks import checked_table, interval_columns
from stepflow_tl.plots.style import STYLE, literal

_COLUMNS = {
    "accuracy": "accuracy",
    "touched": "share of tokens touched",
    "healthy_kl": "KL from the healthy model,\nwhere it fails (millinats)",
    "side_kl": "KL from the unrepaired model,\nwhere it does not (millinats)",
}
_COLORS = {"always": "#b4436c", "triggered": "#2a6a9e", "at random": "#888888", "where": "#4f8a3d"}


def figure_triggered(answers: pd.DataFrame, predictions: pd.DataFrame) -> Figure:
    """A row of panels for each case: accuracy, tokens touched, divergences, by arm.

    Args:
        answers: ``case, arm``, ``accuracy`` and ``baseline`` with intervals.
        predictions: ``case, arm``, ``touched``, ``healthy_kl`` and ``side_kl`` with intervals; NaN
            where there is no such step.

    Raises:
        ValueError: A table is empty, or lacks columns.
    """
    answers = checked_table(
        answers, "figure_triggered", "arm", ["case", "arm", "accuracy", "baseline"]
    )
    predictions = checked_table(
        predictions, "figure_triggered", "arm", ["case", "arm", "touched", "healthy_kl", "side_kl"]
    )
    cases = list(dict.fromkeys(predictions["case"]))
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(cases), len(_COLUMNS), figsize=(12.5, 0.6 + 2.4 * len(cases)), squeeze=False
        )
        for row, case in zip(axes, cases, strict=True):
            said = predictions[predictions["case"] == case].set_index("arm")
            right = answers[answers["case"] == case].set_index("arm")
            places = _places(said.index)
            for ax, name in zip(row, _COLUMNS, strict=True):
                if name == "accuracy":
                    _mark_alone(ax, right)
                _draw(ax, right if name == "accuracy" else said, name, places)
            row[0].set_ylabel(literal(case), fontsize=9)
            for ax in row[1:]:
                ax.set_yticklabels([])
        for ax, label in zip(axes[-1], _COLUMNS.values(), strict=True):
            ax.set_xlabel(label)
    return figure


def _places(arms: pd.Index) -> dict[str, int]:
    """A line for each arm; draws at random share one."""
    shown = {arm: arm.rpartition(" (")[0] or arm for arm in arms if arm != "as it is"}
    lines = list(dict.fromkeys(shown.values()))
    return {arm: lines.index(line) for arm, line in shown.items()}


def _mark_alone(ax: Axes, right: pd.DataFrame) -> None:
    value, low, high = (float(right.iloc[0][c]) for c in interval_columns("baseline"))
    ax.axvspan(low, high, color="#000000", alpha=0.07, lw=0)
    ax.axvline(value, color="#555555", lw=1.0, ls="--")


def _draw(ax: Axes, table: pd.DataFrame, name: str, places: dict[str, int]) -> None:
    lines: dict[int, str] = {}
    drawn: dict[int, int] = {}
    is_empty = True
    for arm, place in places.items():
        lines[place] = arm.rpartition(" (")[0] or arm
        number = drawn[place] = drawn.get(place, -1) + 1
        found = np.array(table.loc[arm, list(interval_columns(name))], dtype=float)
        value, low, high = 1e3 * found if name.endswith("kl") else found
        is_empty = is_empty and not np.isfinite(value)
        color = next(c for start, c in _COLORS.items() if arm.startswith(start))
        at = place + 0.18 * (number - 1 if arm.startswith("at random") else 0)
        ax.hlines(at, low, high, color=color, lw=1.2)
        ax.plot(value, at, "o", ms=4, color=color)
    if is_empty:
        ax.text(0.5, 0.5, "no such step", transform=ax.transAxes, ha="center", color="#777777")
        ax.set_xticks([])
    else:
        ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_yticks(list(lines), [literal(line) for line in lines.values()], fontsize=8)
    ax.set_ylim(max(lines) + 0.5, -0.5)
    ax.grid(axis="x", alpha=0.3)
