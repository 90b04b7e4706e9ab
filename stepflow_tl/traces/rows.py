"""The rows of a batch as they are read: one reader each, their labels, where their steps start.

Whoever drives a model makes the `Rows` of its batch, pushes every token once and publishes them;
trackers of interventions find them there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import takewhile
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from stepflow_tl.errors import TrackingError, WrongTypeError
from stepflow_tl.traces.formats import Format
from stepflow_tl.traces.reader import TraceReader
from stepflow_tl.traces.tokens import FRAME, TokenLabel
from stepflow_tl.traces.trace import Trace

PADDING = -1
"""Segment of padding tokens, and of whatever follows the end token."""

QUESTION, THINKING, SUMMARY = 0, 1, 2

_SPACE = 8  # tokens of white space that may follow the end of a template


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


def last_step(segments: Sequence[int], steps: Sequence[int]) -> tuple[int, int] | None:
    """Span of the last step of thinking or summary; None without one."""
    for last in range(len(steps) - 1, -1, -1):
        if steps[last] != FRAME and segments[last] >= THINKING:
            return steps.index(steps[last]), last + 1
    return None


@runtime_checkable
class Labels(Protocol):
    """Anything that labels one sequence's tokens in order: a `TraceReader`, or a known trace."""

    labels: list[TokenLabel]
    question_tokens: tuple[int, int] | None

    @property
    def texts(self) -> Sequence[str]:
        """Text of each token, at least of those that were labeled."""

    @property
    def ended(self) -> bool:
        """Whether an end token was read: what follows belongs to no segment."""

    def push(self, token_id: int) -> TokenLabel:
        """Label the next token."""


class TraceLabels:
    """Labels of a trace that was read before."""

    def __init__(self, trace: Trace, end_ids: frozenset[int]) -> None:
        self._all = [
            TokenLabel(segment, step)
            for segment, step in zip(
                trace.segment_of_token.tolist(), trace.step_of_token.tolist(), strict=True
            )
        ]
        self.trace = trace
        self.labels: list[TokenLabel] = []
        self.texts: Sequence[str] = trace.token_texts
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
                f"expected the hooks to run on the {len(self._all)} tokens of the trace that they "
                "were made for, got more; make them for the longer trace, or use StepFlow.attach"
            )
        self.labels.append(self._all[len(self.labels)])
        return self.labels[-1]


