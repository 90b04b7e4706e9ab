r"""Grading a mathematical answer: the last box, read and compared as an examiner would.

An answer is taken apart by `shapes`, its expressions by `expressions`, and both are compared by
value: exactly, to many digits, or at random points with all variables kept apart. Integrals, sums,
limits and differences of sets are left to math-verify, in a process of its own, and accepted only
where its known mistakes cannot be at work; what is not read at all is compared as text. Where
opinions differ:

* ``70\%`` is 70 and also 0.7, but 0.7 is not 70: who is asked for a percentage may answer by 70.
* A unit in the answer alone, or in the gold alone, is left out; ``5\text{ cm}`` is not
  ``5\text{ m}``, but ``500\text{ cm}`` is. ``2m`` is not 2: a bare letter that touches a number,
  or stands in a gold, is a variable. Degrees are a unit: ``90^\circ`` is 90, and not ``\pi/2``.
* ``[1,2]`` is not ``(1,2)``; ``1,2`` is a list in any order and also the pair (1,2) in this order;
  ``x \le 3`` is ``(-\infty, 3]``.
* ``18,5`` is a list of two; ``1,204`` is 1204, and where the gold is a list, a list.
* A decimal of six or more digits is the number that it is rounded from, where that has no such end
  itself: ``0.333333`` is 1/3, and ``0.333`` is not. There is no absolute tolerance.
* Capital and small letters are one where each answer has only one of them: ``Ce^{t}`` is
  ``ce^{t}``, and ``R/r`` is not 1. ``\log`` is the natural logarithm, as ``\ln``.
* Without a box there is no answer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from stepflow_tl.errors import SettingError
from stepflow_tl.tasks.base import Grade
from stepflow_tl.tasks.grading.arithmetic import constant
from stepflow_tl.tasks.grading.choices import letter_in
from stepflow_tl.tasks.grading.comparing import same_answer
from stepflow_tl.tasks.grading.exact import Undefined, is_constant
from stepflow_tl.tasks.grading.expressions import READ
from stepflow_tl.tasks.grading.latex import (
    Ambiguous,
    Token,
    TooLarge,
    Unreadable,
    joined_words,
    same_tokens,
    text_of,
    tokens_of,
    with_thousands,
    words,
)
from stepflow_tl.tasks.grading.math_process import SHARED, check_installed
from stepflow_tl.tasks.grading.reading import (
    LONGEST,
    Response,
    boxed,
    clean,
    parts_of,
    passed,
    refused,
    shown,
)
from stepflow_tl.tasks.grading.shapes import Shape, read
from stepflow_tl.tasks.grading.units import BareUnits, with_plain_words

_SMALLEST = 1e-4  # below it math-verify's absolute tolerance makes numbers equal
_OPTION = re.compile(
    r"(?:\\(?:text|textbf|mathrm|mathbf)\s*\{\s*)?\(\s*[A-Z]\s*\)(?!\s*[=<>\^_+*/-]).*"
    r"|\\(?:text|textbf)\s*\{\s*[A-Z]\s*\}",
    re.DOTALL,
)
_CAPITAL = re.compile(r"[A-Z]")
_BRACKETED = re.compile(r"\\text(?:bf)?\s*\{\s*\(\s*[A-Z]\s*\)")
_ITS_TRADE = words("int iint sum prod lim setminus cap")
_RELATIONS = frozenset("<>=:!")
_VECTOR = re.compile(
    r"\\(?:vec|overrightarrow|nabla)(?![A-Za-z])|\\(?:mathbf|boldsymbol|bm)\s*\{?[A-Z]\b"
)
_PRODUCT = re.compile(r"\\(?:times|cdot|wedge)(?![A-Za-z])|[×·⋅]")
_MATRIX = re.compile(r"\\(?:mathbf|boldsymbol|bm)\s*\{?[A-Z]\b")
_WHY = {  # what became of math-verify
    "timeout": "was not compared with the gold {gold} within {seconds:g} s",
    "crashed": "ended the process that compares it with the gold {gold}",
    "out_of_memory": "needs more memory than there is to be compared with the gold {gold}",
    "not_understood": "could not be compared with the gold {gold}",
}


def grade_math(response: Response, gold: str, *, seconds: float = 10.0) -> Grade:
    r"""Grade the last ``\boxed{...}`` of a response's answer, as `Trace.answer` finds it.

    A box in the thinking counts only where no answer follows it; the verdict says what was read,
    how it was normalized, and by which rule it was accepted or refused.

    Args:
        response: Whatever the model wrote, or its parts.
        gold: The right answer, in LaTeX; in a box or without.
        seconds: How long math-verify's comparison may take. One that takes longer is of the kind
            "timeout", which is not "wrong_answer".

    Returns:
        The verdict. Its kind of error is one of "no_answer", "unclosed_box", "empty_box",
        "too_long", "not_understood", "timeout", "crashed", "out_of_memory", "wrong_answer".

    Raises:
        ImportError: math-verify is not installed, or antlr's runtime is of another version.
        RuntimeError: The process that compares could not be started.
        ValueError: The gold is empty, or longer than 2000 characters.
    """
    right = gold_of(gold)
    parts = parts_of(response)
    found = boxed(parts)
    if isinstance(found, Grade):
        return found
    says = f"the last box{parts.of_graded} holds "
    if found == right:
        rule = "the gold itself"
        return passed(f"{says}the gold {shown(right)} itself", found, read_as=found, rule=rule)
    check_installed()
    verdict = _compare(right, found, seconds)
    says += shown(found)
    if verdict.read_as not in (None, found):
        says += f", read as {shown(verdict.read_as or '')}"
    rule, read_as = verdict.rule, verdict.read_as
    if verdict.error is None:
        reason = f"{says}, which is the gold {shown(right)}: {rule}"
        return passed(reason, found, read_as=read_as, rule=rule)
    reason = f"{says}, which is not the gold {shown(right)}: {rule}"
    if rule in _WHY:
        reason = f"{says}, which {_WHY[rule].format(gold=shown(right), seconds=seconds)}"
    return refused(verdict.error, reason, found, read_as=read_as, rule=rule)


def same_math_answer(first: str, second: str, *, seconds: float = 10.0) -> bool:
    """Whether two answers count as one in a majority vote: either one as the gold of the other.

    What cannot be compared in time, or at all, is the same only as text.

    Args:
        first: A box's content.
        second: Another's.
        seconds: How long math-verify's comparison may take.

    Raises:
        ImportError: math-verify is not installed, or antlr's runtime is of another version.
        RuntimeError: The process that compares could not be started.
    """
    one, two = clean(first), clean(second)
    if one == two:
        return True
    if not one or not two or max(len(one), len(two)) > LONGEST:
        return False
    check_installed()
    pairs = ((one, two), (two, one))
    return any(_compare(gold, answer, seconds).error is None for gold, answer in pairs)


def gold_of(gold: str) -> str:
    """A right answer, out of its box.

    Raises:
        ValueError: It is empty, or longer than 2000 characters.
    """
    inside = boxed(parts_of(gold)) if "\\boxed" in gold else clean(gold)
    if isinstance(inside, Grade) or not inside or len(inside) > LONGEST:
        raise SettingError(
            f"expected a gold answer of 1 to {LONGEST} characters, got {shown(gold)}"
        )
    return inside


def check_math_gold(gold: str) -> None:
    """Refuse a right answer that no response could match.

    Raises:
        ValueError: It is empty, longer than 2000 characters, or no box can hold it.
    """
    right = gold_of(gold)
    held = boxed(parts_of(rf"\boxed{{{right}}}"))
    if held != right:
        raise SettingError(
            f"expected a gold answer that a box can hold, got {shown(right)}, whose braces do not "
            f"pair"
        )


class _Verdict(NamedTuple):
    """Error is None for a right answer; the rule says why either way."""

    error: str | None
    rule: str
    read_as: str | None


def _compare(gold: str, answer: str, seconds: float) -> _Verdict:
    option = _OPTION.fullmatch(gold)
    if option is None and _CAPITAL.fullmatch(gold) and _BRACKETED.match(answer):
        option = _CAPITAL.fullmatch(gold)
    right_letter = None if option is None else letter_in(gold)
    if right_letter is not None and (letter := letter_in(answer)) is not None:
        same = letter == right_letter
        return _Verdict(None if same else "wrong_answer", "the option's letter", letter)
    given: list[Token] | None = None
    try:
        given = tokens_of(answer)
        right = tokens_of(gold)
    except Unreadable as why:
        return _otherwise(gold, None, answer, given, str(why), seconds)
    normalized = text_of(with_thousands(given))
    if same_tokens(right, given):
        return _Verdict(None, "the same text but for dress and spaces", normalized)
    if _has_vector_products(gold) or _has_vector_products(answer):
        return _Verdict("not_understood", "products of vectors are compared as text", normalized)
    try:
        rule = _by_reading(right, given)
    except (Ambiguous, TooLarge) as why:
        return _Verdict("not_understood", str(why), normalized)
    except Unreadable as why:
        return _otherwise(gold, right, answer, given, str(why), seconds)
    if rule is None:
        return _Verdict("wrong_answer", "another value", normalized)
    return _Verdict(None, rule, normalized)


def _has_vector_products(answer: str) -> bool:
    """Whether vectors or matrices are multiplied, whose order and kind of product count."""
    return _VECTOR.search(answer) is not None and (
        _PRODUCT.search(answer) is not None or len(_MATRIX.findall(answer)) > 1
    )


def _by_reading(gold: list[Token], answer: list[Token]) -> str | None:
    """By which rule an answer is the gold, in any reading of both; None where in none.

    Raises:
        Unreadable: There is no reading of one of them.
    """
    known = {t.text for t in (*gold, *answer) if t.kind == "word" and len(t.text) > 1}
    rights = _readings(joined_words(gold, known), is_gold=True)
    failed: Unreadable | None = None
    for given in _readings(joined_words(answer, known), is_gold=False):
        for right in rights:
            try:
                rule = same_answer(right, given)
            except Unreadable as why:
                failed = why
                continue
            if rule is not None:
                return rule
    if failed is not None:
        raise failed
    return None


def _readings(tokens: list[Token], *, is_gold: bool) -> list[Shape]:
    """What tokens may be: letters as variables or units, commas between thousands or in a list.

    Raises:
        Unreadable: Nothing.
    """
    joined, listed = (with_thousands(tokens, commas=commas) for commas in (True, False))
    ways: list[tuple[list[Token], BareUnits]] = [(joined, "none")]
    if listed != joined:
        ways.append((listed, "none"))
    if any(token.kind == "letter" and token.spaced for token in joined) or not is_gold:
        ways.append((joined, "long" if is_gold else "any"))
        worded = joined if is_gold else with_plain_words(joined)
        if worded != joined:
            ways.append((worded, "any"))
    found: list[Shape] = []
    failed: Unreadable | None = None
    for each, bare in ways:
        try:
            shape = read(each, bare=bare)
        except Unreadable as why:
            failed = why if failed is None or isinstance(why, Ambiguous) else failed
            continue
        if shape not in found:
            found.append(shape)
    if not found:
        assert failed is not None
        raise failed
    return found


def _otherwise(
    gold: str,
    gold_tokens: list[Token] | None,
    answer: str,
    tokens: list[Token] | None,
    why: str,
    seconds: float,
) -> _Verdict:
    """What is not read here: compared by math-verify where that is its trade, else refused."""
    normalized = None if tokens is None else text_of(with_thousands(tokens))
    if gold_tokens is None or tokens is None or not _is_for_math_verify(gold_tokens, tokens):
        if _is_read(tokens):
            rule = f"the gold, itself no mathematics that is read here ({why}), is compared as text"
            return _Verdict("wrong_answer", rule, normalized)
        rule = f"it is no mathematics that is read here ({why}), nor the gold's text"
        return _Verdict("not_understood", rule, normalized)
    texts = (text_of(with_thousands(gold_tokens)), normalized or answer)
    reply = SHARED.compare([texts], seconds)
    if "error" in reply:
        return _Verdict(reply["error"], reply["error"], normalized)
    if not reply["same"]:
        if not reply["understood"][1]:
            return _Verdict("not_understood", f"math-verify reads nothing ({why})", normalized)
        return _Verdict("wrong_answer", "math-verify finds another value", normalized)
    doubt = _doubt(gold_tokens, tokens)
    if doubt is not None:
        rule = f"math-verify takes it for the gold, but {doubt}"
        return _Verdict("not_understood", rule, normalized)
    return _Verdict(None, "equal to math-verify", normalized)


def _is_read(tokens: list[Token] | None) -> bool:
    """Whether there is a reading of an answer."""
    try:
        return tokens is not None and bool(_readings(tokens, is_gold=False))
    except Unreadable:
        return False


def _is_for_math_verify(gold: list[Token], answer: list[Token]) -> bool:
    """Whether integrals, sums, limits or differences of sets are all that is not read here."""
    commands = {t.text for t in (*gold, *answer) if t.kind == "command"}
    signs = {t.text for t in (*gold, *answer) if t.kind == "sign"}
    known = READ | _ITS_TRADE | ({"to"} if "lim" in commands else set())
    return bool(commands & _ITS_TRADE) and commands <= known and not signs & _RELATIONS


def _doubt(gold: list[Token], answer: list[Token]) -> str | None:
    """Why math-verify may be mistaken that two answers are one; None where it may not."""
    right, given = ({t.text for t in tokens if t.kind == "letter"} for tokens in (gold, answer))
    for letters in (right, given):
        if len({letter.casefold() for letter in letters}) < len(letters):
            return "capital and small letters are one to it"
    if not {letter.casefold() for letter in right} <= {letter.casefold() for letter in given}:
        return "it may take a variable for a unit"
    try:
        shape = read(with_thousands(gold), bare="none")
        value = constant(shape.node) if shape.node and is_constant(shape.node) else 0
    except (Unreadable, Undefined):
        return None
    return "small numbers are one to it" if 0 < abs(value) < _SMALLEST else None
