"""Saliency while decoding: the map's row of each step that is over, by one backward chunk.

A row t of attention x gradient needs the keys and values before it and the token after it. When a
step is over both are there: its tokens are run once more, against keys and values that were kept
of those before, and one backward pass gives its row, exactly as in the streamed map of the finished
trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl.errors import SettingError
from stepflow_tl.interventions.attached import flows_on
from stepflow_tl.models.base import ModelView
from stepflow_tl.saliency.attention import KeyValues
from stepflow_tl.saliency.collect import StepShares
from stepflow_tl.saliency.fused import streamed_scores
from stepflow_tl.saliency.plan import Plan
from stepflow_tl.saliency.planning import plan_scores
from stepflow_tl.saliency.pooling import FrameKeys
from stepflow_tl.traces.rows import Row
from stepflow_tl.traces.trace import Trace

_CHUNK = 512  # queries of a prompt that are run together


class LiveSaliency:
    """Rows of saliency maps of the rows of a batch, step by step.

    Args:
        view: The model: a Hugging Face decoder, or a bridge around one.
        layers: The layers.
        frame_keys: Whether the frame's keys are "in" a share's denominator, or "out".
    """

    def __init__(self, view: ModelView, layers: Sequence[int], frame_keys: FrameKeys) -> None:
        self._view, self._layers, self._frame_keys = view, tuple(layers), frame_keys
        self._stored: dict[Row, list[list[tuple[Tensor, Tensor]]]] = {}
        self._done: dict[Row, int] = {}

    def shares(self, row: Row, span: tuple[int, int]) -> Float[Tensor, "layer key_step"]:
        """The map's row of a step: a share for each step up to itself.

        Args:
            row: Whose it is.
            span: Its first position, and the one after its last.

        Raises:
            SettingError: The model's attention cannot be scored inside, or a StepFlow is attached,
                of which a step that is run once more would show nothing.
        """
        if flows_on(self._view):
            raise SettingError(
                "expected no StepFlow beside a monitor of rule 'saliency', which runs finished "
                f"steps once more, got {flows_on(self._view)}: watch attention beside it "
                "(rule='attention'), or map the finished trace"
            )
        for old in [one for one in self._stored if one.finished and one is not row]:
            del self._stored[old], self._done[old]
        trace = row.trace()
        start, stop = span
        view = self._view.running
        with view.only_hooks([]):
            plan = plan_scores(
                view,
                trace,
                self._layers,
                rule="attention_x_gradient",
                objective="token",
                backend="fused",
                chunk=None,
                checkpointing=False,
            )
            sums = StepShares(
                trace,
                plan.layers,
                heads=self._view.n_heads,
                per_head=False,
                dtype=torch.float64 if self._view.dtype == torch.float64 else torch.float32,
                device=self._view.device,
                gain=plan.gain,
                frame_keys=self._frame_keys,
            )
            done = self._done.get(row, 0)
            before = tuple(range(a, min(start, a + _CHUNK)) for a in range(done, start, _CHUNK))
            if before:
                self._run(view, row, replace(plan, rule="attention", chunks=before), trace, None)
            self._run(view, row, replace(plan, chunks=(range(start, stop),)), trace, sums)
        at = int(trace.step_of_token[start])
        return torch.stack([sums.result(layer)[at, : at + 1].cpu() for layer in self._layers])

    def _run(
        self, view: ModelView, row: Row, plan: Plan, trace: Trace, sums: StepShares | None
    ) -> None:
        stored = self._stored.setdefault(row, [])

        def keep(queries: range, stores: Sequence[KeyValues]) -> None:
            stored.append([store.last for store in stores])
            self._done[row] = queries.stop

        streamed_scores(
            view,
            trace,
            plan,
            sums,
            stored=iter(tuple(stored)),
            chunk_done=keep,
            next_query=self._done.get(row, 0),
        )
