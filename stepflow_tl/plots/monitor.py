"""What a monitor has seen, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from stepflow_tl.errors import SettingError
from stepflow_tl.monitor.seen import PLACES
from stepflow_tl.plots.curves import MEASURE_LABELS
from stepflow_tl.plots.segments import SEGMENT_COLORS
from stepflow_tl.plots.style import INK

if TYPE_CHECKING:
    from stepflow_tl.monitor import Seen


def plot_monitor(
    seen: Seen, measure: str | None = None, ax: Axes | None = None, *, trace: Any = None
) -> Axes:
    """A measure of each step that a monitor saw: layers as rows, or a line where it has none.

    Args:
        seen: What the monitor saw.
        measure: One of its measures; None for the first.
        ax: Where to draw; None for axes of its own.
        trace: The trace, or its number; None for the first.

    Raises:
        SettingError: No step is over yet, or the measure was not asked for.
    """
    table = seen.table(trace)
    measures = [name for name in table.columns if name not in PLACES]
    if table.empty:
        raise SettingError("expected at least one step that is over, got none yet")
    chosen = measures[0] if measure is None else measure
    if chosen not in measures:
        raise SettingError(f"expected a measure out of {measures}, got {measure!r}")
    mine = table[table["trace"] == table["trace"].iloc[0]]
    wide = mine.pivot(index="layer", columns="step", values=chosen)
    ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")[1] if ax is None else ax
    if bool((wide.nunique() <= 1).all()) and len(wide) > 1:  # the same at all layers
        ax.plot(wide.columns, wide.iloc[0], "o-", ms=4, color=INK)
        ax.set_ylabel(f"{chosen} (nats)")
    else:
        _by_layer(ax, wide, MEASURE_LABELS.get(chosen, chosen).replace("\n", " "))
    for step, segment in mine.drop_duplicates("step")[["step", "segment"]].itertuples(index=False):
        ax.axvspan(
            step - 0.5, step + 0.5, 0, 0.02, color=SEGMENT_COLORS[segment], lw=0, clip_on=False
        )
    ax.set_xlabel("step")
    return ax


def _by_layer(ax: Axes, wide: pd.DataFrame, label: str) -> None:
    layers, steps = wide.index.to_numpy(), wide.columns.to_numpy(dtype=float)
    image = ax.imshow(
        wide.to_numpy(dtype=float),
        aspect="auto",
        origin="lower",
        cmap="magma_r",
        vmin=0.0,
        vmax=1.0,
        extent=(steps[0] - 0.5, steps[-1] + 0.5, -0.5, len(layers) - 0.5),
    )
    shown = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), 8)).astype(int))
    ax.set_yticks(shown, [str(layers[i]) for i in shown])
    ax.set_ylabel("layer")
    ax.figure.colorbar(image, ax=ax, label=label)
