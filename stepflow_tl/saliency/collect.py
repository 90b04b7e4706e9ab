"""Collecting token scores, tile by tile, into step sums, step shares or token maps.

A backend opens the rows of a layer that it is about to score and adds tiles to them::

    with collector.rows(layer, queries) as add:
        add(heads, first_key, scores)      # scores [head, query, key]: all queries, some keys
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepflow_tl.saliency.pooling import FrameKeys
from stepflow_tl.traces.tokens import FRAME
from stepflow_tl.traces.trace import Trace

AddTile = Callable[[slice, int, Float[Tensor, "head query key"]], None]
"""Adds a tile: the heads it is of, the position of its first key, and its scores."""


class Collector(ABC):
    """Gathers the token scores of some layers.

    Args:
        trace: The trace that is scored.
        layers: The layers to gather; others are not asked for.
        heads: Number of heads of the model.
        per_head: Keep the heads apart, else average them.
        dtype: Type of the sums.
        device: Where the sums are.
        gain: What scores are multiplied by on their way here; results are divided by it.
    """

    def __init__(
        self,
        trace: Trace,
        layers: Sequence[int],
        *,
        heads: int,
        per_head: bool,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        gain: float = 1.0,
    ) -> None:
        self.layers, self.per_head, self._heads = tuple(layers), per_head, heads
        self.gain = gain
        self._steps = trace.step_of_token
        rows, columns = self._shape(trace)
        shape = (heads, rows, columns) if per_head else (rows, columns)
        with torch.inference_mode(False):
            self._sums = {layer: torch.zeros(shape, dtype=dtype, device=device) for layer in layers}
            self._rows = {layer: torch.zeros(len(trace), device=device) for layer in layers}

    @property
    def kind(self) -> str:
        """What it gathers, for records."""
        return type(self).__name__

    def result(self, layer: int) -> Float[Tensor, "*head row column"]:
        """The sums of a layer, over heads their mean."""
        sums = self._sums[layer] / self.gain
        return sums if self.per_head else sums / self._heads

    def first_not_finite(self, layer: int, queries: range) -> int | None:
        """The first of these queries with a score that is NaN or infinite; None for none."""
        bad = ~self._rows[layer][queries.start : queries.stop].isfinite()
        return queries.start + int(bad.nonzero()[0, 0]) if bad.any() else None

    def _note(self, layer: int, queries: range, scores: Float[Tensor, "*head query key"]) -> None:
        """Keep, for each query, what shows a score that is not finite: its sum."""
        total = scores.sum(-1) if scores.ndim == 2 else scores.sum((0, -1))
        rows = self._rows[layer]
        rows[queries.start : queries.stop] += total.to(rows)

    def written(self, layer: int, queries: range) -> Float[Tensor, "*head row column"]:
        """The part of a layer's sums that these queries add to: a view."""
        first, last = self._rows_of(queries)
        return self._sums[layer][..., first:last, :]

    @abstractmethod
    def rows(self, layer: int, queries: range) -> AbstractContextManager[AddTile]:
        """Open the rows of these queries."""

    @abstractmethod
    def _shape(self, trace: Trace) -> tuple[int, int]: ...

    @abstractmethod
    def _rows_of(self, queries: range) -> tuple[int, int]: ...


def steps_among(labels: Int[Tensor, "pos"]) -> tuple[int, int]:
    """Half-open range of the steps of some neighboring tokens; an empty one for none."""
    steps = labels[labels != FRAME]
    return (int(steps[0]), int(steps[-1]) + 1) if len(steps) else (0, 0)


class StepSums(Collector):
    """Sums over the token pairs of each pair of steps; frame tokens drop out."""

    def result(self, layer: int) -> Float[Tensor, "*head query_step key_step"]:
        """The sums of a layer, over heads their mean."""
        return super().result(layer)[..., :-1]

    @contextmanager
    def rows(self, layer: int, queries: range) -> Iterator[AddTile]:
        """Open the rows of these queries; steps are pooled over keys when they are closed."""
        sums = self.written(layer, queries)
        steps = torch.arange(*self._rows_of(queries))
        member = (self._steps[queries.start : queries.stop] == steps[:, None]).to(sums)
        by_key = sums.new_zeros(*sums.shape[:-1], queries.stop)
        seen = queries.stop

        def add(heads: slice, first_key: int, scores: Float[Tensor, "head query key"]) -> None:
            nonlocal seen
            seen = min(seen, first_key)
            keys = slice(first_key, first_key + scores.shape[-1])
            given = scores if self.per_head else scores.sum(0)
            self._note(layer, queries, given)
            pooled = member.to(scores) @ given
            part = by_key[heads, :, keys] if self.per_head else by_key[:, keys]
            part += pooled.to(part)

        yield add
        if len(steps):
            of_key = self._steps[seen : queries.stop].to(sums.device)
            of_key = torch.where(of_key == FRAME, sums.shape[-1] - 1, of_key)
            sums.index_add_(-1, of_key, by_key[..., seen:])

    def _shape(self, trace: Trace) -> tuple[int, int]:
        return len(trace.steps), len(trace.steps) + 1  # the last column takes the frame

    def _rows_of(self, queries: range) -> tuple[int, int]:
        return steps_among(self._steps[queries.start : queries.stop])


