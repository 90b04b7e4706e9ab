"""Where decoding is: each row's absolute position, segment and step, whatever drives the model.

A `Tracker` sees token ids on their way into the embedding, and the number of keys at the first
attention pattern. From these it knows where every row of a pattern stands, with or without a KV
cache, in prefill, in chunked prefill, in a left-padded batch, and in sliding-window layers whose
cache keeps only the last keys. Hook functions ask `Tracker.here`; they keep no position of their
own.

Positions count padding: position p is column p of the left-padded batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepflow_tl.formats import Format, resolve_format
from stepflow_tl.models import attention_window, embedding_module, hook_name, tokenizer_of
from stepflow_tl.reading import FRAME, TraceReader, end_token_ids
from stepflow_tl.sequences import (
    THINKING,
    KnownTrace,
    Row,
    StepStart,
    TrackingError,
)
from stepflow_tl.trace import Trace

Bridge = Literal["prompt", "question"]


class Groups(NamedTuple):
    """The keys of each query row, split for the Odds-Equal Bridge.

    Attributes:
        bridge: Visible keys of the bridge B.
        current: Visible keys of the current segment so far, S.
        bridge_size: |B|, the number of visible bridge keys.
        current_size: |S|, the number of visible keys of the current segment.
    """

    bridge: Bool[Tensor, "batch query key"]
    current: Bool[Tensor, "batch query key"]
    bridge_size: Float[Tensor, "batch query"]
    current_size: Float[Tensor, "batch query"]


@dataclass(frozen=True)
class Here:
    """Where one forward pass stands.

    Attributes:
        start: Position of its first query.
        segment: Segment of every position so far; `PADDING` for padding.
        step: Step of every position so far; `FRAME` for none.
        step_starts: Steps that begin at this pass's queries.
        open_steps: Span of each row's last step so far; None before the first, and after the end.
        reasoning: Whether any query of this pass lies in thinking or summary.
    """

    start: int
    segment: Int[Tensor, "batch pos"]
    step: Int[Tensor, "batch pos"]
    step_starts: tuple[StepStart, ...]
    open_steps: tuple[tuple[int, int] | None, ...]
    reasoning: bool
    _groups: dict[tuple[int, int | None, Bridge], Groups] = field(default_factory=dict, repr=False)

    def groups(self, keys: int, window: int | None, bridge: Bridge) -> Groups:
        """Split the visible keys of each query row (computed once for layers that agree).

        Args:
            keys: Number of keys in the layer's pattern: the last ones so far.
            window: Number of keys a query of the layer sees at most; None for all.
            bridge: "prompt": B is the whole question segment while thinking and the whole
                thinking segment while summarising; "question": the same without frame tokens.
        """
        at = (keys, window, bridge)
        if at not in self._groups:
            self._groups[at] = self._split(keys, window, bridge)
        return self._groups[at]

    def _split(self, keys: int, window: int | None, bridge: Bridge) -> Groups:
        total = self.segment.shape[1]
        position = torch.arange(total, device=self.segment.device)
        query, key = position[self.start :, None], position[None, total - keys :]
        visible = key <= query
        if window is not None:
            visible = visible & (key > query - window)
        own = self.segment[:, self.start :, None]
        of_key = self.segment[:, None, total - keys :]
        reasons = own >= THINKING
        on_bridge = visible & reasons & (of_key == own - 1)
        if bridge == "question":
            on_bridge = on_bridge & (self.step[:, None, total - keys :] != FRAME)
        on_current = visible & reasons & (of_key == own)
        return Groups(on_bridge, on_current, on_bridge.sum(-1).float(), on_current.sum(-1).float())


class Prompts(NamedTuple):
    """What a caller that builds the batch knows of it.

    Attributes:
        lengths: Number of real prompt tokens of each row.
        pads: Number of padding tokens at the left of each row.
        format: How the responses will be read.
    """

    lengths: tuple[int, ...]
    pads: tuple[int, ...]
    format: Format


_declared: ContextVar[Prompts | Trace | None] = ContextVar("stepflow_tl_declared", default=None)


@contextmanager
def declare_prompts(lengths: Sequence[int], pads: Sequence[int], form: Format) -> Iterator[None]:
    """Tell trackers how long the prompts of the next batch are, how padded, and how written."""
    token = _declared.set(Prompts(tuple(lengths), tuple(pads), form))
    try:
        yield
    finally:
        _declared.reset(token)


@contextmanager
def declare_trace(trace: Trace) -> Iterator[None]:
    """Tell trackers that the model is run on the tokens of a trace, whose steps are known."""
    token = _declared.set(trace)
    try:
        yield
    finally:
        _declared.reset(token)


class Tracker:
    """Follows the sequences that run through a model.

    Args:
        model: Either model class.
        trace: A known trace, if the model is to be run on its tokens; its steps are then used.
        format: How responses are written, where neither a trace nor `declare_prompts` says it.
        prompt_length: Prompt tokens of every row, where `declare_prompts` does not say it; None
            for the first opening delimiter in the text.
    """

    def __init__(
        self,
        model: Any,
        *,
        trace: Trace | None = None,
        format: str | Format = "auto",
        prompt_length: int | None = None,
    ) -> None:
        self.forwards = 0
        self._trace = trace
        self._prompt_length = prompt_length
        self._window = attention_window(model, 0)
        self._end_ids: frozenset[int] = frozenset()
        if trace is None:
            self._tokenizer = tokenizer_of(model)
            self._format = resolve_format(format, self._tokenizer)
        if getattr(model, "tokenizer", None) is not None:
            self._end_ids = end_token_ids(model)
        self._pending: Int[Tensor, "batch new"] | None = None
        self._here: Here | None = None
        self._rows: list[Row] = []

    def hooks(self) -> list[tuple[str, Any]]:
        """Forward hooks that any run needs: the number of keys, seen at layer 0."""
        at_pattern = (hook_name("pattern", 0), self._on_pattern)
        if self._trace is None:
            return [at_pattern]
        return [(hook_name("embed"), self._on_embed), at_pattern]

    @contextmanager
    def watch(self, model: Any) -> Iterator[None]:
        """See the token ids on their way into the model's embedding."""
        handle = embedding_module(model).register_forward_pre_hook(
            lambda _, args, kwargs: self._on_tokens((args or tuple(kwargs.values()))[0]),
            with_kwargs=True,
        )
        try:
            yield
        finally:
            handle.remove()

    @property
    def here(self) -> Here:
        """Where the current forward pass stands.

        Raises:
            TrackingError: No forward pass has reached layer 0's attention pattern.
        """
        if self._here is None:
            raise TrackingError(
                "no forward pass has reached the first attention pattern yet: the interventions' "
                "hooks must run inside a full forward pass of the model they were made for"
            )
        return self._here

    @property
    def rows(self) -> tuple[Row, ...]:
        """The sequences of the batch, as read so far."""
        return tuple(self._rows)

    def token_ids(self, row: Row) -> list[int]:
        """The tokens of a row so far, without padding."""
        if self._trace is not None:
            ids: list[int] = self._trace.token_ids[: len(row.columns)].tolist()
            return ids
        return row.columns[row.pads :]

    def _on_tokens(self, tokens: Int[Tensor, "batch new"]) -> None:
        self._pending, self._here = tokens.detach(), None

    def _on_embed(self, embedded: Tensor, hook: Any) -> None:
        shape = embedded.shape[:2]
        self._on_tokens(torch.zeros(shape, dtype=torch.long, device=embedded.device))

    def _on_pattern(self, pattern: Tensor, hook: Any) -> None:
        tokens, self._pending = self._pending, None
        if tokens is None:
            self._here = None  # embeddings were given, not tokens: nothing is known of this pass
            return
        queries, keys = pattern.shape[-2:]
        if tokens.shape != (pattern.shape[0], queries):
            raise TrackingError(
                f"the embedding saw tokens of shape {list(tokens.shape)}, but layer 0 attends from "
                f"{queries} positions in a batch of {pattern.shape[0]}"
            )
        self.forwards += 1
        earlier = len(self._rows[0].steps) if self._rows else 0
        start = 0 if keys == queries else earlier
        if keys not in self._possible_keys(start, queries):
            raise TrackingError(
                f"layer 0 attends to {keys} keys from {queries} new tokens, but {earlier} earlier "
                "tokens were seen: attach before the prompt is run, and run one batch at a time"
            )
        self._advance(tokens, start)

    def _possible_keys(self, start: int, queries: int) -> set[int]:
        """Numbers of keys that layer 0 may attend to; a sliding cache keeps the last ones only."""
        if start == 0 or self._window is None:
            return {start + queries}
        return {start + queries, min(start, self._window - 1) + queries}

    def _advance(self, tokens: Int[Tensor, "batch new"], start: int) -> None:
        ids = tokens.tolist()
        if start == 0:
            ids = self._begin(ids)
        elif len(ids) != len(self._rows):
            raise TrackingError(f"expected a batch of {len(self._rows)} rows, got {len(ids)}")
        for row, new in zip(self._rows, ids, strict=True):
            row.read(new)
        segment, step = (
            torch.tensor([getattr(row, name) for row in self._rows], device=tokens.device)
            for name in ("segments", "steps")
        )
        self._here = Here(
            start=start,
            segment=segment,
            step=step,
            step_starts=tuple(
                StepStart(number, *fact)
                for number, row in enumerate(self._rows)
                for fact in row.starts
                if fact[0] >= start
            ),
            open_steps=tuple(None if row.ended else row.open for row in self._rows),
            reasoning=any(s >= THINKING for row in self._rows for s in row.segments[start:]),
        )

    def _begin(self, ids: list[list[int]]) -> list[list[int]]:
        """Start new sequences, or go on with the same ones run again without a cache.

        Returns:
            The tokens of each row that are still to be read.
        """
        seen = len(self._rows[0].columns) if self._rows else 0
        if self._declared() is None and [row.columns for row in self._rows] == [
            row[:seen] for row in ids
        ]:
            return [row[seen:] for row in ids]
        self._rows = self._new_rows(len(ids))
        return ids

    def _declared(self) -> Prompts | Trace | None:
        return self._trace if self._trace is not None else _declared.get()

    def _new_rows(self, count: int) -> list[Row]:
        declared = self._declared()
        if isinstance(declared, Trace):
            return [Row(KnownTrace(declared, self._end_ids), 0) for _ in range(count)]
        lengths: Sequence[int | None] = [self._prompt_length] * count
        pads: Sequence[int | None] = [None] * count
        form = self._format
        if declared is not None and len(declared.lengths) == count:
            lengths, pads, form = declared
        return [
            Row(
                TraceReader(self._tokenizer, form, prompt_length=length, end_ids=self._end_ids),
                pad,
                self._tokenizer.pad_token_id,
            )
            for pad, length in zip(pads, lengths, strict=True)
        ]


