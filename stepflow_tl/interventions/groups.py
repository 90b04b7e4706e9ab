"""How the keys of a query row split for the Odds-Equal Bridge: bridge, current segment, others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepflow_tl.traces.rows import PADDING, THINKING, Row
from stepflow_tl.traces.tokens import FRAME

BridgeKeys = Literal["prompt", "question"]

_NOWHERE = -9  # no segment's number, nor one more than one's
_ROOM = 256  # columns


@dataclass(frozen=True)
class Groups:
    """The keys of each query row, split for the Odds-Equal Bridge.

    Attributes:
        members: For each key, 1 in its group's place and 0 elsewhere: the visible keys of the
            bridge B; those of the current segment so far, S; all others.
    """

    members: Float[Tensor, "batch query key 3"]

    @classmethod
    def of(cls, bridge: Bool[Tensor, "batch query key"], current: Tensor) -> Groups:
        """Groups of the keys of B and of S [batch, query, key], which share none."""
        return cls(torch.stack([bridge, current, ~(bridge | current)], dim=-1).float())

    @property
    def bridge(self) -> Bool[Tensor, "batch query key"]:
        """Visible keys of the bridge B."""
        return self.members[..., 0].bool()

    @property
    def current(self) -> Bool[Tensor, "batch query key"]:
        """Visible keys of the current segment so far, S."""
        return self.members[..., 1].bool()

    @property
    def bridge_size(self) -> Float[Tensor, "batch query"]:
        """|B|, the number of visible bridge keys."""
        return self.sizes[..., 0]

    @property
    def current_size(self) -> Float[Tensor, "batch query"]:
        """|S|, the number of visible keys of the current segment."""
        return self.sizes[..., 1]

    @cached_property
    def sizes(self) -> Float[Tensor, "batch query 3"]:
        """Number of keys of each group."""
        return self.members.sum(-2)

    @cached_property
    def seen(self) -> Bool[Tensor, "batch 1 query"]:
        """Rows of thinking and summary: those that have an S."""
        return (self.current_size > 0)[:, None]

    @cached_property
    def even_share(self) -> Float[Tensor, "batch query 1"]:
        """sqrt(|B| / (|B| + |S|)), paper Eq. (6) without its bound; 0 where both are empty."""
        size = self.bridge_size + self.current_size
        return (self.bridge_size / size.clamp_min(1.0)).sqrt()[..., None]

    def where(self, acting: Bool[Tensor, "batch query"]) -> Groups:
        """The same for some rows; all others have neither B nor S."""
        others = self.members.new_tensor([0.0, 0.0, 1.0])
        return Groups(
            torch.where(acting.to(self.members.device)[..., None, None], self.members, others)
        )

    def to(self, device: torch.device) -> Groups:
        """The same on another device."""
        return self if self.members.device == device else Groups(self.members.to(device))


def split_keys(
    segment: Int[Tensor, "batch pos"],
    step: Int[Tensor, "batch pos"],
    start: int,
    keys: int,
    window: int | None,
    bridge: BridgeKeys,
) -> Groups:
    """Split the visible keys of each query from `start` on.

    Args:
        segment: Segment of every position so far.
        step: Step of every position so far.
        start: Position of the first query.
        keys: Number of keys in the layer's pattern: the last ones so far.
        window: Number of keys a query of the layer sees at most; None for all.
        bridge: "prompt": B is the whole segment before, "question": without its frame tokens.
    """
    total = segment.shape[1]
    own = segment[:, start:, None]
    own = torch.where(own >= THINKING, own, _NOWHERE)
    of_key = segment[:, None, total - keys :]
    on_bridge, on_current = of_key == own - 1, of_key == own
    if bridge == "question":
        on_bridge = on_bridge & (step[:, None, total - keys :] != FRAME)
    if own.shape[1] > 1 or (window is not None and keys > window):  # else all keys are visible
        position = torch.arange(total, device=segment.device)
        query, key = position[start:, None], position[None, total - keys :]
        visible = key <= query
        if window is not None:
            visible = visible & (key > query - window)
        on_bridge, on_current = on_bridge & visible, on_current & visible
    return Groups.of(on_bridge, on_current)


@runtime_checkable
class Pass(Protocol):
    """What is asked of a forward pass: see `stepflow_tl.interventions.position.PassPosition`."""

    @property
    def start(self) -> int:
        """Position of its first query."""

    @property
    def segment(self) -> Int[Tensor, "batch pos"]:
        """Segment of every position so far."""

    @property
    def step(self) -> Int[Tensor, "batch pos"]:
        """Step of every position so far."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """The sequences of the batch."""

    @property
    def pads(self) -> tuple[int, ...]:
        """Number of padding columns of each."""


class RecentGroups:
    """Groups of passes of one query each: what one token adds is written beside what was there.

    While a row stays in its segment, its groups grow by the token's own key in S alone.
    """

    def __init__(self) -> None:
        self._held: dict[BridgeKeys, _Growing] = {}

    def forget(self) -> None:
        """Labels that were read before have changed."""
        self._held.clear()

    def of(self, at: Pass, keys: int, bridge: BridgeKeys) -> Groups | None:
        """The groups of a pass, of its last keys; None where it has more than one query."""
        stop = at.start + 1
        if at.segment.shape[1] != stop:
            return None
        own = [
            row.segments[at.start - pads] if at.start >= pads else PADDING
            for row, pads in zip(at.rows, at.pads, strict=True)
        ]
        held = self._held.get(bridge)
        if held is None or not held.goes_on(at, own):
            whole = split_keys(at.segment, at.step, at.start, stop, None, bridge)
            held = self._held[bridge] = _Growing(at, own, whole.members)
        elif held.length < stop:
            held.grow()
        return held.groups(keys)


class _Growing:
    """Members [batch, 1, pos, 3] with room for more positions."""

    def __init__(self, at: Pass, own: Sequence[int], members: Tensor) -> None:
        self.length = members.shape[2]
        self._rows, self._pads, self._own = at.rows, at.pads, list(own)
        batch = members.shape[0]
        with torch.inference_mode(False):
            self._room = members.new_zeros(batch, 1, self.length + _ROOM, 3)
            self._room[:, :, : self.length] = members
            new = torch.tensor([[0.0, 1.0, 0.0] if s >= THINKING else [0.0, 0.0, 1.0] for s in own])
            self._new = new[:, None].to(members)
            self._sizes = members.sum(-2)

    def goes_on(self, at: Pass, own: Sequence[int]) -> bool:
        """Whether a pass is the one that is held, or the next of the same rows and segments."""
        return (
            at.rows is self._rows
            and at.pads == self._pads
            and at.start + 1 in (self.length, self.length + 1)
            and own == self._own
            and self.length < self._room.shape[2]
        )

    def grow(self) -> None:
        """One position more, in every row of the segment that the row stands in."""
        self._room[:, :, self.length] = self._new
        self._sizes = self._sizes + self._new
        self.length += 1

    def groups(self, keys: int) -> Groups:
        """The groups of the last keys."""
        found = Groups(self._room[:, :, self.length - keys : self.length])
        if keys == self.length:
            vars(found)["sizes"] = self._sizes  # not to be counted again
        return found
