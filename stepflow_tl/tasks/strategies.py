"""Test-time strategies: how a question is put, how often, and which answer is taken.

Each works alone or under whatever StepFlow is attached, and says what it cost, so that methods are
compared at equal compute.
"""

from __future__ import annotations

import time
from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from stepflow_tl.decoding.budget import ThinkingBudget
from stepflow_tl.decoding.generation import Sampling, generate
from stepflow_tl.errors import SettingError
from stepflow_tl.models.view import tokenizer_of
from stepflow_tl.traces.answers import ResponseParts
from stepflow_tl.traces.chat import Chat
from stepflow_tl.traces.formats import Format, named_format
from stepflow_tl.traces.reader import end_token_ids
from stepflow_tl.traces.templates import template_of
from stepflow_tl.traces.trace import Trace

SameAnswer = Callable[[str, str], bool]
ReadAnswer = Callable[[ResponseParts], str | None]


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How responses are decoded; see `stepflow_tl.generate`.

    Attributes:
        max_new_tokens: Where a response is cut.
        temperature: 0 for greedy decoding.
        top_p: Nucleus sampling's probability.
        format: How the model writes its reasoning.
        chat: Whether to ask with the chat template, and how.
        batch_size: Responses decoded together. In float32 it changes a text only where two logits
            are equal to within rounding; in narrower types rounding is coarser.
    """

    max_new_tokens: int = 700
    temperature: float = 0.0
    top_p: float = 1.0
    format: str | Format = "auto"
    chat: bool | Chat = True
    batch_size: int = 32

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: A setting is out of range.
        """
        Sampling(temperature=self.temperature, top_p=self.top_p)
        named_format(self.format)
        for name in ("temperature", "top_p"):  # 1 and 1.0 are one setting
            object.__setattr__(self, name, float(getattr(self, name)))
        if min(self.max_new_tokens, self.batch_size) < 1:
            raise SettingError(
                f"expected max_new_tokens and batch_size >= 1, got {self.max_new_tokens} and "
                f"{self.batch_size}"
            )


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What a strategy made of one question.

    Attributes:
        trace: The trace whose answer is taken.
        traces: All that were decoded for it.
        tied: Whether another answer had as many votes.
        seconds: Its equal share of the time that its batch took.
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
        return decoding.temperature > 0.0

    def check(self, decoding: Decoding, model: Any | None = None) -> None:
        """Refuse what `solve` would refuse, before anything is decoded.

        Args:
            decoding: How to decode.
            model: The model; None where it is not loaded yet.

        Raises:
            ValueError: The decoding or the model does not fit this strategy.
        """
        return

    def prompt_of(self, question: str) -> str:
        """What the model is asked."""
        return question

    def decoding_of(self, decoding: Decoding) -> Decoding:
        """How this strategy decodes where others decode as given."""
        return decoding

    @property
    def budget(self) -> ThinkingBudget | None:
        """What it forces on the thinking."""
        return None

    def solve(
        self,
        model: Any,
        questions: Sequence[str],
        decoding: Decoding,
        *,
        seed: int,
        same_answer: SameAnswer | Sequence[SameAnswer],
        read_answer: ReadAnswer | Sequence[ReadAnswer] | None = None,
    ) -> list[Attempt]:
        """Answer each question, in a batch.

        Args:
            model: The model, with whatever is attached to it.
            questions: The questions.
            decoding: How to decode.
            seed: Same seed, same traces.
            same_answer: Whether two answers count as one in a vote; for all questions, or one for
                each.
            read_answer: The answer in a response's parts, likewise; None for the last box.

        Raises:
            ValueError: The decoding or the model does not fit this strategy.
        """
        self.check(decoding)
        started = time.perf_counter()
        traces = generate(
            model,
            [self.prompt_of(question) for question in questions],
            samples=self.traces_per_answer,
            seed=seed,
            budget=self.budget,
            fit=True,
            **vars(self.decoding_of(decoding)),
        )
        seconds = (time.perf_counter() - started) / len(questions)
        attempts = []
        for number in range(len(questions)):
            first = number * self.traces_per_answer
            votes = tuple(traces[first : first + self.traces_per_answer])
            same = same_answer if callable(same_answer) else same_answer[number]
            read = read_answer[number] if isinstance(read_answer, Sequence) else read_answer
            taken, tied = majority(votes, same, read)
            attempts.append(Attempt(trace=taken, traces=votes, tied=tied, seconds=seconds))
        return attempts


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

    def prompt_of(self, question: str) -> str:
        """The question, and the prompt after it."""
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

    def check(self, decoding: Decoding, model: Any | None = None) -> None:
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

    def check(self, decoding: Decoding, model: Any | None = None) -> None:
        """Refuse a format or a tokenizer whose thinking has no delimiter to force."""
        if model is not None:
            tokenizer = tokenizer_of(model)
            form = named_format(decoding.format)
            form = template_of(tokenizer).form if form.is_auto else form
            self.budget.plan(tokenizer, form, end_token_ids(model))


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
