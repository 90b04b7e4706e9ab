"""Planted failures: model organisms of Shallow Lock-in and Deep Decay, of known place and dose.

Each takes a share of a row's attention from some keys and gives it to others, so that a failure
stands where it was put and nowhere else. What diagnostics say of a model with one, and what a
repair brings back, can then be held against the truth. `OddsEqualBridge` moves mass the other way,
so that what it brings back of a planted shift is an undoing; see `PlantedNoise` for a failure that
no shift of mass inverts.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepflow_tl.errors import SettingError
from stepflow_tl.interventions.base import Edited, Intervention
from stepflow_tl.interventions.position import EditPosition
from stepflow_tl.models.layers import LayerSpec
from stepflow_tl.models.sites import Site
from stepflow_tl.traces.rows import QUESTION, SUMMARY, THINKING
from stepflow_tl.traces.tokens import FRAME

LockInSource = Literal["question", "earlier", "both"]

_LEAST_MASS = 1e-30  # below this keys count as having no mass


class Moved(NamedTuple):
    """A pattern of which a share was moved.

    Attributes:
        pattern: The new pattern, in the dtype it came in.
        changed: Rows that lost something.
        taken: Mass that they lost.
    """

    pattern: Float[Tensor, "batch head query key"]
    changed: Bool[Tensor, "batch head query"]
    taken: Float[Tensor, "batch head query"]


def move_attention(
    pattern: Float[Tensor, "batch head query key"],
    lose: Bool[Tensor, "batch query key"],
    gain: Bool[Tensor, "batch query key"],
    *,
    strength: float,
) -> Moved:
    """Take a share of each row's mass from some keys, and give it to others.

    With p(L) and p(G) the mass of a row on the keys that lose and that gain, and d the strength::

        q = p * (1 - d) on L,    q = p * (1 + d p(L) / p(G)) on G,    q = p elsewhere

    The row's mass, and ratios within each of the three sets, are kept. Computed in float32 or
    wider; rows left alone are bit-identical.

    Args:
        pattern: Attention after the softmax.
        lose: Keys that lose. Those that a row does not see have no mass, and do not matter.
        gain: Keys that gain, none of which loses.
        strength: Share that is taken, in [0, 1].

    Returns:
        The new pattern and per-row facts. A row without mass on L or on G is left alone.
    """
    rows = pattern if pattern.dtype == torch.float64 else pattern.float()
    members = torch.stack([lose, gain], dim=-1).to(rows)
    lost, gained = (rows.transpose(1, 2) @ members).transpose(1, 2).unbind(-1)
    changed = (lost > _LEAST_MASS) & (gained > _LEAST_MASS)
    taken = torch.where(changed, strength * lost, torch.zeros_like(lost))
    more = taken * _reciprocal(torch.where(changed, gained, torch.ones_like(gained)))
    less = (changed.to(rows) * strength)[..., None]
    factor = 1.0 - less * lose[:, None] + more[..., None] * gain[:, None]
    new = torch.where(changed[..., None], (rows * factor).to(pattern.dtype), pattern)
    return Moved(new, changed, taken)


def _reciprocal(mass: Tensor) -> Tensor:
    """1 / mass, through its logarithm: the gradient of a quotient overflows below 1e-19."""
    return (1.0 / mass.detach()) * torch.exp(mass.detach().log() - mass.log())


@dataclass(frozen=True, kw_only=True)
class _PlantedShift(Intervention):
    """A failure that moves attention from some keys to others.

    Attributes:
        strength: Share d that is taken, in [0, 1]; 0 is neutral.
        layers: The layers it is planted in.
    """

    site: ClassVar[Site] = "pattern"
    columns: ClassVar[tuple[str, ...]] = ("rows_seen", "rows_changed", "mass_taken")
    is_failure: ClassVar[bool] = True

    strength: float
    layers: LayerSpec

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: A setting is out of range.
        """
        super().__post_init__()
        if not 0.0 <= self.strength <= 1.0:
            raise SettingError(f"{self.name}: expected strength in [0, 1], got {self.strength}")

    @property
    def is_neutral(self) -> bool:
        """True for strength = 0."""
        return self.strength == 0.0

    @abstractmethod
    def keys(
        self, at: EditPosition, n_keys: int
    ) -> tuple[Bool[Tensor, "batch query key"], Bool[Tensor, "batch query key"]] | None:
        """Which keys lose and which gain in each row; None where nothing is to be done.

        Args:
            at: Where the pass stands.
            n_keys: Number of keys in the layer's pattern: the last ones so far.
        """

    def edit(self, pattern: Float[Tensor, "batch head query key"], at: EditPosition) -> Edited:
        """The layer's pattern, with the failure in it."""
        found = self.keys(at, pattern.shape[-1]) if at.reasoning else None
        if found is None:
            return None, {}
        lose, gain = (keys.to(pattern.device) for keys in found)
        moved = move_attention(pattern, lose, gain, strength=self.strength)
        seen = lose.any(-1)[:, None].expand_as(moved.changed)
        return moved.pattern, {
            "rows_seen": seen,
            "rows_changed": moved.changed,
            "mass_taken": moved.taken.detach(),
        }


