"""Gradient momentum: nudge each new step against the gradients of the steps before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl.errors import SettingError
from stepflow_tl.interventions.base import Hook, Intervention, Others
from stepflow_tl.interventions.ledger import Ledger
from stepflow_tl.interventions.position import Here
from stepflow_tl.interventions.rerun import RowAgain
from stepflow_tl.interventions.tracker import Tracker
from stepflow_tl.models.layers import LayerSpec
from stepflow_tl.models.precision import wide
from stepflow_tl.models.view import hook_name
from stepflow_tl.traces.rows import THINKING, StepStart, places


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

    columns: ClassVar[tuple[str, ...]] = (
        "injections",
        "injection_norm",
        "extra_forwards",
        "extra_tokens",
    )

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

    @property
    def fired(self) -> str:
        """Injections."""
        return "injections"

    def against(
        self, stream: Float[Tensor, "rows d_model"], directions: Float[Tensor, "rows d_model"]
    ) -> Float[Tensor, "rows d_model"]:
        """What is added to the stream, given the unit directions of G (or zero)."""
        length = wide(stream.detach()).norm(dim=-1, keepdim=True)
        added: Tensor = -self.step_size * length * directions.to(stream.device)
        return added.to(stream.dtype)

    def hooks(
        self,
        model: Any,
        layers: Sequence[int],
        tracker: Tracker,
        ledger: Ledger,
        name: str,
        others: Others,
    ) -> list[Hook]:
        """One hook that runs closed steps again, and one on each layer that injects."""
        reruns: list[RowAgain] = []

        def rerun(pattern: Tensor, hook: Any) -> None:
            if not _due(tracker.here):
                return
            known = {id(run.row): run for run in reruns}
            reruns[:] = [
                known.get(id(row))
                or RowAgain(model, layers, row, others, inject=self.against, steps=self.steps)
                for row in tracker.rows
            ]
            for number in sorted({start.row for start in _due(tracker.here)}):
                run = reruns[number]
                forwards, extra = run.catch_up(tracker.token_ids(run.row))
                ledger.add(name, layers[0], extra_forwards=forwards, extra_tokens=extra)

        def injector(index: int, layer: int) -> Callable[..., Tensor | None]:
            def inject(
                stream: Float[Tensor, "batch pos d_model"], hook: Any
            ) -> Float[Tensor, "batch pos d_model"] | None:
                here = tracker.here
                due = _due(here)
                if not due:
                    return None
                rows, queries = places(due, here.start, stream.device)
                units = torch.stack([reruns[s.row].units[s.position][index] for s in due])
                at = stream[rows, queries]
                added = self.against(at, units)
                length, norm = (wide(x.detach()).norm(dim=-1) for x in (added, at))
                ledger.add(
                    name,
                    layer,
                    injections=(length > 0).sum(),
                    injection_norm=(length / norm.clamp_min(1e-12)).sum(),
                )
                return stream.index_put((rows, queries), added, accumulate=True)

            return inject

        return [
            (hook_name("pattern", 0), rerun),
            *(
                (hook_name("resid_post", layer), injector(index, layer))
                for index, layer in enumerate(layers)
            ),
        ]


def _due(here: Here) -> list[StepStart]:
    """Steps of the thinking that begin in this pass, but for the first."""
    return [start for start in here.step_starts if start.segment == THINKING]
