r"""An answer's LaTeX as tokens: characters made plain, dress taken off, spaces remembered.

Answers come as LaTeX, as plain text with Unicode signs, and as both at once: ``6 × 10⁻³ m/s²``,
``\boldsymbol{12}\quad``, ``48{,}250\text{ people}``. All of it becomes one list of `Token`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["number", "letter", "word", "command", "sign"]


class Unreadable(Exception):
    """An answer that this reader cannot take apart; its message says what stopped it."""


class TooLarge(Unreadable):
    """An answer that is read, and takes too long to compare."""


class Ambiguous(Unreadable):
    """An answer that no grader may guess at: several numbers side by side, "5 or more"."""


@dataclass(frozen=True, slots=True)
class Token:
    r"""One token of an answer.

    Attributes:
        kind: "number", "letter" (a variable), "word" (upright text, or a run of letters that is a
            unit), "command" (without its backslash) or "sign".
        text: What it is.
        spaced: Whether white space stands before it.
        upright: Whether it was written in ``\text`` or ``\mathrm``.
    """

    kind: Kind
    text: str
    spaced: bool = False
    upright: bool = False

    def is_sign(self, *signs: str) -> bool:
        """Whether it is one of these signs."""
        return self.kind == "sign" and self.text in signs

    def is_command(self, *names: str) -> bool:
        """Whether it is one of these commands."""
        return self.kind == "command" and self.text in names


def _listed(names: str) -> list[str]:
    return names.split()


def words(names: str) -> frozenset[str]:
    """The set of names that a text lists, with blanks between them."""
    return frozenset(names.split())


_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎", "0123456789+-=()", strict=True))
_GREEK = dict(
    zip(
        "αβγδεζηθικλμνξοπρςστυφχψωΓΔΘΛΞΠΣΦΨΩµϕϵ",
        _listed(
            "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron "
            "pi rho sigma sigma tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi "
            "Sigma Phi Psi Omega mu phi epsilon"
        ),
        strict=True,
    )
)
_SIGNS = {
    **{"×": "times", "⋅": "cdot", "·": "cdot", "∙": "cdot", "•": "cdot", "÷": "div", "∗": "cdot"},
    **{"≤": "le", "⩽": "le", "≥": "ge", "⩾": "ge", "≠": "ne", "≈": "approx", "±": "pm", "∓": "mp"},
    **{"∪": "cup", "∩": "cap", "∈": "in", "∅": "emptyset", "∞": "infty", "√": "sqrt"},
    **{"ℝ": "reals", "ℤ": "integers", "ℕ": "naturals", "ℚ": "rationals", "ℂ": "complexes"},
    **{"→": "to", "⇒": "Rightarrow", "∨": "lor", "∧": "land", "∣": "mid", "∫": "int", "∑": "sum"},
    **{"⟨": "langle", "⟩": "rangle", "⌊": "lfloor", "⌋": "rfloor", "⌈": "lceil", "⌉": "rceil"},
}
_ALIASES = {
    **{"dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom"},
    **{"leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge", "neq": "ne", "lt": "<"},
    **{"gt": ">", "ast": "cdot", "varnothing": "emptyset", "varepsilon": "epsilon", "lnot": "neg"},
    **{"vartheta": "theta", "varphi": "phi", "varrho": "rho", "degree": "circ", "vee": "lor"},
    **{"wedge": "land", "lbrace": "{", "rbrace": "}", "lbrack": "[", "rbrack": "]", "vert": "|"},
    **{"lvert": "|", "rvert": "|", "mid": "|", "colon": ":", "lparen": "(", "rparen": ")"},
    **{"simeq": "approx", "thickapprox": "approx", "doteq": "approx"},
    **{"R": "reals", "infin": "infty", "arcsinh": "arsinh", "arccosh": "arcosh"},
    **{"arctanh": "artanh", "implies": "Rightarrow", "dots": "ldots", "cdots": "ldots"},
    **{"dotsc": "ldots", "euro": "€", "pounds": "£", "textdollar": "$", "textdegree": "circ"},
    **{"ohm": "Omega", "celsius": "Celsius", "cross": "times", "over": "/", "equiv": "="},
    **{"iff": "Leftrightarrow"},
}
_FRACTIONS = dict(zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", (
    ["12", "13", "23", "14", "34", "15", "25", "35", "45", "16", "56", "18", "38", "58", "78"]
), strict=True))  # fmt: skip
_UPRIGHT = words(
    "text textrm textnormal textup textbf textit textsf texttt mathrm mbox hbox "
    "operatorname rm unit si mathsf textsc emph"
)
_DRESS = words(
    "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr bigm middle "
    "displaystyle textstyle scriptstyle limits nolimits boldsymbol mathbf bm pmb bf it "
    "mathit mathcal mathscr mathnormal mathtt vec overrightarrow underline fbox boxed "
    "ensuremath mathopen mathclose mathrel mathbin mathord displaylimits tt sf large "
    "Large small"
)
_SPACES = frozenset([*",;: >", "enspace", "thinspace", "space", "nobreakspace"])
_NO_SPACES = frozenset(["!", "/", "negthinspace", "allowbreak", "nobreak"])
_SIZED = frozenset(["hspace", "vspace", "mspace", "color", "textcolor", "phantom", "label", "tag"])
_BLACKBOARD = {"R": "reals", "Z": "integers", "N": "naturals", "Q": "rationals", "C": "complexes"}
_NAMES = words(
    "sin cos tan cot sec csc sinh cosh tanh coth sech csch arcsin arccos arctan arsinh "
    "arcosh artanh ln log lg exp sqrt pi max min gcd lcm infty det deg mod"
)
_PLAIN_NAMES = _NAMES - {"deg", "mod", "det", "lg"}
_OTHER_NAMES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "inf": "infty"}
_UPRIGHT_NAMES = {name: name for name in ("sin", "cos", "tan", "ln", "log", "exp")}
_UPRIGHT_NAMES |= {"infinity": "infty", "Infinity": "infty"}
_ENVIRONMENT = re.compile(r"\\(begin|end)\s*\{([a-zA-Z]+)\*?\}(?:\[[a-z]\])?(\{[lcr|@{} .]*\})?")
_PIECE = re.compile(
    r"(?P<space>\s+|~)"
    r"|\\(?P<command>[A-Za-z]+|.)"
    r"|(?P<number>[0-9]+\.(?=\s?\\(?:overline|bar|dot)(?![a-z]))"
    r"|(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+(?![0-9.]))?)"
    r"|(?P<letters>[A-Za-z]+)"
    r"|(?P<other>.)",
    re.DOTALL,
)
_MOST_TOKENS = 3000  # of an answer; each ½ is seven
_HALF_DAY = re.compile(r"\b([ap])\.\s?m\b\.?", re.IGNORECASE)
_HEXADECIMAL = frozenset("ABCDEF")
_ROOT = re.compile(r"√\s?([0-9]+(?:\.[0-9]+)?|[A-Za-z])")
_WORDS = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


def tokens_of(answer: str) -> list[Token]:
    """The tokens of an answer, without dress.

    Args:
        answer: A cleaned answer; see `reading.clean`.

    Raises:
        Unreadable: It holds what stands for nothing, such as a lone backslash.
    """
    try:
        found = _combined(_Reader().read(_plain(_HALF_DAY.sub(r"\1m", answer))))
    except RecursionError:
        raise TooLarge("it is nested too deeply, and not read") from None
    if len(found) > _MOST_TOKENS:
        raise TooLarge(f"it has over {_MOST_TOKENS} tokens, and is not read")
    while len(found) > 1 and found[-1].is_sign(".", ",", ";"):
        found.pop()
    return found


def joined_words(tokens: Sequence[Token], known: Collection[str]) -> list[Token]:
    r"""The tokens with bare runs of letters that are one of these words as words.

    So ``SRMC`` is ``\text{SRMC}`` where one of two answers is written so, and the other not.
    """
    found: list[Token] = []
    at = 0
    while at < len(tokens):
        end = at + (tokens[at].kind == "letter")
        while end - at > 0 and end < len(tokens) and tokens[end].kind == "letter":
            if tokens[end].spaced:
                break
            end += 1
        run = "".join(token.text for token in tokens[at:end])
        if run in known:
            found.append(Token("word", run, tokens[at].spaced))
        else:
            end = max(end, at + 1)
            found.extend(tokens[at:end])
        at = end
    return found


def with_thousands(tokens: Sequence[Token], *, commas: bool = True) -> list[Token]:
    r"""The tokens with groups of three digits joined: ``48{,}250``, ``1\,204``, ``n = 12,345``.

    Args:
        tokens: An answer's tokens.
        commas: Whether a plain comma outside brackets joins, too; it may also part a list.
    """
    found: list[Token] = []
    at = depth = 0
    while at < len(tokens):
        token = tokens[at]
        comma = [each.text for each in tokens[at + 1 : at + 4]] == ["{", ",", "}"]
        if token.text.isdigit() and comma and at + 4 < len(tokens):
            places = tokens[at + 4].text
            if places.isdigit() and len(places) != 3:  # 18{,}5
                found.append(replace(token, text=f"{token.text}.{places}"))
                at += 5
                continue
        depth += token.is_sign("(", "[", "\\{") - token.is_sign(")", "]", "\\}")
        end = at + 1
        digits = token.text
        if token.kind == "number" and _is_first_group(token.text, tokens[:at]):
            while (group := _next_group(tokens, end, commas and depth == 0)) is not None:
                digits += tokens[group].text
                end = group + 1
                if not tokens[group].text.isdigit():
                    break
        found.append(replace(token, text=digits))
        at = end
    return found


def _is_first_group(text: str, before: Sequence[Token]) -> bool:
    is_index = bool(before) and before[-1].is_sign("_", "^")
    return text.isdigit() and len(text) <= 3 and not text.startswith("0") and not is_index


def _next_group(tokens: Sequence[Token], at: int, commas: bool) -> int | None:
    """Where the next three digits stand; None where none follow."""
    if at < len(tokens) and tokens[at].kind == "number":
        group = at if tokens[at].spaced else None
    elif at + 1 < len(tokens) and tokens[at].is_sign(",") and not tokens[at + 1].spaced:
        group = at + 1 if commas and not tokens[at].spaced else None
    elif at + 3 < len(tokens) and [token.text for token in tokens[at : at + 3]] == ["{", ",", "}"]:
        group = at + 3
    else:
        group = None
    if group is None or not re.fullmatch(r"[0-9]{3}(\.[0-9]+)?", tokens[group].text):
        return None
    return group


def text_of(tokens: Iterable[Token]) -> str:
    """The tokens as a line of LaTeX, as verdicts show them and math-verify reads them."""
    parts: list[str] = []
    for token in tokens:
        text = token.text
        if token.kind == "command":
            name, _, environment = token.text.partition(" ")
            text = f"\\{name}" + (f"{{{environment}}}" if environment else " ")
        elif token.kind == "word":
            text = rf"\text{{{token.text}}}"
        elif token.kind == "sign" and token.text in ("\\{", "\\}", "%", "$"):
            text = "\\" + token.text[-1]
        elif token.kind == "number" and parts and parts[-1][-1:].isdigit():
            text = " " + text
        parts.append(text)
    return "".join(parts).strip()


def same_tokens(first: Sequence[Token], second: Sequence[Token]) -> bool:
    """Whether two answers are one text but for dress, spaces and braces about one character."""
    return spelled(first) == spelled(second)


def spelled(tokens: Sequence[Token]) -> list[str]:
    """The tokens as characters, without braces about one of them: what texts are compared by."""
    texts: list[str] = []
    at = 0
    while at < len(tokens):
        token = tokens[at]
        at += 1
        is_group = [each.text for each in tokens[at - 1 : at + 2]][::2] == ["{", "}"]
        if is_group and not (tokens[at].kind == "number" and len(tokens[at].text) > 1):
            token = tokens[at]
            at += 2
        letters = token.text if token.kind == "word" else [token.text]
        kind = "l" if token.kind == "word" else token.kind[0]
        texts.extend(f"{kind}{letter}" for letter in letters)
    return texts


def _plain(answer: str) -> str:
    """Unicode signs as LaTeX: superscripts, Greek letters, fractions, degree signs."""
    parts: list[str] = []
    at = 0
    while at < len(answer):
        char = answer[at]
        run = _RAISED if char in _RAISED else _LOWERED if char in _LOWERED else None
        if run is not None:
            end = at
            while end < len(answer) and answer[end] in run:
                end += 1
            inside = "".join(run[c] for c in answer[at:end])
            parts.append(("^{" if run is _RAISED else "_{") + inside + "}")
            at = end
            continue
        root = _ROOT.match(answer, at)
        if root is not None:
            parts.append(rf"\sqrt{{{root[1]}}}")
            at = root.end()
            continue
        if char in _FRACTIONS:
            above, below = tuple(_FRACTIONS[char])
            parts.append(rf"\frac{{{above}}}{{{below}}}")
        elif char in _GREEK:
            parts.append(f"\\{_GREEK[char]} ")
        elif char in _SIGNS:
            parts.append(f"\\{_SIGNS[char]} ")
        elif char == "°":
            parts.append(r"^\circ ")
        elif char == "℃":
            parts.append(r"^\circ C")
        elif char in "′’" and parts:
            parts.append("'")
        elif char in "Å\u212b":
            parts.append(r"\text{angstrom}")
        elif "\U0001d400" <= char <= "\U0001d7ff":  # mathematical letters and digits
            parts.append(unicodedata.normalize("NFKC", char))
        else:
            parts.append(char)
        at += 1
    return "".join(parts)


class _Reader:
    """Cuts a text into tokens, left to right."""

    def __init__(self) -> None:
        self.tokens: list[Token] = []
        self.spaced = False

    def read(self, text: str, *, upright: bool = False) -> list[Token]:
        at = 0
        while at < len(text):
            environment = _ENVIRONMENT.match(text, at)
            if environment is not None:
                self._add("command", f"{environment[1]} {environment[2]}")
                at = environment.end()
                continue
            piece = _PIECE.match(text, at)
            assert piece is not None
            at = piece.end()
            if piece["space"]:
                self.spaced = True
            elif piece["command"] is not None:
                at = self._command(piece["command"], text, at, upright)
            elif piece["number"] is not None:
                self._add("number", piece["number"])
            elif piece["letters"] is not None and not upright:
                self._letters(piece["letters"])
            else:
                at = self._other(text, piece.start(), upright)
        return self.tokens

    def _add(self, kind: Kind, text: str, *, upright: bool = False) -> None:
        self.tokens.append(Token(kind, text, self.spaced, upright))
        self.spaced = False

    def _command(self, name: str, text: str, at: int, upright: bool) -> int:
        if name in _SPACES:
            self.spaced = True
        elif name in ("quad", "qquad"):
            self._add("sign", "quad")
        elif name in ("vec", "overrightarrow") and (group := _group(text, at)) is not None:
            inside = text[slice(*group)].strip()
            if len(inside) < 2 or not inside.isalpha():
                return at
            self._add("word", inside)  # the points of a vector, in their order
            at = group[1] + 1
        elif name in _SIZED and (group := _group(text, at)) is not None:
            at = group[1] + 1
        elif name in _NO_SPACES or name in _DRESS:
            if name in ("left", "right", "middle") and text[at : at + 1] == ".":
                at += 1
        elif name in _UPRIGHT:
            return self._upright(text, at)
        elif name in ("mathbb", "Bbb") and (group := _group(text, at)) is not None:
            letter = text[group[0] : group[1]].strip()
            self._add("command", _BLACKBOARD.get(letter, f"mathbb{letter}"))
            at = group[1] + 1
        elif name in ("deg", "degree", "textdegree", "degrees") and text[at : at + 1] != "(":
            if not (self.tokens and self.tokens[-1].is_sign("^")):
                self._add("sign", "^")
            self._add("command", "circ")
        elif name == "AA":
            self._add("word", "angstrom", upright=True)
        elif name in ("{", "}"):
            self._add("sign", "\\" + name)
        elif name in ("%", "$", "&", "#", "_"):
            self._add("sign", name)
        elif name == "\\":
            self._add("sign", "\\\\")
        elif name == "|":
            self._add("sign", "|")
        elif name in ("(", ")", "[", "]"):
            pass  # delimiters of a formula
        else:
            name = _ALIASES.get(name, name)
            if name in ("{", "}"):
                name = "\\" + name
            is_name = name.isalpha() and name.isascii()
            self._add("command" if is_name else "sign", name, upright=upright)
        return at

    def _upright(self, text: str, at: int) -> int:
        group = _group(text, at)
        if group is None:
            return at
        inside = text[group[0] : group[1]]
        letter = inside.strip()
        if letter in ("i", "e", "d"):  # the imaginary unit, Euler's number, a differential
            self._add("letter", letter, upright=True)
        elif letter in _NAMES:
            self._add("command", letter)
        else:
            self.spaced = self.spaced or inside[:1].isspace()
            self.read(inside, upright=True)
            self.spaced = self.spaced or inside[-1:].isspace()
        return group[1] + 1

    def _letters(self, run: str) -> None:
        name = _OTHER_NAMES.get(run, run)
        if name in _PLAIN_NAMES:
            self._add("command", name)
            return
        for letter in run:
            self._add("letter", letter)

    def _other(self, text: str, at: int, upright: bool) -> int:
        word = _WORDS.match(text, at)
        if word is not None:
            name = word.group()
            if upright and name in _UPRIGHT_NAMES:
                self._add("command", _UPRIGHT_NAMES[name])
            else:
                self._add("word", name, upright=upright)
            return word.end()
        char = text[at]
        self._add("sign", {"*": "\\*"}.get(char, char))
        return at + 1


def _group(text: str, at: int) -> tuple[int, int] | None:
    """Start and end of the content of the braces that open here."""
    while at < len(text) and text[at].isspace():
        at += 1
    if text[at : at + 1] != "{":
        return None
    depth, start = 0, at + 1
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return start, at
        at += 1
    raise Unreadable("a brace is not closed")


def _combined(tokens: list[Token]) -> list[Token]:
    """The tokens with those made one that are one: powers of ten, names of points, dots, blanks."""
    found: list[Token] = []
    at = 0
    while at < len(tokens):
        for combine in (_power_of_ten, _points, _digits_of_a_base, _dots, _negation, _wide_blank):
            combined = combine(tokens, at, found)
            if combined is not None:
                token, at = combined
                if token is not None:
                    found.append(token)
                break
        else:
            found.append(tokens[at])
            at += 1
    return found


_Combined = tuple[Token | None, int]  # what stands for some tokens, and where the next are


def _power_of_ten(tokens: list[Token], at: int, found: list[Token]) -> _Combined | None:
    r"""``6.02\mathrm{E}23`` is one number; the x of ``1.6x10^{-19}`` is a sign of times."""
    token = tokens[at]
    if not found or found[-1].kind != "number" or at + 1 == len(tokens):
        return None
    if token.kind == "letter" and token.text in ("x", "X"):
        is_ten = (
            tokens[at + 1].text == "10" and at + 2 < len(tokens) and tokens[at + 2].is_sign("^")
        )
        return (Token("command", "times"), at + 1) if is_ten else None
    is_letter = token.upright and token.text in ("E", "e")
    if not is_letter or (token.text == "e" and "." not in found[-1].text):  # 2e - 7
        return None
    end = at + 1 + tokens[at + 1].is_sign("-", "+")
    if end == len(tokens) or not is_whole(tokens[end]):
        return None
    exponent = "".join(each.text for each in tokens[at + 1 : end + 1])
    number = found.pop()
    return replace(number, text=f"{number.text}e{exponent}"), end + 1


def _points(tokens: list[Token], at: int, found: list[Token]) -> _Combined | None:
    r"""The points of ``\angle ABC`` and ``\triangle ABC``, and three or more capitals, in order."""
    token = tokens[at]
    named = token.is_command("angle", "triangle")
    start = at + named
    end = start
    while end < len(tokens) and tokens[end].kind == "letter" and tokens[end].text.isupper():
        if end > start and tokens[end].spaced:
            break
        end += 1
    touches = found and found[-1].kind == "letter" and not token.spaced
    if end < len(tokens) and tokens[end].kind == "letter" and not tokens[end].spaced:
        return None
    if end - start < (2 if named else 3) or (touches and not named):
        return None
    if end < len(tokens) and tokens[end].is_sign("_", "'"):
        return None
    name = "".join(each.text for each in tokens[start:end])
    return Token("word", f"{token.text} {name}" if named else name, token.spaced), end


def _digits_of_a_base(tokens: list[Token], at: int, found: list[Token]) -> _Combined | None:
    """``2ABC_{16}``: digits, some of them letters."""
    end = at
    while end < len(tokens) and (end == at or not tokens[end].spaced):
        is_digit = is_whole(tokens[end]) or tokens[end].text in _HEXADECIMAL
        if not is_digit:
            break
        end += 1
    rest = [token.text for token in tokens[end : end + 3]]
    base = rest[2] if rest[1:2] == ["{"] and len(rest) > 2 else rest[1] if len(rest) > 1 else ""
    if end - at < 2 or rest[:1] != ["_"] or base not in ("11", "12", "13", "14", "15", "16"):
        return None
    if found and found[-1].kind in ("letter", "number") and not tokens[at].spaced:
        return None
    return Token("word", "".join(token.text for token in tokens[at:end]), tokens[at].spaced), end


def _dots(tokens: list[Token], at: int, found: list[Token]) -> _Combined | None:
    """Three points are a sign of their own."""
    if not all(token.is_sign(".") for token in tokens[at : at + 3]) or at + 3 > len(tokens):
        return None
    return Token("command", "ldots", tokens[at].spaced), at + 3


def _negation(tokens: list[Token], at: int, found: list[Token]) -> _Combined | None:
    r"""``\not=`` is ``\ne``."""
    if not tokens[at].is_command("not"):
        return None
    if at + 1 < len(tokens) and tokens[at + 1].is_sign("="):
        return Token("command", "ne"), at + 2
    raise Unreadable(r"\not before what it is not read before")


def _wide_blank(tokens: list[Token], at: int, found: list[Token]) -> _Combined | None:
    r"""``\quad`` parts two values as a comma does; elsewhere it is a blank."""
    if not tokens[at].is_sign("quad"):
        return None
    end = at
    while end < len(tokens) and tokens[end].is_sign("quad"):
        end += 1
    if end == len(tokens):
        return None, end
    after, before = tokens[end], found[-1] if found else None
    parts = before is not None and (
        before.kind in ("number", "letter") or before.is_sign(")", "]", "}", "\\}")
    )
    begins = after.kind in ("number", "letter") or after.is_sign("-", "(", "[", "\\{")
    if parts and (begins or after.is_command("frac", "sqrt", "pi")):
        return Token("sign", ","), end
    tokens[end] = replace(after, spaced=True)
    return None, end


def is_whole(token: Token) -> bool:
    """Whether it is a number of plain digits only."""
    return token.kind == "number" and token.text.isdigit()
