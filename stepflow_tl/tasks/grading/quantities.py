r"""Grading a number: the last box's, or the last of the response, as GSM8K is graded.

A box is read as a whole by the reader of mathematical answers. So is a formula that holds the last
number of the words; elsewhere in words the number is read with what stands around it, for the 3 of
``10^3`` and the 20 of "3 h 20 min" are no numbers of their own.
"""

from __future__ import annotations

import re
from fractions import Fraction

from stepflow_tl.answers import last_boxed
from stepflow_tl.tasks.base import Grade
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
from stepflow_tl.tasks.grading.shapes import Shape, read, sole_number
from stepflow_tl.tasks.grading.units import is_unit, with_plain_words

_LONGEST = 100  # digits
_LARGEST_EXPONENT = 300
_FRACTION = re.compile(
    r"\\[dtc]?frac\s*(?:\{([0-9]{1,100})\}|([0-9]))\s*(?:\{([0-9]{1,100})\}|([0-9]))"
)
_NOISE = re.compile(
    r"\\?[$%]|\\[!,;: ]|\{,\}(?=[0-9])|[€£¥*]|\\(?:text|textbf|textrm|mathrm|mathbf|boldsymbol)\b"
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
_FORMULA = re.compile(r"\$([^$\n]{1,400})\$|\\\(([^\n]{1,400}?)\\\)|\\\[(.{1,400}?)\\\]", re.DOTALL)
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}(?:\s+[A-Za-z]{2,})+")
_RAISED = re.compile(r"\^\s?[{(]?\s?-?\s?$|_\s?\{?\s?$")
_IN_GROUP = re.compile(r"(?:\\[A-Za-z]+|\})\s?\{[^{}]{0,40}$|(?:\\sqrt|√)\s?\(?\s?$")
_BOUND = re.compile(r"(?:[<>≤≥≠]=?|\\(?:le|ge|leq|geq|lt|gt|ne|neq))\s?$")
_BEFORE_TIME = re.compile(r"[0-9]:$")
_AFTER = re.compile(r"(?P<power>\s?\^|[⁰¹²³⁴-⁹⁻])|(?P<factor>\s?(?:\\pi|π|\\sqrt|√|:[0-9]))")
_TIMES_BEFORE = re.compile(r"[0-9.]\s?(?:\\times|\\cdot|×|·)\s?$")
_PART_BEFORE = re.compile(r"[0-9]\s?([A-Za-z]{1,8})\.?,?\s(?:and\s)?$")
_LETTERS_AFTER = re.compile(r"[A-Za-z]+")
_UNIT_BEFORE = re.compile(r"([A-Za-z]+|\\mu|Å|Ω)\s?\}?\s?\^")


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
    says, read_as = f"{where} reads {shown(written)}, which is", str(value)[: 2 * _LONGEST]
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
        raise ValueError(f"expected a gold answer such as '18', got {shown(gold)}")
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
        _NoNumber: The last number is a part of something else.
    """
    for formula in reversed(list(_FORMULA.finditer(text))):
        inside = next(group for group in formula.groups() if group is not None)
        if re.search(r"[0-9]", text[formula.end() :]) is not None:
            break
        if re.search(r"[0-9]", inside) is None or _PROSE.search(inside):
            continue
        return _in_box(clean(inside))
    cleaned = _without_noise(text)
    matches = list(_NUMBER.finditer(cleaned))
    for number, match in enumerate(reversed(matches), 1):
        before, after = cleaned[max(0, match.start() - 60) : match.start()], cleaned[match.end() :]
        if _RAISED.search(before):
            base = matches[-number - 1] if number < len(matches) else None
            unit = _UNIT_BEFORE.search(before[-16:])
            if unit is not None and (is_unit(unit[1]) or len(unit[1]) > 2):
                continue  # cm^2
            if base is not None and "^" in cleaned[base.end() : match.start()][:3]:
                return _power(cleaned, base, match)
            raise _NoNumber("a part of an expression", cleaned[max(0, match.start() - 8) :][:40])
        return _alone(match, before, after[:40], cleaned)
    return None


def _alone(match: re.Match[str], before: str, after: str, cleaned: str) -> tuple[str, Fraction]:
    """The number of a match, unless what stands around it makes it something else."""
    written = match.group().strip()
    around = f"{before[-12:]}{match.group()}{after[:12]}".strip()
    if _BOUND.search(before):
        raise _NoNumber("a bound", around)
    if _IN_GROUP.search(before) or _BEFORE_TIME.search(before):
        raise _NoNumber("a part of an expression", around)
    follows = _AFTER.match(after)
    if follows is not None and follows["power"]:
        return _in_box_or_refuse(cleaned[match.start() :], around)
    if follows is not None:
        raise _NoNumber("a part of an expression", around)
    letters = _LETTERS_AFTER.match(after)
    if letters is not None and _is_variable(letters.group()):
        raise _NoNumber("a number times a variable", around)
    part = _PART_BEFORE.search(before)
    if part is not None and is_unit(part[1]) and _unit_after(after):
        raise _NoNumber("one of several parts", around)
    if _TIMES_BEFORE.search(before):
        raise _NoNumber("a part of a product", around)
    value = _value(match)
    if value is None:
        raise _NoNumber(f"over {_LONGEST} digits, or divided by zero", written)
    return written, value


def _is_variable(letters: str) -> bool:
    """Whether letters that touch a number are a factor of it: not an ordinal, a unit or a word."""
    return len(letters) < 3 and letters not in ("st", "nd", "rd", "th") and not is_unit(letters)


def _unit_after(after: str) -> bool:
    found = re.match(r"\s?([A-Za-z]+)", after)
    return found is not None and is_unit(found[1])


def _power(cleaned: str, base: re.Match[str], exponent: re.Match[str]) -> tuple[str, Fraction]:
    """``10^3`` and ``5 × 10^3``: the whole of it."""
    end = exponent.end() + cleaned[exponent.end() : exponent.end() + 1].count("}")
    start = base.start()
    factor = re.search(
        r"-?[0-9.,]+\s?(?:\\times|\\cdot|×|·)\s?$", cleaned[max(0, start - 40) : start]
    )
    if factor is not None:
        start -= len(factor.group())
    text = cleaned[start:end]
    return _in_box_or_refuse(text, text)


def _in_box_or_refuse(text: str, around: str) -> tuple[str, Fraction]:
    phrase = re.match(r"[-0-9.,\s^{}()×·⁰¹²³⁴-⁹⁻]+|[-0-9.^{}\\a-z\s]+", text)
    try:
        return _in_box(clean(phrase.group() if phrase is not None else text))
    except _NoNumber as why:
        raise _NoNumber(str(why), around) from None


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
