"""Step Momentum Injection: carry the last step's values into the first token of the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl.errors import SettingError
from stepflow_tl.interventions.base import Edited, Facts, Intervention
from stepflow_tl.interventions.position import EditPosition
from stepflow_tl.models.layers import LayerSpec
from stepflow_tl.models.sites import Site
from stepflow_tl.traces.rows import THINKING, Row, StepStart

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

    site: ClassVar[Site] = "z"
    reads: ClassVar[tuple[Site, ...]] = ("resid_pre", "v")
    columns: ClassVar[tuple[str, ...]] = ("injections", "injection_norm")
    fired: ClassVar[str] = "injections"

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

    def gamma(self, previous: tuple[int, int]) -> tuple[int, int]:
        """Half-open span of Gamma in the previous step's span."""
        start, stop = previous
        return (start, stop) if self.window == "step" else (max(start, stop - self.window), stop)

    def is_due(self, start: StepStart) -> bool:
        """Whether a step start receives momentum."""
        return self.boundaries == "all" or start.segment == THINKING

    def prepare(self, at: EditPosition) -> Facts:
        """Make room for the values of this pass; forget those that no coming step start needs."""
        passes: _RecentValues = at.memory.setdefault("passes", _RecentValues())
        needed = {
            row: self.gamma(span)[0] - pads
            for row, pads, span in zip(at.rows, at.pads, at.open_steps, strict=True)
            if span is not None
        }
        passes.begin(at, needed)
        return {}

    def edit(self, z: Float[Tensor, "batch pos head d_head"], at: EditPosition) -> Edited:
        """The heads' outputs, with momentum where a step starts."""
        passes: _RecentValues = at.memory["passes"]
        passes.read(at.layer, at.seen["v"])
        due = [start for start in at.step_starts if self.is_due(start)]
        if not due:
            return None, {}
        rows, queries = at.indices(due, z.device)
        spans = [
            (at.rows[start.row], self.gamma(start.previous), at.pads[start.row]) for start in due
        ]
        means = [
            passes.mean(at.layer, row, (first - pads, stop - pads))
            for row, (first, stop), pads in spans
        ]
        momentum = torch.stack(means).to(z.device)
        groups = z.shape[2] // momentum.shape[1]
        added = self.alpha * momentum.repeat_interleave(groups, dim=1)
        into = at.view.heads_to_residual(at.layer, added).float().norm(dim=-1)
        stream = at.seen["resid_pre"].to(z.device)[rows, queries].float().norm(dim=-1)
        return z.index_put((rows, queries), added.to(z.dtype), accumulate=True), {
            "injections": at.count(start.row for start in due),
            "injection_norm": (into / stream.clamp_min(1e-12)).sum().detach(),
        }


class _Pass(NamedTuple):
    """Values of one forward pass.

    Attributes:
        rows: Its rows.
        starts: Position of its first column in each of them; below 0 where that is padding.
        size: Number of columns.
        values: Those of each layer, [batch, pos, kv_head, d_head].
    """

    rows: tuple[Row, ...]
    starts: list[int]
    size: int
    values: dict[int, Tensor]


class _RecentValues:
    """Value vectors of the newest positions, pass by pass: what a coming step start may need.

    Positions are a row's own, since its padding changes where rows leave and join.
    """

    def __init__(self) -> None:
        self._passes: deque[_Pass] = deque()
        self._needed: dict[Row, int] = {}

    def begin(self, at: EditPosition, needed: Mapping[Row, int]) -> None:
        """A pass begins, after which values are needed from these positions on."""
        if at.start == 0:  # its rows are run anew
            again = [old for old in self._passes if set(old.rows) <= set(at.rows)]
            self._passes = deque(old for old in self._passes if old not in again)
        while self._passes and not self._is_needed(self._passes[0]):
            self._passes.popleft()
        others = {row: first for row, first in self._needed.items() if not row.finished}
        self._needed = {**others, **needed}
        starts = [at.start - pads for pads in at.pads]
        self._passes.append(_Pass(at.rows, starts, at.segment.shape[1] - at.start, {}))

    def read(self, layer: int, values: Float[Tensor, "batch pos kv_head d_head"]) -> None:
        """Take over what the present pass shows at a layer."""
        self._passes[-1].values[layer] = values

    def mean(self, layer: int, row: Row, span: tuple[int, int]) -> Float[Tensor, "kv_head d_head"]:
        """Mean value of a row over a span of its own positions, in float32."""
        first, stop = span
        parts = []
        for one in self._passes:
            if row in one.rows:
                number = one.rows.index(row)
                begin = one.starts[number]
                if begin < stop and first < begin + one.size:
                    parts.append(one.values[layer][number, max(0, first - begin) : stop - begin])
        return torch.cat(parts).float().mean(0)

    def _is_needed(self, old: _Pass) -> bool:
        """Whether a row that goes on may need a pass's values."""
        return any(
            row in self._needed and start + old.size > self._needed[row] and not row.finished
            for row, start in zip(old.rows, old.starts, strict=True)
        )
