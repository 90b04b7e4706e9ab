"""The chart: time as a ratio to the baseline, and peak memory, against the length of the trace."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from saliency_cost.runs import Row
from saliency_cost.tables import Clock, first_error, methods_of, peak, ratios, tokens_of
from stepflow_tl.plots import STYLE, save_figure
from stepflow_tl.plots.style import BASELINE_COLOR, FAMILY_COLORS

_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY, _RED, _ = FAMILY_COLORS
_DASHED, _DOTTED = (0, (5, 2)), (0, (1, 1.5))
LOOKS: Mapping[str, tuple[str, str, Any]] = {
    "forward + backward": (BASELINE_COLOR, "X", _DASHED),
    "naive": (_RED, "P", _DASHED),
    "run_with_cache": (_ORANGE, "s", _DASHED),
    "hooks": (_SKY, "v", "-"),
    "hooks, streamed": (_SKY, "^", _DOTTED),
    "fused": (_GREEN, "D", "-"),
    "fused + checkpoint": (_PURPLE, "^", "-"),
    "streamed": (_BLUE, "o", "-"),
}
"""Color, marker and line of each method. Other packages are not drawn: what they compute is no
step map, and their times are of another unit."""

Line = tuple[list[int], list[float]]


def save_chart(saved: Mapping[str, Any], path: Path, baseline: str, clock: Clock) -> None:
    """Draw the measurements of one run into a file."""
    rows = saved["measurements"]
    facts = {name: value for name, value in saved.items() if name != "measurements"}
    save_figure(
        figure_cost(rows, baseline, clock),
        path,
        facts={"n": len(rows), "seeds": {}, "models": "random weights", "settings": facts},
    )


def figure_cost(rows: Sequence[Row], baseline: str, clock: Clock) -> Figure:
    """Two panels, both axes logarithmic, a line per method with its name at its end.

    Args:
        rows: Measurements, as ``benchmarks/saliency.py`` writes them.
        baseline: The method that times are a ratio to.
        clock: Which time.
    """
    times: dict[str, Line] = {}
    peaks: dict[str, Line] = {}
    for method in [name for name in methods_of(rows) if name in LOOKS]:
        found = {t: ratios(rows, method, t, baseline, clock) for t in tokens_of(rows)}
        times[method] = _line({t: statistics.median(r) for t, r in found.items() if r})
        peaks[method] = _line({t: p for t in tokens_of(rows) if (p := peak(rows, method, t))})
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(13.5, 5.4))
        _panel(axes[0], rows, times, baseline, f"time, relative to {baseline}", "{:g}×")
        _panel(axes[1], rows, peaks, baseline, "peak memory above the model (GiB)", "{:g}")
    return figure


def _line(values: Mapping[int, float]) -> Line:
    return list(values), list(values.values())


def _panel(
    ax: Axes,
    rows: Sequence[Row],
    lines: Mapping[str, Line],
    baseline: str,
    label: str,
    form: str,
) -> None:
    """One panel: lines, ticks and names."""
    tokens = tokens_of(rows)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    drawn = {method: line for method, line in lines.items() if line[0]}
    for method, (at, values) in drawn.items():
        color, marker, style = LOOKS[method]
        ax.plot(at, values, color=color, marker=marker, ls=style, ms=5, lw=1.6)
    ax.xaxis.set_major_locator(FixedLocator(tokens))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{int(x):,}"))
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: form.format(y)))
    ax.set(xlabel="tokens of the trace", ylabel=label)
    ax.margins(y=0.08)
    ends = {method: (at[-1], values[-1]) for method, (at, values) in drawn.items()}
    _name_lines(ax, ends, {method: _name(rows, method, baseline) for method in ends})


def _name(rows: Sequence[Row], method: str, baseline: str) -> str:
    """A method's name, and why its line ends where it does."""
    error = first_error(rows, method)
    name = f"{method} (baseline)" if method == baseline else method
    return f"{name}: {error[1]} at {error[0]:,}" if error else name


def _name_lines(
    ax: Axes,
    ends: Mapping[str, tuple[float, float]],
    names: Mapping[str, str],
) -> None:
    """Write the names in a column at the right, each level with its line's end if there is room."""
    order = sorted(ends, key=lambda method: ends[method][1])
    low, high = np.log10(ax.get_ylim())
    wanted = np.array([(np.log10(ends[method][1]) - low) / (high - low) for method in order])
    for method, height in zip(order, _apart(wanted, 0.052), strict=True):
        ax.annotate(
            names[method],
            ends[method],
            xytext=(1.04, height),
            textcoords="axes fraction",
            color=LOOKS[method][0],
            fontsize=8.5,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": LOOKS[method][0],
                "alpha": 0.35,
                "lw": 0.8,
                "relpos": (0, 0.5),
                "shrinkA": 0,
                "shrinkB": 4,
            },
        )


def _apart(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Rising heights in [0, 1] pushed apart until none is nearer than `gap` to the next."""
    heights = wanted.copy()
    for _ in range(200):
        heights = heights.clip(0, 1)
        for i in range(1, len(heights)):
            lack = gap - (heights[i] - heights[i - 1])
            if lack > 1e-6:
                heights[i - 1] -= lack / 2
                heights[i] += lack / 2
    return heights
