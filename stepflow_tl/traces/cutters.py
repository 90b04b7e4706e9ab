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
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

from stepflow_tl.errors import SettingError

Cutter = Callable[[str, str], bool]
CutterName = Literal["sentence", "full_stop", "anchors", "paragraph", "line", "none"]


class StepCutter(ABC):
    """Decides where a new step starts inside one segment; keeps what it needs of the open step.

    An instance serves one segment of one trace.
    """

    @abstractmethod
    def open(self, token: str) -> None:
        """Begin a step with this token, and forget the step before."""

    @abstractmethod
    def push(self, token: str, may_cut: bool = True) -> bool:
        """Read the next token of the segment; True if it starts a new step, which is then open.

        Args:
            token: Its text; empty where it ends inside a UTF-8 character.
            may_cut: False where the token must join the open step; a boundary before it then
                waits for the next token.
        """


Cutting = CutterName | Cutter | type[StepCutter]
"""How a segment is cut: by a rule of that name, by a callable, or by a class called afresh."""


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


_CJK = re.compile(
    "[\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]"
)
_FRAGMENT_CHARACTERS = 10
_CJK_WIDTH = 2.5  # a CJK character says as much as this many Latin ones: 4 to 10


class _Size:
    """How much text a step holds: enough to be a sentence of its own?"""

    def __init__(self) -> None:
        self._width = 0.0
        self._blanks = 0
        self._has_words = False

    def read(self, char: str) -> None:
        if char.isspace():
            self._blanks += 1
            return
        if self._width:
            self._width += self._blanks
        self._blanks = 0
        self._width += _CJK_WIDTH if _CJK.match(char) else 1
        self._has_words = self._has_words or not (char.isdigit() or char == ".")

    @property
    def is_fragment(self) -> bool:
        return self._width < _FRAGMENT_CHARACTERS or not self._has_words


def is_fragment(text: str) -> bool:
    """True for text that is no sentence: under 10 Latin or 4 CJK characters, or digits only."""
    size = _Size()
    for char in text:
        size.read(char)
    return size.is_fragment


class _Spans:
    """Which mathematics or code the text is in, read character by character.

    Dollars are told apart as pandoc does: one that opens has no white space after it, one that
    closes none before it and no digit after it. An opening dollar before a digit may be money: it
    protects nothing, and is forgotten at the end of its line.

    Attributes:
        kind: Empty in plain text; else ``$``, ``$$``, ``(`` or ``[`` (with a backslash), ``begin``
            for an environment of LaTeX, a backtick for inline code, or ``fence``.
        after_block: True after a display equation or fenced code, up to the next text.
    """

    def __init__(self) -> None:
        self.kind = ""
        self.after_block = False
        self._ticks = 0  # how many backticks close the open code
        self._is_money = False
        self._command = ""  # letters after a backslash
        self._depth = 0  # environments that are open
        self._run = ""  # "$", "`" or a backslash whose meaning depends on what follows
        self._run_size = 0
        self._run_opens_line = False
        self._before = "\n"  # the character before the run
        self._last = "\n"
        self._line_is_blank = True

    @property
    def protects(self) -> bool:
        """True where no boundary can be."""
        return self.kind != "" and not self._is_money

    @property
    def is_mathematics(self) -> bool:
        return self.kind not in ("", "`", "fence")

    def settle(self, char: str) -> None:
        """Give dollars and backticks their meaning now that `char` is seen to follow them."""
        if self._run in ("$", "`") and char != self._run:
            run, self._run = self._run, ""
            if run == "`":
                self._read_ticks(char)
            elif self._run_size == 1:
                self._read_dollar(char)
            else:
                self._read_dollars()

    def read(self, char: str) -> None:
        self.settle(char)
        if not char.isspace() and self._run == "":
            self.after_block = False
        if self._command:
            self._read_command(char)
        if self._run == "\\":
            self._run = ""
            self._read_escaped(char)
        elif self._run:
            self._run_size += 1
        elif char in "$`" or (char == "\\" and self.kind not in ("`", "fence")):
            self._run, self._run_size = char, 1
            self._run_opens_line, self._before = self._line_is_blank, self._last
        elif char == "\n":
            blank_line = self._line_is_blank and self.kind != "fence"
            if blank_line or self._is_money:
                self._close()
            self._line_is_blank = True
        self._line_is_blank = self._line_is_blank and char.isspace()
        self._last = char

    def _read_ticks(self, following: str) -> None:
        size = self._run_size
        if self.kind == "fence":
            if self._run_opens_line and size >= self._ticks and following.isspace():
                self._close()
        elif self.kind == "`":
            if size == self._ticks:
                self._close()
        elif not self.protects:
            self._open("fence" if self._run_opens_line and size >= 3 else "`")
            self._ticks = size

    def _read_dollar(self, following: str) -> None:
        closes = not self._before.isspace() and not following.isdigit()
        if self.kind == "$" and closes:
            self._close()
        elif not self.protects and not following.isspace():
            self._open("$")
            self._is_money = following.isdigit()

    def _read_dollars(self) -> None:
        if self.kind == "$$":
            self._close()
        elif not self.protects:
            self._open("$$")

    def _read_escaped(self, char: str) -> None:
        if char in "([" and not self.protects:
            self._open(char)
        elif (self.kind, char) in (("(", ")"), ("[", "]")):
            self._close()
        elif self.kind in ("", "begin"):
            self._command = char

    def _read_command(self, char: str) -> None:
        """Enter or leave an environment of LaTeX, whose last character closes its name's brace."""
        if self._command == "leaving":
            if char == "}":
                self._command = ""
                self._close()
        elif char.isalpha() and len(self._command) < len("begin"):
            self._command += char
        else:
            command, self._command = self._command, ""
            if (command, char) == ("begin", "{"):
                self._depth = self._depth + 1 if self.kind == "begin" else 1
                self._open("begin")
            elif (command, char, self.kind) == ("end", "{", "begin"):
                self._depth -= 1
                self._command = "" if self._depth else "leaving"

    def _open(self, kind: str) -> None:
        self.kind, self._is_money = kind, False

    def _close(self) -> None:
        self.after_block = self.kind in ("$$", "[", "begin", "fence")
        self.kind, self._is_money = "", False


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
        self._size = _Size()
        self._spans = _Spans()
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
            self._size, self._pending = _Size(), False
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
            return stop == "plain" and self._last_sign != "." and _CJK.match(first) is not None
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
