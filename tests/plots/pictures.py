"""Looking at figures."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import BboxBase


def is_drawn(figure: Figure) -> bool:
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    return bool((pixels.reshape(-1, 3).std(0) > 5).all())


def texts(figure: Figure) -> list[Text]:
    """All text of a figure, once drawn."""
    figure.draw_without_rendering()
    return figure.findobj(Text)


def crowded(figure: Figure) -> list[str]:
    """What is wrong with where text stands: over other text, or beyond the figure."""
    shown = [text for text in texts(figure) if text.get_visible() and text.get_text().strip()]
    boxes = [text.get_window_extent() for text in shown]
    beyond = [text for text, box in zip(shown, boxes, strict=True) if not _holds(figure.bbox, box)]
    over = [
        f"{shown[i].get_text()!r} over {shown[k].get_text()!r}"
        for i, box in enumerate(boxes)
        for k, other in enumerate(boxes[:i])
        if box.overlaps(other)
    ]
    return [f"beyond the figure: {text.get_text()!r}" for text in beyond] + over


def _holds(outer: BboxBase, inner: BboxBase) -> bool:
    return bool((inner.min >= outer.min - 1).all() and (inner.max <= outer.max + 1).all())


def color_bars(figure: Figure) -> list[str]:
    """What each color bar says it shows."""
    return [ax.get_ylabel() for ax in figure.axes if ax.get_label() == "<colorbar>"]


def step_names(ax: Axes, along: str) -> list[str]:
    """The labels of an axis, each on one line."""
    ticks = ax.get_xticklabels() if along == "x" else ax.get_yticklabels()
    return [tick.get_text().replace("\n", " ") for tick in ticks]
