"""How much text a step holds: enough to be a sentence of its own?"""

from __future__ import annotations

import re

CJK = re.compile("[\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_FRAGMENT_CHARACTERS = 10
_CJK_WIDTH = 2.5  # a CJK character says as much as this many Latin ones: 4 to 10


class StepSize:
    """The text of a step, read character by character, as far as its size goes."""

    def __init__(self) -> None:
        self._width = 0.0
        self._blanks = 0
        self._has_words = False

    def read(self, char: str) -> None:
        """Take the next character."""
        if char.isspace():
            self._blanks += 1
            return
        if self._width:
            self._width += self._blanks
        self._blanks = 0
        self._width += _CJK_WIDTH if CJK.match(char) else 1
        self._has_words = self._has_words or not (char.isdigit() or char == ".")

    @property
    def is_fragment(self) -> bool:
        """Whether it is too little, or says nothing but a number."""
        return self._width < _FRAGMENT_CHARACTERS or not self._has_words


def is_fragment(text: str) -> bool:
    """True for text that is no sentence: under 10 Latin or 4 CJK characters, or digits only."""
    size = StepSize()
    for char in text:
        size.read(char)
    return size.is_fragment
