r"""Grading a number: the last box's, or the last of the response, as GSM8K is graded."""

from __future__ import annotations

import re
from fractions import Fraction

from stepflow_tl.answers import last_boxed
from stepflow_tl.tasks.base import Grade
from stepflow_tl.tasks.grading.reading import (
    Response,
    boxed,
    clean,
    parts_of,
    passed,
    refused,
    shown,
)

_LONGEST = 100  # digits
_FRACTION = re.compile(
    r"\\[dtc]?frac\s*(?:\{([0-9]{1,100})\}|([0-9]))\s*(?:\{([0-9]{1,100})\}|([0-9]))"
)
_NOISE = re.compile(r"\\?[$%]|\\[!,;: ]|\{,\}(?=[0-9])|[€£¥]|\\(?:text|mathrm|mathbf|textbf)\b")
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]}])-\s?)?"
    r"(?<![A-Za-z_0-9.])"
    r"(?:(?P<whole>[0-9]+)\s+(?=[0-9]+/[0-9]))?"
    r"(?P<value>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?)"
    r"(?:\s?/\s?(?P<below>[0-9]+))?"
)


def grade_number(response: Response, gold: str) -> Grade:
    r"""Grade the number in the last ``\boxed{...}``, or without a box the answer's last number.

    The answer is read; a box in the thinking counts only where no answer follows it, and a number
    in words only where the thinking never closed. Commas
    between thousands, currency and percent signs, units and a full stop are left out; fractions
    and mixed numbers are read; 18, 18.00 and 36/2 are one number. A box with several numbers
    counts by the one after its last equals sign, or not at all.

    Args:
        response: Whatever the model wrote, or its parts.
        gold: The right number, such as "18" or "1,200" (what follows ``####`` in GSM8K).

    Returns:
        The verdict. Its kind of error is one of "no_answer", "unclosed_box", "empty_box",
        "not_understood", "wrong_answer"; its answer is the number as it was written.

    Raises:
        ValueError: The gold is no number.
    """
    wanted = [_value(match) for match in _numbers(clean(gold))]
    if len(wanted) != 1 or wanted[0] is None:
        raise ValueError(f"expected a gold answer such as '18', got {shown(gold)}")
    parts = parts_of(response)
    has_box = last_boxed(parts.graded) is not None
    where = f"the last box{parts.of_graded}" if has_box else f"the last number{parts.of_said}"
    if has_box:
        text = boxed(parts)
        if isinstance(text, Grade):
            return text
        found = _numbers(text)
        if len(found) > 1 and "=" in text:
            found = _numbers(text.rpartition("=")[2])
        if len(found) != 1:
            how_many = "no number" if not found else f"{len(found)} numbers"
            return refused("not_understood", f"{where} holds {how_many}: {shown(text)}", text)
    else:
        found = _numbers(clean(parts.said))[-1:]
        if not found:
            kind = "unclosed_box" if "\\boxed" in parts.said else "no_answer"
            what = "answer" if parts.closed else "response"
            return refused(kind, f"neither a closed box nor a number in the {what}")
    written, value = found[0].group().strip(), _value(found[0])
    if value is None:
        reason = f"{where} is {shown(written)}: over {_LONGEST} digits, or divided by zero"
        return refused("not_understood", reason, written[:_LONGEST])
    says = f"{where} reads {shown(written)}, which is"
    if value == wanted[0]:
        return passed(f"{says} the gold {shown(gold)}", written)
    return refused("wrong_answer", f"{says} not the gold {shown(gold)}", written)


def _numbers(text: str) -> list[re.Match[str]]:
    """Every number of a text, left to right."""
    text = _FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]} ", text)
    return list(_NUMBER.finditer(_NOISE.sub("", text)))


def _value(match: re.Match[str]) -> Fraction | None:
    """What a number is worth; None where it is too long, or divided by zero."""
    whole, value, below = (match[name] or "" for name in ("whole", "value", "below"))
    if len(match.group()) > _LONGEST or (below and int(below) == 0):
        return None
    size = Fraction(value.replace(",", "")) / Fraction(below or 1) + Fraction(whole or 0)
    return -size if match.group().startswith("-") else size
