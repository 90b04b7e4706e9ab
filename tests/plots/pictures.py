"""Looking at figures."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text


def is_drawn(figure: Figure) -> bool:
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    return bool((pixels.reshape(-1, 3).std(0) > 5).all())


def texts(figure: Figure) -> list[Text]:
    """All text of a figure, once drawn."""
    figure.draw_without_rendering()
    return figure.findobj(Text)
