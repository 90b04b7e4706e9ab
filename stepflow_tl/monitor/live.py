"""What is known of the steps that are being written: shares and uncertainties, pass by pass.

Of each row of a batch one step is open. What passes add to it is kept on the device, as sums over
the step's tokens; it is read when the next step begins, or its row ends, and forgotten then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from stepflow_tl.interventions.position import Follower, PassPosition
from stepflow_tl.models.base import ARRIVAL, LOGITS
from stepflow_tl.models.precision import widened
from stepflow_tl.models.sites import Hook, hook_name
from stepflow_tl.monitor.measures import OF_SHARES
from stepflow_tl.traces.rows import THINKING, Row
from stepflow_tl.traces.tokens import FRAME

_TILE = 64  # queries whose distributions are held at a time


@dataclass(frozen=True)
class FinishedStep:
    """A step that is over.

    Attributes:
        row: Whose it is.
        step: Its number among the row's steps.
        span: Its first position in the row, and the one after its last.
        shares: Its row of the map at the monitored layers: one share for each step up to itself.
        uncertainty: Of what its tokens were drawn from, the mean by measure; NaN for none.
    """

    row: Row
    step: int
    span: tuple[int, int]
    shares: Float[Tensor, "layer key_step"]
    uncertainty: Mapping[str, float]


@dataclass
class _Span:
    """Where a row's open step stands."""

    step: int
    first: int
    stop: int


@dataclass
class _Sums:
    """Sums over the tokens of some steps, which stand in the second axis.

    Attributes:
        shares: Of shares, [layer, item, key_step].
        tokens: Of tokens that have shares, [layer, item].
        uncertainty: Of what tokens were drawn from, [measure, item].
        drawn: Of tokens whose distribution was seen, [item].
    """

    shares: Tensor
    tokens: Tensor
    uncertainty: Tensor
    drawn: Tensor

    @classmethod
    def zeros(cls, layers: int, measures: int, items: int, device: torch.device) -> _Sums:
        exact = torch.float32 if device.type == "mps" else torch.float64
        sizes = ((layers, items, 0), (layers, items), (measures, items), (items,))
        return cls(*(torch.zeros(size, dtype=exact, device=device) for size in sizes))

    def select(self, items: Sequence[int]) -> _Sums:
        """Those of some items; -1 for one that is new."""
        if not len(self.drawn):
            return _Sums.zeros(
                len(self.tokens), len(self.uncertainty), len(items), self.drawn.device
            )
        index = torch.tensor(items, device=self.drawn.device)
        known = index >= 0
        at = index.clamp_min(0)
        return _Sums(
            self.shares[:, at] * known[:, None],
            self.tokens[:, at] * known,
            self.uncertainty[:, at] * known,
            self.drawn[at] * known,
        )

    def add(self, other: _Sums) -> None:
        """Add those of the same items."""
        more = other.shares.shape[2] - self.shares.shape[2]
        self.shares = pad(self.shares, (0, max(0, more)))
        self.shares[:, :, : other.shares.shape[2]] += other.shares
        self.tokens += other.tokens
        self.uncertainty += other.uncertainty
        self.drawn += other.drawn

    def clear(self, item: int) -> None:
        """Begin anew with one item."""
        self.shares[:, item] = 0
        self.tokens[:, item] = 0
        self.uncertainty[:, item] = 0
        self.drawn[item] = 0


@dataclass
class _Pass:
    """What the present pass shows.

    Attributes:
        at: Where it stands.
        spans: Of each row, its steps of thinking and summary in this pass, in positions.
        steps: Number of steps up to the last of them.
        weights: Which queries each of them has, [batch, slot, query].
        keys: Number of each position's step, one up, so that frame and padding have 0.
        sums: By layer, of shares and of tokens that have some, [batch, slot, key_step + 1].
        drawn: By query, of what its token was drawn from, [measure, batch, query]; NaN where
            that was not seen.
    """

    at: PassPosition
    spans: list[list[_Span]]
    steps: int
    weights: Float[Tensor, "batch slot query"]
    keys: Int[Tensor, "batch pos"]
    sums: dict[int, Tensor] = field(default_factory=dict)
    drawn: Float[Tensor, "measure batch query"] | None = None

    @property
    def slots(self) -> int:
        """Number of steps in the row that has most of them."""
        return self.weights.shape[1]


