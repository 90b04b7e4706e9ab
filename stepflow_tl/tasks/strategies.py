"""Test-time strategies: how a question is put, how often, and which answer is taken.

Each works alone or under whatever StepFlow is attached, and says what it cost, so that methods are
compared at equal compute.
"""

from __future__ import annotations

import time
from abc import ABC
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from typing import ClassVar

from stepflow_tl.decoding.budget import ThinkingBudget
from stepflow_tl.decoding.generation import generate_each
from stepflow_tl.decoding.settings import Decoding
from stepflow_tl.errors import SettingError
from stepflow_tl.models.base import Model, ModelView
from stepflow_tl.models.view import view
from stepflow_tl.traces.answers import ResponseParts
from stepflow_tl.traces.chat import Prompt
from stepflow_tl.traces.formats import named_format
from stepflow_tl.traces.templates import template_of
from stepflow_tl.traces.tokens import end_token_ids
from stepflow_tl.traces.trace import Trace

SameAnswer = Callable[[str, str], bool]
ReadAnswer = Callable[[ResponseParts], str | None]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What a strategy made of one question.

    Attributes:
        trace: The trace whose answer is taken.
        traces: All that were decoded for it.
        tied: Whether another answer had as many votes.
        seconds: Its share of the time that decoding took.
    """

    trace: Trace
    traces: tuple[Trace, ...]
    tied: bool
    seconds: float

    @property
    def tokens(self) -> int:
        """Tokens generated, over all traces: as many forward passes of one sequence."""
        return sum(len(trace) - trace.prompt_length for trace in self.traces)


@dataclass(frozen=True, kw_only=True)
class Strategy(ABC):
    """How a question is put to a model, how often, and which answer is taken."""

    name: ClassVar[str]

    @property
    def traces_per_answer(self) -> int:
        """Traces decoded for one answer."""
        return 1

    @property
    def label(self) -> str:
        """Its name, with the settings that are not the defaults."""
        shown = (f.name for f in fields(self) if getattr(self, f.name) != f.default)
        settings = ", ".join(f"{name}={getattr(self, name)}" for name in shown)
        return f"{self.name}({settings})" if settings else self.name

    def draws(self, decoding: Decoding) -> bool:
        """Whether its answers depend on the seed."""
        return decoding.draws

    def check(self, decoding: Decoding, model: Model | ModelView | None = None) -> None:
        """Refuse what `solve` would refuse, before anything is decoded.

        Args:
            decoding: How to decode.
            model: The model; None where it is not loaded yet.

        Raises:
            ValueError: The decoding or the model does not fit this strategy.
        """
        return

    def prompt_of(self, question: Prompt) -> Prompt:
        """What the model is asked."""
        return question

    def decoding_of(self, decoding: Decoding) -> Decoding:
        """How this strategy decodes where others decode as given."""
        return decoding

    def solve(
        self,
        model: Model | ModelView,
        questions: Sequence[Prompt],
        decoding: Decoding,
        *,
        same_answer: SameAnswer | Sequence[SameAnswer],
        read_answer: ReadAnswer | Sequence[ReadAnswer] | None = None,
    ) -> list[Attempt]:
        """Answer each question, in a batch.

        Args:
            model: The model, with whatever is attached to it.
            questions: The questions.
            decoding: How to decode; its seed decides what is drawn.
            same_answer: Whether two answers count as one in a vote; for all questions, or one for
                each.
            read_answer: The answer in a response's parts, likewise; None for the last box.

        Raises:
            ValueError: The decoding or the model does not fit this strategy.
        """
        started = time.perf_counter()
        with closing(
            self.solve_each(
                model, questions, decoding, same_answer=same_answer, read_answer=read_answer
            )
        ) as solved:
            attempts = dict(solved)
        seconds = (time.perf_counter() - started) / len(questions)
        return [replace(attempts[number], seconds=seconds) for number in range(len(questions))]

    def solve_each(
        self,
        model: Model | ModelView,
        questions: Sequence[Prompt],
        decoding: Decoding,
        *,
        same_answer: SameAnswer | Sequence[SameAnswer],
        read_answer: ReadAnswer | Sequence[ReadAnswer] | None = None,
    ) -> Generator[tuple[int, Attempt], None, None]:
        """As `solve`, one question after the other, as they are answered.

        Yields:
            The number of a question and its attempt, whose seconds are those since the one before.
        """
        self.check(decoding)
        started, votes = time.perf_counter(), defaultdict[int, dict[int, Trace]](dict)
        prompts = [self.prompt_of(question) for question in questions]
        samples = self.traces_per_answer
        with closing(
            generate_each(model, prompts, self.decoding_of(decoding), samples=samples, fit=True)
        ) as traces:
            for number, sample, trace in traces:
                votes[number][sample] = trace
                if len(votes[number]) < samples:
                    continue
                cast = tuple(trace for _, trace in sorted(votes.pop(number).items()))
                same = same_answer if callable(same_answer) else same_answer[number]
                read = read_answer[number] if isinstance(read_answer, Sequence) else read_answer
                taken, tied = majority(cast, same, read)
                seconds = time.perf_counter() - started
                yield number, Attempt(trace=taken, traces=cast, tied=tied, seconds=seconds)
                started = time.perf_counter()  # what is done with it meanwhile is not decoding


@dataclass(frozen=True, kw_only=True)
class Plain(Strategy):
    """Ask the question once."""

    name: ClassVar[str] = "plain"


@dataclass(frozen=True, kw_only=True)
class ChainOfThought(Strategy):
    """Ask the question with a prompt after it (Kojima et al. 2022).

    Attributes:
        prompt: What is added, after a blank.
    """

    name: ClassVar[str] = "chain_of_thought"
    prompt: str = "Let's think step by step."

    def prompt_of(self, question: Prompt) -> str:
        """The question, and the prompt after it."""
        if not isinstance(question, str):
            raise SettingError(f"expected a question to put a prompt after, got {question!r}")
        return f"{question} {self.prompt}"


@dataclass(frozen=True, kw_only=True)
class SelfConsistency(Strategy):
    """Sample k traces and take the majority's answer (Wang et al. 2023).

    Among equally frequent answers the one that was sampled first is taken, and the tie reported.
    Traces without an answer have no vote.

    Attributes:
        k: Number of traces.
        temperature: Of the sampling; None for the decoding's own, which must then be above 0.
        top_p: Nucleus sampling's probability; None for the decoding's own.
    """

    name: ClassVar[str] = "self_consistency"
    k: int
    temperature: float | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: A setting is out of range.
        """
        if self.k < 1:
            raise SettingError(f"SelfConsistency: expected k >= 1, got {self.k}")
        if self.temperature is not None and not self.temperature > 0:
            raise SettingError(f"SelfConsistency: expected temperature > 0, got {self.temperature}")
        self.decoding_of(Decoding(temperature=1.0))
        for name in ("temperature", "top_p"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def traces_per_answer(self) -> int:
        """K."""
        return self.k

    def draws(self, decoding: Decoding) -> bool:
        """True."""
        return True

    def check(self, decoding: Decoding, model: Model | ModelView | None = None) -> None:
        """Refuse greedy decoding, under which all traces would be equal."""
        if self.decoding_of(decoding).temperature == 0.0:
            raise SettingError(
                "SelfConsistency votes over samples, and greedy decoding makes them all equal; "
                "expected SelfConsistency(temperature=...) or a decoding with temperature > 0"
            )

    def decoding_of(self, decoding: Decoding) -> Decoding:
        """With its own temperature and top_p, where it has them."""
        temperature = decoding.temperature if self.temperature is None else self.temperature
        top_p = decoding.top_p if self.top_p is None else self.top_p
        return replace(decoding, temperature=temperature, top_p=top_p)


@dataclass(frozen=True, kw_only=True)
class BudgetForcing(Strategy):
    """Cut or prolong the thinking at a token budget (Muennighoff et al. 2025).

    Attributes:
        least: Shorter thinking is prolonged with `wait`.
        most: Longer thinking is cut; None for no limit.
        wait: What stands in for an end of the thinking that comes too early.
    """

    name: ClassVar[str] = "budget_forcing"
    least: int = 0
    most: int | None = None
    wait: str = "Wait"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: They contradict each other, or force nothing.
        """
        if self.budget == ThinkingBudget(wait=self.wait):
            raise SettingError("BudgetForcing: expected least >= 1 or most, got neither")

    @property
    def budget(self) -> ThinkingBudget:
        """Its limits."""
        return ThinkingBudget(least=self.least, most=self.most, wait=self.wait)

    def decoding_of(self, decoding: Decoding) -> Decoding:
        """With its own budget."""
        return replace(decoding, budget=self.budget)

    def check(self, decoding: Decoding, model: Model | ModelView | None = None) -> None:
        """Refuse another budget, and a format or tokenizer whose thinking has no delimiter."""
        if decoding.budget is not None:
            raise SettingError(
                f"expected the budget of BudgetForcing alone, got {decoding.budget} of the "
                "decoding beside it"
            )
        if model is not None:
            seen = view(model)
            tokenizer = seen.tokenizer
            form = named_format(decoding.format)
            form = template_of(tokenizer).form if form.is_auto else form
            self.budget.plan(tokenizer, form, end_token_ids(seen))


STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy for strategy in (Plain, ChainOfThought, SelfConsistency, BudgetForcing)
}


def majority(
    traces: Sequence[Trace], same_answer: SameAnswer, read_answer: ReadAnswer | None = None
) -> tuple[Trace, bool]:
    """The first trace that gives the most frequent answer, and whether another is as frequent.

    Args:
        traces: The voters, at least one.
        same_answer: Whether two answers count as one.
        read_answer: The answer in a response's parts; None for the last box.
    """
    camps: list[tuple[str, list[Trace]]] = []
    for trace in traces:
        answer = trace.answer if read_answer is None else read_answer(trace.parts)
        if answer is None or not answer.strip():  # an empty box is no vote
            continue
        for first, camp in camps:
            if same_answer(first, answer):
                camp.append(trace)
                break
        else:
            camps.append((answer, [trace]))
    if not camps:
        return traces[0], False
    most = max(len(camp) for _, camp in camps)
    largest = [camp for _, camp in camps if len(camp) == most]
    return largest[0][0], len(largest) > 1
