"""What figures of experiments share: checked tables, points with intervals, their legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from stepflow_tl.errors import SettingError
from stepflow_tl.plots.style import ARM_COLOR, BASELINE_COLOR

SIGNIFICANT = 0.05


def checked_table(
    table: pd.DataFrame, figure: str, row: str, columns: Sequence[str]
) -> pd.DataFrame:
    """The table, its rows numbered anew, if it is what a figure expects.

    Args:
        table: The table.
        figure: Name of the figure's function, for the message.
        row: What a row is, for the message.
        columns: The columns that it needs.

    Raises:
        ValueError: The table is empty, or lacks columns.
    """
    expected = f"{figure} expects a row per {row}, with columns {', '.join(columns)}"
    if table.empty:
        raise SettingError(f"{expected}; got an empty table")
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise SettingError(
            f"{expected}; missing: {', '.join(missing)}; got {', '.join(map(str, table.columns))}"
        )
    return table.reset_index(drop=True)


def interval_columns(name: str) -> tuple[str, str, str]:
    """The columns of a value with its interval."""
    return name, f"{name}_low", f"{name}_high"


def percentages(table: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, low and high of a column of fractions, times 100."""
    value, low, high = (100.0 * table[c].to_numpy(dtype=float) for c in interval_columns(name))
    return value, low, high


def significant(table: pd.DataFrame) -> np.ndarray:
    """Which rows differ from their baseline at 5%, after Holm's correction."""
    return table["p_holm"].to_numpy(dtype=float) < SIGNIFICANT


def draw_points(
    ax: Axes,
    at: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    filled: np.ndarray | bool = True,
    color: str = ARM_COLOR,
    horizontal: bool = False,
    marker: str = "o",
) -> None:
    """Draw values with their intervals, filled or hollow; an unknown interval draws no bar.

    Args:
        ax: Where to.
        at: Place of each value on the other axis.
        bounds: Values, their lower and their upper ends.
        filled: Which markers are filled.
        color: Of all.
        horizontal: Values run along x rather than y.
        marker: Shape of all.
    """
    value, low, high = bounds
    error = np.maximum([value - low, high - value], 0.0)
    x, y = (value, at) if horizontal else (at, value)
    bars = {"xerr" if horizontal else "yerr": error}
    ax.errorbar(x, y, **bars, fmt="none", ecolor=color, elinewidth=1.5)  # type: ignore[arg-type]
    faces = np.where(np.broadcast_to(filled, len(value)), color, "white")
    ax.scatter(x, y, s=38, c=faces, edgecolors=color, linewidths=1.4, marker=marker, zorder=3)


def draw_curve(
    ax: Axes,
    layers: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    filled: np.ndarray | bool = True,
) -> None:
    """Draw values by layer, joined, over a band of their intervals; a single one has a bar."""
    value, low, high = bounds
    ax.plot(layers, value, color=ARM_COLOR, lw=1.5)
    if len(layers) > 1:
        ax.fill_between(layers, low, high, color=ARM_COLOR, alpha=0.18, lw=0)
        low = high = np.full_like(value, np.nan)
    draw_points(ax, layers, (value, low, high), filled=filled)
    ax.set_xlim(layers.min() - 0.5, layers.max() + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def draw_zero(ax: Axes, *, horizontal: bool = False) -> None:
    """The line of no difference."""
    line = ax.axvline if horizontal else ax.axhline
    line(0.0, color=BASELINE_COLOR, lw=1.0, zorder=0.5)


def significance_legend(figure: Figure) -> None:
    """Under the figure: what filled and hollow markers mean."""
    styles = {"p < 0.05 after Holm's correction": ARM_COLOR, "not significant": "white"}
    figure.legend(
        handles=[
            Line2D([], [], ls="", marker="o", mfc=face, mec=ARM_COLOR, mew=1.4, label=label)
            for label, face in styles.items()
        ],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
        handletextpad=0.3,
    )