class Replay(Tracker):
    """Where a part of one row stands that is run again, alone and without padding.

    Whoever runs it says which part: the row's labels are those read before.

    Args:
        row: The row; it may be read further meanwhile.
        device: Device of the labels.
    """

    def __init__(self, row: Row, device: torch.device) -> None:
        self.forwards = 0
        self._row, self._device = row, device
        self._here: Here | None = None

    def hooks(self) -> list[tuple[str, Any]]:
        """None: it is told where it stands."""
        return []

    def move(self, start: int, stop: int) -> None:
        """The next forward pass runs the positions from `start` to before `stop`."""
        row, pads = self._row, self._row.pads
        segments, steps = (labels[pads : pads + stop] for labels in (row.segments, row.steps))
        self.forwards += 1
        self._here = Here(
            start=start,
            segment=torch.tensor([segments], device=self._device),
            step=torch.tensor([steps], device=self._device),
            step_starts=tuple(
                StepStart(0, at - pads, segment, (previous[0] - pads, previous[1] - pads))
                for at, segment, previous in row.starts
                if start <= at - pads < stop
            ),
            open_steps=(_last_step(segments, steps),),
            reasoning=any(segment >= THINKING for segment in segments[start:]),
        )


def _last_step(segments: Sequence[int], steps: Sequence[int]) -> tuple[int, int] | None:
    """Span of the last step of thinking or summary."""
    for last in range(len(steps) - 1, -1, -1):
        if steps[last] != FRAME and segments[last] >= THINKING:
            return steps.index(steps[last]), last + 1
    return None
