"""Where decoding is: each row's absolute position, segment and step, whatever drives the model.

A `Tracker` sees token ids on their way into the embedding, and each pass as it reaches the first
layer: the number of keys there, or the length of the cache. From these it knows where every row
stands, with or without a KV cache, in prefill, in chunked prefill, in a left-padded batch, and in
sliding-window layers whose cache keeps only the last keys. Edits are told `Tracker.position`; they
keep no position of their own. What a forward pass costs here grows with its new tokens, not with
those before.

Positions count padding: position p is column p of the left-padded batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Int
from torch import Tensor

from stepflow_tl.errors import TrackingError
from stepflow_tl.interventions.groups import RecentGroups
from stepflow_tl.interventions.position import Follower, PassPosition
from stepflow_tl.models.base import ARRIVAL, Arrival, ModelView
from stepflow_tl.models.sites import Hook, hook_name
from stepflow_tl.traces.formats import Format, named_format
from stepflow_tl.traces.reader import TraceReader
from stepflow_tl.traces.rows import (
    LabelBuffer,
    Row,
    Rows,
    StepStart,
    TraceLabels,
    published,
)
from stepflow_tl.traces.templates import template_of
from stepflow_tl.traces.tokens import end_token_ids
from stepflow_tl.traces.trace import Trace

_ATTACH_BEFORE = "attach before the prompt is run, and run one batch at a time"
_CHANGES_OF_ROWS = ("reorder_cache", "batch_select_indices", "batch_repeat_interleave")


class Tracker(Follower):
    """Follows the sequences that run through a model.

    Args:
        view: The model.
        trace: A known trace, if the model is to be run on its tokens; its steps are then used.
        format: How responses are written, where neither a trace nor published `Rows` say it.
        prompt_length: Prompt tokens of every row, where no published `Rows` say it; None for the
            first opening delimiter in the text, or the end of what the chat template rendered,
            where the model goes on from there token by token.
        tokenizer: In place of the model's own.
        report: What to say of a row when it is finished; None for nothing.
    """

    def __init__(
        self,
        view: ModelView,
        *,
        trace: Trace | None = None,
        format: str | Format = "auto",
        prompt_length: int | None = None,
        tokenizer: Any | None = None,
        report: Callable[[Row], Mapping[str, float]] | None = None,
    ) -> None:
        self.forwards = 0
        self._report = report
        self._reported: tuple[Row, ...] = ()
        self._view = view
        self._trace = trace
        self._prompt_length = prompt_length
        self._window = view.attention_window(0)
        self._end_ids: frozenset[int] = frozenset()
        if trace is None:
            self._tokenizer = view.tokenizer if tokenizer is None else tokenizer
            self._format = named_format(format)
        if tokenizer is not None or view.has_tokenizer:
            self._end_ids = end_token_ids(view, tokenizer)
        self._pending: Int[Tensor, "batch new"] | None = None
        self._position: PassPosition | None = None
        self._recent = RecentGroups()
        self._rows = Rows([])
        self._labels: LabelBuffer
        self._written = (0, 0)  # revision of the rows that the labels are of, and their columns
        self._guarded: WeakSet[Any] = WeakSet()  # whoever decodes holds the caches, and lets go

    def hooks(self) -> list[Hook]:
        """Hooks that any run needs, before those of edits, for `ModelView.hooks`."""
        arrival: Hook = (ARRIVAL, self._on_arrival)
        if self._trace is None:
            return [arrival]
        return [(hook_name("embed"), self._on_embed), arrival]

    @contextmanager
    def watch(self) -> Iterator[None]:
        """See the token ids on their way into the model's embedding."""
        try:
            with self._view.watch_tokens(self._on_tokens):
                yield
        finally:
            self._release()

    @property
    def position(self) -> PassPosition:
        """Where the current forward pass stands.

        Raises:
            TrackingError: No forward pass has reached layer 0's attention.
        """
        if self._position is None:
            raise TrackingError(
                "no forward pass has reached the first attention yet: the interventions' "
                "hooks must run inside a full forward pass of the model they were made for, and an "
                "edit before the pattern of layer 0 comes too early: expected layers from 1 on"
            )
        return self._position

    @property
    def rows(self) -> tuple[Row, ...]:
        """The sequences of the batch, as read so far."""
        return tuple(self._rows)

    def _on_tokens(self, tokens: Int[Tensor, "batch new"]) -> None:
        self._pending, self._position = tokens, None

    def _on_embed(self, embedded: Tensor, hook: Any) -> None:
        shape = embedded.shape[:2]
        self._on_tokens(torch.zeros(shape, dtype=torch.long, device=embedded.device))

    def _on_arrival(self, at: Arrival) -> None:
        tokens = self._arrived(at.batch, at.queries)
        if tokens is None:
            return
        self._guard(at.cache)
        known = self._known()
        if isinstance(known, Rows) and known.runs(tokens):
            self._take(known, at.device)
            self._stand(known.width - at.queries, known.width)
            return
        self._advance(tokens, self._start_of(at, known), at.device)

    def _start_of(self, at: Arrival, rows: Rows | Trace | None) -> int:
        """Position of a pass's first query."""
        if at.past is not None:
            start, said = at.past, f"the cache holds {at.past} tokens"
            known = isinstance(rows, Rows) and start + at.queries == rows.width
            fits = known or start in (0, self._seen)
        else:
            start = 0 if at.keys == at.queries else self._seen
            said = f"layer 0 attends to {at.keys} keys from {at.queries} new tokens"
            fits = at.keys in self._possible_keys(start, at.queries)
        if not fits:
            raise TrackingError(
                f"expected one run of tokens, got a pass in which {said}, but {self._seen} earlier "
                f"tokens were seen: {_ATTACH_BEFORE}"
            )
        return start

    def _guard(self, cache: Any) -> None:
        """Refuse whatever would put the rows of a cache in another order, such as beam search."""
        if cache is None or cache in self._guarded:
            return

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise TrackingError(
                "expected the rows of the batch to keep their places, got a cache whose rows are "
                "exchanged (beam search?): decode greedily or by sampling, with num_beams=1"
            )

        self._guarded.add(cache)
        for name in _CHANGES_OF_ROWS:
            if hasattr(cache, name):
                setattr(cache, name, refuse)

    def _release(self) -> None:
        """Take the guards off again."""
        for cache in self._guarded:
            for name in _CHANGES_OF_ROWS:
                vars(cache).pop(name, None)
        self._guarded.clear()

    @property
    def _seen(self) -> int:
        """Number of positions that forward passes have run so far."""
        return self._written[1]

    def _arrived(self, batch: int, queries: int) -> Int[Tensor, "batch new"] | None:
        """The tokens that have reached layer 0; None for embeddings, of which nothing is known."""
        tokens, self._pending, self._position = self._pending, None, None
        if tokens is None:
            return None
        if tokens.shape != (batch, queries):
            raise TrackingError(
                f"expected the tokens that the embedding saw, of shape {list(tokens.shape)}, at "
                f"layer 0, got {queries} positions in a batch of {batch}"
            )
        self.forwards += 1
        return tokens

    def _possible_keys(self, start: int, queries: int) -> set[int]:
        """Numbers of keys that layer 0 may attend to; a sliding cache keeps the last ones only."""
        if start == 0 or self._window is None:
            return {start + queries}
        return {start + queries, min(start, self._window - 1) + queries}

    def _advance(self, tokens: Int[Tensor, "batch new"], start: int, device: torch.device) -> None:
        ids = tokens.tolist() if self._trace is None else self._own_tokens(tokens, start)
        known = self._known()
        if isinstance(known, Rows):
            self._take(known, device)
            known.follow(ids, start)
        elif start == 0:
            self._begin(ids, device)
        else:
            if len(ids[0]) == 1:
                self._end_prompts()
            self._rows.push(ids)
        self._stand(start, start + tokens.shape[1])

    def _stand(self, start: int, stop: int) -> None:
        """Say where the pass over these columns stands."""
        revision, written = self._written
        if revision != self._rows.revision:
            self._recent.forget()
        first = min(written, start) if revision == self._rows.revision else 0
        rows = self._rows.all
        if rows is not self._reported and self._report is not None:
            for row in rows:
                row.reports[self] = self._report
        self._reported = rows
        self._labels.write(rows, first, stop)
        self._written = (self._rows.revision, stop)
        self._position = PassPosition(
            start=start,
            segment=self._labels.segment,
            step=self._labels.step,
            step_starts=tuple(
                StepStart(number, *fact)
                for number, row in enumerate(rows)
                for fact in row.starts_in(start, stop)
            ),
            open_steps=tuple(row.open_at(stop) for row in rows),
            reasoning_from=min(row.reasons_from(start, stop) for row in rows),
            rows=rows,
            pads=tuple(row.pads for row in rows),
            recent=self._recent,
        )

    def _own_tokens(self, tokens: Int[Tensor, "batch new"], start: int) -> list[list[int]]:
        """The known trace's tokens in every row, whose embeddings alone were seen."""
        assert self._trace is not None
        batch, new = tokens.shape
        ids = self._trace.token_ids[start : start + new].tolist()
        return [ids + [0] * (new - len(ids)) for _ in range(batch)]

    def _begin(self, ids: list[list[int]], device: torch.device) -> None:
        """Start new sequences, or go on with the same ones run again without a cache."""
        rows, seen = self._rows, self._rows.width
        held = [row.token_ids == new[row.pads : seen] for row, new in zip(rows, ids, strict=False)]
        if self._known() is None and len(rows) == len(ids) and all(held):
            self._rows.push([row[seen:] for row in ids])
            return
        for row in rows:  # they do not go on
            row.finish()
        self._take(self._new_rows(len(ids)), device)
        self._rows.push(ids)

    def _take(self, rows: Rows, device: torch.device) -> None:
        """Follow these rows from now on."""
        if rows is not self._rows or len(rows) != self._labels.rows:
            self._rows = rows
            self._recent.forget()
            self._labels = LabelBuffer(len(rows), device)
            self._written = (rows.revision, 0)

    def _end_prompts(self) -> None:
        """Of a prompt that the chat template rendered, a pass of one token ends the question."""
        if self._trace is None and self._prompt_length is None:
            ending = template_of(self._tokenizer).ending
            if ending:
                self._rows.end_prompts(ending)

    def _known(self) -> Rows | Trace | None:
        return self._trace if self._trace is not None else published(self._view.model)

    def _new_rows(self, count: int) -> Rows:
        known = self._known()
        if isinstance(known, Trace):
            return Rows([Row(TraceLabels(known, self._end_ids)) for _ in range(count)])
        length, pad_id = self._prompt_length, self._tokenizer.pad_token_id
        readers = [
            TraceReader(self._tokenizer, self._format, prompt_length=length, end_ids=self._end_ids)
            for _ in range(count)
        ]
        return Rows([Row(reader, pad_id=pad_id) for reader in readers])
