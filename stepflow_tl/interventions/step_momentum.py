"""Step Momentum Injection: carry the last step's values into the first token of the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl.errors import SettingError
from stepflow_tl.interventions.base import Edited, Intervention
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

    def edit(self, z: Float[Tensor, "batch pos head d_head"], at: EditPosition) -> Edited:
        """The heads' outputs, with momentum where a step starts."""
        values: _RecentValues = at.memory.setdefault(at.layer, _RecentValues())
        values.read(at)
        due = [start for start in at.step_starts if self.is_due(start)]
        result: Edited = None, {}
        if due:
            rows, queries = at.indices(due, z.device)
            spans = [(at.rows[start.row], self.gamma(start.previous)) for start in due]
            momentum = torch.stack([values.mean(row, span) for row, span in spans]).to(z.device)
            groups = z.shape[2] // momentum.shape[1]
            added = self.alpha * momentum.repeat_interleave(groups, dim=1)
            into = at.view.heads_to_residual(at.layer, added).float().norm(dim=-1)
            stream = at.seen["resid_pre"].to(z.device)[rows, queries].float().norm(dim=-1)
            result = (
                z.index_put((rows, queries), added.to(z.dtype), accumulate=True),
                {
                    "injections": len(due),
                    "injection_norm": (into / stream.clamp_min(1e-12)).sum().detach(),
                },
            )
        open_steps = [span for span in at.open_steps if span is not None]
        values.forget_before(
            min((self.gamma(span)[0] for span in open_steps), default=at.segment.shape[1])
        )
        return result


class _Chunk(NamedTuple):
    """Values of one pass, from position `start` on."""

    start: int
    rows: tuple[Row, ...]
    values: Float[Tensor, "batch pos kv_head d_head"]


class _RecentValues:
    """Value vectors of the newest positions, pass by pass: what a coming step start may need."""

    def __init__(self) -> None:
        self._chunks: list[_Chunk] = []

    def read(self, at: EditPosition) -> None:
        """Take over what the present pass shows."""
        if at.start == 0:
            self._chunks.clear()
        self._chunks.append(_Chunk(at.start, at.rows, at.seen["v"]))

    def mean(self, row: Row, span: tuple[int, int]) -> Float[Tensor, "kv_head d_head"]:
        """Mean value of a row over a span of positions, in float32."""
        start, stop = span
        parts = [
            chunk.values[chunk.rows.index(row), max(0, start - chunk.start) : stop - chunk.start]
            for chunk in self._chunks
            if row in chunk.rows
            and chunk.start < stop
            and start < chunk.start + chunk.values.shape[1]
        ]
        return torch.cat(parts).float().mean(0)

    def forget_before(self, position: int) -> None:
        """Drop passes that lie before the given position."""
        self._chunks = [c for c in self._chunks if c.start + c.values.shape[1] > position]
