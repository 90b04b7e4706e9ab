"""When an intervention acts: a decision for each step of each row, taken where the step begins.

A condition (`stepflow_tl.monitor.conditions`, or anyone's own) decides from what is over by then.
A `Gate` asks it, keeps what it said, and closes an intervention's eyes in the steps it denied:
their queries count as of no segment, and no step begins there. What such a query becomes is
bit-identical to what it was.

Where a pass holds more than one step whose decision rests on what is measured in the steps before
(a prompt that is run with its response, a whole trace), the steps are decided first, on a run of
the row by itself, step by step against a cache (`run_ahead`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, runtime_checkable

import pandas as pd
import torch
from torch import Tensor

from stepflow_tl.errors import SettingError
from stepflow_tl.interventions.attached import flows_on
from stepflow_tl.interventions.position import Follower, PassPosition
from stepflow_tl.interventions.rerun import Replay
from stepflow_tl.models.base import ARRIVAL, ModelView
from stepflow_tl.models.sites import Hook
from stepflow_tl.traces.formats import Format
from stepflow_tl.traces.rows import THINKING, Row, TraceLabels
from stepflow_tl.traces.tokens import FRAME
from stepflow_tl.traces.trace import Trace


class Begin(NamedTuple):
    """A step of thinking or summary, where it begins.

    Attributes:
        row: Its row.
        step: Its number in the row.
        start: Position of its first token in the row.
        segment: 1 thinking, 2 summary.
        number: Its number in its segment, from 0.
        previous: Span of the step before it, in thinking or summary; None for the first.
    """

    row: Row
    step: int
    start: int
    segment: int
    number: int
    previous: tuple[int, int] | None


class Verdict(NamedTuple):
    """What a condition says of a step.

    Attributes:
        is_open: Whether the intervention acts in it.
        scores: The measured scores that it rests on, by name.
    """

    is_open: bool
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Decision:
    """What was decided of one step.

    Attributes:
        intervention: Whose action it is about, by its name in the ledger.
        row: The row.
        step: The step's number in the row's trace.
        start: Its first token.
        is_open: Whether the intervention acts in it.
        scores: The measured scores that it rests on, by name.
    """

    intervention: str
    row: Row = field(repr=False)
    step: int
    start: int
    is_open: bool
    scores: Mapping[str, float]


class Deciding(ABC):
    """A condition on one model, while it runs."""

    @abstractmethod
    def decide(self, begin: Begin) -> Verdict:
        """Of a step that begins, from what is over."""

    def hooks(self) -> list[Hook]:
        """What it has to see of each pass, before anything is edited."""
        return []


@runtime_checkable
class Condition(Protocol):
    """A frozen predicate over a trace's steps."""

    @property
    def is_measured(self) -> bool:
        """Whether it has to see the passes over the steps before."""

    def never(self, form: Format) -> str | None:
        """Why it can hold in no response of a format; None where it may."""

    def deciding(self, view: ModelView, follower: Follower) -> Deciding:
        """It, on a model.

        Raises:
            SettingError: The model has no such layers.
        """

    def to_dict(self) -> dict[str, Any]:
        """JSON-able description."""


