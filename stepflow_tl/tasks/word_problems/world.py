"""Word problems whose every step is known: premises, operations, true thinking.

A problem asks for the target's count of one item, and then gives shuffled premises: where the
chain starts, one premise per operation, premises *beyond* the target (so that counting premises
does not tell where to stop), and distractors about another item, half of which share their key
with a premise of the chain:

    How many books does Ann have? In books beside Tom, Ann has five more. In books, Tom has 7. ...

The thinking looks every premise up by the person it computed last, and carries the value along:

    First, in books, Tom has 7: 7 for Tom. So in books near Tom, Ann has five more: 7+5=12 for Ann.

Some steps add the first person's count again ("Ann has Bob's count more"), so the dependency graph
is a DAG and reaches back over the whole trace. Everything here is plain Python.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from stepflow_tl.errors import SettingError
from stepflow_tl.tasks.word_problems.sentences import (
    CONNECTIVES,
    FIRST_OPENERS,
    ITEMS,
    LARGEST_VALUE,
    NAMES,
    OPENERS,
    SIGNS,
    Operation,
    Premise,
    Role,
    apply,
    draw_operation,
    phrase,
    worded,
)

Split = Literal["train", "test"]
Reach = Literal["start", "any"]

JOINED_SHARE = 0.35
LARGEST_DIFFICULTY = len(NAMES) - 12
THINK_END = "\n</think>\n\n"


@dataclass(frozen=True, kw_only=True)
class SolutionStep:
    """One sentence of the true thinking.

    Attributes:
        text: The sentence.
        person: Whose count it computes.
        value: The count.
        premise: Index of the premise it uses, in displayed order.
        uses: Indices of the earlier solution steps whose values it uses.
    """

    text: str
    person: str
    value: int
    premise: int
    uses: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A word problem with everything known about it.

    Attributes:
        question: The text given to the model: the question sentence, then the premises.
        premises: In displayed order.
        solution: The true steps: the first reads the start, each later one applies an operation.
        summary: Blank-line-separated paragraphs that recall key values and end in a box.
        answer: The target's count.
        difficulty: Number of operations from the start to the target.
        seed: What `make_problem` was called with.
    """

    question: str
    premises: tuple[Premise, ...]
    solution: tuple[SolutionStep, ...]
    summary: str
    answer: int
    difficulty: int
    seed: int

    @property
    def thinking(self) -> str:
        """The true thinking, one sentence per step."""
        return " ".join(step.text for step in self.solution)

    @property
    def response(self) -> str:
        """What a perfect model writes after the prompt, end token excluded."""
        return self.thinking + THINK_END + self.summary

    @property
    def graph(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Per solution step: the premise it uses and the earlier steps it uses."""
        return tuple((step.premise, step.uses) for step in self.solution)

    @property
    def premise_spans(self) -> tuple[tuple[int, int], ...]:
        """Half-open character span of each premise in `question`."""
        spans: list[tuple[int, int]] = []
        end = len(self.question) - sum(len(premise.text) + 1 for premise in self.premises)
        for premise in self.premises:
            start = end + 1
            end = start + len(premise.text)
            spans.append((start, end))
        return tuple(spans)


def make_problem(
    seed: int, difficulty: int, *, distractors: int | None = None, reach: Reach = "start"
) -> Problem:
    """Make the problem of this seed: the same arguments always give the same problem.

    Args:
        seed: Any integer.
        difficulty: Number of operations, 1 to `LARGEST_DIFFICULTY`.
        distractors: Number of premises about another item; drawn from 0 to 3 where None.
        reach: Whose counts later operations may add: the first person's only, or anyone's before
            the last (which the bundled weights have not mastered).
    """
    if not 1 <= difficulty <= LARGEST_DIFFICULTY:
        raise SettingError(f"difficulty must be 1 to {LARGEST_DIFFICULTY}, got {difficulty}")
    if distractors is not None and not 0 <= distractors <= 4:
        raise SettingError(f"distractors must be 0 to 4, got {distractors}")
    rng = random.Random(f"{seed}:{difficulty}:{distractors}")
    count = rng.randint(0, 3) if distractors is None else distractors
    people = rng.sample(NAMES, len(NAMES))
    item, other_item = rng.sample(ITEMS, 2)
    length = difficulty + 1 + rng.randint(0, 3)
    chain = _draw_chain(rng, people[:length], item, difficulty, reach)
    premises = chain + _draw_distractors(rng, people[:length], people[length:], other_item, count)
    order = rng.sample(range(len(premises)), len(premises))
    solution = _solve(
        rng, chain[: difficulty + 1], [order.index(index) for index in range(difficulty + 1)]
    )
    displayed = tuple(premises[index] for index in order)
    asked = f"How many {item} does {people[difficulty]} have?"
    return Problem(
        question=" ".join([asked, *(premise.text for premise in displayed)]),
        premises=displayed,
        solution=solution,
        summary=_summary(item, solution),
        answer=solution[-1].value,
        difficulty=difficulty,
        seed=seed,
    )


def make_problems(
    n: int, difficulty: int, *, seed: int, split: Split, reach: Reach = "start"
) -> list[Problem]:
    """Make `n` problems of one split; a question's own text decides which, so they never meet.

    Args:
        n: How many.
        difficulty: Number of operations.
        seed: Different seeds give different problems.
        split: "train" (nine tenths of all questions) or "test".
        reach: As in `make_problem`.
    """
    stream = problem_stream(difficulty, seed=seed, split=split, reach=reach)
    return [next(stream) for _ in range(n)]


def problem_stream(
    difficulty: int, *, seed: int, split: Split, reach: Reach = "start"
) -> Iterator[Problem]:
    """Yield the problems of one split without end."""
    rng = random.Random(f"stream:{seed}:{difficulty}")
    while True:
        problem = make_problem(rng.getrandbits(48), difficulty, reach=reach)
        if split_of(problem.question) == split:
            yield problem


def split_of(question: str) -> Split:
    """Return the split of a question: the test one for a tenth of all, by SHA-256 of the text."""
    return "test" if hashlib.sha256(question.encode()).digest()[0] % 10 == 0 else "train"


def _draw_chain(
    rng: random.Random, people: list[str], item: str, target: int, reach: Reach
) -> list[Premise]:
    """Draw the start, the chain to the target, and what lies beyond it."""
    values = [rng.randint(2, 12)]
    start = _given(people[0], values[0], item, "start")
    premises = [worded(rng, start)]
    for index in range(1, len(people)):
        within = range(index - 1 if reach == "any" else min(1, index - 1))
        addable = [i for i in within if values[i] + values[-1] <= LARGEST_VALUE]
        added: str | None = None
        operation: Operation = "joined"
        if addable and rng.random() < JOINED_SHARE:
            earlier = rng.choice(addable)
            amount, added = values[earlier], people[earlier]
        else:
            operation, amount = draw_operation(rng, values[-1])
        values.append(apply(operation, values[-1], amount))
        bare = Premise(
            text="",
            person=people[index],
            other=people[index - 1],
            operation=operation,
            amount=amount,
            item=item,
            role="chain" if index <= target else "beyond",
            added=added,
        )
        premises.append(worded(rng, bare))
    return premises


def _draw_distractors(
    rng: random.Random, people: list[str], strangers: list[str], item: str, count: int
) -> list[Premise]:
    """Draw premises about another item; half of them share their key with the chain."""
    premises: list[Premise] = []
    keys = rng.sample(people, min(count, len(people)))
    for index in range(count):
        person, stranger = strangers[2 * index], strangers[2 * index + 1]
        kind = rng.choice(("shared", "shared", "apart", "count"))
        if kind == "count" and not any(premise.other is None for premise in premises):
            bare = _given(person, rng.randint(2, 20), item, "distractor")
        else:
            operation, amount = draw_operation(rng, LARGEST_VALUE // 3)
            key = keys[index] if kind == "shared" and index < len(keys) else stranger
            bare = Premise(
                text="",
                person=person,
                other=key,
                operation=operation,
                amount=amount,
                item=item,
                role="distractor",
            )
        premises.append(worded(rng, bare))
    return premises


def _given(person: str, amount: int, item: str, role: Role) -> Premise:
    return Premise(
        text="", person=person, other=None, operation="is", amount=amount, item=item, role=role
    )


def _solve(rng: random.Random, chain: list[Premise], places: list[int]) -> tuple[SolutionStep, ...]:
    """Write the true thinking; openers and connectives are drawn anew for every step."""
    steps: list[SolutionStep] = []
    for premise, place in zip(chain, places, strict=True):
        if not steps:
            opener = rng.choice(FIRST_OPENERS)
            value = premise.amount
            given = f"{opener}, in {premise.item}, {premise.person} has {value}"
            text = f"{given}: {value} for {premise.person}."
        else:
            before = steps[-1].value
            value = apply(premise.operation, before, premise.amount)
            lead = (
                f"{rng.choice(OPENERS)} in {premise.item} {rng.choice(CONNECTIVES)} {premise.other}"
            )
            text = (
                f"{lead}, {premise.person} has {phrase(premise)}: {before}"
                f"{SIGNS[premise.operation]}{premise.amount}={value} for {premise.person}."
            )
        uses = tuple(
            index
            for name in (premise.other, premise.added)
            for index, step in enumerate(steps)
            if step.person == name
        )
        steps.append(
            SolutionStep(text=text, person=premise.person, value=value, premise=place, uses=uses)
        )
    return tuple(steps)


def _summary(item: str, solution: tuple[SolutionStep, ...]) -> str:
    first, before, last = solution[0], solution[-2], solution[-1]
    return (
        f"At first, {first.person} has {first.value} {item}.\n\n"
        f"Later, {before.person} has {before.value} and {last.person} has {last.value}.\n\n"
        f"The answer is \\boxed{{{last.value}}}."
    )
