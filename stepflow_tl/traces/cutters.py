"""Step cutters: where a new step starts inside one segment, decided token by token.

Every cutter is causal: what it says of a token depends on the tokens before it and on that token,
so that cutting while decoding and cutting afterwards agree. On white space all cutters of whole
sentences agree, too: a space leads the word after it and so starts the new step; line breaks and
tokens of nothing but white space stay with the old one.

A rule of one's own is a callable ``cutter(step, token) -> bool``, asked before ``token`` joins the
open step with the text ``step``, or a subclass of `StepCutter` where a rule keeps a state.
"""

from __future__ import annotations

import re

from stepflow_tl.errors import SettingError
from stepflow_tl.traces.cutting import Cutter, CutterName, Cutting, StepCutter
from stepflow_tl.traces.sentences import SentenceCutter


class _Called(StepCutter):
    """A callable rule, with the text of the open step that it is asked about."""

    def __init__(self, cutter: Cutter) -> None:
        self._cutter = cutter
        self._step = ""

    def open(self, token: str) -> None:
        self._step = token

    def push(self, token: str, may_cut: bool = True) -> bool:
        if may_cut and self._cutter(self._step, token):
            self._step = token
            return True
        step, self._step = self._step, ""
        step += token  # in place while nothing else holds it: no copy of a long step per token
        self._step = step
        return False


_TAIL_CHARACTERS = 64  # a called rule looks back no further than this into the open step
_LEADING_SPACE = re.compile(r"\s*")
_FULL_STOP = re.compile(r"\.(?=\s)")
_ANCHOR = re.compile(r"[.?!](?=[ \n])|\n\n")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
_FULL_STOP_CHARACTERS = 15
_ANCHOR_CHARACTERS = 10


def cut_full_stops(step: str, token: str) -> bool:
    """Cut at a full stop followed by white space; under 15 characters join the next sentence."""
    if token.strip() == "" and "\n" in token:
        return False
    return any(
        len(text) >= _FULL_STOP_CHARACTERS and not text.rstrip(".").isdigit()
        for text in _ended(_FULL_STOP, step, token)
    )


def cut_anchors(step: str, token: str) -> bool:
    """Cut as thought-anchors does: after ``.?!`` and at blank lines; 10 characters or more."""
    if not token.strip():
        return False
    return any(len(text) >= _ANCHOR_CHARACTERS for text in _ended(_ANCHOR, step, token))


def cut_paragraphs(step: str, token: str) -> bool:
    """Cut at a blank line; the blank line itself stays with the paragraph before it."""
    if not token.strip() or _is_blank(step):
        return False
    return _BLANK_LINE.search(_tail(step) + _leading_space(token)) is not None


def cut_lines(step: str, token: str) -> bool:
    """Cut at a line break; the line break itself stays with the line before it."""
    if not token.strip() or _is_blank(step):
        return False
    return "\n" in _tail(step) + _leading_space(token)


def cut_nothing(step: str, token: str) -> bool:
    """Never cut: the whole segment is one step."""
    return False


def _ended(end: re.Pattern[str], step: str, token: str) -> list[str]:
    """The step up to each end that the token makes known, stripped."""
    tail = step[-_TAIL_CHARACTERS:]
    before = len(step) - len(tail)
    ends = end.finditer(tail + _leading_space(token))
    return [step[: before + found.end()].strip() for found in ends]


def _is_blank(step: str) -> bool:
    return not step or step.isspace()


def _tail(step: str) -> str:
    """The end of a step, without the white space that it began with; no copy of a long step."""
    blank = _LEADING_SPACE.match(step)
    assert blank is not None
    return step[max(blank.end(), len(step) - _TAIL_CHARACTERS) :]


def _leading_space(text: str) -> str:
    return text[: len(text) - len(text.lstrip())]


CUTTERS: dict[CutterName, Cutter | type[StepCutter]] = {
    "sentence": SentenceCutter,
    "full_stop": cut_full_stops,
    "anchors": cut_anchors,
    "paragraph": cut_paragraphs,
    "line": cut_lines,
    "none": cut_nothing,
}


def new_cutter(cutter: Cutting) -> StepCutter:
    """A fresh cutter for one segment.

    Args:
        cutter: A name, a callable rule, or a subclass of `StepCutter`, called without arguments.

    Raises:
        ValueError: The name is none of the built-in cutters.
    """
    if not callable(cutter):
        if cutter not in CUTTERS:
            raise SettingError(
                f"unknown cutter {cutter!r}: expected one of {list(CUTTERS)} or a callable"
            )
        cutter = CUTTERS[cutter]
    return cutter() if isinstance(cutter, type) else _Called(cutter)
