"""What repair does: to accuracy by difficulty, to kinds of error, to the maps themselves."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import t as student

from stepflow_tl.errors import SettingError
from stepflow_tl.plots.curves import MEASURE_LABELS
from stepflow_tl.plots.marks import (
    checked_table,
    draw_curve,
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
    OUTCOME_COLORS,
    STYLE,
    literal_lines,
    wrapped,
)

CORRECTNESS_CHANGES = {-1: "broken", 0: "unchanged", 1: "fixed"}
"""Correct after repair minus correct before, and its name."""


def figure_difficulty_gain(table: pd.DataFrame) -> Figure:
    """Gain over difficulty, above the accuracy that it starts from and leads to.

    Args:
        table: A row per difficulty, easiest first: ``group``, and ``baseline``, ``accuracy`` and
            ``difference`` with ``_low`` and ``_high`` (fractions, drawn in percent and percentage
            points). With ``p_holm``, markers are filled where a difference is significant; with
            ``n``, it is written below; with ``arm`` (one only), its name is. A row of group
            ``all`` is left out.

    Raises:
        ValueError: The table is empty, lacks columns, or holds several arms.
    """
    columns = [
        "group",
        *(c for n in ("baseline", "accuracy", "difference") for c in interval_columns(n)),
    ]
    table = checked_table(table, "figure_difficulty_gain", "group", columns)
    table = checked_table(
        table[table["group"] != "all"], "figure_difficulty_gain", "group", columns
    )
    arms = sorted({str(arm) for arm in table.get("arm", ["with StepFlow"])})
    if len(arms) > 1:
        raise SettingError(f"figure_difficulty_gain expects one arm, got {', '.join(arms)}")
    at = np.arange(len(table), dtype=float)
    labels = [wrapped(group, 14, lines=2) for group in table["group"]]
    if "n" in table.columns:
        labels = [f"{text}\nn = {n:,.0f}" for text, n in zip(labels, table["n"], strict=True)]
    tested = "p_holm" in table.columns
    with mpl.rc_context(STYLE):
        figure, (gain, level) = plt.subplots(
            2,
            1,
            figsize=(2.2 + 0.95 * max(len(table), 4), 5.2),
            gridspec_kw={"height_ratios": [1.25, 1]},
            sharex=True,
        )
        filled = significant(table) if tested else True
        draw_points(gain, at, percentages(table, "difference"), filled=filled)
        draw_zero(gain)
        gain.set_ylabel("difference\n(percentage points)")
        for name, label, color, shift in (
            ("baseline", "baseline", BASELINE_COLOR, -0.05),
            ("accuracy", wrapped(arms[0], 60, lines=1), ARM_COLOR, 0.05),
        ):
            bounds = percentages(table, name)
            level.plot(at + shift, bounds[0], color=color, lw=1.2, alpha=0.7, label=label)
            draw_points(level, at + shift, bounds, color=color)
        level.set(ylabel="accuracy (%)", xlim=(-0.5, len(table) - 0.5))
        level.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
        level.set_xticks(at, labels)
        if tested:
            significance_legend(figure)
    return figure


def figure_error_kinds(table: pd.DataFrame) -> Figure:
    """Errors that repair corrected (right) and introduced (left), by kind.

    Args:
        table: A row per kind, top to bottom: ``kind, corrected, introduced, baseline_errors``,
            numbers of problems. ``baseline_errors`` counts the wrong answers of that kind before
            repair, of which ``corrected`` became right.

    Raises:
        ValueError: The table is empty or lacks columns.
    """
    columns = ("kind", "corrected", "introduced", "baseline_errors")
    table = checked_table(table, "figure_error_kinds", "kind of error", columns)
    rows = np.arange(len(table))
    corrected, introduced, before = (table[c].to_numpy(dtype=float) for c in columns[1:])
    reach = max(1.0, float(max(before.max(), corrected.max(), introduced.max())))
    with mpl.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(8.2, 1.5 + 0.46 * len(table)))
        bars = (
            (before, "#dddddd", "wrong before repair"),
            (corrected, ARM_COLOR, "of these, corrected"),
            (-introduced, OUTCOME_COLORS["wrong"], "introduced"),
        )
        for values, color, label in bars:
            ax.barh(rows, values, height=0.62, color=color, label=label)
        for row, (right, left, total) in enumerate(zip(corrected, introduced, before, strict=True)):
            for x, text, side in (
                (max(right, total), f"{right:.0f} of {total:.0f}", "left"),
                (-left, f"{left:.0f}", "right"),
            ):
                gap = 4 if side == "left" else -4
                ax.annotate(
                    text,
                    (x, row),
                    xytext=(gap, 0),
                    textcoords="offset points",
                    ha=side,
                    va="center",
                    fontsize=9,
                    color=INK,
                )
        ax.axvline(0.0, color=INK, lw=0.9)
        ax.set_yticks(rows, [wrapped(kind, 34) for kind in table["kind"]])
        ax.set(
            xlabel="number of problems",
            xlim=(-(introduced.max() + 0.12 * reach), 1.16 * reach),
            ylim=(len(table) - 0.5, -0.5),
        )
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.xaxis.set_major_formatter(lambda x, _: f"{abs(x):g}")
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def figure_repair_effect(
    before_after: pd.DataFrame,
    scatter: pd.DataFrame,
    *,
    association: Mapping[str, str] | None = None,
) -> Figure:
    """Does repair move the maps, and are answers fixed where it does? A row per measure of failure.

    Left, the mean change of a measure by layer; right, each problem's change of it against what
    became of its answer, with means and their 95% intervals (Student's t).

    Args:
        before_after: A row per measure and layer: ``layer, figure`` (a name of `MEASURE_LABELS`),
            ``change`` (mean of after minus before, in the measure's own unit), ``low, high``.
        scatter: A row per measure and problem: ``figure, change`` and ``correctness_change`` (-1
            for an answer that was broken, 0, or 1 for one that was fixed).
        association: For each measure, a line about how the two are associated.

    Raises:
        ValueError: A table is empty or lacks columns, or a change of correctness is none of these.
    """
    name = "figure_repair_effect"
    before_after = checked_table(
        before_after, name, "measure and layer", ("layer", "measure", "change", "low", "high")
    )
    scatter = checked_table(
        scatter, name, "measure and problem", ("measure", "change", "correctness_change")
    )
    if strange := sorted(set(scatter["correctness_change"]) - set(CORRECTNESS_CHANGES)):
        raise SettingError(f"expected changes of correctness -1, 0 and 1, got {strange}")
    measures = list(dict.fromkeys([*before_after["measure"], *scatter["measure"]]))
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(measures),
            2,
            figsize=(10.4, 0.7 + 3.0 * len(measures)),
            gridspec_kw={"width_ratios": [1.25, 1]},
            squeeze=False,
        )
        for (left, right), measure in zip(axes, measures, strict=True):
            _draw_change(left, before_after[before_after["measure"] == measure])
            _draw_by_outcome(right, scatter[scatter["measure"] == measure])
            left.set_ylabel("change (after − before)")
            left.set_title(
                literal_lines(MEASURE_LABELS.get(measure, measure)), loc="left", fontsize=10
            )
            right.set_title(
                wrapped((association or {}).get(measure, ""), 60, lines=2), loc="left", fontsize=9
            )
        axes[-1, 0].set_xlabel("layer (mean over problems, 95% interval)")
        axes[-1, 1].set_xlabel(
            "answer after repair\n(dots: problems; diamonds: mean, 95% interval)"
        )
    return figure


def _draw_change(ax: Axes, rows: pd.DataFrame) -> None:
    rows = rows.sort_values("layer")
    layers = rows["layer"].to_numpy(dtype=float)
    value, low, high = (rows[c].to_numpy(dtype=float) for c in ("change", "low", "high"))
    if len(rows):
        draw_curve(ax, layers, (value, low, high))
    draw_zero(ax)


def _draw_by_outcome(ax: Axes, rows: pd.DataFrame) -> None:
    colors = {-1: OUTCOME_COLORS["wrong"], 0: "#9a9a9a", 1: OUTCOME_COLORS["correct"]}
    ticks = []
    for correctness, label in CORRECTNESS_CHANGES.items():
        chosen = rows.loc[rows["correctness_change"] == correctness, "change"]
        change = chosen.to_numpy(dtype=float)
        change = change[np.isfinite(change)]
        spread = (np.arange(len(change)) * 0.6180339887 % 1.0 - 0.5) * 0.5  # even, not random
        ax.scatter(correctness + spread, change, s=12, c=colors[correctness], alpha=0.35, lw=0)
        if len(change):
            mean, low, high = (np.array([end]) for end in _mean_interval(change))
            at = np.array([correctness + 0.36])
            draw_points(ax, at, (mean, low, high), color=INK, marker="D")
        ticks.append(f"{label}\nn = {len(change):,}")
    draw_zero(ax)
    ax.set_xticks(list(CORRECTNESS_CHANGES), ticks)
    ax.set_xlim(-1.5, 1.6)


def _mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    mean = float(values.mean())
    if len(values) < 2:
        return mean, np.nan, np.nan
    half = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half
