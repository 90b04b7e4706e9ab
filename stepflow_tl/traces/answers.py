"""What a response says: its thinking, its answer, and the boxes in them.

`ResponseParts` is what graders read. A `Trace` has those that its reader found; of a bare text
`read_response` finds them with the same reader.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, kw_only=True)
class ResponseParts:
    """A response, read: untrusted text without template, delimiters and messages to tools.

    Attributes:
        thinking: Text of the thinking; all of a response that never closes it.
        answer: Text after the thinking, to its last blank; empty where there is none.
        closed: Whether the thinking ended, or the prompt had closed it.
        expected: Whether a thinking was to be expected: of a model without any, all is answer.
    """

    thinking: str
    answer: str
    closed: bool
    expected: bool = True

    @property
    def graded(self) -> str:
        """What counts: the answer; the thinking only where no answer follows its box.

        Text after the thinking that holds no box, no number, no formula and no word "answer"
        (``So it is.``) is none.
        """
        return self.thinking if self.is_silent else self.answer

    @property
    def of_graded(self) -> str:
        """What `graded` is a part of, for a verdict; see `of`."""
        return self.of(self.is_silent)

    @property
    def of_said(self) -> str:
        """What `said` is a part of, for a verdict; see `of`."""
        return self.of(not self.closed)

    def of(self, in_thinking: bool) -> str:
        """What was read, for a verdict, as ``" of the answer"``; empty for all there is.

        Args:
            in_thinking: Whether it was the thinking.
        """
        if not in_thinking:
            return " of the answer" if self.thinking.strip() else ""
        if self.closed:
            return " of the thinking, which no answer follows,"
        return " of a response whose thinking never closed" if self.expected else ""

    @property
    def said(self) -> str:
        """Where words count: after the thinking, or in all of a response that never closed it."""
        return self.answer if self.closed else self.thinking

    @cached_property
    def is_silent(self) -> bool:
        """Whether no answer follows the thinking, so that the thinking is graded."""
        if not self.answer.strip():
            return True
        return not _STATES.search(self.answer) and last_boxed(self.thinking) is not None


_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_STATES = re.compile(r"[0-9$\\]|\banswer\b", re.IGNORECASE)


def boxed_answer(text: str) -> str | None:
    r"""Content of the last ``\boxed{...}``; None if there is none."""
    span = last_boxed(text)
    return None if span is None else text[slice(*span)]


def last_boxed(text: str) -> tuple[int, int] | None:
    r"""Character span of the content of the last ``\boxed{...}``; None if there is none.

    Braces may nest; escaped ones (``\left\{ ... \right.``) open and close nothing. An unclosed box
    does not count.
    """
    best: tuple[int, int] | None = None
    open_braces: list[int | None] = []  # content start where the brace opens a box, else None
    for brace in _BRACE.finditer(text):
        found = brace.group()
        if found[-1] == "{" and found != "\\{":
            open_braces.append(brace.end() if found != "{" else None)
        elif found == "}" and open_braces:
            start = open_braces.pop()
            if start is not None and (best is None or start > best[0]):
                best = (start, brace.start())
    return best
