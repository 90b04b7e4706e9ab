"""The cutter "sentence": sentences, list items, paragraphs and lines, as a careful reader cuts."""

from __future__ import annotations

import re
from typing import Literal

from stepflow_tl.traces.cutting import StepCutter
from stepflow_tl.traces.fragments import CJK, StepSize
from stepflow_tl.traces.protected import ProtectedSpans

_FULL_STOPS = "。！？｡．‼⁇⁈⁉"
_OTHER_STOPS = "।॥؟۔։"  # of Hindi, Arabic, Urdu and Armenian: white space follows them
_CLOSERS = ")]}\"'”’»*_）］｝〕】」』》〉｣"
_CONTINUES = ",;:)]}=+</&^%|.?!≤≥≠≈≡×÷·→⇒⇔∈–—…，、；：）］｝〕】」』》〉｣”’»"
_UNFINISHED = (",", "，", "、", "=", "+", "\\")  # a line that ends so goes on in the next one
_OPERATORS = ("=", "+", "-", "*", "/", "<", ">")
_VARIABLES = "xyz"  # a line may begin with one of these alone; hardly a word does
_LOOK = 24  # characters read of a line's beginning, a word, and the token that may start a step


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NEVER_ENDS = _words(
    """
    i.e e.g cf vs viz al approx resp incl a.k.a w.r.t w.l.o.g i.i.d s.t ca eq eqs eqn fig figs thm
    ref refs ph.d
    """
)
_NEVER_ENDS_CAPITAL = _words("Dr Mr Mrs Ms Prof Mt St Sr Jr Gen Capt Lt Sgt Rev")
_NEVER_ENDS_BEFORE_DIGIT = _words(
    """
    no nos p pp vol ch chap sec sect ex def prop lem cor art op ver max min
    jan feb mar apr jun jul aug sep sept oct nov dec
    """
)
_STARTERS = _words(
    """
    The This That These Those There Then Therefore Thus So Since But And Or If In It Its We He She
    They You Let Now Next Hence However Because When Where What Why How Also First Second Third
    Finally For From By To At On As An All Both Each Here Wait Hmm Okay OK Yes No Not Actually
    Alternatively Similarly Suppose Assume Given Note Maybe Perhaps After Before Again Well Which
    With Is Are Does Do Can Could Should Would Otherwise My Our His Her Their Just Moreover
    Furthermore Consider Compute Find Using Indeed
    """
)
_SINGLE_LETTERS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
_LABEL = re.compile(r"[\s#>*_•\-(]*(?:[A-Z][a-z]+ )?(?:[\d.]*\d|[A-Za-z]|[ivxIVX]+)")
_TABLE_ROW = re.compile(r"\|[\s:\-]")
_OPENED_WORD = re.compile(r"(?:\*\*|[\"“])?([^\W\d_]+)")

_Stop = Literal["", "full", "plain", "etc", "ellipsis", "initial", "number", "factorial"]


