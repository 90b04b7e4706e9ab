"""The bundled reasoner's word problems as a task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from stepflow_tl.errors import SettingError, WrongTypeError
from stepflow_tl.tasks.base import Grade, Item, Task
from stepflow_tl.tasks.word_problems.grading import grade
from stepflow_tl.tasks.word_problems.world import (
    LARGEST_DIFFICULTY,
    Problem,
    Reach,
    make_problems,
)
from stepflow_tl.traces.answers import ResponseParts

_DIFFICULTIES = range(1, LARGEST_DIFFICULTY + 1)


class _Worded(Task):
    """Graded sentence by sentence, by the world that made the problems."""

    groups: dict[str, list[Problem]]

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """The questions, group by group.

        Raises:
            ValueError: Two groups share a question.
        """
        items = tuple(
            Item.of(problem.question, group)
            for group, problems in self.groups.items()
            for problem in problems
        )
        seen: dict[str, str] = {}
        for item in items:
            if seen.setdefault(item.question, item.group) != item.group:
                raise SettingError(
                    f"expected each problem in one group, but groups {seen[item.question]!r} and "
                    f"{item.group!r} share one that begins {item.question[:60]!r}"
                )
        return items

    @cached_property
    def _problems(self) -> dict[str, Problem]:
        return {p.question: p for problems in self.groups.values() for p in problems}

    def problem(self, item: Item) -> Problem:
        """The problem of an item, with its solution and dependency graph."""
        return self._problems[item.question]

    def grade_parts(self, item: Item, parts: ResponseParts, text: str, seed: int = 0) -> Grade:
        """Check a response whose thinking and answer are known."""
        return self.grade(item, parts, seed)

    def grade(self, item: Item, response: str | ResponseParts, seed: int = 0) -> Grade:
        """Check a response step by step; its answer is the last box's content."""
        problem = self.problem(item)
        verdict = grade(problem, response)
        said = "there is no box" if verdict.answer is None else f"the last box is {verdict.answer}"
        reason = said if verdict.correct else f"{said}, not {problem.answer}"
        if verdict.first_error is not None:
            where = "summary" if verdict.error_step is None else f"step {verdict.error_step}"
            reason += f"; {verdict.first_error} in {where}"
        correct, answer = verdict.correct, verdict.answer
        return Grade(correct, answer, verdict.first_error, verdict.error_step, reason)


@dataclass(frozen=True, kw_only=True)
class WordProblems(_Worded):
    """Held-out word problems of the bundled reasoner's world, `n` in each group.

    Attributes:
        n: Problems in each group.
        difficulties: A group for each of these numbers of operations. Where the reasoner fails
            here, it mostly forgets or misreads a premise.
        recall: The same, of problems that add the count of just any earlier person; where the
            reasoner fails here, it mostly carries a wrong value. Their group is "6, recall".
        seed: Another seed, other problems.
    """

    n: int = 50
    difficulties: Sequence[int] = (16, 17, 18)
    recall: Sequence[int] = ()
    seed: int = 2026

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            TypeError: The difficulties are no whole numbers.
            ValueError: There would be no problem, a difficulty comes twice, or there is none such.
        """
        for name in ("difficulties", "recall"):
            given = getattr(self, name)
            values = tuple(given) if isinstance(given, Iterable) else ()
            if not isinstance(given, Iterable) or not all(isinstance(v, int) for v in values):
                raise WrongTypeError(f"expected {name} such as (16, 17), got {given!r}")
            if len(set(values)) < len(values) or not set(values) <= set(_DIFFICULTIES):
                raise SettingError(
                    f"expected {name} to be different numbers from 1 to {_DIFFICULTIES[-1]}, "
                    f"got {values}"
                )
            object.__setattr__(self, name, values)
        if self.n < 1 or not (self.difficulties or self.recall):
            raise SettingError(
                f"expected n >= 1 and at least one difficulty, got n={self.n}, "
                f"difficulties={self.difficulties}, recall={self.recall}"
            )

    @cached_property
    def groups(self) -> dict[str, list[Problem]]:  # type: ignore[override]
        """The problems of each group."""
        families: tuple[tuple[Sequence[int], Reach, str], ...] = (
            (self.difficulties, "start", ""),
            (self.recall, "any", ", recall"),
        )
        return {
            f"{difficulty}{suffix}": make_problems(
                self.n, difficulty, seed=self.seed, split="test", reach=reach
            )
            for difficulties, reach, suffix in families
            for difficulty in difficulties
        }

    def describe(self) -> dict[str, Any]:
        """Its settings."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


class GivenProblems(_Worded):
    """Word problems given one by one, grouped by difficulty.

    Args:
        problems: What `make_problem` and `make_problems` return.

    Raises:
        ValueError: There is none, or one comes twice.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        questions = [problem.question for problem in problems]
        if not questions or len(set(questions)) < len(questions):
            raise SettingError(
                f"expected different problems, at least one, got {len(questions)} of which "
                f"{len(set(questions))} differ"
            )
        self.groups = {}
        for problem in problems:
            self.groups.setdefault(str(problem.difficulty), []).append(problem)

    def describe(self) -> dict[str, Any]:
        """What they are; from this alone they cannot be made again."""
        return {"given": self.digest}


def as_task(problems: Task | Sequence[Problem]) -> Task:
    """A task as it is; a sequence of word problems as a task.

    Raises:
        TypeError: It is neither.
        ValueError: The sequence is empty, or holds a problem twice.
    """
    if isinstance(problems, Task):
        return problems
    if isinstance(problems, Sequence) and all(isinstance(p, Problem) for p in problems):
        return GivenProblems(problems)
    raise WrongTypeError(
        f"expected a Task such as WordProblems(n=50), or a sequence of word problems, got "
        f"{type(problems).__name__}"
    )
