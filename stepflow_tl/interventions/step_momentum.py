"""Step Momentum Injection: carry the last step's values into the first token of the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl.errors import SettingError
from stepflow_tl.interventions.base import Hook, Intervention
from stepflow_tl.interventions.ledger import Ledger
from stepflow_tl.interventions.tracker import Tracker
from stepflow_tl.models.layers import LayerSpec
from stepflow_tl.models.view import heads_to_residual, hook_name
from stepflow_tl.traces.rows import THINKING, StepStart, places

Boundaries = Literal["thinking", "all"]


@dataclass(frozen=True, kw_only=True)
class StepMomentum(Intervention):
    """Step Momentum Injection (SMI, paper section 4.2), on ``hook_v`` and ``hook_z``.

    At the first token t of a new step, in every head::

        m_prev = mean_{k in Gamma} v_k,    z'_t = z_t + alpha * m_prev            paper Eq. (9)

    with Gamma the last tokens of the previous step. Adding it to the heads' outputs before W_O is
    the same as adding W_O m_prev to the residual stream. Gradients do not flow through m_prev.

    Attributes:
        alpha: Strength (paper: alpha); 0 is neutral.
        layers: Default: the top quarter. The authors' code injects one layer only: `layers=[k]`.
        window: Number of tokens in Gamma, or "step" for the whole previous step.
        boundaries: "thinking": between steps of the thinking; "all": also from the thinking to
            the summary and between steps of the summary.
    """

    columns: ClassVar[tuple[str, ...]] = ("injections", "injection_norm")

    alpha: float = 0.06
    layers: LayerSpec = "deep"
    window: int | Literal["step"] = 4
    boundaries: Boundaries = "thinking"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: A setting is out of range.
        """
        super().__post_init__()
        if not abs(self.alpha) < float("inf"):
            raise SettingError(f"StepMomentum: expected a finite alpha, got {self.alpha}")
        if self.window != "step" and not (isinstance(self.window, int) and self.window >= 1):
            raise SettingError(
                f"StepMomentum: expected window to be a number of tokens >= 1 or 'step', "
                f"got {self.window!r}"
            )
        if self.boundaries not in get_args(Boundaries):
            raise SettingError(
                f"StepMomentum: expected boundaries in {list(get_args(Boundaries))}, "
                f"got {self.boundaries!r}"
            )

    @property
    def is_neutral(self) -> bool:
        """True for alpha = 0."""
        return self.alpha == 0.0

    @property
    def fired(self) -> str:
        """Injections."""
        return "injections"

    def gamma(self, previous: tuple[int, int]) -> tuple[int, int]:
        """Half-open span of Gamma in the previous step's span."""
        start, stop = previous
        return (start, stop) if self.window == "step" else (max(start, stop - self.window), stop)

    def is_due(self, start: StepStart) -> bool:
        """Whether a step start receives momentum."""
        return self.boundaries == "all" or start.segment == THINKING

    def layer_hooks(
        self, model: Any, layer: int, tracker: Tracker, ledger: Ledger, name: str
    ) -> list[Hook]:
        """Hooks that remember values, and inject their mean where a step starts."""
        values = _RecentValues()

        def remember_values(v: Float[Tensor, "batch pos kv_head d_head"], hook: Any) -> None:
            values.new = v.detach()

        def remember_residual(resid: Float[Tensor, "batch pos d_model"], hook: Any) -> None:
            values.residual = resid.detach()

        def inject(
            z: Float[Tensor, "batch pos head d_head"], hook: Any
        ) -> Float[Tensor, "batch pos head d_head"] | None:
            here = tracker.here
            values.extend(here.start)
            due = [start for start in here.step_starts if self.is_due(start)]
            result = None
            if due:
                rows, queries = places(due, here.start, z.device)
                momentum = torch.stack(
                    [values.mean(s.row, self.gamma(s.previous)) for s in due]
                ).to(z.device)
                groups = z.shape[2] // momentum.shape[1]
                added = self.alpha * momentum.repeat_interleave(groups, dim=1)
                result = z.index_put((rows, queries), added.to(z.dtype), accumulate=True)
                into = heads_to_residual(model, layer, added).float().norm(dim=-1)
                stream = values.residual.to(z.device)[rows, queries].float().norm(dim=-1)
                ledger.add(
                    name,
                    layer,
                    injections=len(due),
                    injection_norm=(into / stream.clamp_min(1e-12)).sum().detach(),
                )
            last = [span for span in here.open_steps if span is not None]
            values.forget_before(
                min((self.gamma(span)[0] for span in last), default=here.segment.shape[1])
            )
            return result

        return [
            (hook_name("resid_pre", layer), remember_residual),
            (hook_name("v", layer), remember_values),
            (hook_name("z", layer), inject),
        ]


class _RecentValues:
    """Value vectors of the newest positions: what a coming step start may need."""

    new: Float[Tensor, "batch pos kv_head d_head"]
    residual: Float[Tensor, "batch pos d_model"]

    def __init__(self) -> None:
        self._kept: Tensor | None = None
        self._first = 0

    def extend(self, start: int) -> None:
        """Join the new values, whose first position is `start`."""
        if start == 0 or self._kept is None:
            self._kept, self._first = self.new, start
        else:
            self._kept = torch.cat([self._kept, self.new], dim=1)

    def mean(self, row: int, span: tuple[int, int]) -> Float[Tensor, "kv_head d_head"]:
        """Mean value over a span of positions, in float32."""
        assert self._kept is not None
        return self._kept[row, span[0] - self._first : span[1] - self._first].float().mean(0)

    def forget_before(self, position: int) -> None:
        """Drop positions before the given one."""
        if self._kept is not None and position > self._first:
            self._kept = self._kept[:, position - self._first :]
            self._first = position