@dataclass(frozen=True, kw_only=True)
class PlantedLockIn(_PlantedShift):
    """Shallow Lock-in made to order: thinking loses its share on what came before.

    Rows of the thinking lose a share of their attention on the question (frame tokens apart), on
    the earlier thinking steps but the neighbor, or on both, and give it to the rest of the current
    segment so far, as much more as each key had. See `move_attention` for the map.

    Attributes:
        strength: Share d that is taken, in [0, 1]; 0 is neutral.
        layers: The layers it is planted in. Default: the bottom quarter, of which the paper speaks.
        source: What loses: "question", "earlier" steps, or "both".
    """

    strength: float = 0.9
    layers: LayerSpec = "shallow"
    source: LockInSource = "question"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: A setting is out of range.
        """
        super().__post_init__()
        if self.source not in get_args(LockInSource):
            raise SettingError(
                f"PlantedLockIn: expected source in {list(get_args(LockInSource))}, got "
                f"{self.source!r}"
            )

    def keys(
        self, at: EditPosition, n_keys: int
    ) -> tuple[Bool[Tensor, "batch query key"], Bool[Tensor, "batch query key"]]:
        """The question, or earlier steps, lose; the rest of the thinking so far gains."""
        thinks = (at.query_segment == THINKING)[..., None]
        segment, step = _of_keys(at, n_keys)
        own = at.step[:, at.start :, None]
        thinking = segment == THINKING
        lose = torch.zeros_like(thinks & thinking)
        if self.source != "earlier":
            lose = lose | ((segment == QUESTION) & (step != FRAME))
        if self.source != "question":
            lose = lose | (thinking & (step != FRAME) & (step < own - 1))
        return thinks & lose, thinks & thinking & ~lose


@dataclass(frozen=True, kw_only=True)
class PlantedDecay(_PlantedShift):
    """Deep Decay made to order: the summary loses its share on all but the last thinking steps.

    Rows of the summary lose a share of their attention on thinking steps, but for the last few,
    and give it to these and to the summary so far. See `move_attention` for the map.

    Attributes:
        strength: Share d that is taken, in [0, 1]; 0 is neutral.
        layers: The layers it is planted in. Default: the top quarter, of which the paper speaks.
        beyond: Number of last thinking steps that keep what they have.
    """

    strength: float = 0.9
    layers: LayerSpec = "deep"
    beyond: int = 1

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: A setting is out of range.
        """
        super().__post_init__()
        if not (isinstance(self.beyond, int) and self.beyond >= 0):
            raise SettingError(f"PlantedDecay: expected beyond >= 0 steps, got {self.beyond!r}")

    def keys(
        self, at: EditPosition, n_keys: int
    ) -> tuple[Bool[Tensor, "batch query key"], Bool[Tensor, "batch query key"]]:
        """Earlier thinking steps lose; the last of them and the summary so far gain."""
        summarizes = (at.query_segment == SUMMARY)[..., None]
        segment, step = _of_keys(at, n_keys)
        in_step = (segment == THINKING) & (step != FRAME)
        last = torch.where(in_step, step, FRAME).amax(-1, keepdim=True)
        late = step > last - self.beyond
        return summarizes & in_step & ~late, summarizes & ((segment == SUMMARY) | (in_step & late))


@dataclass(frozen=True, kw_only=True)
class PlantedForgetting(_PlantedShift):
    """The step before is forgotten: what Step Momentum Injection is described for.

    The row of a thinking step's first token loses a share of its attention on the previous step,
    and gives it to all other keys that it sees. At strength 1 the previous step is hidden from it.
    See `move_attention` for the map.

    Attributes:
        strength: Share d that is taken, in [0, 1]; 0 is neutral.
        layers: The layers it is planted in.
    """

    strength: float = 1.0
    layers: LayerSpec = "all"

    def keys(
        self, at: EditPosition, n_keys: int
    ) -> tuple[Bool[Tensor, "batch query key"], Bool[Tensor, "batch query key"]] | None:
        """The previous step loses, all other keys gain; None where no step starts."""
        due = [start for start in at.step_starts if start.segment == THINKING]
        if not due:
            return None
        total = at.segment.shape[1]
        lose = torch.zeros(len(at.segment), total - at.start, n_keys, dtype=torch.bool)
        gain = lose.clone()
        for start in due:
            row, query = start.row, start.position - at.start
            first, stop = (max(0, end - (total - n_keys)) for end in start.previous)
            gain[row, query] = True
            gain[row, query, first:stop] = False
            lose[row, query, first:stop] = True
        return lose, gain


def _of_keys(at: EditPosition, n_keys: int) -> tuple[Tensor, Tensor]:
    """Segment and step of each key of a pattern, [batch, 1, key]."""
    first = at.segment.shape[1] - n_keys
    return at.segment[:, None, first:], at.step[:, None, first:]