class LiveSteps:
    """The open step of each row of a batch.

    Args:
        layers: The layers whose patterns are shown.
        uncertainties: What is read off next-token distributions, by name.
        frame_keys: Whether the frame's keys are "in" a share's denominator, or "out".
        finished: Takes each step that is over.
    """

    def __init__(
        self,
        layers: Sequence[int],
        uncertainties: Mapping[str, Callable[[Tensor], Tensor]],
        frame_keys: str,
        finished: Callable[[FinishedStep], None],
    ) -> None:
        self._layers = tuple(layers)
        self._uncertainties = dict(uncertainties)
        self._frame_keys = frame_keys
        self._finished = finished
        self._rows: tuple[Row, ...] = ()
        self._spans: dict[Row, _Span] = {}
        self._sums: _Sums | None = None
        self._parked: dict[Row, _Sums] = {}  # while passes run other rows: a prompt that joins
        self._pass: _Pass | None = None
        self._arrived: PassPosition | None = None
        self._next: tuple[tuple[Row, ...], Tensor] | None = None  # of tokens to come
        self._left: dict[Row, Tensor] = {}  # the same of rows that the last pass did not run

    @property
    def reads_logits(self) -> bool:
        """Whether it has to be shown logits."""
        return bool(self._uncertainties)

    def begin(self, at: PassPosition) -> None:
        """A pass has reached the first layer; the last one is taken into the sums."""
        self._commit()
        self._follow(at.rows, at.step.device)
        spans = [_spans(row, at.start, at.segment.shape[1]) for row in at.rows]
        for row, found in zip(at.rows, spans, strict=True):
            known = self._spans.get(row)
            over = found[0].step != known.step if found and known else row.ended
            if known is not None and over:
                self.close(row)
        self._arrived, self._pass = at, None
        slots = max(map(len, spans), default=0)
        if slots:
            weights = torch.zeros(len(spans), slots, at.segment.shape[1] - at.start)
            for number, (row, found) in enumerate(zip(at.rows, spans, strict=True)):
                before = at.start - row.pads
                for slot, span in enumerate(found):
                    weights[number, slot, span.first - before : span.stop - before] = 1.0
            steps = 1 + max(found[-1].step for found in spans if found)
            keys = (at.step + 1).clamp_max(steps)  # rows without a span may have more
            self._pass = _Pass(at, spans, steps, weights.to(at.step.device), keys)

    def see_pattern(
        self, layer: int, pattern: Float[Tensor, "batch head query key"], queries: range | None
    ) -> None:
        """A layer's pattern: of all queries of the pass, or of these."""
        now = self._pass
        if now is None:
            return
        rows = widened(pattern.detach()).mean(1)  # [batch, query, key]
        wanted = range(now.weights.shape[2]) if queries is None else queries
        end = now.at.start + wanted.stop
        index = now.keys[:, end - rows.shape[2] : end].to(rows.device)
        by_step = rows.new_zeros(*rows.shape[:2], 1 + now.steps)
        by_step.scatter_add_(2, index[:, None].expand(-1, rows.shape[1], -1), rows)
        shares = by_step[:, :, 1:]
        total = (by_step if self._frame_keys == "in" else shares).sum(-1, keepdim=True)
        shares = torch.where(total > 0, shares / total, 0.0)
        both = torch.cat([shares, (total > 0).to(shares)], dim=2)  # zeros have no shares
        summed = now.weights[:, :, wanted.start : wanted.stop].to(both) @ both
        held = now.sums.get(layer)
        now.sums[layer] = summed if held is None else held + summed

    def see_logits(self, logits: Float[Tensor, "batch pos vocab"]) -> None:
        """The logits of the pass: of all its positions, or of its last ones."""
        at, self._arrived = self._arrived, None
        if at is None or not self._uncertainties:
            return
        queries = at.segment.shape[1] - at.start
        first = min(max(0, at.reasoning_from - at.start - 1), queries - 1)
        first = max(first, queries - logits.shape[1])
        tiles = torch.split(logits.detach()[:, first - queries :], _TILE, dim=1)
        found = [
            torch.stack([of(widened(tile)) for of in self._uncertainties.values()])
            for tile in tiles
        ]
        values = torch.cat(found, dim=2)  # of the tokens after queries first, first + 1, ...
        awaited = self._awaited(at.rows)
        if self._pass is not None:
            drawn = values.new_full((*values.shape[:2], queries), torch.nan)
            drawn[:, :, first + 1 :] = values[:, :, :-1]
            if awaited is not None:
                drawn[:, :, 0] = awaited
            self._pass.drawn = drawn
        self._next = (at.rows, values[:, :, -1])

    def close(self, row: Row) -> None:
        """Its open step is over."""
        self._commit()
        span = self._spans.pop(row, None)
        if span is None or self._sums is None:
            return
        sums, number = self._parked.pop(row, self._sums), 0
        if sums is self._sums:
            number = self._rows.index(row)
        shares = sums.shares[:, number, : span.step + 1] / sums.tokens[:, number, None]
        drawn = (sums.uncertainty[:, number] / sums.drawn[number]).tolist()
        shares = pad(shares, (0, span.step + 1 - shares.shape[1])).cpu()
        sums.clear(number)
        self._finished(
            FinishedStep(
                row=row,
                step=span.step,
                span=(span.first, span.stop),
                shares=shares,
                uncertainty=dict(zip(self._uncertainties, drawn, strict=True)),
            )
        )

    def close_all(self) -> None:
        """No pass follows."""
        self._commit()
        for row in list(self._spans):
            self.close(row)

    def _follow(self, rows: tuple[Row, ...], device: torch.device) -> None:
        """The batch consists of these rows now; others may come back, unless they are over."""
        if rows is self._rows and self._sums is not None:
            return
        for row in [row for row in self._spans if row.finished and row not in set(rows)]:
            self.close(row)
        if self._sums is None:
            layers, measures = len(self._layers), len(self._uncertainties)
            self._sums = _Sums.zeros(layers, measures, 0, device)
        before, numbers = self._sums, {row: number for number, row in enumerate(self._rows)}
        for row in numbers.keys() & self._spans.keys() - set(rows):
            self._parked[row] = before.select([numbers[row]])
        self._sums = before.select([numbers.get(row, -1) for row in rows])
        for number, row in enumerate(rows):
            if row in self._parked:
                mine = [-1] * len(rows)
                mine[number] = 0
                self._sums.add(self._parked.pop(row).select(mine))
        self._rows = rows

    def _commit(self) -> None:
        """Take what the last pass showed into the sums."""
        now, self._pass, self._arrived = self._pass, None, None
        if now is None or self._sums is None:
            return
        shown = [self._shown(now, slot) for slot in range(now.slots)]
        if now.slots == 1:
            self._sums.add(shown[0])
            for row, found in zip(now.at.rows, now.spans, strict=True):
                for span in found:
                    self._go_on(row, span)
            return
        for number, (row, found) in enumerate(zip(now.at.rows, now.spans, strict=True)):
            for slot, span in enumerate(found):
                known = self._spans.get(row)
                if known is not None and known.step != span.step:
                    self.close(row)
                mine = [-1] * len(now.at.rows)
                mine[number] = number
                self._sums.add(shown[slot].select(mine))
                self._go_on(row, span)

    def _go_on(self, row: Row, span: _Span) -> None:
        known = self._spans.setdefault(row, span)
        known.stop = span.stop

    def _shown(self, now: _Pass, slot: int) -> _Sums:
        """What a pass has added to one step of each row."""
        assert self._sums is not None
        device = self._sums.drawn.device
        made = _Sums.zeros(len(self._layers), len(self._uncertainties), len(now.at.rows), device)
        if now.sums:
            none = torch.zeros_like(next(iter(now.sums.values())))
            layers = [now.sums.get(layer, none)[:, slot].to(device) for layer in self._layers]
            both = torch.stack(layers).to(made.shares.dtype)
            made.shares, made.tokens = both[:, :, :-1], both[:, :, -1]
        if now.drawn is not None:
            drawn = now.drawn.to(device, made.shares.dtype)
            of_slot = now.weights[:, slot].to(device)
            seen = ~drawn[0].isnan() & (of_slot > 0)
            made.uncertainty = torch.where(seen, drawn, 0.0).sum(-1)
            made.drawn = seen.sum(-1).to(made.drawn.dtype)
        return made

    def _awaited(self, rows: tuple[Row, ...]) -> Float[Tensor, "measure batch"] | None:
        """What earlier passes said of the tokens that this one begins with; NaN for unknown."""
        if self._next is None or self._next[0] is rows:
            return None if self._next is None else self._next[1]
        known, values = self._next
        self._left.update(zip(known, values.unbind(1), strict=True))
        nothing = torch.full_like(values[:, 0], torch.nan)
        found = torch.stack([self._left.pop(row, nothing) for row in rows], dim=1)
        self._left = {row: value for row, value in self._left.items() if not row.finished}
        return found


