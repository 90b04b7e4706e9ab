"""Accuracy, and how far arms of an experiment lie from their baseline."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from stepflow_tl.plots.style import STYLE


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
            ax.errorbar(x, value, np.maximum(error, 0.0), fmt="o", capsize=3, label=name)
        ax.set_xticks(range(len(table)), list(table["problems"]))
        ax.set(xlabel="operations in the problem", ylabel="accuracy (95% Wilson)", ylim=(0, 1.03))
        ax.legend(frameon=False, loc="lower left")
    return figure