class Row:
    """One sequence of the batch, in positions of its own: its first token stands at 0.

    Args:
        labels: Labels its tokens.
        pads: Number of padding tokens at its left in the batch.
        pad_id: Id of padding tokens, where those that come first are to be counted; None where
            `pads` says it.

    Attributes:
        pads: Number of padding tokens at its left; it changes where rows leave and join.
        token_ids: Its tokens so far.
        segments: Segment of each token; `PADDING` for what follows the end.
        steps: Step of each token; `FRAME` for none.
        starts: Position, segment and the span of the step before, of each step of thinking or
            summary that follows another.
        open: Span of its last step of thinking or summary so far.
        reports: What those who follow it have to say of it, each asked when it is finished:
            amounts by name.
    """

    def __init__(self, labels: Labels, pads: int = 0, pad_id: int | None = None) -> None:
        self.pads = pads
        self.token_ids: list[int] = []
        self.segments: list[int] = []
        self.steps: list[int] = []
        self.starts: list[tuple[int, int, tuple[int, int]]] = []
        self.open: tuple[int, int] | None = None
        self.reports: dict[object, Callable[[Row], Mapping[str, float]]] = {}
        self._open_step = FRAME
        self._labels = labels
        self._pad_id = pad_id
        self._finished = False

    def read(self, columns: Sequence[int]) -> int:
        """Go on with the next columns of this row of the batch.

        Returns:
            The first of its positions whose labels are new, or other than before.
        """
        first = len(self.steps)
        for token_id in columns:
            if token_id == self._pad_id and not self.token_ids:
                self.pads += 1
                continue
            self.token_ids.append(token_id)
            if self._finished:  # what is decoded for it, as long as others go on, is not read
                self.segments.append(PADDING)
                self.steps.append(FRAME)
                continue
            over = self._labels.ended
            segment, step = self._labels.push(token_id)
            over = over and self._labels.ended
            self._note_start(segment, step)
            self.segments.append(PADDING if over else segment)
            self.steps.append(step)
        return min(first, self._note_question())

    @property
    def width(self) -> int:
        """Number of columns that it fills, padding included."""
        return self.pads + len(self.token_ids)

    @property
    def ended(self) -> bool:
        """Whether the row's end token was read, or it is finished."""
        return self._finished or self._labels.ended

    @property
    def finished(self) -> bool:
        """Whether it was said to be read no more, whatever it says itself."""
        return self._finished

    @property
    def reader(self) -> TraceReader:
        """What reads it.

        Raises:
            TypeError: Its labels are those of a known trace.
        """
        if not isinstance(self._labels, TraceReader):
            raise WrongTypeError(f"expected a row that is being read, got {self._labels!r}")
        return self._labels

    def text(self, start: int, stop: int) -> str:
        """Text of some of its positions."""
        return "".join(self._labels.texts[start:stop])

    def trace(self) -> Trace:
        """The trace of its tokens so far; of a known trace, that one."""
        if isinstance(self._labels, TraceLabels):
            return self._labels.trace
        return Trace.of_reader(self.token_ids[: len(self.reader.labels)], self.reader)

    def reported(self) -> dict[str, float]:
        """What all reports say, summed by name."""
        found: Counter[str] = Counter()
        for report in self.reports.values():
            found.update(report(self))
        return dict(found)

    def finish(self) -> None:
        """Read no more: whatever follows is padding."""
        self._finished = True

    def end_prompt(self, ending: str) -> bool:
        """Say that a prompt of unknown length ends here, if it ends with this text.

        Returns:
            Whether it does: its question is known now.
        """
        reader = self._labels
        if not isinstance(reader, TraceReader) or not reader.waits:
            return False
        if not "".join(reader.texts[-len(ending) - _SPACE :]).rstrip().endswith(ending):
            return False
        reader.end_prompt()
        self._note_question()
        return True

    def columns(self, first: int, stop: int) -> tuple[list[int], list[int]]:
        """Segment and step of some columns of the batch: `PADDING` and `FRAME` for padding."""
        padding = max(0, min(stop, self.pads) - first)
        own = slice(max(0, first - self.pads), max(0, stop - self.pads))
        return [PADDING] * padding + self.segments[own], [FRAME] * padding + self.steps[own]

    def reasons_from(self, first: int, stop: int) -> int:
        """The first of some columns of the batch that lies in thinking or summary; else `stop`."""
        own = range(max(0, first - self.pads), stop - self.pads)
        return next((i + self.pads for i in own if self.segments[i] >= THINKING), stop)

    def starts_in(self, first: int, stop: int) -> list[tuple[int, int, tuple[int, int]]]:
        """The `starts` among some columns of the batch, in order, in columns."""
        if not self.starts or self.starts[-1][0] < first - self.pads:
            return []
        pads, within = self.pads, lambda start: start[0] >= first - self.pads
        found = reversed(list(takewhile(within, reversed(self.starts))))
        return [
            (at + pads, segment, (previous[0] + pads, previous[1] + pads))
            for at, segment, previous in found
            if at < stop - pads
        ]

    def open_at(self, stop: int) -> tuple[int, int] | None:
        """Columns of the last step of thinking or summary before `stop`; None after the end."""
        if stop == self.width:
            span = None if self.ended else self.open
        else:
            own = max(0, stop - self.pads)
            span = last_step(self.segments[:own], self.steps[:own])
        return None if span is None else (span[0] + self.pads, span[1] + self.pads)

    def _note_question(self) -> int:
        """Take over the question's step once its prompt is complete; the first one changed."""
        span = self._labels.question_tokens
        if span is None or self.steps[span[0]] != FRAME:
            return len(self.steps)
        for i in range(*span):
            self.steps[i] = self._labels.labels[i].step
        return span[0]

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


