"""What every task is: an ordered set of questions, and a grader."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from stepflow_tl.traces.answers import ResponseParts, boxed_answer
from stepflow_tl.traces.chat import Prompt
from stepflow_tl.traces.reader import read_response


@dataclass(frozen=True)
class Item:
    """One question of a task.

    Attributes:
        key: Names it for ever: a hash of the question, 12 hex digits.
        question: What the model is asked.
        group: What it is reported under: its difficulty, or the set it is from.
    """

    key: str
    question: str
    group: str

    @classmethod
    def of(cls, question: str, group: str) -> Item:
        """The item of a question."""
        return cls(hashlib.sha256(question.encode()).hexdigest()[:12], question, group)


class Grade(NamedTuple):
    """What became of one response.

    Attributes:
        correct: Whether its answer is right.
        answer: Its answer; None where there is none.
        error: The kind of its first error, where the task can tell.
        error_step: Index of the thinking step where it went wrong, where the task can tell.
        reason: Why it was graded so, in words, where the task says.
        read_as: The answer as it was compared, normalized, where the task says.
        rule: By which rule it was accepted or refused, where the task says.
    """

    correct: bool
    answer: str | None
    error: str | None = None
    error_step: int | None = None
    reason: str | None = None
    read_as: str | None = None
    rule: str | None = None


class Vote(NamedTuple):
    """How answers to one question vote.

    Attributes:
        read: The answer in a response's parts; None for no vote.
        same: Whether two answers count as one.
    """

    read: Callable[[ResponseParts], str | None]
    same: Callable[[str, str], bool]


class Task(ABC):
    """An ordered set of questions, and a grader."""

    @property
    @abstractmethod
    def items(self) -> tuple[Item, ...]:
        """The questions, in order."""

    def ask(self, item: Item, seed: int) -> Prompt:
        """What the model is asked: the question, unless each sample has a wording of its own."""
        return item.question

    def content(self, item: Item, seed: int) -> str:
        """What a sample is beside its question and group, such as a wording and a right answer.

        It is part of what a stored result is known by, so that one is never taken for another.
        """
        return ""

    def check(self) -> None:
        """Refuse what `grade` would refuse, before anything is decoded.

        Raises:
            ValueError: This task cannot be graded as it is.
        """
        return

    @abstractmethod
    def grade(self, item: Item, response: str, seed: int = 0) -> Grade:
        """Grade a response to `ask(item, seed)`: untrusted text, whatever the model wrote."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON-able settings that make the same task again, as a sweep's configuration has them."""

    def grade_parts(self, item: Item, parts: ResponseParts, text: str, seed: int = 0) -> Grade:
        """Grade a response whose thinking and answer are known, as those of a trace are.

        Args:
            item: What was asked.
            parts: Thinking and answer, as the reader of its tokens found them.
            text: The response as it was written, delimiters included.
            seed: As in `ask`.
        """
        return self.grade(item, text, seed)

    def read_answer(self, response: str | ResponseParts) -> str | None:
        """The answer that a response gives in a majority vote: the last box of what is graded.

        An empty box is none.
        """
        parts = read_response(response) if isinstance(response, str) else response
        answer = boxed_answer(parts.graded)
        return answer if answer and answer.strip() else None

    def same_answer(self, first: str, second: str) -> bool:
        """Whether two answers count as one in a majority vote."""
        return first.strip() == second.strip()

    def vote(self, item: Item) -> Vote:
        """How the answers to one question vote; the same for all questions, unless a task says so.

        Args:
            item: The question.
        """
        return Vote(self.read_answer, self.same_answer)

    def check_votes(self) -> None:
        """Refuse a majority vote that this task cannot hold, before anything is decoded.

        Raises:
            ValueError: Its answers cannot be told apart without their grades.
        """
        return

    @cached_property
    def digest(self) -> str:
        """Hash of the questions and their groups in order, 16 hex digits."""
        text = "\0".join(f"{item.key}\0{item.group}" for item in self.items)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
