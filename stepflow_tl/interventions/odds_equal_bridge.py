"""Odds-Equal Bridge: give shallow attention a floor of mass on the segment before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from stepflow_tl.errors import SettingError
from stepflow_tl.interventions.base import Edited, Intervention
from stepflow_tl.interventions.groups import BridgeKeys, Groups
from stepflow_tl.interventions.ledger import Later
from stepflow_tl.interventions.position import EditPosition
from stepflow_tl.models.layers import LayerSpec
from stepflow_tl.models.sites import Site

Infeasible = Literal["clamp", "scale", "skip"]

_CLAMP_MARGIN = 1e-6  # share that the authors' code leaves to S
_SMALLEST = {torch.float32: 1.4e-45, torch.float64: 5e-324}  # above 0
_LEAST_MASS = 1e-30  # below this a group counts as having no mass


class Rebalanced(NamedTuple):
    """A pattern after the bridge, and what was done to its rows.

    Attributes:
        pattern: The new pattern, in the dtype it came in.
        changed: Rows whose bridge mass was raised.
        infeasible: Rows whose target exceeds what S and B hold together.
        before: Share of the row's real-key mass on the bridge.
        after: The same in the new pattern.
    """

    pattern: Float[Tensor, "batch head query key"]
    changed: Bool[Tensor, "batch head query"]
    infeasible: Bool[Tensor, "batch head query"]
    before: Float[Tensor, "batch head query"]
    after: Float[Tensor, "batch head query"]


def equalize_odds(
    pattern: Float[Tensor, "batch head query key"],
    groups: Groups,
    *,
    tau_max: float,
    infeasible: Infeasible = "clamp",
) -> Rebalanced:
    """Raise the bridge's share of each row to its target, at the current segment's cost.

    With p(g) the share of group g in the row's mass over real keys (so that an attention sink
    keeps its share), and only where p(B) < tau_B::

        tau_B = min(sqrt(|B| / (|B| + |S|)), tau_max)              paper Eq. (6)
        q = p * tau_B / p(B) on B,  p * (p(S) + p(B) - tau_B) / p(S) on S,  p elsewhere

    which is the row closest to p in KL divergence with that share on B (Eqs. 7, 8: a shift of the
    group's logits by lambda_B, lambda_S). Computed in float32 or wider; rows left alone are
    bit-identical.

    Args:
        pattern: Attention after the softmax.
        groups: Which keys are B and S for each row, and how many.
        tau_max: The paper's tau_max, in [0, 1].
        infeasible: What to do where tau_B exceeds p(S) + p(B): "clamp" to it less 1e-6 (the
            authors' code), "scale" to tau_B * (p(S) + p(B)), or "skip" the row.

    Returns:
        The new pattern and per-row facts. A row without mass on B or on S is left alone.
    """
    new, shares = _equalized(pattern, groups, tau_max, infeasible)
    facts = _facts(*shares)
    columns = ("rows_changed", "rows_infeasible", "bridge_mass_before", "bridge_mass_after")
    return Rebalanced(new, *(facts[column].transpose(1, 2) for column in columns))


class _Shares(NamedTuple):
    """What rows of attention hold, and what of it goes to B; leading dimensions may be more.

    Attributes:
        mass: Shares of B, S and the others, before.
        changed: Rows whose bridge mass is raised.
        target: To what.
        tau: The target tau_B.
        current_size: |S|.
    """

    mass: Float[Tensor, "batch query head 3"]
    changed: Bool[Tensor, "batch query head"]
    target: Float[Tensor, "batch query head"]
    tau: Float[Tensor, "batch query 1"]
    current_size: Float[Tensor, "batch query"]


def _equalized(
    pattern: Float[Tensor, "batch head query key"],
    groups: Groups,
    tau_max: float,
    infeasible: Infeasible,
) -> tuple[Float[Tensor, "batch head query key"], _Shares]:
    """The new pattern, and what its rows hold; in few operations, since each token runs them."""
    rows = pattern if pattern.dtype == torch.float64 else pattern.float()
    members = groups.members.to(rows.dtype)
    mass = rows.transpose(1, 2) @ members
    mass = mass / mass.sum(-1, keepdim=True).clamp_min(_LEAST_MASS)
    on_bridge, on_current, others = mass.unbind(-1)
    tau = groups.even_share.to(rows.dtype).clamp_max(tau_max)
    available = on_bridge + on_current
    if infeasible == "clamp":
        target = torch.minimum(tau, available - _CLAMP_MARGIN)
    elif infeasible == "scale":
        target = torch.where(tau > available, tau * available, tau)
    else:
        target = torch.where(tau > available, on_bridge, tau)
    # Never above tau; never from an empty S, since no target then exceeds what B has.
    changed = (target > on_bridge) & (on_bridge > _LEAST_MASS)
    if mass.requires_grad:
        ratios = _safe_ratios(mass, target, available, changed)
    else:
        new = torch.stack([target, available - target, others], dim=-1)
        new = torch.where(changed[..., None], new, mass)
        ratios = new / mass.clamp_min(_SMALLEST[mass.dtype])
    factor = (ratios @ members.mT).transpose(1, 2)
    shares = _Shares(mass.detach(), changed, target.detach(), tau, groups.current_size)
    return (rows * factor).to(pattern.dtype), shares


def _safe_ratios(mass: Tensor, target: Tensor, available: Tensor, changed: Tensor) -> Tensor:
    """By what each group's keys are multiplied, with finite gradients."""
    new = torch.stack([target, available - target], dim=-1)
    where = changed[..., None]
    new, old = torch.where(where, new, 1.0), torch.where(where, mass[..., :2], 1.0)
    share = new / old.detach()  # through log(old): the gradient of 1 / old overflows below 1e-19
    return pad(share * torch.exp(old.detach().log() - old.log()), (0, 1), value=1.0)


def _facts(
    mass: Tensor, changed: Tensor, target: Tensor, tau: Tensor, current_size: Tensor
) -> dict[str, Tensor]:
    """What the ledger is told, of each head: of one pass, or of several at once."""
    before, on_current, _ = mass.unbind(-1)
    both = torch.minimum(before, on_current) > _LEAST_MASS
    return {
        "rows_seen": (current_size > 0)[..., None].expand_as(before),
        "rows_changed": changed,
        "rows_infeasible": both & (tau > before + on_current),
        "bridge_mass_before": before,  # 0 in rows that are not seen
        "bridge_mass_after": torch.where(changed, target, before),
    }


@dataclass(frozen=True, kw_only=True)
class OddsEqualBridge(Intervention):
    """Odds-Equal Bridge (OEB, paper section 4.1), on ``hook_pattern`` of shallow layers.

    While thinking the bridge B is the question, while summarizing it is the thinking; S is the
    current segment so far. See `equalize_odds` for the map.

    Attributes:
        tau_max: Upper bound of the target share tau_B (paper: tau_max), in [0, 1]; 0 is neutral.
        layers: Default: the bottom quarter.
        keys: The bridge. "prompt": B includes the frame (chat template, first token, delimiters),
            as in the authors' code; "question": without it, because the first token is often an
            attention sink that hides lock-in.
        infeasible: What to do where the target exceeds p(S) + p(B).
    """

    site: ClassVar[Site] = "pattern"
    columns: ClassVar[tuple[str, ...]] = (
        "rows_seen",
        "rows_changed",
        "rows_infeasible",
        "bridge_mass_before",
        "bridge_mass_after",
    )

    tau_max: float = 0.15
    layers: LayerSpec = "shallow"
    keys: BridgeKeys = "prompt"
    infeasible: Infeasible = "clamp"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: A setting is out of range.
        """
        super().__post_init__()
        if not 0.0 <= self.tau_max <= 1.0:
            raise SettingError(f"OddsEqualBridge: expected tau_max in [0, 1], got {self.tau_max}")
        for value, choices in ((self.keys, BridgeKeys), (self.infeasible, Infeasible)):
            if value not in get_args(choices):
                raise SettingError(
                    f"OddsEqualBridge: expected one of {list(get_args(choices))}, got {value!r}"
                )

    @property
    def is_neutral(self) -> bool:
        """True for tau_max = 0."""
        return self.tau_max == 0.0

    def edit(self, pattern: Float[Tensor, "batch head query key"], at: EditPosition) -> Edited:
        """The layer's pattern, equalized."""
        if not at.reasoning:
            return None, {}
        groups = at.groups(pattern.shape[-1], at.window, self.keys, pattern.device)
        new, shares = _equalized(pattern, groups, self.tau_max, self.infeasible)
        return new, Later(_facts, *shares)
