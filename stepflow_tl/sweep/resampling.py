"""Resampling and forced answers: what a step is worth, by what comes after it.

A task whose questions are places in the thinking of given traces: the model goes on from there,
token for token (`stepflow_tl.traces.Begun`), and each seed of the sweep is one rollout. Place i
lies before step i of the thinking; the last place after all of it. (thought-anchors, 2506.19143,
`generate_rollouts.py`; the measures are in `stepflow_tl.sweep.importance`.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from stepflow_tl.errors import SettingError
from stepflow_tl.tasks import Item, Task
from stepflow_tl.tasks.base import Grade, Vote
from stepflow_tl.traces.answers import ResponseParts
from stepflow_tl.traces.chat import Begun
from stepflow_tl.traces.formats import Format
from stepflow_tl.traces.tokens import tokenizer_in
from stepflow_tl.traces.trace import Trace

FORCED = "\n\nTherefore, the final answer is \\boxed{"
"""What follows the closed thinking where an answer is forced (thought-anchors: "answers is")."""


class Resampling(Task):
    """Places in the thinking of given traces, from which the model goes on.

    Example::

        task = WordProblems(n=5)
        traces = {item.key: generate(model, item.question) for item in task.items}
        rows = Sweep(
            Resampling(task, traces), Grid.of({"baseline": StepFlow()}), seeds=range(100),
            decoding=Decoding(temperature=0.6, top_p=0.95),
        ).run("outputs/rollouts.sqlite")
        importance(rows)

    Args:
        task: Grades the answers.
        traces: A trace of some of its items, by the item's key.
        forced: Close the thinking at each place at once, and force an answer.
        tokenizer: Of the model, or a model that brings one, for `forced`.
        text: What follows the closed thinking, for `forced`.

    Raises:
        SettingError: A key is of no item, a trace has no thinking, or there is no tokenizer.
    """

    def __init__(
        self,
        task: Task,
        traces: Mapping[str, Trace],
        *,
        forced: bool = False,
        tokenizer: Any | None = None,
        text: str = FORCED,
    ) -> None:
        self._task, self._traces, self.forced, self._text = task, dict(traces), forced, text
        unknown = sorted(set(traces) - {item.key for item in task.items})
        if unknown or not traces:
            raise SettingError(
                f"expected traces of the task's items, by their keys, got {unknown[:3] or 'none'}"
            )
        empty = [key for key, trace in traces.items() if not trace.steps_in("thinking")]
        if empty:
            raise SettingError(f"expected traces with a thinking, got none in {empty[:3]}")
        if forced and tokenizer is None:
            raise SettingError("expected tokenizer= to force answers with, got None")
        self._tokenizer = tokenizer_in(tokenizer) if forced else None

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """The places, trace by trace: their keys are the item's, and the number of the place."""
        return tuple(
            Item(f"{item.key}@{place}", item.question, item.group)
            for item in self._task.items
            if item.key in self._traces
            for place in range(len(self._traces[item.key].steps_in("thinking")) + 1)
        )

    def ask(self, item: Item, seed: int) -> Begun:
        """What is given: the prompt and the thinking up to the place."""
        key, place = place_of(item.key)
        trace = self._traces[key]
        steps = trace.steps_in("thinking")
        stop = steps[place].start if place < len(steps) else steps[-1].stop
        ids = trace.token_ids[:stop].tolist()
        if self.forced:
            ids += self._closing(trace, trace.token_texts[stop - 1])
        return Begun(tuple(ids), trace.prompt_length, item.question)

    def _closing(self, trace: Trace, before: str) -> list[int]:
        """Token ids that close the thinking of a trace and force an answer, after some text."""
        said = {name: value for name, value in trace.read_as.items() if name != "auto"}
        close = Format.from_description(said).summary_open
        if close is None:
            raise SettingError(
                f"expected a trace whose format closes its thinking, got {trace.format_name!r}"
            )
        assert self._tokenizer is not None
        line = "" if before.endswith("\n") else "\n"
        ids: list[int] = self._tokenizer.encode(
            f"{line}{close}{self._text}", add_special_tokens=False
        )
        return ids

    def content(self, item: Item, seed: int) -> str:
        """The tokens that are given."""
        asked = self.ask(item, seed)
        said = repr((asked.token_ids, asked.prompt_length))
        base = self._task.content(self._item(item), seed)
        return f"{hashlib.sha256(said.encode()).hexdigest()[:32]} {base}"

    def check(self) -> None:
        """As of the task that grades."""
        self._task.check()

    def grade(self, item: Item, response: str, seed: int = 0) -> Grade:
        """As of the task that grades."""
        return self._task.grade(self._item(item), response, seed)

    def grade_parts(self, item: Item, parts: ResponseParts, text: str, seed: int = 0) -> Grade:
        """As of the task that grades."""
        return self._task.grade_parts(self._item(item), parts, text, seed)

    def vote(self, item: Item) -> Vote:
        """As of the task that grades."""
        return self._task.vote(self._item(item))

    def describe(self) -> dict[str, Any]:
        """What it is; from this alone it cannot be made again, since it holds no trace."""
        return {"resampling": self._task.describe(), "forced": self.forced, "given": self.digest}

    @cached_property
    def digest(self) -> str:
        """Hash of all that is given at every place, 16 hex digits."""
        text = "\0".join(f"{item.key}\0{self.content(item, 0)}" for item in self.items)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def _items(self) -> dict[str, Item]:
        return {item.key: item for item in self._task.items}

    def _item(self, item: Item) -> Item:
        """The item whose trace a place is in."""
        return self._items[place_of(item.key)[0]]


def place_of(key: str) -> tuple[str, int]:
    """The item's key and the number of the place, of a place's key.

    Raises:
        SettingError: It is no place's key.
    """
    item, mark, place = key.rpartition("@")
    if not mark or not (place.isascii() and place.isdecimal()):
        raise SettingError(f"expected the key of a place, such as '0123456789ab@3', got {key!r}")
    return item, int(place)
