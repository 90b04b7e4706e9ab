"""Where one forward pass stands, and how its keys split for the Odds-Equal Bridge.

Positions count padding: position p is column p of the left-padded batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepflow_tl.traces.reader import FRAME
from stepflow_tl.traces.rows import THINKING, StepStart

Bridge = Literal["prompt", "question"]

_NOWHERE = -9  # no segment's number, nor one more than one's


class Groups(NamedTuple):
    """The keys of each query row, split for the Odds-Equal Bridge.

    Attributes:
        bridge: Visible keys of the bridge B.
        current: Visible keys of the current segment so far, S.
        bridge_size: |B|, the number of visible bridge keys.
        current_size: |S|, the number of visible keys of the current segment.
    """

    bridge: Bool[Tensor, "batch query key"]
    current: Bool[Tensor, "batch query key"]
    bridge_size: Float[Tensor, "batch query"]
    current_size: Float[Tensor, "batch query"]


@dataclass(frozen=True)
class Here:
    """Where one forward pass stands.

    Attributes:
        start: Position of its first query.
        segment: Segment of every position so far; `PADDING` for padding.
        step: Step of every position so far; `FRAME` for none.
        step_starts: Steps that begin at this pass's queries.
        open_steps: Span of each row's last step so far; None before the first, and after the end.
        reasoning_from: Position of the first query that lies in thinking or summary in any row;
            the number of positions so far where none does.
    """

    start: int
    segment: Int[Tensor, "batch pos"]
    step: Int[Tensor, "batch pos"]
    step_starts: tuple[StepStart, ...]
    open_steps: tuple[tuple[int, int] | None, ...]
    reasoning_from: int
    _groups: dict[tuple[int, int | None, Bridge, torch.device], Groups] = field(
        default_factory=dict, repr=False
    )

    @property
    def reasoning(self) -> bool:
        """Whether any query of this pass lies in thinking or summary."""
        return self.reasoning_from < self.segment.shape[1]

    def part(self, first: int, stop: int) -> Here:
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
            _groups={},
        )

    def groups(
        self,
        keys: int,
        window: int | None,
        bridge: Bridge,
        device: torch.device | None = None,
    ) -> Groups:
        """Split the visible keys of each query row (computed once for layers that agree).

        Args:
            keys: Number of keys in the layer's pattern: the last ones so far.
            window: Number of keys a query of the layer sees at most; None for all.
            bridge: "prompt": B is the whole question segment while thinking and the whole
                thinking segment while summarising; "question": the same without frame tokens.
            device: Where they are needed; None for where the labels are.
        """
        at = (keys, window, bridge, device or self.segment.device)
        if at not in self._groups:
            split = self._split(keys, window, bridge)
            self._groups[at] = Groups(*(part.to(at[-1]) for part in split))
        return self._groups[at]

    def _split(self, keys: int, window: int | None, bridge: Bridge) -> Groups:
        total = self.segment.shape[1]
        own = self.segment[:, self.start :, None]
        own = torch.where(own >= THINKING, own, _NOWHERE)
        of_key = self.segment[:, None, total - keys :]
        on_bridge, on_current = of_key == own - 1, of_key == own
        if bridge == "question":
            on_bridge = on_bridge & (self.step[:, None, total - keys :] != FRAME)
        if own.shape[1] > 1 or (window is not None and keys > window):  # else all keys are visible
            position = torch.arange(total, device=self.segment.device)
            query, key = position[self.start :, None], position[None, total - keys :]
            visible = key <= query
            if window is not None:
                visible = visible & (key > query - window)
            on_bridge, on_current = on_bridge & visible, on_current & visible
        return Groups(on_bridge, on_current, on_bridge.sum(-1).float(), on_current.sum(-1).float())
