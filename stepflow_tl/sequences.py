"""One sequence of a batch as it is read: its labels, its positions, where its steps start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from stepflow_tl.reading import FRAME, TokenLabel
from stepflow_tl.trace import Trace

PADDING = -1
"""Segment of padding tokens, and of whatever follows the end token."""

QUESTION, THINKING, SUMMARY = 0, 1, 2


class TrackingError(RuntimeError):
    """The model was run in a way that leaves a row's position unknown."""


class StepStart(NamedTuple):
    """A step that begins in this forward pass.

    Attributes:
        row: Row of the batch.
        position: Position of its first token.
        segment: Its segment (1 thinking, 2 summary).
        previous: Half-open span of positions of the step before it, in thinking or summary.
    """

    row: int
    position: int
    segment: int
    previous: tuple[int, int]


def places(
    starts: Sequence[StepStart], first: int, device: torch.device
) -> tuple[Int[Tensor, "start"], Int[Tensor, "start"]]:
    """Row and query of each step start in a pass whose first query has position `first`."""
    at = torch.tensor([[start.row, start.position - first] for start in starts])
    rows, queries = at.to(device, non_blocking=True).unbind(1)
    return rows, queries


@runtime_checkable
class Labels(Protocol):
    """Anything that labels one sequence's tokens in order: a `TraceReader`, or a known trace."""

    labels: list[TokenLabel]
    question_tokens: tuple[int, int] | None

    @property
    def ended(self) -> bool:
        """Whether an end token was read: what follows belongs to no segment."""

    def push(self, token_id: int) -> TokenLabel:
        """Label the next token."""


class KnownTrace:
    """Labels of a trace that was read before."""

    def __init__(self, trace: Trace, end_ids: frozenset[int]) -> None:
        self._all = [
            TokenLabel(segment, step)
            for segment, step in zip(
                trace.segment_of_token.tolist(), trace.step_of_token.tolist(), strict=True
            )
        ]
        self.labels: list[TokenLabel] = []
        self.question_tokens: tuple[int, int] | None = None
        response = trace.token_ids[trace.prompt_length :].tolist()
        ends = (trace.prompt_length + i for i, token in enumerate(response) if token in end_ids)
        self._end = next(ends, len(trace))

    @property
    def ended(self) -> bool:
        """True once the end token was passed."""
        return len(self.labels) > self._end

    def push(self, token_id: int) -> TokenLabel:
        """Label of the next token of the trace; the id is not looked at."""
        if len(self.labels) == len(self._all):
            raise TrackingError(
                f"the hooks were made for a trace of {len(self._all)} tokens, but the model was "
                "run on more; make them for the longer trace, or use StepFlow.attach"
            )
        self.labels.append(self._all[len(self.labels)])
        return self.labels[-1]


class Row:
    """One sequence of the batch.

    Args:
        labels: Labels its tokens.
        pads: Number of padding tokens at its left; None to count those of `pad_id`.
        pad_id: Id of padding tokens.
    """

    def __init__(self, labels: Labels, pads: int | None, pad_id: int | None = None) -> None:
        self.columns: list[int] = []
        self.segments: list[int] = []
        self.steps: list[int] = []
        self.starts: list[tuple[int, int, tuple[int, int]]] = []
        self.open: tuple[int, int] | None = None
        self._open_step = FRAME
        self._labels = labels
        self._declared_pads, self._pad_id = pads, pad_id
        self._pads = 0  # read so far

    def read(self, columns: Sequence[int]) -> int:
        """Go on with the next columns of this row of the batch.

        Returns:
            The first column whose labels are new, or other than before.
        """
        first = len(self.steps)
        for token_id in columns:
            self.columns.append(token_id)
            if self._is_padding(token_id):
                self._pads += 1
                self.segments.append(PADDING)
                self.steps.append(FRAME)
                continue
            over = self._labels.ended
            segment, step = self._labels.push(token_id)
            self._note_start(segment, step)
            self.segments.append(PADDING if over else segment)
            self.steps.append(step)
        span = self._labels.question_tokens
        if span is not None and self.steps[self._pads + span[0]] == FRAME:
            for i in range(*span):  # the question is known once its prompt is complete
                self.steps[self._pads + i] = self._labels.labels[i].step
            return min(first, self._pads + span[0])
        return first

    @property
    def pads(self) -> int:
        """Number of padding tokens at its left, so far as they were read."""
        return self._pads

    @property
    def ended(self) -> bool:
        """Whether the row's end token was read."""
        return self._labels.ended

    def _is_padding(self, token_id: int) -> bool:
        if self._declared_pads is not None:
            return self._pads < self._declared_pads
        return token_id == self._pad_id and not self._labels.labels

    def _note_start(self, segment: int, step: int) -> None:
        position = len(self.steps)
        if step == FRAME or segment == QUESTION:
            return
        if self.open is not None and step == self._open_step:
            self.open = (self.open[0], position + 1)
            return
        if self.open is not None:
            self.starts.append((position, segment, self.open))
        self.open, self._open_step = (position, position + 1), step


class LabelBuffer:
    """Segment and step of every position of a batch, on a device.

    It grows by doubling, so that a forward pass copies no labels but those that are new.

    Args:
        rows: Number of rows of the batch.
        device: Where the labels live.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self._held: Int[Tensor, "kind batch capacity"] = torch.empty(
            2, rows, 0, dtype=torch.long, device=device
        )
        self._length = 0

    @property
    def segment(self) -> Int[Tensor, "batch pos"]:
        """Segment of every position so far."""
        return self._held[0, :, : self._length]

    @property
    def step(self) -> Int[Tensor, "batch pos"]:
        """Step of every position so far."""
        return self._held[1, :, : self._length]

    def write(self, rows: Sequence[Row], first: int) -> None:
        """Take over the labels of all rows from column `first` on."""
        labels = [[row.segments[first:] for row in rows], [row.steps[first:] for row in rows]]
        new = torch.tensor(labels, dtype=torch.long)
        self._length = first + new.shape[2]
        if self._length > self._held.shape[2]:
            with torch.inference_mode(False):  # else it could be written in that mode only
                room = self._held.new_empty(*self._held.shape[:2], 2 * self._length)
            room[..., :first] = self._held[..., :first]
            self._held = room
        self._held[..., first : self._length].copy_(new, non_blocking=True)
