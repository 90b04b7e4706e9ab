r"""Grading a mathematical answer: math-verify on the last box, in a process of its own.

What math-verify 0.9 makes of two answers, where opinions differ:

* ``70\%`` is 0.7 and also 70, but 0.7 is not 70: who is asked for a percentage may answer by 70.
* Units, degree signs and ``x =`` are left out: ``5\text{ cm}``, ``90^\circ``, ``x = 5``.
* ``[1,2]`` is not ``(1,2)``; ``(1,2)`` is an open interval or a pair, whichever the gold is;
  ``1,2`` is a set in any order and also the pair (1,2) in this order.
* ``0.333333`` is 1/3, and ``0.333`` is not: six digits after the point decide.
* A base in the index is left out: ``2516_8`` is 2516.

It is not symmetric: a gold ``x \le 3`` takes ``(-\infty, 3]``, and not the other way round.
Three things are decided here, for it reads them as something else: ``1\,204`` and ``1 204`` are
1204, ``1 1/2`` is a mixed number, and other numbers side by side (``2 0 4``, to math-verify 6)
are not understood.
"""

from __future__ import annotations

import re

from stepflow_tl.tasks.base import Grade
from stepflow_tl.tasks.grading.math_process import SHARED
from stepflow_tl.tasks.grading.reading import (
    Response,
    boxed,
    clean,
    parts_of,
    passed,
    refused,
    shown,
)

_LONGEST = 2000  # characters of an answer
_SEPARATOR = r"(?:\\!)?(?:\\[,: ;]|~|\{,\}|,| )(?:\\!)?"
_THOUSANDS = re.compile(rf"-?[1-9][0-9]{{0,2}}(?:{_SEPARATOR}[0-9]{{3}})+(?:\.[0-9]+)?")
_NOT_OF_A_NUMBER = re.compile(r"[^0-9.-]")
_MIXED = re.compile(r"(-?[0-9]+) +([0-9]+)/([0-9]+)")
_SYMBOLS = {ord("∞"): r"\infty ", ord("²"): "^{2}", ord("³"): "^{3}", ord("½"): r"\frac{1}{2}"}
_ROOT = re.compile(r"√ ?([0-9]+|[A-Za-z])")
_SIDE_BY_SIDE = re.compile(r"[0-9.]+(?: +[0-9.]+)+")
_WHY = {
    "timeout": "was not compared with the gold {gold} within {seconds:g} s",
    "crashed": "ended the process that compares it with the gold {gold}",
    "out_of_memory": "needs more memory than there is to be compared with the gold {gold}",
    "not_understood": "could not be compared with the gold {gold}",
}


def grade_math(response: Response, gold: str, *, seconds: float = 10.0) -> Grade:
    r"""Grade the last ``\boxed{...}`` of a response's answer, as `Trace.answer` finds it.

    A box in the thinking counts only where no answer follows it; the verdict says what was read.

    Args:
        response: Whatever the model wrote, or its parts.
        gold: The right answer, in LaTeX; in a box or without.
        seconds: How long the comparison may take. One that takes longer is of the kind
            "timeout", which is not "wrong_answer".

    Returns:
        The verdict. Its kind of error is one of "no_answer", "unclosed_box", "empty_box",
        "too_long", "not_understood", "timeout", "crashed", "out_of_memory", "wrong_answer".

    Raises:
        ImportError: math-verify is not installed, or antlr's runtime is of another version.
        RuntimeError: The process that compares could not be started.
        ValueError: The gold is empty, or longer than 2000 characters.
    """
    right = _gold(gold)
    parts = parts_of(response)
    found = boxed(parts)
    if isinstance(found, Grade):
        return found
    box = f"the last box{parts.of_graded}"
    if found == right:
        return passed(f"{box} holds the gold {shown(right)} itself", found)
    says = f"{box} holds {shown(found)}, which "
    text = plain(found)
    if _SIDE_BY_SIDE.fullmatch(text):
        return refused("not_understood", says + "is several numbers side by side", found)
    reply = SHARED.compare([(plain(right), text)], seconds)
    if "error" in reply:
        why = _WHY[reply["error"]].format(gold=shown(right), seconds=seconds)
        return refused(reply["error"], says + why, found)
    if reply["same"]:
        return passed(f"{says}math-verify takes for the gold {shown(right)}", found)
    gold_read, answer_read = reply["understood"]
    if not answer_read:
        return refused("not_understood", f"{says}is no mathematics, nor the gold's text", found)
    unread = "" if gold_read else ", itself no mathematics"
    return refused("wrong_answer", f"{says}is not the gold {shown(right)}{unread}", found)


def same_math_answer(first: str, second: str, *, seconds: float = 10.0) -> bool:
    """Whether two answers count as one in a majority vote: either one as the gold of the other.

    What cannot be compared in time, or at all, is the same only as text.

    Args:
        first: A box's content.
        second: Another's.
        seconds: How long the comparison may take.

    Raises:
        ImportError: math-verify is not installed, or antlr's runtime is of another version.
        RuntimeError: The process that compares could not be started.
    """
    one, two = plain(clean(first)), plain(clean(second))
    if one == two:
        return True
    if not one or not two or max(len(one), len(two)) > _LONGEST:
        return False
    if _SIDE_BY_SIDE.fullmatch(one) or _SIDE_BY_SIDE.fullmatch(two):
        return False
    reply = SHARED.compare([(one, two), (two, one)], seconds)
    return bool(reply.get("same", False))


def plain(answer: str) -> str:
    """A cleaned answer in LaTeX, without separators of thousands."""
    if _THOUSANDS.fullmatch(answer):
        return _NOT_OF_A_NUMBER.sub("", answer)
    mixed = _MIXED.fullmatch(answer)
    if mixed is not None:
        return r"{}\frac{{{}}}{{{}}}".format(*mixed.groups())
    return _ROOT.sub(r"\\sqrt{\1}", answer.translate(_SYMBOLS))


def _gold(gold: str) -> str:
    inside = boxed(parts_of(gold)) if "\\boxed" in gold else clean(gold)
    if isinstance(inside, Grade) or not inside or len(inside) > _LONGEST:
        raise ValueError(f"expected a gold answer of 1 to {_LONGEST} characters, got {shown(gold)}")
    return inside
