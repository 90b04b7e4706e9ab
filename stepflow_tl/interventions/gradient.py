"""Gradient momentum: nudge each new step against the gradients of the steps before it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepflow_tl.interventions.base import Hook, Intervention, Others
from stepflow_tl.interventions.ledger import Ledger
from stepflow_tl.layers import LayerSpec
from stepflow_tl.models import detach_cache, hook_name, only_hooks, run_cached
from stepflow_tl.sequences import THINKING, Row
from stepflow_tl.tracking import Replay, Tracker


class StepGradient(NamedTuple):
    """What one closed step tells.

    Attributes:
        decay: Mean entropy of its output distributions, as a share of the largest possible.
        gradient: Gradient of its loss, summed over its tokens, at each layer.
    """

    decay: float
    gradient: Float[Tensor, "layer d_model"]


def moving_average(
    steps: Sequence[StepGradient],
) -> Float[Tensor, "layer d_model"]:
    """G_t = a_t G_(t-1) + (1 - a_t) g_t over the given steps in order, from G = 0."""
    average = torch.zeros_like(steps[0].gradient)
    for step in steps:
        average = step.decay * average + (1.0 - step.decay) * step.gradient
    return average


def step_loss(
    logits: Float[Tensor, "1 pos vocab"], tokens: Int[Tensor, "1 pos"]
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of a step's tokens, but for the first token's constant term.

    The first token is predicted from before the step, so that its term has no gradient there.
    """
    scores = logits[0, :-1] if logits.dtype == torch.float64 else logits[0, :-1].float()
    loss = torch.nn.functional.cross_entropy(scores, tokens[0, 1:], reduction="sum")
    return loss / tokens.shape[1]