class Decisions:
    """What conditions decided, of each step of each row, in the order in which they did.

    Args:
        recorded: Decisions of an earlier run, which stand where tokens are the same.
    """

    def __init__(self, recorded: Decisions | None = None) -> None:
        self._recorded = recorded
        self._made: dict[tuple[str, Row, int], Decision] = {}

    def __len__(self) -> int:
        """Number of decisions."""
        return len(self._made)

    def __iter__(self) -> Iterator[Decision]:
        """The decisions."""
        return iter(self._made.values())

    def find(self, intervention: str, row: Row, start: int) -> Decision | None:
        """What was decided of the step that begins at a row's own position."""
        key = (intervention, row, start)
        if key not in self._made and self._recorded is not None:
            tokens = row.token_ids[: start + 1]
            for known in self._recorded:
                if (known.intervention, known.start) == (intervention, start) and (
                    known.row.token_ids[: start + 1] == tokens
                ):
                    self.add(replace(known, row=row))
                    break
        return self._made.get(key)

    def add(self, decision: Decision) -> None:
        """Keep one."""
        self._made[decision.intervention, decision.row, decision.start] = decision

    def table(self, trace: Trace | None = None) -> pd.DataFrame:
        """A line for each decision.

        Args:
            trace: Only those of this trace, by its tokens.

        Returns:
            Columns ``row`` (rows are counted as they came), ``intervention, step, start, open``,
            and the measured scores that decided, by name.
        """
        numbers: dict[Row, int] = {}
        lines = []
        for one in self:
            number = numbers.setdefault(one.row, len(numbers))
            if trace is not None:
                ids = trace.token_ids.tolist()
                if one.row.token_ids[: len(ids)] != ids[: len(one.row.token_ids)]:
                    continue
            where = {"row": number, "intervention": one.intervention, "step": one.step}
            lines.append({**where, "start": one.start, "open": one.is_open, **one.scores})
        columns = ["row", "intervention", "step", "start", "open"]
        return pd.DataFrame(lines, columns=None if lines else columns)


