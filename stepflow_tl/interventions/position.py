"""Where one forward pass stands, and what an edit of one layer is told of it.

Positions count padding: position p is column p of the left-padded batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from stepflow_tl.interventions.groups import BridgeKeys, Groups, RecentGroups, split_keys
from stepflow_tl.models.base import ModelView
from stepflow_tl.models.sites import Hook, Site
from stepflow_tl.traces.rows import PADDING, Row, StepStart


@dataclass(frozen=True)
class PassPosition:
    """Where one forward pass stands.

    Attributes:
        start: Position of its first query.
        segment: Segment of every position so far; `PADDING` for padding.
        step: Step of every position so far; `FRAME` for none.
        step_starts: Steps that begin at this pass's queries.
        open_steps: Span of each row's last step so far; None before the first, and after the end.
        reasoning_from: Position of the first query that lies in thinking or summary in any row;
            the number of positions so far where none does.
        rows: The sequences of the batch, as read so far.
        pads: Number of padding columns of each: position p is the row's own p - pads.
        recent: The groups of the pass before, which those of a pass of one query go on from.
        acting: Queries at which the intervention acts, by its condition; None for all.
    """

    start: int
    segment: Int[Tensor, "batch pos"]
    step: Int[Tensor, "batch pos"]
    step_starts: tuple[StepStart, ...]
    open_steps: tuple[tuple[int, int] | None, ...]
    reasoning_from: int
    rows: tuple[Row, ...] = ()
    pads: tuple[int, ...] = ()
    recent: RecentGroups | None = field(default=None, repr=False)
    acting: Bool[Tensor, "batch query"] | None = field(default=None, repr=False)
    _groups: dict[tuple[int, int | None, BridgeKeys, torch.device], Groups] = field(
        default_factory=dict, repr=False
    )

    @property
    def reasoning(self) -> bool:
        """Whether any query of this pass lies in thinking or summary."""
        return self.reasoning_from < self.segment.shape[1]

    @property
    def query_segment(self) -> Int[Tensor, "batch query"]:
        """Segment of each query of this pass; `PADDING` where the intervention does not act."""
        own = self.segment[:, self.start :]
        return own if self.acting is None else torch.where(self.acting, own, PADDING)

    def indices(
        self, starts: Sequence[StepStart], device: torch.device
    ) -> tuple[Int[Tensor, "start"], Int[Tensor, "start"]]:
        """Row and query, within this pass, of each of some step starts."""
        at = torch.tensor([[start.row, start.position - self.start] for start in starts])
        rows, queries = at.to(device, non_blocking=True).unbind(1)
        return rows, queries

    def count(self, rows: Iterable[int], amounts: Iterable[int] | None = None) -> Tensor:
        """An amount for the ledger that is said row by row [batch]: so many for each row named."""
        counts = [0] * len(self.segment)
        for row, amount in zip(rows, repeat(1) if amounts is None else amounts, strict=False):
            counts[row] += amount
        return torch.tensor(counts)

    def part(self, first: int, stop: int) -> PassPosition:
        """Where the queries from the pass's `first` to before its `stop` stand, as its chunk.

        `open_steps` stay those at the end of the pass.
        """
        begin, end = self.start + first, self.start + stop
        if (begin, end) == (self.start, self.segment.shape[1]):
            return self
        return replace(
            self,
            start=begin,
            segment=self.segment[:, :end],
            step=self.step[:, :end],
            step_starts=tuple(s for s in self.step_starts if begin <= s.position < end),
            reasoning_from=min(max(self.reasoning_from, begin), end),
            recent=None,
            acting=None if self.acting is None else self.acting[:, first:stop],
            _groups={},
        )

    def gated(
        self, acting: Bool[Tensor, "batch query"], is_acting: Callable[[int, int], bool]
    ) -> PassPosition:
        """The pass as an intervention sees it that acts at some of its queries alone.

        Args:
            acting: Where it does.
            is_acting: The same of a row and a position, known without asking the device.
        """
        return replace(
            self,
            acting=acting,
            step_starts=tuple(s for s in self.step_starts if is_acting(s.row, s.position)),
            _groups={},
        )

    def groups(
        self,
        keys: int,
        window: int | None,
        bridge: BridgeKeys,
        device: torch.device | None = None,
    ) -> Groups:
        """Split the visible keys of each query row (computed once for layers that agree).

        Args:
            keys: Number of keys in the layer's pattern: the last ones so far.
            window: Number of keys a query of the layer sees at most; None for all.
            bridge: "prompt": B is the whole question segment while thinking and the whole
                thinking segment while summarizing; "question": the same without frame tokens.
            device: Where they are needed; None for where the labels are.
        """
        at = (keys, window, bridge, device or self.segment.device)
        if at not in self._groups:
            found = None
            if self.recent is not None and (window is None or keys <= window):
                found = self.recent.of(self, keys, bridge)
            if found is None:
                found = split_keys(self.segment, self.step, self.start, keys, window, bridge)
            if self.acting is not None:
                found = found.where(self.acting)
            self._groups[at] = found.to(at[-1])
        return self._groups[at]


class Follower(ABC):
    """Whoever knows where the present forward pass stands: a `Tracker`, or one that is told.

    Attributes:
        forwards: Number of forward passes seen.
    """

    forwards: int

    @property
    @abstractmethod
    def position(self) -> PassPosition:
        """Where the current forward pass stands."""


@dataclass(frozen=True)
class EditPosition(PassPosition):
    """Where an edit stands: a forward pass, seen from one layer.

    Attributes:
        layer: The layer.
        layers: All layers that the intervention works on.
        window: Number of keys that a query of the layer sees at most; None for all.
        view: The model, for what it says of itself.
        seen: What this pass showed at the sites that the intervention reads.
        memory: Yours to keep from pass to pass, as long as the intervention is attached; shared by
            its layers. Rows come and go: keep what belongs to one under its `Row`.
        others: Fresh hooks of the StepFlow's other interventions, for a run that somebody else
            follows.
    """

    layer: int = 0
    layers: tuple[int, ...] = (0,)
    window: int | None = None
    view: ModelView = field(kw_only=True)
    seen: Mapping[Site, Tensor] = field(default_factory=dict)
    memory: dict[Any, Any] = field(default_factory=dict)
    others: Callable[[Follower], list[Hook]] = field(default=lambda follower: [])
