"""Gradient momentum: nudge each new step against the gradients of the steps before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl.errors import SettingError
from stepflow_tl.interventions.base import Edited, Facts, Intervention
from stepflow_tl.interventions.position import EditPosition
from stepflow_tl.interventions.rerun import RowAgain
from stepflow_tl.models.layers import LayerSpec
from stepflow_tl.models.precision import widened
from stepflow_tl.models.sites import Site
from stepflow_tl.traces.rows import THINKING, Row, StepStart


@dataclass(frozen=True, kw_only=True)
class GradientMomentum(Intervention):
    """Momentum of gradients (the digest's variant of SMI), on ``hook_resid_post``.

    With h the residual stream after a layer, and L_s the mean negative log-likelihood of the
    tokens of step s, each closed step gives, per layer::

        g_s = sum_{t in step s} dL_s / dh_t,        a_s = mean_{t in step s} H(p(. | <= t)) / log V

    (g_s is the gradient of a shift that all tokens of the step share; V the size of the
    vocabulary). At the first token of a new step of the thinking, over the steps that closed
    before it, the last `steps` of them, from G = 0::

        G_s = a_s G_(s-1) + (1 - a_s) g_s,          h' = h - step_size * |h| * G / |G|

    so that an uncertain step keeps the older direction, a certain one sets its own. The step is
    relative to |h|: raw gradients are many orders smaller than the stream. What is injected is a
    constant to any gradient.

    A closed step is run again, forward and backward, against keys and values of its prefix that
    are held fixed, once it is followed by another. For this each row of a batch keeps a KV cache
    of its own, of the model under this whole StepFlow, earlier injections included; the caller's
    cache is never touched, and no later token than the step's is used. A user's own hooks, and
    StepFlows attached in other blocks, do not act in these runs. Cost: one more forward and
    backward pass of the thinking, and a forward pass of the prompt (`Ledger`: extra_forwards,
    extra_tokens), and memory for a second KV cache.

    Attributes:
        step_size: Length of what is injected, relative to the residual stream; 0 is neutral. The
            digest names no value; the default is ours.
        layers: Default: the top quarter.
        steps: Number of closed steps that the average goes back (the digest: three).
    """

    site: ClassVar[Site] = "resid_post"
    columns: ClassVar[tuple[str, ...]] = (
        "injections",
        "injection_norm",
        "extra_forwards",
        "extra_tokens",
    )
    fired: ClassVar[str] = "injections"

    step_size: float = 0.02
    layers: LayerSpec = "deep"
    steps: int = 3

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: A setting is out of range.
        """
        super().__post_init__()
        if not abs(self.step_size) < float("inf"):
            raise SettingError(
                f"GradientMomentum: expected a finite step_size, got {self.step_size}"
            )
        if not (isinstance(self.steps, int) and self.steps >= 1):
            raise SettingError(
                f"GradientMomentum: expected a number of steps >= 1, got {self.steps!r}"
            )

    @property
    def is_neutral(self) -> bool:
        """True for step_size = 0."""
        return self.step_size == 0.0

    def against(
        self, stream: Float[Tensor, "rows d_model"], directions: Float[Tensor, "rows d_model"]
    ) -> Float[Tensor, "rows d_model"]:
        """What is added to the stream, given the unit directions of G (or zero)."""
        length = widened(stream.detach()).norm(dim=-1, keepdim=True)
        added: Tensor = -self.step_size * length * directions.to(stream.device)
        return added.to(stream.dtype)

    def prepare(self, at: EditPosition) -> Facts:
        """Run again the steps that others follow now; what they cost."""
        if not _due(at):
            return {}
        known: dict[Row, RowAgain] = at.memory.get("runs", {})
        runs = at.memory["runs"] = {row: run for row, run in known.items() if not row.finished}
        for row in {at.rows[start.row] for start in _due(at)}:
            if row not in runs:
                runs[row] = RowAgain(
                    at.view, at.layers, row, at.others, inject=self.against, steps=self.steps
                )
        numbers = sorted({start.row for start in _due(at)})
        costs = [runs[at.rows[number]].catch_up() for number in numbers]
        forwards, tokens = zip(*costs, strict=True)
        return {"extra_forwards": sum(forwards), "extra_tokens": at.count(numbers, tokens)}

    def edit(self, stream: Float[Tensor, "batch pos d_model"], at: EditPosition) -> Edited:
        """The residual stream, nudged where a step starts."""
        due = _due(at)
        if not due:
            return None, {}
        runs: dict[Row, RowAgain] = at.memory["runs"]
        index = at.layers.index(at.layer)
        starting = [(at.rows[start.row], start.position - at.pads[start.row]) for start in due]
        units = torch.stack([runs[row].units[position][index] for row, position in starting])
        rows, queries = at.indices(due, stream.device)
        before = stream[rows, queries]
        added = self.against(before, units)
        length, norm = (widened(x.detach()).norm(dim=-1) for x in (added, before))
        given = (length > 0).long()
        return stream.index_put((rows, queries), added, accumulate=True), {
            "injections": given.new_zeros(stream.shape[0]).index_add(0, rows, given),
            "injection_norm": (length / norm.clamp_min(1e-12)).sum(),
        }


def _due(at: EditPosition) -> list[StepStart]:
    """Steps of the thinking that begin in this pass, but for the first."""
    return [start for start in at.step_starts if start.segment == THINKING]
