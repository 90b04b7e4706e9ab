"""Grading a response sentence by sentence: is the answer right, and what went wrong first?

The response is untrusted model output: it is only ever matched against bounded regular expressions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from stepflow_tl.tasks.word_problems.sentences import (
    CONNECTIVES,
    FIRST_OPENERS,
    OPENERS,
    SIGNS,
    Premise,
    phrase,
)
from stepflow_tl.tasks.word_problems.world import Problem
from stepflow_tl.traces.answers import ResponseParts
from stepflow_tl.traces.formats import THINK
from stepflow_tl.traces.reader import read_response

ErrorKind = Literal[
    "forgot_premise",
    "misread_premise",
    "followed_distractor",
    "wrong_carry",
    "wrong_arithmetic",
    "stopped_early",
    "stopped_late",
    "wrong_summary",
    "malformed",
    "unfinished",
]
"""What can be wrong first.

forgot_premise: the sentence names another key than the person computed last, or another person
than the premise of that key does. misread_premise: the right premise with another amount,
operation or item. followed_distractor: the key's premise about another item. wrong_carry: a
value from an earlier step is copied wrongly. wrong_arithmetic: right operands, wrong result.
stopped_early, stopped_late: too few or too many sentences. wrong_summary: right thinking, other
words or values after it. malformed: no sentence of this world. unfinished: cut off before
`</think>` with nothing else wrong.
"""

ERROR_KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)

_NAME = r"([A-Z][a-z]{1,7})"
_ITEM = r"([a-z]{1,8})"
_PHRASE = r"((?:two|three|four|five|six) (?:more|fewer)|twice as many|[A-Z][a-z]{1,7}'s count more)"
_FIRST_STEP = re.compile(
    rf"(?:{'|'.join(FIRST_OPENERS)}), in {_ITEM}, {_NAME} has (\d{{1,3}}): "
    rf"(\d{{1,3}}) for {_NAME}\."
)
_NEXT_STEP = re.compile(
    rf"(?:{'|'.join(OPENERS)}) in {_ITEM} (?:{'|'.join(CONNECTIVES)}) {_NAME}, {_NAME} has "
    rf"{_PHRASE}: (\d{{1,3}})([+*-])(\d{{1,3}})=(\d{{1,3}}) for {_NAME}\."
)
_BOX = re.compile(r"\\boxed\{([^{}]{0,40})\}")
_STEP_END = re.compile(r"(?<=\.)\s+")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one response.

    Attributes:
        correct: Whether the last box holds the true answer.
        answer: The last box's content, or None where there is no box.
        first_error: The kind of the first error, or None; a right answer may have one, too.
        error_step: Index of the thinking sentence where it went wrong; None for the summary.
    """

    correct: bool
    answer: str | None
    first_error: ErrorKind | None
    error_step: int | None


def grade(problem: Problem, response: str | ResponseParts) -> Verdict:
    """Check a response step by step against the problem, the last box of its answer being it.

    Args:
        problem: The problem that was asked.
        response: Whatever the model wrote after the prompt, or its thinking and answer.
    """
    parts = read_response(response, THINK) if isinstance(response, str) else response
    boxes = _BOX.findall(parts.graded)
    answer = boxes[-1].strip() if boxes else None
    kind, step = _first_error(problem, parts)
    return Verdict(
        correct=answer == str(problem.answer), answer=answer, first_error=kind, error_step=step
    )


def _first_error(problem: Problem, parts: ResponseParts) -> tuple[ErrorKind | None, int | None]:
    sentences = [part for part in _STEP_END.split(parts.thinking) if part]
    for index, sentence in enumerate(sentences):
        kind = _step_error(problem, index, sentence)
        if kind is not None:
            return kind, index
    if not parts.closed:
        return "unfinished", len(sentences)
    if len(sentences) < len(problem.solution):
        return "stopped_early", len(sentences)
    if parts.answer.strip() != problem.summary:
        return "wrong_summary", None
    return None, None


def _step_error(problem: Problem, index: int, sentence: str) -> ErrorKind | None:
    """Say what is wrong with one thinking sentence, all earlier ones being right."""
    match = (_FIRST_STEP if index == 0 else _NEXT_STEP).fullmatch(sentence)
    if match is None:
        return "malformed"
    if index >= len(problem.solution):
        return "stopped_late"
    step = problem.solution[index]
    premise = problem.premises[step.premise]
    if index == 0:
        return _start_error(problem, premise, *match.groups())
    item, key, person, words, left, sign, right, result, owner = match.groups()
    before = problem.solution[index - 1].value
    lured = item != premise.item or (key, person) in _lures(problem)
    checks: tuple[tuple[bool, ErrorKind], ...] = (
        (key != premise.other, "forgot_premise"),
        (lured, "followed_distractor"),
        (person != premise.person, "forgot_premise"),
        (words != phrase(premise), "misread_premise"),
        (int(left) != before, "wrong_carry"),
        (premise.added is not None and int(right) != premise.amount, "wrong_carry"),
        ((sign, int(right)) != (SIGNS[premise.operation], premise.amount), "misread_premise"),
        (int(result) != step.value, "wrong_arithmetic"),
        (owner != person, "wrong_carry"),
    )
    return next((kind for wrong, kind in checks if wrong), None)


def _start_error(
    problem: Problem, premise: Premise, item: str, person: str, given: str, value: str, owner: str
) -> ErrorKind | None:
    if item != premise.item or (None, person) in _lures(problem):
        return "followed_distractor"
    if person != premise.person:
        return "forgot_premise"
    if int(given) != premise.amount:
        return "misread_premise"
    return None if (int(value), owner) == (premise.amount, person) else "wrong_carry"


def _lures(problem: Problem) -> set[tuple[str | None, str]]:
    """Return the (key, person) pairs of the problem's distractors."""
    return {(one.other, one.person) for one in problem.premises if one.role == "distractor"}
