"""What maps see: every rule against every truth, with what distance alone says."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stepflow_tl.errors import SettingError
from stepflow_tl.plots.marks import checked_table
from stepflow_tl.plots.style import ARM_COLOR, BASELINE_COLOR, STYLE, literal, wrapped

PANELS = {
    "premise": "premise used",
    "earlier step": "earlier step used",
    "knock-out": "KL where hidden",
    "labels": "labeled dependency",
    "suppression": "their suppression KL",
}
_RISE = "RISE (lower is better)"
_NAME = 32  # characters in a line of what stands beside ten rows


def figure_audit(summaries: Mapping[str, pd.DataFrame]) -> Figure:
    """Each rule's agreement with each truth, over all pairs and within equal distance; and RISE.

    Args:
        summaries: For each set of traces a row per rule: ``rule``, for each truth of `PANELS` that
            is known ``<truth>_auroc`` and ``<truth>_within`` with ``_low`` and ``_high``, and
            ``rise`` likewise.

    Raises:
        ValueError: There is no table, or one lacks columns.
    """
    if not summaries:
        raise SettingError("figure_audit expects at least one table, got none")
    tables = {
        name: checked_table(table, "figure_audit", "rule", ["rule"])
        for name, table in summaries.items()
    }
    panels = {name: _panels(table) for name, table in tables.items()}
    wide = max(1, *(len(found) for found in panels.values()))
    heights = [1.0 + 0.24 * len(table) for table in tables.values()]
    with mpl.rc_context(STYLE):
        figure, grid = plt.subplots(
            len(tables),
            wide,
            figsize=(2.2 + 2.5 * wide, sum(heights) + 0.4),
            squeeze=False,
            gridspec_kw={"height_ratios": heights},
        )
        for axes, (name, table) in zip(grid, tables.items(), strict=True):
            for ax in axes[len(panels[name]) :]:
                ax.set_axis_off()
            for number, (ax, panel) in enumerate(zip(axes, panels[name], strict=False)):
                _draw(ax, table, panel)
                labels = table["rule"].map(literal) if number == 0 else [""] * len(table)
                ax.set_yticks(np.arange(len(table)), labels)
            axes[0].set_ylabel(wrapped(name, _NAME))
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _panels(table: pd.DataFrame) -> list[str]:
    found = [truth for truth in PANELS if f"{truth}_auroc" in table.columns]
    return [*found, *(["rise"] if "rise" in table.columns else [])]


def _draw(ax: Axes, table: pd.DataFrame, panel: str) -> None:
    at = np.arange(len(table), dtype=float)
    if panel == "rise":
        series = [("rise", "RISE", ARM_COLOR, 0.0)]
        ax.set_title(_RISE, fontsize=9)
    else:
        series = [
            (f"{panel}_auroc", "all pairs", BASELINE_COLOR, -0.14),
            (f"{panel}_within", "within equal distance", ARM_COLOR, 0.14),
        ]
        ax.axvline(0.5, color="#b8b8b8", lw=0.8, zorder=0)
        ax.set_title(PANELS[panel], fontsize=9)
        ax.set_xlim(0.3, 1.03)
    for column, label, color, shift in series:
        value, low, high = (
            table[c].to_numpy(dtype=float) for c in (column, f"{column}_low", f"{column}_high")
        )
        ax.hlines(at + shift, low, high, color=color, lw=1.2)
        ax.plot(value, at + shift, "o", ms=3.5, color=color, label=label)
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.grid(axis="x", alpha=0.3)
