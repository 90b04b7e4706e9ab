"""Running closed steps again: the gradient and the entropy of each, while decoding goes on."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepflow_tl.errors import ModelError, NonFiniteError, TrackingError
from stepflow_tl.interventions.position import Follower, PassPosition
from stepflow_tl.models.base import ModelView
from stepflow_tl.models.precision import widened
from stepflow_tl.models.sites import Hook, hook_name
from stepflow_tl.models.weights import let_gradients_through
from stepflow_tl.traces.rows import THINKING, Row, StepStart, last_step

Inject = Callable[[Float[Tensor, "rows d_model"], Float[Tensor, "rows d_model"]], Tensor]
"""What is added to a stream, given unit directions."""


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


def _units(average: Float[Tensor, "layer d_model"], start: int) -> Float[Tensor, "layer d_model"]:
    """Direction of G at each layer; zero where G is."""
    if not average.isfinite().all():
        raise NonFiniteError(
            f"expected numbers, but the gradient of the step at position {start} is NaN or "
            "infinite; check the weights, or try a wider dtype"
        )
    length = average.norm(dim=-1, keepdim=True)
    return torch.where(length > 0, average / length, 0.0)


class Replay(Follower):
    """Where a part of one row stands that is run again, alone and without padding.

    A follower that is told what a `Tracker` sees: the row's labels are those read before.

    Args:
        row: The row; it may be read further meanwhile.
        device: Device of the labels.
    """

    def __init__(self, row: Row, device: torch.device) -> None:
        self.forwards = 0
        self._row, self._device = row, device
        self._position: PassPosition | None = None

    @property
    def position(self) -> PassPosition:
        """Where the current forward pass stands.

        Raises:
            TrackingError: Nothing was said yet.
        """
        if self._position is None:
            raise TrackingError("expected to be told where the row is run again, got nothing yet")
        return self._position

    def move(self, start: int, stop: int) -> None:
        """The next forward pass runs the positions from `start` to before `stop`."""
        row = self._row
        segments, steps = row.segments[:stop], row.steps[:stop]
        self.forwards += 1
        self._position = PassPosition(
            start=start,
            segment=torch.tensor([segments], device=self._device),
            step=torch.tensor([steps], device=self._device),
            step_starts=tuple(
                StepStart(0, at, segment, previous)
                for at, segment, previous in row.starts
                if start <= at < stop
            ),
            open_steps=(last_step(segments, steps),),
            reasoning_from=next((i for i in range(start, stop) if segments[i] >= THINKING), stop),
            rows=(row,),
            pads=(0,),
        )


class RowAgain:
    """One row run again, step by step, beside the caller's own passes.

    Args:
        view: The model.
        layers: Layers whose residual stream is differentiated and injected into.
        row: The row.
        others: Hooks of the other interventions, which act here, too.
        inject: What to add to a stream, given unit directions of G.
        steps: Number of closed steps that the average goes back.

    Attributes:
        row: The row.
        units: Unit directions [layer, d_model] of G at the position of each step start in its row.
    """

    def __init__(
        self,
        view: ModelView,
        layers: Sequence[int],
        row: Row,
        others: Callable[[Follower], list[Hook]],
        *,
        inject: Inject,
        steps: int,
    ) -> None:
        self.row = row
        self._view, self._layers, self._others = view, layers, others
        self._inject, self._steps = inject, steps
        self._device = view.device
        self._begin()

    def _begin(self) -> None:
        """Forget everything that was run."""
        self.units: dict[int, Tensor] = {}
        self._done = 0  # tokens in the cache
        self._cache: Any = None
        self._closed: deque[StepGradient] = deque(maxlen=self._steps)
        self._streams: list[Tensor] = []
        self._replay = Replay(self.row, self._device)
        self._hooks = [*self._others(self._replay), *self._own_hooks()]

    def catch_up(self) -> tuple[int, int]:
        """Run every step that a later step of the thinking follows.

        Returns:
            Number of forward passes, and of tokens run in them.

        Raises:
            NonFiniteError: A gradient is NaN or infinite.
        """
        tokens = self.row.token_ids
        due = [
            (at, previous)
            for at, segment, previous in self.row.starts
            if segment == THINKING and at not in self.units
        ]
        before, forwards = self._done, 0
        try:
            with torch.inference_mode(False), torch.no_grad():
                for at, (start, stop) in due:
                    forwards += self._skip_to(tokens, start)
                    self._closed.append(self._close(tokens, stop))
                    forwards += 1
                    self.units[at] = _units(moving_average(self._closed), start)
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
        let_gradients_through(self._view.model, ModelError)
        logits = self._run(tokens, stop)
        gradients: Sequence[Tensor] = [torch.zeros_like(stream) for stream in self._streams]
        if ids.shape[1] > 1:  # else the step's only term is constant
            loss = step_loss(logits, ids.to(logits.device))
            gradients = torch.autograd.grad(loss, self._streams)
        self._streams.clear()
        total = [widened(gradient[0]).sum(0).to(self._device) for gradient in gradients]
        return StepGradient(relative_entropy(logits), torch.stack(total))

    def _run(self, tokens: list[int], stop: int) -> Float[Tensor, "1 pos vocab"]:
        """Run the tokens from where the cache ends to before `stop`, and cache them."""
        self._streams.clear()
        self._replay.move(self._done, stop)
        ids = torch.tensor([tokens[self._done : stop]], device=self._device)
        mask = torch.ones(1, stop, dtype=torch.long, device=self._device)
        with self._view.only_hooks(self._hooks):
            logits, self._cache = self._view.run_cached(ids, mask, self._cache)
        self._view.detach(self._cache)
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
                for start in self._replay.position.step_starts:
                    unit = self.units.get(start.position)
                    if unit is not None:
                        at = start.position - self._replay.position.start
                        added = self._inject(stream[:, at], unit[index][None])
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