def live_hooks(live: LiveSteps, follower: Follower, layers: Sequence[int]) -> list[Hook]:
    """What shows live steps each pass: where it stands, patterns of some layers, logits."""

    def at(layer: int) -> Hook:
        def see(pattern: Tensor, hook: Any) -> None:
            live.see_pattern(layer, pattern, getattr(hook, "queries", None))

        return hook_name("pattern", layer), see

    hooks = [(ARRIVAL, lambda arrival: live.begin(follower.position)), *map(at, layers)]
    return [*hooks, (LOGITS, live.see_logits)] if live.reads_logits else hooks


def measured(
    names: Sequence[str], done: FinishedStep, segments: list[str]
) -> dict[str, Tensor | float]:
    """Measures of a step that is over: a number per monitored layer, or one for all.

    Args:
        names: The measures.
        done: The step.
        segments: Those of the row's steps before, to which its own is added.
    """
    segments += ["question"] * (done.step - len(segments))
    segments.append("thinking" if done.row.segments[done.span[0]] == THINKING else "summary")
    total = done.shares.sum(-1, keepdim=True)
    shares = torch.where(total > 0, done.shares / total, torch.nan)
    return {
        name: OF_SHARES[name](shares, segments) if name in OF_SHARES else done.uncertainty[name]
        for name in names
    }


def _spans(row: Row, start: int, stop: int) -> list[_Span]:
    """The steps of thinking and summary of a row in some columns of its batch."""
    found: list[_Span] = []
    for position in range(max(0, start - row.pads), stop - row.pads):
        step = row.steps[position]
        if step == FRAME or row.segments[position] < THINKING:
            continue
        if found and found[-1].step == step:
            found[-1].stop = position + 1
        else:
            found.append(_Span(step, position, position + 1))
    return found
