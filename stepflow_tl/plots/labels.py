"""Steps named on an axis: by their number and first words, as many of them as have room.

A step's text is untrusted model output. It is shown as it stands, measured in the font that draws
it, and cut at a word.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from itertools import count, pairwise
from statistics import median
from typing import Any, Literal, TypeAlias

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from stepflow_tl.plots.style import FONTS, INK, NO_LETTER, drawable, literal
from stepflow_tl.text import one_line
from stepflow_tl.traces.trace import Step

Along: TypeAlias = Literal["x", "y"]

LABEL_SIZE = 7.5
"""Size of the letters, in points."""
LABEL_PITCH = 10.0
"""From one line to the next, in points."""

_FONT = FontProperties(family=FONTS, size=LABEL_SIZE)
_ELLIPSIS = "…"
_GLUE = "\N{NO-BREAK SPACE}"  # a number never stands without a word
_DOT = f" ·{_GLUE}"
_DANGLING = _DOT + ",;:.–—-(["  # looks odd before an ellipsis
_MOST_LINES = 3
_MOST_MARKS = 2  # accents on one letter: a pile of them would cover the next line
_MOST_CHARACTERS = 600  # more never fit, and texts may be of any length
_UPRIGHT = 52.0  # points that a label below its step needs to be written upright


def name_steps(
    ax: Axes,
    along: Along,
    steps: Sequence[Step],
    label: str,
    *,
    points_per_unit: float,
    length: float,
    positions: Sequence[float] | None = None,
) -> None:
    """Name steps at the ticks of an axis: all of them, or those that there is room for.

    Args:
        ax: Where to.
        along: The x axis, below, or the y axis, at the left.
        steps: The steps.
        label: The axis's own, to which it is added how many steps are named, if not all are.
        points_per_unit: Points (1/72 inch) that a unit of the axis takes.
        length: Points that a name may be long, away from the axis.
        positions: Where each step stands on the axis, increasing; None for 0, 1, 2...
    """
    positions = [float(i) for i in range(len(steps))] if positions is None else positions
    named = steps_with_room(steps, positions, LABEL_PITCH / points_per_unit)
    ticks = [positions[i] for i in named]
    room = points_per_unit * min((b - a for a, b in pairwise(ticks)), default=1.0)
    lines = max(1, min(_MOST_LINES, int(room / LABEL_PITCH)))
    style: dict[str, Any] = {"fontproperties": _FONT, "color": INK}
    if along == "x" and room >= _UPRIGHT:
        length, lines = room - 6.0, _MOST_LINES + 1
    elif along == "x":
        style |= {"rotation": 90, "multialignment": "right"}
    axis = ax.xaxis if along == "x" else ax.yaxis
    axis.set_ticks(ticks, [step_label(steps[i], length, lines=lines) for i in named], **style)
    if len(named) < len(steps):
        joint = ", " if along == "x" else ",\n"  # the y axis may be short
        label = f"{label}{joint}{len(named)} of {len(steps)} named"
    axis.set_label_text(label)


def steps_with_room(steps: Sequence[Step], positions: Sequence[float], gap: float) -> list[int]:
    """Indices, in order, of steps that stand at least a gap apart.

    The first step of each segment comes first, then the last step, then every so many.

    Args:
        steps: The steps.
        positions: Where each stands, increasing.
        gap: Least distance of two.
    """
    if not steps:
        return []
    last = len(steps) - 1
    starts = [i for i in range(1, len(steps)) if steps[i].segment != steps[i - 1].segment]
    distance = median(b - a for a, b in pairwise(positions)) if last else gap
    every = next(n for n in _round_numbers() if n * distance >= gap or n > last)
    chosen: list[int] = []
    for i in [0, *starts, last, *range(0, last, every)]:
        if all(abs(positions[i] - positions[other]) >= gap for other in chosen):
            chosen.append(i)
    return sorted(chosen)


def step_label(step: Step, length: float, *, lines: int = 1) -> str:
    """A step's number, its kind where its labels say one, and its first words.

    Args:
        step: The step.
        length: Points that a line may be long.
        lines: How many there may be.

    Returns:
        Literal text; what is cut off shows as an ellipsis.
    """
    kind, words = (_harmless(text) for text in (str(step.labels.get("kind", "")), step.text))
    text = f"{step.index}{_GLUE}{kind} " if kind else f"{step.index}{_GLUE}"
    rows = _broken(f"{text}·{_GLUE}{words}" if words else text.rstrip(), length, lines)
    return "\n".join(literal(row) for row in rows)


def text_width(text: str) -> float:
    """Points that a line of a label is long."""
    width: float = text_to_path.get_text_width_height_descent(text, _FONT, False)[0]
    return width


def _harmless(text: str) -> str:
    """The beginning of a text on one line, of letters that can be drawn on it."""
    kept, marks = [], 0
    for letter in one_line(text.lstrip()[: 4 * _MOST_CHARACTERS])[:_MOST_CHARACTERS]:
        marks = marks + 1 if unicodedata.category(letter).startswith("M") else 0
        if marks <= _MOST_MARKS:
            kept.append(letter)
    line = "".join(kept)
    shown = drawable(line)
    if shown != line:
        warnings.warn(
            f"no installed font has some letters of these steps, drawn as {NO_LETTER}; "
            "Noto Sans CJK and Noto Sans have most",
            stacklevel=2,
        )
    return shown


def _broken(text: str, width: float, lines: int) -> list[str]:
    """A text in lines, the last one ended by an ellipsis where more would follow."""
    rows: list[str] = []
    while len(rows) < lines - 1 and text_width(text) > width:
        beginning = _beginning(text, width)
        rows.append(beginning.rstrip(_DOT))
        text = text[len(beginning) :].lstrip(_DOT)
    if text_width(text) > width:
        text = _beginning(text, width - text_width(_ELLIPSIS)).rstrip(_DANGLING) + _ELLIPSIS
    return [*rows, text]


def _beginning(text: str, width: float) -> str:
    """As much of a text as fits, up to the end of a word unless that leaves most of it out."""
    low, high = 1, len(text) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text_width(text[:middle]) <= width else (low, middle - 1)
    ends = (i for i in range(low, 0, -1) if _may_break(text[i - 1 : i + 1]))
    end = next(ends, 0)
    return text[: end if end > 0.4 * low else low].rstrip()


def _may_break(pair: str) -> bool:
    """Whether a line may end between two letters: words end, or they are Chinese and the like."""
    before, after = pair[0], pair[1:]
    if before in "-_/":
        return after.isalpha()
    wide = any(unicodedata.east_asian_width(letter) in "WF" for letter in pair)
    return not after.strip(" ") or (wide and unicodedata.category(after)[0] not in "MP")


def _round_numbers() -> Iterator[int]:
    """1, 2, 3, 5, 10, 20, 30, 50 and so on."""
    for power in count():
        for factor in (1, 2, 3, 5):
            yield factor * 10**power
