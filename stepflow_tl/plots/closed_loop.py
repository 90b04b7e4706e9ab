"""The closed loop: which layers are accused, and what the repair there brings."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stepflow_tl.plots.marks import checked_table, interval_columns
from stepflow_tl.plots.style import ARM_COLOR, BASELINE_COLOR, STYLE, literal

_COLORS = ("#2a6a9e", "#c4542d", "#4f8a3d", "#7b5aa6", "#8a6d3b", "#3b8686")


def figure_closed_loop(accused: pd.DataFrame, loops: pd.DataFrame) -> Figure:
    """Share of the accused layers that are the planted ones, and accuracies of the closed loop.

    Args:
        accused: ``planted, rule, against``, ``overlap_mean`` with ``overlap_low`` and
            ``overlap_high``, ``random``.
        loops: ``model, layers, which, held_out_before, held_out_after``, and where something was
            chosen ``baseline`` and ``accuracy`` with intervals.

    Raises:
        ValueError: A table is empty, or lacks columns.
    """
    accused = checked_table(
        accused,
        "figure_closed_loop",
        "planted window",
        ["planted", "rule", "against", "overlap_mean", "overlap_low", "overlap_high", "random"],
    )
    loops = checked_table(
        loops, "figure_closed_loop", "loop", ["model", "layers", "which", "held_out_before"]
    )
    with mpl.rc_context(STYLE):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(11.5, 1.8 + 0.42 * max(len(loops), 6)), width_ratios=[1.25, 1]
        )
        _accused(left, accused)
        _loops(right, loops)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _accused(ax: Axes, table: pd.DataFrame) -> None:
    windows = list(dict.fromkeys(table["planted"]))
    series = list(table.groupby(["rule", "against"], sort=False))
    for number, (color, ((rule, against), mine)) in enumerate(zip(_COLORS, series, strict=False)):
        shift = (number - (len(series) - 1) / 2) * 0.12
        at = np.array([windows.index(window) for window in mine["planted"]]) + shift
        ax.vlines(at, mine["overlap_low"], mine["overlap_high"], color=color, lw=1.2)
        label = f"{rule}, against {against}"
        ax.plot(at, mine["overlap_mean"], "o", ms=4.5, color=color, label=literal(label))
    chance = table.drop_duplicates("planted")["random"].to_numpy(dtype=float)
    for place, value in enumerate(chance):
        ax.hlines(
            value,
            place - 0.42,
            place + 0.42,
            color="#888888",
            lw=1.0,
            ls="--",
            label="a window at random" if place == 0 else "_",
        )
    ax.set_xticks(range(len(windows)), [literal(window) for window in windows])
    ax.set(xlabel="lock-in planted in layers", ylabel="share of accused layers that are planted")
    ax.set(ylim=(-0.04, 1.05), title="Which layers are accused")


def _loops(ax: Axes, table: pd.DataFrame) -> None:
    labels = []
    for row, line in table.iterrows():
        where = float(int(str(row)))
        chosen = "accuracy" in table.columns and np.isfinite(float(line["accuracy"]))
        names = {"baseline": BASELINE_COLOR, "accuracy": ARM_COLOR} if chosen else {}
        for name, color in names.items():
            value, low, high = (100 * float(line[c]) for c in interval_columns(name))
            shift = -0.12 if name == "baseline" else 0.12
            ax.hlines(where + shift, low, high, color=color, lw=1.2)
            ax.plot(value, where + shift, "o", ms=4.5, color=color)
        if not chosen:
            ax.text(2, where, "nothing was better, nothing chosen", fontsize=8, va="center")
        labels.append(f"{line['model']}\n{line['layers']} layers ({line['which']})")
    ax.set_yticks(range(len(table)), [literal(label) for label in labels], fontsize=8)
    ax.set(xlim=(0, 103), ylim=(len(table) - 0.5, -0.5), xlabel="accuracy (%), reported problems")
    ax.set_title("As it is (gray), and repaired")
    ax.grid(axis="x", alpha=0.3)
