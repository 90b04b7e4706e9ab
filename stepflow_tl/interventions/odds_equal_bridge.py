"""Odds-Equal Bridge: give shallow attention a floor of mass on the segment before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepflow_tl.errors import SettingError
from stepflow_tl.interventions.base import Edited, Intervention
from stepflow_tl.interventions.position import BridgeKeys, EditPosition, Groups
from stepflow_tl.models.layers import LayerSpec
from stepflow_tl.models.sites import Site

Infeasible = Literal["clamp", "scale", "skip"]

_CLAMP_MARGIN = 1e-6  # share that the authors' code leaves to S
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
    rows = pattern if pattern.dtype == torch.float64 else pattern.float()
    bridge, current = groups.bridge[:, None], groups.current[:, None]
    total = rows.sum(-1).clamp_min(_LEAST_MASS)
    on_bridge = (rows * bridge).sum(-1) / total
    on_current = (rows * current).sum(-1) / total
    size = groups.bridge_size + groups.current_size
    tau = (groups.bridge_size / size.clamp_min(1.0)).to(rows).sqrt().clamp_max(tau_max)[:, None]

    available = on_bridge + on_current
    due = (on_bridge < tau) & (on_bridge > _LEAST_MASS) & (on_current > _LEAST_MASS)
    too_much = due & (tau > available)
    if infeasible == "clamp":
        target = torch.minimum(tau.expand_as(available), available - _CLAMP_MARGIN)
    else:
        target = torch.where(too_much, tau * available, tau.expand_as(available))
    changed = due & (target > on_bridge)
    if infeasible == "skip":
        changed = changed & ~too_much

    def ratio(new: Tensor, old: Tensor) -> Tensor:  # 1, with a finite gradient, where unchanged
        new, old = torch.where(changed, new, 1.0), torch.where(changed, old, 1.0)
        share = new / old.detach()
        if old.requires_grad:  # through log(old): the gradient of 1 / old overflows below 1e-19
            share = share * torch.exp(old.detach().log() - old.log())
        return share[..., None]

    on_b, on_s = ratio(target, on_bridge), ratio(available - target, on_current)
    factor = torch.where(bridge, on_b, torch.where(current, on_s, 1.0))
    return Rebalanced(
        pattern=(rows * factor).to(pattern.dtype),
        changed=changed,
        infeasible=too_much,
        before=on_bridge,
        after=torch.where(changed, target, on_bridge),
    )


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
        result = equalize_odds(pattern, groups, tau_max=self.tau_max, infeasible=self.infeasible)
        seen = (groups.current_size > 0)[:, None].expand_as(result.before)
        return result.pattern, {
            "rows_seen": seen.sum(),
            "rows_changed": result.changed.sum(),
            "rows_infeasible": result.infeasible.sum(),
            "bridge_mass_before": (result.before * seen).sum().detach(),
            "bridge_mass_after": (result.after * seen).sum().detach(),
        }
