"""Uniform-prior bridge: flatten shallow attention a little, toward all keys alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepflow_tl.errors import SettingError
from stepflow_tl.interventions.base import Edited, Intervention
from stepflow_tl.interventions.position import EditPosition
from stepflow_tl.models.layers import LayerSpec
from stepflow_tl.models.sites import Site
from stepflow_tl.traces.rows import THINKING

_LEAST = 1e-30  # below this a key counts as having no probability


class Flattened(NamedTuple):
    """A pattern after the penalty, and its rows' entropies.

    Attributes:
        pattern: The new pattern, in the dtype it came in.
        changed: Rows that were flattened: those asked for that see at least two keys.
        before: Entropy of the row's distribution over real keys, in nats.
        after: The same in the new pattern.
    """

    pattern: Float[Tensor, "batch head query key"]
    changed: Bool[Tensor, "batch head query"]
    before: Float[Tensor, "batch head query"]
    after: Float[Tensor, "batch head query"]


def toward_uniform(
    pattern: Float[Tensor, "batch head query key"],
    rows: Bool[Tensor, "batch query"],
    *,
    strength: float,
) -> Flattened:
    """Penalise each row's divergence from the uniform distribution u over the keys it sees.

    ::

        q = argmin_q KL(q || p) + strength * KL(q || u),    q ~ p^(1 / (1 + strength))

    A key is seen where its probability is positive: causal and window masks and padding leave
    exactly zero, which stays zero. q takes the place of p's mass over real keys, so that an
    attention sink keeps its share. Computed from logarithms, in float32 or wider; rows left alone
    are bit-identical.

    Args:
        pattern: Attention after the softmax.
        rows: Rows to flatten.
        strength: Weight of the penalty; 0 gives p back.

    Returns:
        The new pattern and per-row facts. A row with fewer than two seen keys is left alone.
    """
    exact = pattern if pattern.dtype == torch.float64 else pattern.float()
    seen = exact > _LEAST
    changed = rows[:, None] & (seen.sum(-1) > 1)
    log_p = torch.where(seen, exact, torch.ones_like(exact)).log()

    def normalized(scores: Tensor) -> tuple[Tensor, Tensor]:
        """Distribution over the seen keys, uniform in rows that see none, and its entropy."""
        masked = scores.masked_fill(~seen & seen.any(-1, keepdim=True), -torch.inf)
        log_q = masked.log_softmax(-1)
        q = log_q.exp()
        return q, -(q * torch.where(seen, log_q, torch.zeros_like(log_q))).sum(-1)

    _, before = normalized(log_p)
    q, after = normalized(log_p / (1.0 + strength))
    mass = torch.where(seen, exact, torch.zeros_like(exact)).sum(-1, keepdim=True)
    flat = torch.where(changed[..., None] & seen, q * mass, exact)
    return Flattened(
        pattern=flat.to(pattern.dtype),
        changed=changed,
        before=before,
        after=torch.where(changed, after, before),
    )


@dataclass(frozen=True, kw_only=True)
class UniformPriorBridge(Intervention):
    """A KL penalty to a uniform prior (the digest's variant of OEB), on ``hook_pattern``.

    It works on the rows of thinking and summary, as `OddsEqualBridge` does, but knows no bridge:
    all keys gain that had less than the row's share. See `toward_uniform` for the map.

    Attributes:
        strength: Weight of the penalty (the digest's lambda), >= 0; 0 is neutral. The digest
            names no value; the default is ours.
        layers: Default: the first 15% (the digest), at least one layer.
    """

    site: ClassVar[Site] = "pattern"
    columns: ClassVar[tuple[str, ...]] = (
        "rows_seen",
        "rows_changed",
        "entropy_before",
        "entropy_after",
    )

    strength: float = 0.1
    layers: LayerSpec = 0.15

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: A setting is out of range.
        """
        super().__post_init__()
        if not 0.0 <= self.strength < float("inf"):
            raise SettingError(
                f"UniformPriorBridge: expected a finite strength >= 0, got {self.strength}"
            )

    @property
    def is_neutral(self) -> bool:
        """True for strength = 0."""
        return self.strength == 0.0

    def edit(self, pattern: Float[Tensor, "batch head query key"], at: EditPosition) -> Edited:
        """The layer's pattern, flattened."""
        if not at.reasoning:
            return None, {}
        rows = (at.query_segment >= THINKING).to(pattern.device)
        result = toward_uniform(pattern, rows, strength=self.strength)
        seen = rows[:, None].expand_as(result.before)
        return result.pattern, {
            "rows_seen": seen,
            "rows_changed": result.changed,
            "entropy_before": result.before.detach() * seen,
            "entropy_after": result.after.detach() * seen,
        }
