"""Where decoding is: each row's absolute position, segment and step, whatever drives the model.

A `Tracker` sees token ids on their way into the embedding, and the number of keys at the first
attention pattern (in a plain Hugging Face model: the length of the cache at the first layer). From
these it knows where every row of a pattern stands, with or without a KV cache, in prefill, in
chunked prefill, in a left-padded batch, and in sliding-window layers whose cache keeps only the
last keys. Hook functions ask `Tracker.here`; they keep no position of their own. What a forward
pass costs here grows with its new tokens, not with those before.

Positions count padding: position p is column p of the left-padded batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Int
from torch import Tensor, nn

from stepflow_tl.errors import TrackingError
from stepflow_tl.interventions.position import Here
from stepflow_tl.models.huggingface import decoder_layers, is_huggingface
from stepflow_tl.models.view import attention_window, embedding_module, hook_name, tokenizer_of
from stepflow_tl.traces.formats import Format, named_format
from stepflow_tl.traces.reader import TraceReader, end_token_ids
from stepflow_tl.traces.rows import (
    THINKING,
    KnownTrace,
    LabelBuffer,
    Row,
    Rows,
    StepStart,
    last_step,
    published,
)
from stepflow_tl.traces.templates import template_of
from stepflow_tl.traces.trace import Trace

_ATTACH_BEFORE = "attach before the prompt is run, and run one batch at a time"


_CHANGES_OF_ROWS = ("reorder_cache", "batch_select_indices", "batch_repeat_interleave")


class Tracker:
    """Follows the sequences that run through a model.

    Args:
        model: Either model class.
        trace: A known trace, if the model is to be run on its tokens; its steps are then used.
        format: How responses are written, where neither a trace nor published `Rows` say it.
        prompt_length: Prompt tokens of every row, where no published `Rows` say it; None for the
            first opening delimiter in the text, or the end of what the chat template rendered,
            where the model goes on from there token by token.
        tokenizer: In place of the model's own.
    """

    def __init__(
        self,
        model: Any,
        *,
        trace: Trace | None = None,
        format: str | Format = "auto",
        prompt_length: int | None = None,
        tokenizer: Any | None = None,
    ) -> None:
        self.forwards = 0
        self._model = model
        self._trace = trace
        self._prompt_length = prompt_length
        self._window = attention_window(model, 0)
        self._end_ids: frozenset[int] = frozenset()
        if trace is None:
            self._tokenizer = tokenizer_of(model) if tokenizer is None else tokenizer
            self._format = named_format(format)
        if tokenizer is not None or getattr(model, "tokenizer", None) is not None:
            self._end_ids = end_token_ids(model, tokenizer)
        self._pending: Int[Tensor, "batch new"] | None = None
        self._here: Here | None = None
        self._rows = Rows([])
        self._labels: LabelBuffer
        self._written = (0, 0)  # revision of the rows that the labels are of, and their columns
        self._guarded: WeakSet[Any] = WeakSet()  # whoever decodes holds the caches, and lets go

    def hooks(self) -> list[tuple[str, Any]]:
        """Forward hooks that any run needs: the number of keys, seen at layer 0."""
        at_pattern = (hook_name("pattern", 0), self._on_pattern)
        if self._trace is None:
            return [at_pattern]
        return [(hook_name("embed"), self._on_embed), at_pattern]

    @contextmanager
    def watch(self, model: Any) -> Iterator[None]:
        """See the token ids on their way into the model's embedding.

        In a plain Hugging Face model, which has no hook points, also where they reach layer 0.
        """
        with ExitStack() as stack:
            at_embedding = embedding_module(model).register_forward_pre_hook(
                lambda _, args, kwargs: self._on_tokens((args or tuple(kwargs.values()))[0]),
                with_kwargs=True,
            )
            stack.callback(at_embedding.remove)
            if is_huggingface(model):
                at_layer = decoder_layers(model)[0].register_forward_pre_hook(
                    self._on_first_layer, with_kwargs=True
                )
                stack.callback(at_layer.remove)
                stack.callback(self._release)
            yield

    @contextmanager
    def standing(self, here: Here) -> Iterator[None]:
        """Inside, the forward pass stands there: a `Here.part` of where it stands."""
        whole, self._here = self._here, here
        try:
            yield
        finally:
            self._here = whole

    @property
    def here(self) -> Here:
        """Where the current forward pass stands.

        Raises:
            TrackingError: No forward pass has reached layer 0's attention.
        """
        if self._here is None:
            raise TrackingError(
                "no forward pass has reached the first attention yet: the interventions' "
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
        queries, keys = pattern.shape[-2:]
        tokens = self._arrived(pattern.shape[0], queries)
        if tokens is None:
            return
        start = 0 if keys == queries else self._seen
        if keys not in self._possible_keys(start, queries):
            raise TrackingError(
                f"expected one run of tokens, got a pass in which layer 0 attends to {keys} keys "
                f"from {queries} new tokens, but {self._seen} earlier tokens were seen: "
                f"{_ATTACH_BEFORE}"
            )
        self._advance(tokens, start, pattern.device)

    def _on_first_layer(self, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Of a plain Hugging Face model, whose cache tells how many tokens came before."""
        stream: Tensor = args[0] if args else kwargs["hidden_states"]
        tokens = self._arrived(*stream.shape[:2])
        if tokens is None:
            return
        cache = kwargs.get("past_key_values")
        self._guard(cache)
        start = 0 if cache is None else int(cache.get_seq_length())
        if start not in (0, self._seen):
            raise TrackingError(
                f"expected one run of tokens, got a pass in which the cache holds {start} tokens, "
                f"but {self._seen} earlier tokens were seen: {_ATTACH_BEFORE}"
            )
        self._advance(tokens, start, stream.device)

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
        tokens, self._pending, self._here = self._pending, None, None
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
        ids = tokens.tolist()
        stop = start + len(ids[0])
        known = self._known()
        if isinstance(known, Rows):
            if start == 0 or known is not self._rows:
                self._take(known, len(ids), device)
            known.follow(ids, start)
        elif start == 0:
            self._begin(ids, device)
        else:
            if len(ids[0]) == 1:
                self._end_prompts()
            self._rows.push(ids)
        revision, written = self._written
        first = min(written, start) if revision == self._rows.revision else 0
        self._labels.write(tuple(self._rows), first, stop)
        self._written = (self._rows.revision, stop)
        self._here = Here(
            start=start,
            segment=self._labels.segment,
            step=self._labels.step,
            step_starts=tuple(
                StepStart(number, *fact)
                for number, row in enumerate(self._rows)
                for fact in row.starts_in(start, stop)
            ),
            open_steps=tuple(row.open_at(stop) for row in self._rows),
            reasoning_from=min(_reasoning_from(row.segments[:stop], start) for row in self._rows),
        )

    def _begin(self, ids: list[list[int]], device: torch.device) -> None:
        """Start new sequences, or go on with the same ones run again without a cache."""
        held = [row.columns for row in self._rows]
        seen = self._rows.width
        if self._known() is None and held == [row[:seen] for row in ids]:
            self._rows.push([row[seen:] for row in ids])
            return
        self._take(self._new_rows(len(ids)), len(ids), device)
        self._rows.push(ids)

    def _take(self, rows: Rows, count: int, device: torch.device) -> None:
        """Follow these rows from now on."""
        self._rows = rows
        self._labels = LabelBuffer(count, device)
        self._written = (rows.revision, 0)

    def _end_prompts(self) -> None:
        """Of a prompt that the chat template rendered, a pass of one token ends the question."""
        if self._trace is None and self._prompt_length is None:
            ending = template_of(self._tokenizer).ending
            if ending:
                self._rows.end_prompts(ending)

    def _known(self) -> Rows | Trace | None:
        return self._trace if self._trace is not None else published(self._model)

    def _new_rows(self, count: int) -> Rows:
        known = self._known()
        if isinstance(known, Trace):
            return Rows([Row(KnownTrace(known, self._end_ids), 0) for _ in range(count)])
        length, pad_id = self._prompt_length, self._tokenizer.pad_token_id
        readers = [
            TraceReader(self._tokenizer, self._format, prompt_length=length, end_ids=self._end_ids)
            for _ in range(count)
        ]
        return Rows([Row(reader, None, pad_id) for reader in readers])


class Replay(Tracker):
    """Where a part of one row stands that is run again, alone and without padding.

    Whoever runs it says which part: the row's labels are those read before. It is a tracker that
    is told what others see, and needs no hooks.

    Args:
        row: The row; it may be read further meanwhile.
        device: Device of the labels.
    """

    def __init__(self, row: Row, device: torch.device) -> None:
        self.forwards = 0
        self._trace = None
        self._rows = Rows([row])
        self._row, self._device = row, device
        self._here: Here | None = None

    def hooks(self) -> list[tuple[str, Any]]:
        """None: it is told where it stands."""
        return []

    @contextmanager
    def watch(self, model: Any) -> Iterator[None]:
        """Nothing: it is told where it stands."""
        yield

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
            open_steps=(last_step(segments, steps),),
            reasoning_from=_reasoning_from(segments, start),
        )


def _reasoning_from(segments: Sequence[int], start: int) -> int:
    """First position from `start` on in thinking or summary; their number for none."""
    size = len(segments)
    return next((i for i in range(start, size) if segments[i] >= THINKING), size)
