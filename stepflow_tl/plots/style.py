"""What all figures share: colours, settings, text that is never markup, files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

OUTCOME_COLOURS = {"correct": "#2b6a99", "wrong": "#c23b3b"}

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
    "svg.hashsalt": "stepflow_tl",
}


def save_figure(
    figure: Figure, path: str | Path, *, formats: Sequence[str] = ("png",)
) -> list[Path]:
    """Write a figure, without dates, so that equal data gives equal bytes; then close it.

    Returns:
        The files written: `path` with each format's suffix.
    """
    base = Path(path).with_suffix("")
    base.parent.mkdir(parents=True, exist_ok=True)
    undated: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
        "svg": {"Date": None, "Creator": None},
    }
    files = []
    for form in formats:
        files.append(base.with_suffix(f".{form}"))
        with mpl.rc_context({"svg.hashsalt": STYLE["svg.hashsalt"]}):
            figure.savefig(files[-1], metadata=undated.get(form), dpi=STYLE["savefig.dpi"])
    plt.close(figure)
    return files
