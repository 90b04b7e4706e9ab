"""Decoding prompts together: the loop that drives the model, and owns the readers of its rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl.decoding.budget import ForcedRow, Plans
from stepflow_tl.decoding.settings import Decoding
from stepflow_tl.decoding.stopping import StoppedRow
from stepflow_tl.errors import GenerationError
from stepflow_tl.models.base import ModelView
from stepflow_tl.models.memory import out_of_memory_as
from stepflow_tl.models.precision import WIDER
from stepflow_tl.models.running_batch import RunningBatch
from stepflow_tl.traces.chat import Asked
from stepflow_tl.traces.formats import Format
from stepflow_tl.traces.rows import Row, Rows, publish
from stepflow_tl.traces.tokens import end_token_ids

_PROBE = 32  # tokens on which logits of two ways to decode are compared
_REFILL = 8  # others join once one row in so many has left
_TIGHT = 0.75  # share of the columns that the longest row fills, below which the others are cut


@dataclass(frozen=True)
class Job:
    """One response to be decoded.

    Attributes:
        asked: The prompt.
        sample: Its number among the samples of the prompt.
        limit: Tokens that it may have.
    """

    asked: Asked
    sample: int
    limit: int

    @property
    def prompt(self) -> list[int]:
        """Token ids of the prompt."""
        return self.asked.token_ids


@dataclass(eq=False)
class _Slot:
    """One response while it is decoded.

    Attributes:
        number: Of its job.
        job: The job.
        row: What was read of it so far.
        generator: Its random numbers.
        forced: Its thinking budget; None without one.
        stopped: Its stop strings; None without any.
        done: Number of tokens decoded.
    """

    number: int
    job: Job
    row: Row
    generator: torch.Generator
    forced: ForcedRow | None
    stopped: StoppedRow | None
    done: int = 0

    def has_read(self) -> None:
        """One more token was decoded and read; finish where it was the last."""
        self.done += 1
        if (
            self.row.reader.ended
            or self.done >= self.job.limit
            or (self.stopped is not None and self.stopped.stopped())
        ):
            self.row.finish()


@dataclass(eq=False)
class _Batch:
    """Responses that are decoded together.

    Attributes:
        slots: The responses, one for each row.
        rows: What is read of them.
        running: What the model knows of them.
        logits: Those of each row's next token.
    """

    slots: list[_Slot]
    rows: Rows
    running: RunningBatch
    logits: Float[Tensor, "batch vocab"]

    def drop_ended(self) -> None:
        """Go on without the rows that have ended: the last ones take their places."""
        left = sum(not slot.row.ended for slot in self.slots)
        last = [i for i, slot in enumerate(self.slots) if i >= left and not slot.row.ended]
        kept = [last.pop() if self.slots[i].row.ended else i for i in range(left)]
        if left == len(self.slots):
            return
        self.slots = [self.slots[i] for i in kept]
        self.rows.select(kept)
        self.running.select(kept)
        if self._longest < _TIGHT * self.rows.width:
            self._resize(self._longest)

    def join(self, other: _Batch) -> None:
        """Take in the responses of another batch."""
        longest = max(self._longest, other.rows.width)
        if longest > self.rows.width or longest < _TIGHT * self.rows.width:
            self._resize(longest)
        self.slots += other.slots
        self.rows.join(other.rows)
        self.running.join(other.running)
        self.logits = torch.cat([self.logits, other.logits])

    @property
    def _longest(self) -> int:
        return max(len(row.token_ids) for row in self.rows)

    def _resize(self, width: int) -> None:
        waiting = self.rows.width - self.running.width  # read, and not run yet
        self.rows.resize(width)
        self.running.resize(width - waiting)


@dataclass(frozen=True)
class BatchDecoder:
    """Decodes jobs together.

    Where rows may move (`ModelView.rows_may_move`), a row that has ended leaves, a waiting prompt
    takes its place, long prompts go first, and samples of one prompt share its prefill. Elsewhere
    a batch is decoded until its last row ends, and the next one follows.

    Attributes:
        view: The model.
        tokenizer: Its tokenizer.
        decoding: How to decode.
        form: How responses are written.
        plans: What a thinking budget means in token ids; None without one.
    """

    view: ModelView
    tokenizer: Any
    decoding: Decoding
    form: Format
    plans: Plans | None

    def decode(self, jobs: Sequence[Job]) -> Generator[tuple[int, Row], None, None]:
        """Decode all jobs, at most `Decoding.batch_size` at a time.

        Yields:
            The number of each job, and its row, as it is finished: read up to its end token, the
            token that stopped it, or its limit. Close the iterator, where it is not exhausted: the
            model is back as it was then.

        Raises:
            GenerationError: The logits of a row are NaN or infinite, or memory does not suffice.
        """
        for number, job in enumerate(jobs):
            if job.limit < 1:  # the prompt fills the context
                (slot,) = self._slots([(number, job)])
                slot.row.finish()
                yield number, slot.row
        waiting = deque((number, job) for number, job in enumerate(jobs) if job.limit >= 1)
        if not waiting:
            return
        probe = torch.tensor([waiting[0][1].prompt[:_PROBE]], device=self.view.device)
        with self.view.for_decoding(probe) as view:
            moves = view.rows_may_move
            if moves:
                waiting = deque(sorted(waiting, key=lambda pair: -len(pair[1].prompt)))
            yield from self._decode(view, waiting, moves)

    def _decode(
        self, view: ModelView, waiting: deque[tuple[int, Job]], moves: bool
    ) -> Iterator[tuple[int, Row]]:
        """Decode what waits, with this view; `moves`: whether rows leave and join."""
        size = self.decoding.batch_size
        batch: _Batch | None = None
        try:
            while waiting or batch is not None:
                room = size - (0 if batch is None else len(batch.slots))
                if waiting and (batch is None or (moves and room * _REFILL >= size)):
                    joining = self._next(view, waiting, room)
                    with self._memory(joining):
                        capacity = size if waiting and batch is None else len(joining)
                        more = self._begin(view, joining, capacity if moves else 0)
                        if batch is None:
                            batch = more
                        else:
                            batch.join(more)
                assert batch is not None
                going = [slot for slot in batch.slots if not slot.row.ended]
                tokens = self._choose(batch)
                yield from ((s.number, s.row) for s in going if s.row.ended)
                if all(slot.row.ended for slot in going):
                    batch = None
                    continue
                with self._memory([(slot.number, slot.job) for slot in batch.slots]):
                    self._run(batch, tokens, drop=moves)
        finally:
            if batch is not None:
                for slot in batch.slots:
                    slot.row.finish()

    def _next(
        self, view: ModelView, waiting: deque[tuple[int, Job]], room: int
    ) -> list[tuple[int, Job]]:
        """Take those that go next: as many as there is room for, and as fit together."""
        positions = view.context_length if view.padding_takes_positions else None
        taken = [waiting.popleft()]
        while waiting and len(taken) < room:
            both = [job for _, job in (*taken, waiting[0])]
            width = max(len(job.prompt) for job in both) + max(job.limit for job in both)
            if positions is not None and width > positions:
                break
            taken.append(waiting.popleft())
        return taken

    def _slots(self, jobs: Sequence[tuple[int, Job]]) -> list[_Slot]:
        """Responses whose prompts are read."""
        rows, stops = self._read([job for _, job in jobs]), self.decoding.stop
        return [
            _Slot(
                number,
                job,
                row,
                self.decoding.generator(job.asked.seed_text, job.sample),
                None if self.plans is None else ForcedRow(self.plans, row.reader),
                StoppedRow(stops, row.reader) if stops else None,
            )
            for (number, job), row in zip(jobs, rows, strict=True)
        ]

    def _read(self, jobs: Sequence[Job]) -> Rows:
        """The rows of some prompts."""
        ends = end_token_ids(self.view, self.tokenizer)
        rows = Rows.of_prompts(
            self.tokenizer,
            [job.prompt for job in jobs],
            self.form,
            end_ids=ends,
            prompt_lengths=[job.asked.prompt_length for job in jobs],
        )
        if any(row.ended for row in rows):
            raise GenerationError(
                "expected responses that can go on, got one whose given tokens hold its end"
            )
        return rows

    @torch.no_grad()
    def _begin(self, view: ModelView, jobs: Sequence[tuple[int, Job]], capacity: int) -> _Batch:
        """Run the prompts of some jobs; once for all samples of one, where rows may move.

        Args:
            view: The model.
            jobs: The jobs.
            capacity: Number of rows that there may be; 0 where they keep their places.
        """
        slots = self._slots(jobs)
        rows = Rows([slot.row for slot in slots])
        prompts: dict[int, int] = {}  # of each prompt, the number of its first job
        of_job = [prompts.setdefault(id(job.asked), i) for i, (_, job) in enumerate(jobs)]
        first = list(prompts.values())
        shared = capacity > 0 and len(first) < len(jobs)
        running_rows = self._read([jobs[i][1] for i in first]) if shared else rows
        stops = [rows.width + job.limit for _, job in jobs]
        running = view.new_batch([row.pads for row in running_rows], stops, capacity)
        tokens = running_rows.padded(pad_token_id(self.tokenizer))
        logits = self._forward(running, running_rows, tokens)
        if shared:
            index = [first.index(i) for i in of_job]
            running.select(index)
            logits = logits[torch.tensor(index, device=logits.device)]
            for row in running_rows:
                row.finish()
        return _Batch(slots, rows, running, logits)

    @torch.no_grad()
    def _run(self, batch: _Batch, tokens: Sequence[int], *, drop: bool) -> None:
        """Run the token of each row; without the rows that have ended, where they are dropped."""
        if drop:
            token_of = {slot.number: token for slot, token in zip(batch.slots, tokens, strict=True)}
            batch.drop_ended()
            tokens = [token_of[slot.number] for slot in batch.slots]
        batch.logits = self._forward(batch.running, batch.rows, [[token] for token in tokens])

    def _forward(
        self, running: RunningBatch, rows: Rows, tokens: Sequence[Sequence[int]]
    ) -> Float[Tensor, "batch vocab"]:
        """One forward pass over tokens that the rows hold."""
        ids = torch.tensor(tokens, device=self.view.device)
        rows.run(ids)
        with publish(self.view.model, rows):
            return running.run(ids)

    @torch.no_grad()
    def _choose(self, batch: _Batch) -> list[int]:
        """Choose and read a token for every row; the one read from the device for all of them."""
        slots = batch.slots
        best, chosen = batch.logits.max(-1)  # NaN where any is; infinite where no token is left
        if self.decoding.draws:
            chosen = self.decoding.choose(batch.logits, [slot.generator for slot in slots])
        ids: list[int] = torch.where(best.isfinite(), chosen, -1 - chosen).tolist()
        going = [number for number, slot in enumerate(slots) if not slot.row.ended]
        for number in going:
            if ids[number] < 0:
                raise _non_finite(number, slots)
        ids = [token if token >= 0 else -1 - token for token in ids]
        ids = [
            token if slot.forced is None else slot.forced.next(token)
            for slot, token in zip(slots, ids, strict=True)
        ]
        batch.rows.push([[token] for token in ids])
        for number in going:
            slots[number].has_read()
        return ids

    def _memory(self, jobs: Sequence[tuple[int, Job]]) -> AbstractContextManager[None]:
        """Where memory does not suffice inside, say what would need less."""
        advice = partial(_smaller, [job for _, job in jobs], self.decoding.max_new_tokens)
        return out_of_memory_as(GenerationError, advice)


def pad_token_id(tokenizer: Any) -> int:
    """Id to pad prompts with; masked out, so that any would do."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def _smaller(batch: Sequence[Job], limit: int) -> str:
    """What would need less memory than these jobs together."""
    longest = max(len(job.prompt) for job in batch)
    got = (
        f"batch_size={len(batch)} with prompts of up to {longest} tokens and max_new_tokens={limit}"
    )
    if len(batch) > 1:
        return f"expected a batch that fits, got {got}; try batch_size={len(batch) // 2}"
    return (
        f"expected a response that fits, got {got}; try max_new_tokens={max(1, limit // 2)}, a "
        "model in dtype='bfloat16' or quantized (hf_model=...), or device_map='auto'"
    )


def _non_finite(row: int, slots: Sequence[_Slot]) -> GenerationError:
    length, step = len(slots[row].job.prompt), slots[row].done
    return GenerationError(
        f"expected finite logits, got NaN or infinite ones in row {row} of a batch of "
        f"{len(slots)}, for its new token {step} (position {length + step}, after a "
        f"prompt of {length}): check the weights and what is attached; {WIDER}"
    )
