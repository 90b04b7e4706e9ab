"""Figures by layer: where correct and wrong traces part."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stepflow_tl.models.layers import Band, resolve_layers
from stepflow_tl.plots.style import INK, OUTCOME_COLORS, STYLE

MEASURE_LABELS: Mapping[str, str] = {
    "lock_in": "Shallow Lock-in:\nshare on own step + neighbor",
    "question_share": "thinking: share on the question",
    "earlier_share": "thinking: share on earlier steps",
    "summary_on_thinking": "Deep Decay:\nsummary's share on thinking",
    "half_life": "summary: half-life over distance (steps)",
    "final_heat_anomaly": "final heat anomaly\n(summary block / thinking block)",
}
"""The measures drawn by layer, and their axis labels."""

NEEDS: Mapping[str, str] = {
    "lock_in": "three thinking steps",
    "question_share": "three thinking steps",
    "earlier_share": "three thinking steps",
    "summary_on_thinking": "a summary",
    "half_life": "a summary",
    "final_heat_anomaly": "a summary",
}
"""What is said in place of a curve that no trace has."""

_LINES = {"correct": ("o", "-"), "wrong": ("s", "--")}  # told apart in gray too


def figure_layer_curves(comparison: pd.DataFrame, *, n_layers: int) -> Figure:
    """The measures of failure by layer, correct beside wrong, with their 95% intervals.

    Args:
        comparison: What `stepflow_tl.analysis.diagnostics.compare_groups` returns.
        n_layers: Number of layers of the model, to shade its shallow and deep bands.
    """
    bands: tuple[Band, ...] = ("shallow", "deep")
    counts = {name: int(comparison[f"n_{name}"].iloc[0]) for name in OUTCOME_COLORS}
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(12.5, 6.6), sharex=True)
        for ax, (measure, label) in zip(axes.flat, MEASURE_LABELS.items(), strict=True):
            rows = comparison[comparison["measure"] == measure]
            if rows[list(OUTCOME_COLORS)].isna().all(axis=None):
                _say_undefined(ax, NEEDS.get(measure, "more steps"))
            for band in bands:
                layers = resolve_layers(band, n_layers)
                ax.axvspan(layers[0] - 0.5, layers[-1] + 0.5, color="#eeeeee", zorder=0)
            for outcome, color in OUTCOME_COLORS.items():
                marker, dashes = _LINES[outcome]
                ax.plot(rows["layer"], rows[outcome], dashes, color=color, marker=marker, ms=4)
                ax.fill_between(
                    rows["layer"],
                    rows[f"{outcome}_low"],
                    rows[f"{outcome}_high"],
                    color=color,
                    alpha=0.2,
                    lw=0,
                )
            ax.set(ylabel=label, xlim=(-0.5, n_layers - 0.5))
            if measure == "final_heat_anomaly":
                ax.set_yscale("log")  # a ratio, of means that may be tiny
        for ax in axes[1]:
            ax.set_xlabel("layer (gray: shallow and deep quarter)")
        figure.legend(
            handles=[
                Line2D(
                    [],
                    [],
                    color=color,
                    marker=_LINES[outcome][0],
                    ls=_LINES[outcome][1],
                    label=f"{outcome} traces (n = {counts[outcome]})",
                )
                for outcome, color in OUTCOME_COLORS.items()
            ],
            loc="outside upper center",
            ncols=2,
            frameon=False,
        )
    return figure


def _say_undefined(ax: Axes, needed: str) -> None:
    """In place of curves, what the traces lack."""
    text = f"not drawn: it needs\n{needed},\nwhich no trace here has"
    ax.text(
        0.5, 0.5, text, ha="center", va="center", fontsize=10, color=INK, transform=ax.transAxes
    )
