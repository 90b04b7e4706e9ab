"""Where to intervene and how strongly: ablations of layers, sweeps of strengths."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from stepflow_tl.errors import SettingError
from stepflow_tl.plots.marks import (
    SIGNIFICANT,
    checked_table,
    draw_curve,
    draw_points,
    draw_zero,
    interval_columns,
    percentages,
    significance_legend,
    significant,
)
from stepflow_tl.plots.style import FAINT, INK, STYLE, percent, signed, wrapped

PAPER_STRENGTHS = (0.15, 0.06)
"""The paper's default ``tau_max`` and ``alpha`` (its Table 8)."""

DIVERGING_MAP = "RdBu"


def figure_layer_ablation(table: pd.DataFrame) -> Figure:
    """Difference to the baseline by where a component acts: bands left, single layers right.

    Args:
        table: A row per component and place: ``component, place, kind, layer, difference,
            difference_low, difference_high, p_holm``. ``kind`` is ``band`` (named by ``place``,
            drawn in the given order) or ``layer`` (at index ``layer``); differences are fractions,
            drawn as percentage points.

    Raises:
        ValueError: The table is empty or lacks columns, or a kind is neither of the two.
    """
    columns = ("component", "place", "kind", "layer", *interval_columns("difference"), "p_holm")
    table = checked_table(table, "figure_layer_ablation", "component and place", columns)
    drawn = {"band": _draw_bands, "layer": _draw_layers}
    if strange := sorted({str(kind) for kind in table["kind"]} - set(drawn)):
        raise SettingError(f"expected kinds band and layer, got {', '.join(strange)}")
    kinds = [kind for kind in drawn if (table["kind"] == kind).any()]
    components = list(dict.fromkeys(table["component"]))
    widths = {"band": 1.0, "layer": 2.3}
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(components),
            len(kinds),
            figsize=(1.0 + 2.8 * sum(widths[kind] for kind in kinds), 0.9 + 2.7 * len(components)),
            gridspec_kw={"width_ratios": [widths[kind] for kind in kinds]},
            sharex="col",
            sharey=True,
            squeeze=False,
        )
        for row, component in zip(axes, components, strict=True):
            for ax, kind in zip(row, kinds, strict=True):
                chosen = table[(table["component"] == component) & (table["kind"] == kind)]
                drawn[kind](ax, chosen)
                draw_zero(ax)
            row[0].set_ylabel("difference (percentage points)")
            row[0].set_title(wrapped(component, 30 if kinds[0] == "band" else 70), loc="left")
        for ax, kind in zip(axes[-1], kinds, strict=True):
            ax.set_xlabel("band of layers" if kind == "band" else "single layer")
        significance_legend(figure)
    return figure


def figure_strengths(table: pd.DataFrame) -> Figure:
    """Difference to the baseline over both strengths, as a heat map; the paper's cell outlined.

    Args:
        table: A row per pair of strengths: ``tau_max, alpha, accuracy, difference, p_value,
            p_holm``; accuracy and difference are fractions, drawn in percent and percentage
            points. The cell (0, 0) is the baseline.

    Raises:
        ValueError: The table is empty or lacks columns, or a pair of strengths comes twice.
    """
    columns = ("tau_max", "alpha", "accuracy", "difference", "p_value", "p_holm")
    table = checked_table(table, "figure_strengths", "pair of strengths", columns)
    if (twice := table[table.duplicated(["tau_max", "alpha"])]).size:
        pair = twice.iloc[0]
        raise SettingError(
            f"expected each pair of strengths once, got tau_max={pair['tau_max']:g}, "
            f"alpha={pair['alpha']:g} again"
        )
    taus, alphas = (sorted(float(v) for v in table[c].unique()) for c in ("tau_max", "alpha"))
    points = 100.0 * table["difference"].to_numpy(dtype=float)
    known = np.abs(points[np.isfinite(points)])
    limit = max(1.0, float(known.max())) if known.size else 1.0  # noise is not shouted
    norm = Normalize(-limit, limit)
    tau, alpha = PAPER_STRENGTHS
    with mpl.rc_context(STYLE):
        figure, ax = plt.subplots(
            figsize=(2.4 + 0.86 * max(len(alphas), 3), 1.6 + 0.56 * max(len(taus), 3))
        )
        grid = np.full((len(taus), len(alphas)), np.nan)
        for value, (_, cell) in zip(points, table.iterrows(), strict=True):
            row, column = taus.index(cell["tau_max"]), alphas.index(cell["alpha"])
            if (cell["tau_max"], cell["alpha"]) == (0, 0):
                ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=FAINT, lw=0))
                text, color = f"baseline\n{percent(cell['accuracy'])}", INK
            else:
                grid[row, column] = value
                text = signed(value) + _significance_mark(cell["p_value"], cell["p_holm"])
                color = "white" if abs(value) > 0.6 * limit else INK
            ax.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
        image = ax.imshow(
            np.ma.masked_invalid(grid), cmap=DIVERGING_MAP, norm=norm, origin="lower", aspect="auto"
        )
        key = ["∗ p < 0.05 after Holm's correction", "• p < 0.05 uncorrected"]
        if ((table["tau_max"] == tau) & (table["alpha"] == alpha)).any():
            corner = (alphas.index(alpha) - 0.5, taus.index(tau) - 0.5)
            ax.add_patch(
                Rectangle(corner, 1, 1, fill=False, lw=2.2, ec="black", zorder=3, clip_on=False)
            )
            key.append("outlined: the paper's default")
        ax.set_title("\n".join(key), loc="left", fontsize=9, color=INK)
        ax.set_xticks(range(len(alphas)), [f"{value:g}" for value in alphas])
        ax.set_yticks(range(len(taus)), [f"{value:g}" for value in taus])
        ax.set(xlabel="alpha (Step Momentum)", ylabel="tau_max (Odds-Equal Bridge)")
        _separate_cells(ax, *grid.shape)
        bar = figure.colorbar(image, ax=ax, aspect=22)
        bar.set_label("difference (percentage points)")
        bar.outline.set_visible(False)
    return figure


def _draw_bands(ax: Axes, rows: pd.DataFrame) -> None:
    at = np.arange(len(rows), dtype=float)
    draw_points(ax, at, percentages(rows, "difference"), filled=significant(rows))
    ax.set_xticks(at, [wrapped(place, 14, lines=2) for place in rows["place"]])
    ax.set_xlim(-0.6, len(rows) - 0.4)


def _draw_layers(ax: Axes, rows: pd.DataFrame) -> None:
    rows = rows.sort_values("layer")
    layers = rows["layer"].to_numpy(dtype=float)
    draw_curve(ax, layers, percentages(rows, "difference"), filled=significant(rows))


def _significance_mark(p_value: float, p_holm: float) -> str:
    if p_holm < SIGNIFICANT:
        return "∗"
    return " •" if p_value < SIGNIFICANT else ""


def _separate_cells(ax: Axes, rows: int, columns: int) -> None:
    """White lines between cells, and no frame."""
    ax.set_xticks(np.arange(1, columns) - 0.5, minor=True)
    ax.set_yticks(np.arange(1, rows) - 0.5, minor=True)
    ax.grid(which="minor", color="white", lw=1.5)
    ax.tick_params(which="both", length=0)
    for side in ax.spines.values():
        side.set_visible(False)
