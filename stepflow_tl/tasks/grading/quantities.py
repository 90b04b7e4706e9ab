r"""Grading a number: the last box's, or the last of the response, as GSM8K is graded.

A box is read as a whole by the reader of mathematical answers. So is a formula that holds the last
number of the words; elsewhere in words the number is read with what stands around it, for the 3 of
``10^3`` and the 20 of "3 h 20 min" are no numbers of their own.
"""

from __future__ import annotations

import re
from fractions import Fraction

from stepflow_tl.errors import SettingError
from stepflow_tl.tasks.base import Grade
from stepflow_tl.tasks.grading.comparing import sole_number
from stepflow_tl.tasks.grading.latex import Token, Unreadable, tokens_of, with_thousands
from stepflow_tl.tasks.grading.reading import (
    Response,
    boxed,
    clean,
    parts_of,
    passed,
    refused,
    shown,
)
from stepflow_tl.tasks.grading.shapes import Shape, read
from stepflow_tl.tasks.grading.units import is_unit, with_plain_words
from stepflow_tl.traces.answers import last_boxed

_LONGEST = 100  # digits
_LARGEST = 10 ** (2 * _LONGEST)  # that is written out in a verdict
_DIGITS = frozenset("0123456789")
_FRACTION = re.compile(
    r"\\[dtc]?frac\s*(?:\{([0-9]{1,100})\}|([0-9]))\s*(?:\{([0-9]{1,100})\}|([0-9]))"
)
_NOISE = re.compile(
    r"\\?\$|\\%|%(?!\s*[0-9])|\\[!,;: ]|\{,\}(?=[0-9])|[€£¥¢]"
    r"|(?<![0-9)*]\s)(?<![0-9)*])\*+|\*+(?![\s*]*[0-9(])"
    r"|\\(?:text|textbf|textrm|mathrm|mathbf|boldsymbol)\b|<<[^<>]{0,80}>>|</?[A-Za-z_]{1,20}>|[-=]+>"
)
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]}])-\s?)?"
    r"(?<![A-Za-z_0-9.])"
    r"(?:(?P<whole>[0-9]+)\s+(?=[0-9]+/[0-9]))?"
    r"(?P<value>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?"
    r"|[1-9][0-9]{0,2}(?: [0-9]{3})+(?![0-9])(?:\.[0-9]+)?"
    r"|[0-9]+,[0-9]{1,2}(?![0-9,])"
    r"|(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2}(?![0-9]))?)"
    r"(?:\s?/\s?(?P<below>[0-9]+))?"
)
_DECIMAL_COMMA = re.compile(r"(-?[0-9]+),([0-9]{1,2}|[0-9]{4,})")
_WINDOW = 2000  # characters around the last digit of words
_FORMULA = re.compile(r"\$([^$\n]{1,400})\$|\\\(([^\n]{1,400}?)\\\)|\\\[(.{1,400}?)\\\]", re.DOTALL)
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}(?:\s+[A-Za-z]{2,})+")
_SCALES = {"hundred": 100, "thousand": 1000, "dozen": 12}
_SCALES |= {"million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = re.compile(rf"[\s-]?({'|'.join(_SCALES)})\b", re.IGNORECASE)
_UNIT_RAISED = re.compile(r"([A-Za-z]+|\\mu|Å|Ω)\s?\}?\s?\^\s?[{(]?\s?-?\s?$")
# What makes a number before it a part of something: an operator, a root, a function, a bracket.
_PART_OF = re.compile(
    r"(?:[+*×÷·/^±√_(]|\^\s?[{(]?\s?-|[0-9)]\s?x|\\(?:times|cdot|pm|div|sqrt\{?)|[A-Za-z0-9)]\()\s?$"
    r"|(?:\\[A-Za-z]+|\})\s?\{[^{}]{0,40}$|(?:[<≤≥≠]=?|(?<!-)>=?|\\(?:le|ge|leq|geq|lt|gt|ne|neq))\s?$"
    r"|(?:\b(?:sqrt|ln|log|exp|sin|cos|tan|pi)|π|[₀-₉])\s?\(?\s?$|[0-9][,.'’:]$|[0-9]\s?:\s?$"
    r"|\([^()]{0,40},\s?$|\b[a-z]\s?[-+]\s?$|[0-9]\s?–\s?$"
)
_ALONE_IN_BRACKETS = re.compile(r"(?:^|\s)\(\s?$")
_GOES_ON = re.compile(
    r"\s?[+*×÷·^±√π⁰¹²³⁴-⁹⁻₀-₉½¼¾]|\s?/\s?(?:[a-z]\b|\()|\s?x\s?[0-9]|[,.'’:][0-9]|\s?:\s?[0-9]"
    r"|\s?\\(?:times|cdot|pi|sqrt|div|pm|frac|le|ge|lt|gt)|\(|\s?[<>≤≥]|\s?(?:pi|sqrt|ln|log)\b"
    r"|\s?[-+]\s?[a-z]\b"
)
_NAMES = r"(?:pi|sqrt|ln|log|sin|cos|tan)"
_DENIED = re.compile(
    r"(?:n['’]t|\bnot|\bnever|\bcannot)\s(?:be\s)?(?:equal\sto\s)?$", re.IGNORECASE
)
_PART_BEFORE = re.compile(r"[0-9]\s?([A-Za-z]{1,8})\.?,?\s(?:and\s)?$")
_EXPRESSION = re.compile(r"[-0-9.,\s+*/^(){}×·÷√π%⁰¹²³⁴-⁹⁻x]{1,200}|")
_EXPRESSION_BEFORE = re.compile(r"[-0-9.,\s+*/^(){}×·÷√π%⁰¹²³⁴-⁹⁻x]{1,200}$")


def grade_number(response: Response, gold: str) -> Grade:
    r"""Grade the number in the last ``\boxed{...}``, or without a box the answer's last number.

    The answer is read; a box in the thinking counts only where no answer follows it, and a number
    in words only where the thinking never closed. Separators of thousands, currency and percent
    signs, units, ordinal endings, names before an equals sign and a full stop are left out;
    fractions, mixed numbers, powers and e-notation are read; 18, 18.00 and 36/2 are one number. A
    comma before one or two digits is a decimal one: ``18,5`` is 18.5. What is more than a number
    (``7n``, ``> 18``, ``3\pi``, 10:30, 3 h 20 min) is never its first or last digits, and a box
    with several numbers does not count.

    Args:
        response: Whatever the model wrote, or its parts.
        gold: The right number, such as "18" or "1,200" (what follows ``####`` in GSM8K).

    Returns:
        The verdict. Its kind of error is one of "no_answer", "unclosed_box", "empty_box",
        "not_understood", "wrong_answer"; its answer is the number as it was written.

    Raises:
        ValueError: The gold is no number.
    """
    wanted = number_of(gold)
    parts = parts_of(response)
    box = boxed(parts) if last_boxed(parts.graded) is not None else None
    if isinstance(box, Grade):
        return box
    where = f"the last number{parts.of_said}" if box is None else f"the last box{parts.of_graded}"
    text = clean(parts.said) if box is None else box
    try:
        found = _in_words(text) if box is None else _in_box(box)
    except _NoNumber as why:
        if why.text is None:
            return refused("not_understood", f"{where} holds {why}: {shown(text)}", text[:_LONGEST])
        reason = f"{where} is {shown(why.text)}: {why}"
        return refused("not_understood", reason, why.text[:_LONGEST])
    if found is None:
        kind = "unclosed_box" if "\\boxed" in parts.said else "no_answer"
        what = "answer" if parts.closed else "response"
        return refused(kind, f"neither a closed box nor a number in the {what}")
    written, value = found
    says = f"{where} reads {shown(written)}, which is"
    read_as = str(value) if max(value.numerator, value.denominator) < _LARGEST else written
    if value == wanted:
        reason = f"{says} the gold {shown(gold)}"
        return passed(reason, written, read_as=read_as, rule="equal numbers")
    reason = f"{says} not the gold {shown(gold)}"
    return refused("wrong_answer", reason, written, read_as=read_as, rule="another number")


def number_of(gold: str) -> Fraction:
    """The value of a right number.

    Raises:
        ValueError: It is none.
    """
    matches = _numbers(clean(gold))
    value = _value(matches[0]) if len(matches) == 1 else None
    if value is None:
        raise SettingError(f"expected a gold answer such as '18', got {shown(gold)}")
    return value


class _NoNumber(Exception):
    """What was found is more than a number, or none; its message says what."""

    def __init__(self, why: str, text: str | None = None) -> None:
        super().__init__(why)
        self.text = text


def _in_box(text: str) -> tuple[str, Fraction]:
    """The number that a box or a formula is, as it was written and its value.

    Raises:
        _NoNumber: It is none.
    """
    comma = _DECIMAL_COMMA.fullmatch(text)
    if comma is not None:
        return text, Fraction(f"{comma[1]}.{comma[2]}")
    try:
        tokens = with_plain_words(with_thousands(tokens_of(text)))
        shape = read(tokens, bare="any")
        value = sole_number(shape)
    except Unreadable as error:
        raise _NoNumber(f"no number that could be read ({error})") from None
    if value is None:
        raise _NoNumber(_what(shape, tokens))
    literal = _numbers(text.rpartition("=")[2])
    if len(literal) == 1 and _value(literal[0]) == value:
        return literal[0].group().strip(), value
    return text.rpartition("=")[2].strip(), value


def _what(shape: Shape, tokens: list[Token]) -> str:
    """What a box without a sole number holds."""
    if shape.kind in ("list", "pair", "set", "ratio"):
        return f"{len(shape.items)} values"
    if shape.kind == "relation":
        return "a bound"
    if shape.node is not None and shape.node.symbols:
        return f"an expression with {', '.join(sorted(shape.node.symbols)[:5])}"
    return "no rational number" if any(t.kind == "number" for t in tokens) else "no number"


def _in_words(text: str) -> tuple[str, Fraction] | None:
    """The last number of words, as it was written and its value; None without any.

    Raises:
        _NoNumber: The last number is a part of something that is none.
    """
    last = max((at for at, char in enumerate(text) if char in _DIGITS), default=None)
    if last is None:
        return None
    start = max(0, last - _WINDOW)
    window, last = text[start : last + _WINDOW], last - start
    for formula in _FORMULA.finditer(window):
        inside = next(group for group in formula.groups() if group is not None)
        if formula.start() < last < formula.end() and not _PROSE.search(inside):
            return _in_box(clean(inside))
    cleaned = _without_noise(window)
    for match in reversed(list(_NUMBER.finditer(cleaned))):
        before = cleaned[max(0, match.start() - 60) : match.start()]
        unit = _UNIT_RAISED.search(before)
        if unit is not None and (is_unit(unit[1]) or len(unit[1]) > 2):
            continue  # the 2 of cm^2
        return _alone(match, before, cleaned[match.end() : match.end() + 40], cleaned)
    return None


def _alone(match: re.Match[str], before: str, after: str, cleaned: str) -> tuple[str, Fraction]:
    """The number of a match, or of the expression that it is a part of."""
    written = match.group().strip()
    around = f"{before[-12:]}{match.group()}{after[:12]}".strip()
    if _DENIED.search(before):
        raise _NoNumber("denied, and no answer", around)
    letters = re.match("[A-Za-z]+", after)
    if letters is not None and _is_variable(letters.group()):
        raise _NoNumber("a number times a variable, and no number", around)
    is_part = _PART_OF.search(before) is not None and not _ALONE_IN_BRACKETS.search(before)
    if is_part or _GOES_ON.match(after):
        return _in_expression(match, cleaned, around)
    part = _PART_BEFORE.search(before)
    if part is not None and is_unit(part[1]) and _unit_after(after):
        raise _NoNumber("one of several parts, and no number of its own", around)
    if match["below"] and re.search(r"[0-9]\s(?:and|plus)\s$", before):
        raise _NoNumber("one of several parts, and no number of its own", around)
    value = _value(match)
    if value is None:
        raise _NoNumber(
            f"over {_LONGEST} digits, or divided by zero, and not read", written[:_LONGEST]
        )
    scale = _SCALE.match(after)
    if scale is not None:
        return f"{written}{scale.group()}", value * _SCALES[scale[1].lower()]
    return written, value


def _in_expression(match: re.Match[str], cleaned: str, around: str) -> tuple[str, Fraction]:
    """The value of all that a number in words is a part of, such as ``5 × 10^3``.

    Raises:
        _NoNumber: It is no rational number, or not to be read.
    """
    start, end = match.span()
    before = _EXPRESSION_BEFORE.search(cleaned[max(0, start - 200) : start])
    start -= 0 if before is None else len(before.group())
    behind = _EXPRESSION.match(cleaned, end)
    end = end if behind is None else behind.end()
    text = cleaned[start:end].strip(" \n.,")
    if text[:1] == "x" or text[-1:] == "x":
        raise _NoNumber("a part of an expression, and no number of its own", around)
    outside = cleaned[max(0, start - 12) : start].rstrip(), cleaned[end : end + 12].lstrip()
    if re.search(r"[<>≤≥≠=±√π\\_–'’:₀-₉]$|\b(?:sqrt|ln|log|exp|sin|cos|tan|pi)$", outside[0]) and (
        not outside[0].endswith("=")
    ):
        raise _NoNumber("a part of an expression, and no number of its own", around)
    if re.search(r"[A-Za-z]$", outside[0]) and not re.search(r"(?:^|\s)[A-Za-z]{2,}$", outside[0]):
        raise _NoNumber("a part of an expression, and no number of its own", around)
    if re.match(rf"[<>≤≥±\\_–:'’₀-₉½¼¾]|[A-Za-z](?![A-Za-z])|{_NAMES}\b", outside[1]):
        raise _NoNumber("a part of an expression, and no number of its own", around)
    try:
        return text, _in_box(clean(text))[1]
    except _NoNumber as why:
        raise _NoNumber(str(why), around) from None


def _is_variable(letters: str) -> bool:
    """Whether letters that touch a number are a factor of it: not an ordinal, a unit or a word."""
    if re.match(_NAMES, letters):
        return True
    return len(letters) < 3 and letters not in ("st", "nd", "rd", "th") and not is_unit(letters)


def _unit_after(after: str) -> bool:
    found = re.match(r"\s?([A-Za-z]+)", after)
    return found is not None and is_unit(found[1])


def _without_noise(text: str) -> str:
    text = _FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]} ", text)
    return _NOISE.sub("", text)


def _numbers(text: str) -> list[re.Match[str]]:
    """Every number of a text, left to right."""
    return list(_NUMBER.finditer(_without_noise(text)))


def _value(match: re.Match[str]) -> Fraction | None:
    """What a number is worth; None where it is too long, or divided by zero."""
    whole, value, below = (match[name] or "" for name in ("whole", "value", "below"))
    if len(match.group()) > _LONGEST or (below and int(below) == 0):
        return None
    comma = _DECIMAL_COMMA.fullmatch(value)
    value = f"{comma[1]}.{comma[2]}" if comma else re.sub("[, ]", "", value)
    size = Fraction(value) / Fraction(below or 1) + Fraction(whole or 0)
    return -size if match.group().startswith("-") else size