class Gate:
    """The condition of one intervention, and what it decided.

    Args:
        condition: The condition.
        name: The intervention's name in the ledger.
        view: The model.
        follower: Knows where each pass stands.
        decided: Where decisions are looked up and kept.
        again: Hooks of the whole StepFlow for a run that somebody else follows, which decides into
            the same place.
        report: Takes amounts for the ledger: decisions and openings, by row.
    """

    def __init__(
        self,
        condition: Condition,
        name: str,
        view: ModelView,
        follower: Follower,
        decided: Decisions,
        again: Callable[[Follower], list[Hook]],
        report: Callable[[Mapping[str, Tensor], tuple[Row, ...]], None],
    ) -> None:
        self._name, self._view, self._follower = name, view, follower
        self._decided, self._again, self._report = decided, again, report
        self._condition = condition
        self._deciding = condition.deciding(view, follower)
        self._begins: dict[Row, _Begins] = {}
        self._spans: list[tuple[int, int, int]] = []  # of the present pass: row, queries
        self._acting: Tensor | None = None

    def hooks(self) -> list[Hook]:
        """To be run before any edit."""
        return [*self._deciding.hooks(), (ARRIVAL, lambda arrival: self._arrive())]

    @property
    def is_open(self) -> bool:
        """Whether any query of the present pass lies in an open step."""
        return bool(self._spans)

    def seen(self, at: PassPosition) -> PassPosition:
        """The present pass, or a part of it, as the intervention may see it."""
        whole = self._follower.position
        if self._acting is None:
            acting = torch.zeros(len(whole.segment), whole.segment.shape[1] - whole.start).bool()
            for row, first, stop in self._spans:
                acting[row, first:stop] = True
            self._acting = acting.to(whole.segment.device, non_blocking=True)
        first, queries = at.start - whole.start, at.segment.shape[1] - at.start
        return at.gated(self._acting[:, first : first + queries], self._is_acting)

    def _is_acting(self, row: int, position: int) -> bool:
        query = position - self._follower.position.start
        return any(row == r and first <= query < stop for r, first, stop in self._spans)

    def _arrive(self) -> None:
        at = self._follower.position
        self._begins = {
            row: b for row, b in self._begins.items() if not row.finished or row in at.rows
        }
        self._acting, self._spans = None, []
        made: list[tuple[int, bool]] = []
        for number, row in enumerate(at.rows):
            before = at.start - row.pads
            made += [
                (number, is_open)
                for is_open in self._read(row, max(0, before), at.segment.shape[1] - row.pads)
            ]
            for first, stop in self._open_spans(
                row, max(0, before), at.segment.shape[1] - row.pads
            ):
                self._spans.append((number, first - before, stop - before))
        if made:
            opened = at.count(number for number, is_open in made if is_open)
            counts = {"decisions": at.count(number for number, _ in made), "openings": opened}
            self._report(counts, at.rows)

    def _read(self, row: Row, start: int, stop: int) -> list[bool]:
        """Decide of a row's steps that begin before `stop`; what was decided."""
        begins = self._begins.setdefault(row, _Begins(row))
        return [
            self._decide(begin, begin.previous is not None and begin.previous[1] > start)
            for begin in list(begins.read(stop))
        ]

    def _open_spans(self, row: Row, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Which of a row's own positions from `start` on lie in open steps, or follow one."""
        starts = self._begins[row].since(start)
        for first, end in pairwise([*starts, stop]):
            known = self._decided.find(self._name, row, first)
            if known is not None and known.is_open and max(first, start) < end:
                yield max(first, start), end

    def _decide(self, begin: Begin, of_this_pass: bool) -> bool:
        """Decide, where it was not before.

        Args:
            begin: The step.
            of_this_pass: Whether a token of the step before lies in the same pass.

        Raises:
            SettingError: It has to be decided on a run by itself, beside another flow.
        """
        known = partial(self._decided.find, self._name, begin.row, begin.start)
        if known() is None and of_this_pass and self._condition.is_measured:
            refuse_others(flows_on(self._view) - 1)
            run_ahead(self._view, begin.row, self._again)
        found = known()
        if found is None:
            verdict = self._deciding.decide(begin)
            found = Decision(
                intervention=self._name,
                row=begin.row,
                step=begin.step,
                start=begin.start,
                is_open=verdict.is_open,
                scores=verdict.scores,
            )
            self._decided.add(found)
        return found.is_open


class _Begins:
    """Where the steps of a row begin, read on as it grows."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self._read = 0
        self._starts: list[int] = []
        self._step = FRAME
        self._open: tuple[int, int] | None = None
        self._counts: dict[int, int] = {}

    def read(self, stop: int) -> Iterator[Begin]:
        """Steps that begin before `stop` and were not read before."""
        row = self._row
        for position in range(self._read, min(stop, len(row.steps))):
            step, segment = row.steps[position], row.segments[position]
            self._read = position + 1
            if step == FRAME or segment < THINKING:
                continue
            if self._open is not None and step == self._step:
                self._open = (self._open[0], position + 1)
                continue
            number = self._counts.get(segment, 0)
            begin = Begin(row, step, position, segment, number, self._open)
            self._counts[segment] = number + 1
            self._step, self._open = step, (position, position + 1)
            self._starts.append(position)
            yield begin

    def since(self, position: int) -> list[int]:
        """Starts of the step that a position lies in, or after, and of those that follow."""
        earlier = bisect_right(self._starts, position) - 1
        return self._starts[max(0, earlier) :]


def refuse_others(number: int) -> None:
    """Refuse to decide on a run by itself while other flows are attached, which it would not have.

    Raises:
        SettingError: There are any.
    """
    if number > 0:
        raise SettingError(
            "expected recorded decisions (decisions=run.decisions), or one flow of all "
            f"interventions, to decide of a whole trace at once, got {number} other attached flow"
            f"{'s' * (number > 1)}, which a run of the trace by itself would leave out"
        )


def run_ahead(view: ModelView, row: Row | Trace, again: Callable[[Follower], list[Hook]]) -> None:
    """Run a row of its own, step by step against a cache, so that gates decide of its steps.

    Args:
        view: The model.
        row: The row, or a known trace.
        again: From who follows the run to its hooks.
    """
    if isinstance(row, Trace):
        labeled = Row(TraceLabels(row, frozenset()))
        labeled.read(row.token_ids.tolist())
        row = labeled
    ends = [begin.start for begin in _Begins(row).read(len(row.steps))]
    if not ends:
        return
    view = view.running
    replay = Replay(row, view.device)
    hooks = again(replay)
    cache: Any = None
    done = 0
    with torch.inference_mode(False), torch.no_grad():
        for stop in [*ends, ends[-1] + 1]:  # of the last step, what decides it alone
            replay.move(done, stop)
            ids = torch.tensor([row.token_ids[done:stop]], device=view.device)
            mask = torch.ones(1, stop, dtype=torch.long, device=view.device)
            with view.only_hooks(hooks):
                _, cache = view.run_cached(ids, mask, cache)
            done = stop