class StepShares(Collector):
    """Shares of each token's row by key step, and their mean over the tokens of each query step.

    Rows without a score are left out and counted. See `stepflow_tl.saliency.pooling`.

    Args:
        frame_keys: Whether the frame's keys are "in" the denominator, or "out".
        settings: As of any `Collector`.
    """

    def __init__(self, *args: Any, frame_keys: FrameKeys = "in", **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._frame_counts = frame_keys == "in"

    def result(self, layer: int) -> Float[Tensor, "*head query_step key_step"]:
        """The mean shares of a layer: of the heads' mean scores, or head by head."""
        sums = self._sums[layer]
        return sums[..., :-3] / sums[..., -2:-1].clamp_min(1.0)

    @property
    def kind(self) -> str:
        """What it gathers, for records."""
        return f"{super().kind}, frame {'in' if self._frame_counts else 'out'}"

    def zero_rows(self, layer: int) -> int:
        """Number of token rows in steps that had no score (of all heads, where they are apart)."""
        return int(self._sums[layer][..., -1].sum())

    @contextmanager
    def rows(self, layer: int, queries: range) -> Iterator[AddTile]:
        """Open the rows of these queries; their shares are taken when they are closed."""
        sums = self.written(layer, queries)
        steps = torch.arange(*self._rows_of(queries))
        member = (self._steps[queries.start : queries.stop] == steps[:, None]).to(sums)
        by_token = sums.new_zeros(*sums.shape[:-2], len(queries), queries.stop)
        seen = queries.stop

        def add(heads: slice, first_key: int, scores: Float[Tensor, "head query key"]) -> None:
            nonlocal seen
            seen = min(seen, first_key)
            keys = slice(first_key, first_key + scores.shape[-1])
            given = scores if self.per_head else scores.sum(0)
            self._note(layer, queries, given)
            part = by_token[heads, :, keys] if self.per_head else by_token[:, keys]
            part += given.to(part)

        yield add
        if len(steps):
            of_key = self._steps[seen : queries.stop].to(sums.device)
            self._take_shares(sums, member, of_key, by_token[..., seen:])

    def _take_shares(
        self,
        sums: Float[Tensor, "*head row column"],
        member: Float[Tensor, "row query"],
        of_key: Int[Tensor, "key"],
        scores: Float[Tensor, "*head query key"],
    ) -> None:
        """Add the shares of some token rows, and how many of them there are."""
        on_frame = of_key == FRAME
        counted = scores if self._frame_counts else scores * ~on_frame
        total = counted.sum(-1, keepdim=True)
        known = total > 0
        shares = torch.where(known, scores / total, torch.zeros_like(scores))
        columns = torch.where(on_frame, sums.shape[-1] - 3, of_key)
        sums.index_add_(-1, columns, member @ shares)
        sums[..., -2:-1] += member @ known.to(sums)
        sums[..., -1:] += member @ (~known).to(sums)

    def _shape(self, trace: Trace) -> tuple[int, int]:
        return len(trace.steps), len(trace.steps) + 3  # frame; rows with scores, and without

    def _rows_of(self, queries: range) -> tuple[int, int]:
        return steps_among(self._steps[queries.start : queries.stop])


class TokenMaps(Collector):
    """The token scores themselves: memory grows with the square of the trace."""

    @contextmanager
    def rows(self, layer: int, queries: range) -> Iterator[AddTile]:
        """Open the rows of these queries."""
        sums = self.written(layer, queries)

        def add(heads: slice, first_key: int, scores: Float[Tensor, "head query key"]) -> None:
            keys = slice(first_key, first_key + scores.shape[-1])
            given = scores if self.per_head else scores.sum(0)
            self._note(layer, queries, given)
            if self.per_head:
                sums[heads, :, keys] = given.to(sums)
            else:
                sums[:, keys] += given.to(sums)

        yield add

    def _shape(self, trace: Trace) -> tuple[int, int]:
        return len(trace), len(trace)

    def _rows_of(self, queries: range) -> tuple[int, int]:
        return queries.start, queries.stop
