"""Failures that were planted: what they cost, what repairs bring back, and who sees them."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stepflow_tl.plots.marks import (
    checked_table,
    interval_columns,
    percentages,
    significant,
)
from stepflow_tl.plots.style import ARM_COLOR, BASELINE_COLOR, STYLE, literal

COLORS = ("#2a6a9e", "#c4542d", "#4f8a3d", "#7b5aa6", "#8a6d3b", "#3b8686")
_ACCURACY = interval_columns("accuracy")


def figure_planted(
    by_dose: pd.DataFrame, by_layers: pd.DataFrame, repairs: pd.DataFrame, power: pd.DataFrame
) -> Figure:
    """Dose curves, layers, repairs and the power of diagnostics, on one page.

    Args:
        by_dose: ``failure, dose`` and ``accuracy`` with ``_low`` and ``_high``.
        by_layers: ``failure, layers`` and the same.
        repairs: ``failure, repair``, ``accuracy`` and ``baseline`` (the failure alone) with
            intervals, ``p_holm``.
        power: ``failure, measure, rule, layer, n, power`` and ``planted``: whether the failure is
            in that layer.

    Raises:
        ValueError: A table is empty, or lacks columns.
    """
    by_dose = checked_table(by_dose, "figure_planted", "dose", ["failure", "dose", *_ACCURACY])
    by_layers = checked_table(
        by_layers, "figure_planted", "place", ["failure", "layers", *_ACCURACY]
    )
    wanted = ["failure", "repair", *_ACCURACY, *interval_columns("baseline"), "p_holm"]
    repairs = checked_table(repairs, "figure_planted", "repair", wanted)
    power = checked_table(
        power,
        "figure_planted",
        "diagnostic",
        ["failure", "measure", "rule", "planted", "n", "power"],
    )
    count = len(repairs) + 1.4 * repairs["failure"].nunique()
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=(12.5, max(6.0, 0.24 * count + 1.2)))
        grid = figure.add_gridspec(3, 2, width_ratios=[1, 1.05])
        _doses(figure.add_subplot(grid[0, 0]), by_dose)
        _layers(figure.add_subplot(grid[1, 0]), by_layers)
        _power(figure.add_subplot(grid[2, 0]), power)
        _repairs(figure.add_subplot(grid[:, 1]), repairs)
    return figure


def _doses(ax: Axes, table: pd.DataFrame) -> None:
    for color, (failure, mine) in zip(COLORS, table.groupby("failure", sort=False), strict=False):
        value, low, high = percentages(mine, "accuracy")
        dose = mine["dose"].to_numpy(dtype=float)
        ax.plot(dose, value, "-o", ms=4, color=color, label=literal(failure))
        ax.vlines(dose, low, high, color=color, lw=1.0, alpha=0.6)
    ax.set(xlabel="planted dose d", ylabel="accuracy (%)", ylim=(-3, 103), title="What it costs")
    ax.legend(frameon=False, fontsize=8, loc="lower left")


def _layers(ax: Axes, table: pd.DataFrame) -> None:
    ticks: list[str] = []
    for color, (failure, mine) in zip(COLORS, table.groupby("failure", sort=False), strict=False):
        at = np.arange(len(ticks), len(ticks) + len(mine), dtype=float)
        value, low, high = percentages(mine, "accuracy")
        ax.bar(at, value, color=color, width=0.7, alpha=0.85, label=literal(failure))
        ax.vlines(at, low, high, color="#333333", lw=1.0)
        ticks += [literal(str(layers)) for layers in mine["layers"]]
    ax.set_xticks(np.arange(len(ticks)), ticks)
    ax.set(xlabel="planted in layers", ylabel="accuracy (%)", ylim=(0, 112), title="Where it hurts")
    ax.legend(frameon=False, fontsize=8, ncols=2, loc="upper left")


def _power(ax: Axes, table: pd.DataFrame) -> None:
    """Mean over the layers where the failure is."""
    there = table[table["planted"].astype(bool)]
    means = there.groupby(["failure", "measure", "rule", "n"], sort=False)["power"].mean()
    wide = means.reset_index()
    wide = wide[wide["n"] == wide["n"].max()]
    names = [f"{f}: {m}" for f, m in zip(wide["failure"], wide["measure"], strict=True)]
    wide = wide.assign(name=names)
    rows, rules = list(dict.fromkeys(names)), list(dict.fromkeys(wide["rule"]))
    shown = wide.pivot_table(index="name", columns="rule", values="power", sort=False)
    values = shown.reindex(index=rows, columns=rules).to_numpy(dtype=float)
    ax.imshow(values, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for row, column in np.ndindex(values.shape):
        dark = values[row, column] > 0.6
        text = f"{values[row, column]:.2f}" if np.isfinite(values[row, column]) else "-"
        ax.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "#222222",
        )
    ax.set_xticks(range(len(rules)), [literal(rule) for rule in rules], fontsize=8)
    ax.set_yticks(range(len(rows)), [literal(row.replace("_", " ")) for row in rows], fontsize=8)
    ax.set_title(f"Who sees it: power at n = {int(table['n'].max())}, its layers")


def _repairs(ax: Axes, table: pd.DataFrame) -> None:
    at, labels, where = 0.0, [], []
    for failure, mine in table.groupby("failure", sort=False):
        alone = 100 * float(mine["baseline"].iloc[0])
        rows = at + 1 + np.arange(len(mine))
        ax.plot([alone, alone], [rows[0] - 0.5, rows[-1] + 0.5], color=BASELINE_COLOR, lw=1.5)
        labels.append(f"{failure}: {alone:.0f} %")
        where.append(at)
        value, low, high = percentages(mine, "accuracy")
        ax.hlines(rows, low, high, color=ARM_COLOR, lw=1.2)
        for row, x, filled in zip(rows, value, significant(mine), strict=True):
            ax.plot(
                x, row, "o", ms=5, color=ARM_COLOR, mfc=ARM_COLOR if filled else "white", zorder=3
            )
        labels += [f"+ {name}" for name in mine["repair"]]
        where += rows.tolist()
        at = float(rows[-1]) + 1.4
    ax.set_yticks(where, [literal(label) for label in labels], fontsize=8)
    for label, text in zip(ax.get_yticklabels(), labels, strict=True):
        if not text.startswith("+"):
            label.set_fontweight("bold")
    ax.set(ylim=(at - 0.4, -0.7), xlim=(-3, 103))
    ax.set_title("What repairs bring back", loc="left")
    ax.set_xlabel("accuracy (%); gray: the failure alone; filled: p < 0.05, Holm")
    ax.grid(axis="x", alpha=0.3)