class Rows:
    """The rows of a batch, in step: every push adds the same number of columns to each.

    Args:
        rows: The rows, before any column.

    Attributes:
        revision: Counts what changes labels of columns read before, or which rows there are.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.revision = 0
        self._rows = tuple(rows)
        self._running: Tensor | None = None

    @classmethod
    def of_prompts(
        cls,
        tokenizer: Any,
        prompts: Sequence[Sequence[int]],
        form: Format,
        *,
        end_ids: frozenset[int] = frozenset(),
        prompt_lengths: Sequence[int] | None = None,
    ) -> Rows:
        """The rows of left-padded prompts, which are read at once.

        Args:
            tokenizer: The model's tokenizer.
            prompts: Token ids of each prompt, without padding.
            form: How responses are written.
            end_ids: Ids that end a response.
            prompt_lengths: Where each response begins, if some of it is given; None for the end.
        """
        lengths = map(len, prompts) if prompt_lengths is None else prompt_lengths
        longest = max(len(prompt) for prompt in prompts)
        rows = [
            Row(
                TraceReader(tokenizer, form, prompt_length=length, end_ids=end_ids),
                longest - len(prompt),
            )
            for prompt, length in zip(prompts, lengths, strict=True)
        ]
        for row, prompt in zip(rows, prompts, strict=True):
            row.read(prompt)
        return cls(rows)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def __getitem__(self, row: int) -> Row:
        """One row."""
        return self._rows[row]

    def __iter__(self) -> Iterator[Row]:
        """The rows in their order in the batch."""
        return iter(self._rows)

    @property
    def all(self) -> tuple[Row, ...]:
        """The rows in their order in the batch: the same object until they change."""
        return self._rows

    @property
    def width(self) -> int:
        """Number of columns read so far, padding included."""
        return self._rows[0].width if self._rows else 0

    def padded(self, pad_id: int) -> list[list[int]]:
        """Token ids of all columns of each row."""
        return [[pad_id] * row.pads + row.token_ids for row in self._rows]

    def push(self, columns: Sequence[Sequence[int]]) -> None:
        """Read the next tokens of every row.

        Raises:
            TrackingError: They are of another number of rows.
        """
        if len(columns) != len(self._rows):
            raise TrackingError(f"expected a batch of {len(self._rows)} rows, got {len(columns)}")
        before = [len(row.token_ids) for row in self._rows]
        changed = [row.read(new) for row, new in zip(self._rows, columns, strict=True)]
        self.revision += any(first < length for first, length in zip(changed, before, strict=True))

    def select(self, rows: Sequence[int]) -> None:
        """Announce that the batch now consists of these of its rows, in this order.

        Raises:
            TrackingError: A row is named twice (each has one reader), or there is none such.
        """
        if len(set(rows)) < len(rows) or not set(rows) <= set(range(len(self._rows))):
            raise TrackingError(
                f"expected some of the rows 0 to {len(self._rows) - 1}, each once, got {list(rows)}"
            )
        self._rows = tuple(self._rows[row] for row in rows)
        self.revision += 1

    def join(self, rows: Rows) -> None:
        """Announce that these rows now stand after those of the batch, aligned at the right.

        Raises:
            TrackingError: They have more columns.
        """
        width = self.width
        self._rows = (*self._rows, *rows)
        self.resize(width)

    def resize(self, width: int) -> None:
        """Announce that the batch has so many columns: more or fewer padding at the left.

        Raises:
            TrackingError: That is less than the longest row has.
        """
        longest = max((len(row.token_ids) for row in self._rows), default=0)
        if width < longest:
            raise TrackingError(f"expected at least the {longest} columns of a row, got {width}")
        for row in self._rows:
            row.pads = width - len(row.token_ids)
        self.revision += 1

    def end_prompts(self, ending: str) -> None:
        """Say that prompts of unknown length end here, where they end with this text."""
        self.revision += any([row.end_prompt(ending) for row in self._rows])

    def run(self, tokens: Tensor) -> None:
        """Announce the tensor of tokens, made from these rows, that the next pass runs.

        Whoever sees this very tensor on its way into the model need not read it again, for which
        a host would wait for the device.
        """
        self._running = tokens

    def runs(self, tokens: Tensor) -> bool:
        """Whether this is the tensor that was announced, or a view of all of it."""
        one = self._running
        if one is None or tokens.shape != one.shape or tokens.device != one.device:
            return False
        return tokens is one or tokens.data_ptr() == one.data_ptr()

    def follow(self, tokens: Sequence[Sequence[int]], start: int) -> None:
        """Make sure that a forward pass runs the tokens that these rows hold from `start` on.

        Raises:
            TrackingError: It runs others: rows were changed without `select`, or not pushed.
        """
        if len(tokens) != len(self._rows):
            raise TrackingError(
                f"expected a batch of {len(self._rows)} rows, got {len(tokens)}: a change of the "
                "rows must be announced by Rows.select"
            )
        for number, (row, new) in enumerate(zip(self._rows, tokens, strict=True)):
            begin = start - row.pads  # of padding any token may be run
            held = row.token_ids[max(0, begin) : begin + len(new)] if begin + len(new) > 0 else []
            given = list(new)[max(0, -begin) :]
            if given != held:
                raise TrackingError(
                    f"expected row {number} to run the tokens {held[:8]} from position {start} on, "
                    f"which Rows holds, got {given[:8]}: tokens must be pushed, and a change "
                    "of the rows announced by Rows.select"
                )


_published: ContextVar[tuple[Any, Rows | Trace] | None] = ContextVar(
    "stepflow_tl_published", default=None
)


@contextmanager
def publish(model: object, read: Rows | Trace) -> Iterator[None]:
    """Let trackers of a model know what it runs inside this block.

    Args:
        model: The model that will be run.
        read: The rows of its batch; or a known trace, that every row of the batch runs.
    """
    token = _published.set((model, read))
    try:
        yield
    finally:
        _published.reset(token)


def published(model: object) -> Rows | Trace | None:
    """What whoever drives a model has published of it; None for nothing."""
    found = _published.get()
    return found[1] if found is not None and found[0] is model else None


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
    def rows(self) -> int:
        """Number of rows."""
        return self._held.shape[1]

    @property
    def segment(self) -> Int[Tensor, "batch pos"]:
        """Segment of every position so far."""
        return self._held[0, :, : self._length]

    @property
    def step(self) -> Int[Tensor, "batch pos"]:
        """Step of every position so far."""
        return self._held[1, :, : self._length]

    def write(self, rows: Sequence[Row], first: int, stop: int) -> None:
        """Take over the labels of all rows from column `first` to before `stop`."""
        labels = list(zip(*(row.columns(first, stop) for row in rows), strict=True))
        new = torch.tensor(labels, dtype=torch.long)
        self._length = first + new.shape[2]
        if self._length > self._held.shape[2]:
            with torch.inference_mode(False):  # else it could be written in that mode only
                room = self._held.new_empty(*self._held.shape[:2], 2 * self._length)
            room[..., :first] = self._held[..., :first]
            self._held = room
        self._held[..., first : self._length].copy_(new, non_blocking=True)