def relative_entropy(logits: Float[Tensor, "1 pos vocab"]) -> float:
    """Mean entropy of the output distributions over its maximum, log of the vocabulary: [0, 1]."""
    log_p = logits[0].detach().double().log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1).mean()
    return min(1.0, max(0.0, float(entropy) / math.log(logits.shape[-1])))


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
            raise ValueError(f"GradientMomentum: expected a finite step_size, got {self.step_size}")
        if not (isinstance(self.steps, int) and self.steps >= 1):
            raise ValueError(
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
        length = _widened(stream.detach()).norm(dim=-1, keepdim=True)
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
        reruns: list[_Rerun] = []

        def rerun(pattern: Tensor, hook: Any) -> None:
            if not tracker.here.reasoning:
                return
            known = {id(run.row): run for run in reruns}
            reruns[:] = [
                known.get(id(row)) or _Rerun(self, model, layers, row, others)
                for row in tracker.rows
            ]
            for run in reruns:
                forwards, extra = run.catch_up(tracker.token_ids(run.row))
                ledger.add(name, layers[0], extra_forwards=forwards, extra_tokens=extra)

        def injector(index: int, layer: int) -> Callable[..., Tensor | None]:
            def inject(
                stream: Float[Tensor, "batch pos d_model"], hook: Any
            ) -> Float[Tensor, "batch pos d_model"] | None:
                here = tracker.here
                due = [start for start in here.step_starts if start.segment == THINKING]
                if not due:
                    return None
                rows = torch.tensor([s.row for s in due], device=stream.device)
                queries = torch.tensor([s.position - here.start for s in due], device=stream.device)
                units = torch.stack([reruns[s.row].units[s.position][index] for s in due])
                at = stream[rows, queries]
                added = self.against(at, units)
                length, norm = (_widened(x.detach()).norm(dim=-1) for x in (added, at))
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


class _Rerun:
    """One row run again, step by step, beside the caller's own passes.

    Attributes:
        row: The row.
        units: Unit directions [layer, d_model] of G at the position of each step start.
    """

    def __init__(
        self,
        settings: GradientMomentum,
        model: Any,
        layers: Sequence[int],
        row: Row,
        others: Others,
    ) -> None:
        self.row = row
        self._settings, self._model, self._layers, self._others = settings, model, layers, others
        self._device = next(model.parameters()).device
        self._begin()

    def _begin(self) -> None:
        """Forget everything that was run."""
        self.units: dict[int, Tensor] = {}
        self._done = 0  # tokens in the cache
        self._cache: Any = None
        self._closed: deque[StepGradient] = deque(maxlen=self._settings.steps)
        self._streams: list[Tensor] = []
        self._replay = Replay(self.row, self._device)
        self._hooks = [*self._others(self._replay), *self._own_hooks()]

    def catch_up(self, tokens: list[int]) -> tuple[int, int]:
        """Run every step that a later step of the thinking follows.

        Returns:
            Number of forward passes, and of tokens run in them.
        """
        due = [
            (at, previous)
            for at, segment, previous in self.row.starts
            if segment == THINKING and at not in self.units
        ]
        before, forwards = self._done, 0
        try:
            with torch.inference_mode(False), torch.no_grad():
                for at, (start, stop) in due:
                    forwards += self._skip_to(tokens, start - self.row.pads)
                    self._closed.append(self._close(tokens, stop - self.row.pads))
                    forwards += 1
                    average = moving_average(self._closed)
                    length = average.norm(dim=-1, keepdim=True)
                    self.units[at] = torch.where(length > 0, average / length, 0.0)
        except BaseException:
            self._begin()  # a pass that was cut short leaves a cache of no use
            raise
        return forwards, self._done - before

    def _skip_to(self, tokens: list[int], start: int) -> int:
        """Cache the tokens before `start`: the prompt, delimiters. Returns the forward passes."""
        if self._done == start:
            return 0
        self._run(tokens, start)
        return 1

    @torch.enable_grad()
    def _close(self, tokens: list[int], stop: int) -> StepGradient:
        """Gradient and entropy of the step from where the cache ends to before `stop`."""
        ids = torch.tensor([tokens[self._done : stop]], device=self._device)
        logits = self._run(tokens, stop)
        gradients: Sequence[Tensor] = [torch.zeros_like(stream) for stream in self._streams]
        if ids.shape[1] > 1:  # else the step's only term is constant
            loss = step_loss(logits, ids.to(logits.device))
            gradients = torch.autograd.grad(loss, self._streams)
        self._streams.clear()
        total = [_widened(gradient[0]).sum(0).to(self._device) for gradient in gradients]
        return StepGradient(relative_entropy(logits), torch.stack(total))

    def _run(self, tokens: list[int], stop: int) -> Float[Tensor, "1 pos vocab"]:
        """Run the tokens from where the cache ends to before `stop`, and cache them."""
        self._streams.clear()
        self._replay.move(self._done, stop)
        ids = torch.tensor([tokens[self._done : stop]], device=self._device)
        mask = torch.ones(1, stop, dtype=torch.long, device=self._device)
        with only_hooks(self._model, self._hooks):
            logits, self._cache = run_cached(self._model, ids, mask, self._cache)
        detach_cache(self._cache)
        self._done = stop
        return logits

    def _own_hooks(self) -> list[Hook]:
        """Inject as in the caller's passes; take streams as variables, from the first layer on."""

        def stream_hook(index: int) -> Callable[..., Tensor]:
            def take(
                stream: Float[Tensor, "1 pos d_model"], hook: Any
            ) -> Float[Tensor, "1 pos d_model"]:
                if index == 0:
                    stream = stream.detach()
                for start in self._replay.here.step_starts:
                    unit = self.units.get(start.position + self.row.pads)
                    if unit is not None:
                        at = start.position - self._replay.here.start
                        added = self._settings.against(stream[:, at], unit[index][None])
                        where = torch.tensor([at], device=stream.device)
                        stream = stream.index_add(1, where, added[:, None])
                if index == 0:
                    stream = stream.requires_grad_(torch.is_grad_enabled())
                self._streams.append(stream)
                return stream

            return take

        return [
            (hook_name("resid_post", layer), stream_hook(index))
            for index, layer in enumerate(self._layers)
        ]


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