class SentenceCutter(StepCutter):
    """Cuts reasoning into sentences, list items, paragraphs and lines, as a careful reader would.

    It cuts after ``.?!`` and their CJK relatives (quotes, brackets and emphasis that close after
    them included), at blank lines, before items of a list, and at the ends of lines that do not go
    on in the next one. It does not cut after abbreviations, initials and list numbers, nor inside
    numbers, mathematics and code; a table stays whole, and an equation or code stays with the line
    right above that leads to it. A piece under 10 Latin or 4 CJK characters joins the next. What
    the next token does not decide is no boundary, and one that lies inside a token cuts at the
    next. Each character is read once, into a state of fixed size.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._size = StepSize()
        self._spans = ProtectedSpans()
        self._pending = False  # a boundary was passed, no token has started a step there yet
        self._has_long_tokens = False
        self._stop: _Stop = ""
        self._closed = False  # a quote or bracket has closed after the stop
        self._gap = ""  # "", " ", "\n" or "\n\n": white space read last
        self._last = "\n"  # the last character
        self._last_sign = ""  # the last one that is no white space
        self._word = ""  # letters and inner dots read last
        self._word_after = ""  # the sign before that word
        self._line = ""
        self._line_above = ""

    def open(self, token: str) -> None:
        """Begin a step with this token, and forget all that was before."""
        self._reset()
        self._read(token)

    def push(self, token: str, may_cut: bool = True) -> bool:
        """Read the next token; True if it starts a new step. White space alone never does."""
        start = len(token) - len(token.lstrip())
        self._read(token[:start])
        if start == len(token):
            return False
        self._look(token, start)
        cut = self._pending and may_cut
        if cut:
            self._size, self._pending = StepSize(), False
        self._read_char(token[start])
        self._read(token[start + 1 :])
        self._has_long_tokens = self._has_long_tokens or len(token) - start > 1
        return cut

    def _read(self, text: str) -> None:
        for i, char in enumerate(text):
            if not char.isspace():
                self._look(text, i)
            self._read_char(char)

    def _look(self, text: str, at: int) -> None:
        """Note a boundary before the character at `at`, as far as the text from there on tells."""
        if self._stop or "\n" in self._gap:
            self._spans.settle(text[at])
            found = not self._size.is_fragment and self._is_boundary(text[at : at + _LOOK])
            self._pending = self._pending or found

    def _is_boundary(self, rest: str) -> bool:
        if self._spans.protects:
            return False
        if self._gap == "\n\n":
            return True
        if rest[0] in _CONTINUES and not (rest[0] == "|" and self._gap):
            return False
        return self._is_after_stop(rest) or (self._gap == "\n" and self._is_new_line(rest))

    def _is_after_stop(self, rest: str) -> bool:
        first, stop = rest[0], self._stop
        if stop == "full":  # a quotation that closes may go on: 「そうです。」と言った。
            return bool(self._gap) or self._last_sign not in "」』" or not "ぁ" <= first <= "ゟ"
        if stop == "":
            return False
        if not self._gap:
            return stop == "plain" and self._last_sign != "." and CJK.match(first) is not None
        if self._gap == " " and first in "->|":
            return False
        if stop == "plain":
            return not (first.islower() and (self._closed or self._last_sign == "!"))
        word = _OPENED_WORD.match(rest)
        if word is None or not word[1][0].isupper():
            return stop == "number" and not (first.isdigit() or first.islower())
        if stop == "ellipsis":
            return len(word[1]) > 1
        return stop != "initial" or word[1] in _STARTERS

    def _is_new_line(self, rest: str) -> bool:
        """True if the line that begins with `rest` does not go on with the one above."""
        first, above = rest[0], self._line_above
        if first == "|":
            return _TABLE_ROW.match(above) is None
        if first == ">":
            return not above.startswith(">")
        if first in "-*•":
            return not (first == "-" and (rest[1:2].isalnum() or rest[1:2] == ">"))
        if self._last_sign in _UNFINISHED:
            same_list = first == above[:1] == "(" or (first.isdigit() and above[:1].isdigit())
            return same_list and _LABEL.match(above) is not None
        if rest.startswith(("\\[", "\\begin", "$$", "```")) or (
            rest in ("\\", "$", "`") and not self._has_long_tokens
        ):
            return self._spans.after_block
        return not first.islower() or (rest in _VARIABLES and self._has_long_tokens)

    def _read_char(self, char: str) -> None:
        self._spans.read(char)
        self._size.read(char)
        if char.isspace():
            self._read_space(char)
        else:
            self._read_sign(char)
            self._last_sign = char
        self._last = char

    def _read_space(self, char: str) -> None:
        if char == "\n":
            self._gap = "\n\n" if "\n" in self._gap else "\n"
            self._line_above, self._line = self._line, ""
        elif self._line and len(self._line) < _LOOK:
            self._line += char
        self._gap = self._gap or " "

    def _read_sign(self, char: str) -> None:
        if self._spans.protects and not self._spans.is_mathematics:
            self._stop = ""
        elif char in ".?!…" or char in _FULL_STOPS or char in _OTHER_STOPS:
            self._stop, self._closed = self._stop_at(char), False
        elif self._stop and self._may_close(char):
            self._closed = True
        else:
            self._stop = ""
        self._gap = ""
        if char.isalpha():
            if not (self._last.isalpha() or (self._last == "." and self._word)):
                self._word, self._word_after = "", self._last_sign
            self._word = (self._word + char)[:_LOOK]
        elif char == "." and self._last.isalpha():
            self._word = (self._word + char)[:_LOOK]
        else:
            self._word = ""
        if len(self._line) < _LOOK:
            self._line += char

    def _may_close(self, char: str) -> bool:
        """True for a quote, bracket or delimiter that may belong to the sentence before it."""
        if self._gap and not self._spans.protects:
            return False
        return char in _CLOSERS or (char in "$\\" and self._spans.is_mathematics)

    def _stop_at(self, char: str) -> _Stop:
        """What kind of stop this character is, by what stands before it."""
        if _TABLE_ROW.match(self._line):
            return ""
        if self._spans.protects:
            return "plain" if char in ".?" else ""
        if char in "!！" and self._is_operand():
            return "factorial"
        if char in _FULL_STOPS:
            return "full"
        if char == "…" or self._last == "…" or (char == self._last == "."):
            return "ellipsis"
        return "plain" if char in "?!" or char in _OTHER_STOPS else self._dot()

    def _is_operand(self) -> bool:
        """True if the sign read last may be what a factorial is taken of."""
        last = self._last
        short_word = last.isalpha() and last.isascii() and len(self._word) < 3
        return last.isdigit() or last in ")]}" or short_word

    def _dot(self) -> _Stop:
        """What kind of stop a dot after this word, or on this line, is."""
        if len(self._line) < _LOOK and _LABEL.fullmatch(self._line):
            return ""
        word = self._word if self._last.isalpha() else ""
        if word.lower() in _NEVER_ENDS or word in _NEVER_ENDS_CAPITAL:
            return ""
        if word.lower() in _NEVER_ENDS_BEFORE_DIGIT:
            return "number"
        if word == "etc":
            return "etc"
        letters = _SINGLE_LETTERS.fullmatch(word) is not None
        if letters and (len(word) > 1 or (word.isupper() and self._word_after not in _OPERATORS)):
            return "initial"
        return "plain"
