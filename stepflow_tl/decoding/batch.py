"""Decoding one batch: the loop that drives the model, and owns the readers of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl.decoding.budget import ForcedRow, Plans
from stepflow_tl.decoding.settings import Decoding
from stepflow_tl.decoding.stopping import StoppedRow
from stepflow_tl.errors import GenerationError
from stepflow_tl.models.base import ModelView
from stepflow_tl.models.precision import WIDER
from stepflow_tl.traces.chat import Asked
from stepflow_tl.traces.formats import Format
from stepflow_tl.traces.rows import Row, Rows, publish
from stepflow_tl.traces.tokens import end_token_ids


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


@dataclass(frozen=True)
class BatchDecoder:
    """Decodes batches of jobs.

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

    def decode(self, jobs: Sequence[Job]) -> list[Row]:
        """Decode one left-padded batch.

        Returns:
            The rows, each read up to its end token, the token that stopped it, or its limit.

        Raises:
            GenerationError: The logits of a row are NaN or infinite.
        """
        if len(jobs) > 1 and not self._fit_together(jobs):
            return [self.decode([job])[0] for job in jobs]
        rows = Rows.of_prompts(
            self.tokenizer,
            [job.prompt for job in jobs],
            self.form,
            pad_id=pad_token_id(self.tokenizer),
            end_ids=end_token_ids(self.view, self.tokenizer),
        )
        with torch.no_grad(), publish(self.view.model, rows):
            self._run(rows, jobs)
        return list(rows)

    def _fit_together(self, jobs: Sequence[Job]) -> bool:
        """Whether these can be one batch: all have room, and so has the padding."""
        limits = [job.limit for job in jobs]
        positions = self.view.context_length if self.view.padding_takes_positions else None
        width = max(len(job.prompt) for job in jobs) + max(limits)
        return min(limits) > 0 and (positions is None or width <= positions)

    def _run(self, rows: Rows, jobs: Sequence[Job]) -> None:
        """Choose and push a token for every row, until each is finished."""
        device, limits = self.view.device, [job.limit for job in jobs]
        generators = [self.decoding.generator(job.asked.seed_text, job.sample) for job in jobs]
        forced = [] if self.plans is None else [ForcedRow(self.plans, row.reader) for row in rows]
        stops = self.decoding.stop
        stopped = [StoppedRow(stops, row.reader) for row in rows] if stops else []
        tokens = torch.tensor([row.columns for row in rows], device=device)
        mask = torch.tensor(  # none after a row's limit: its positions end there
            [
                [0] * row.pads + [1] * (rows.width - row.pads + limit) + [0] * (max(limits) - limit)
                for row, limit in zip(rows, limits, strict=True)
            ],
            device=device,
        )
        unfinished = [row for row in range(len(rows)) if limits[row] > 0]
        for row in set(range(len(rows))) - set(unfinished):
            rows[row].finish()
        cache = None
        for step in range(max(limits)):
            logits, cache = self.view.decode(tokens, mask[:, : rows.width], cache)
            ids = self._choose(logits, generators)
            for row in unfinished:
                if ids[row] < 0:
                    raise _non_finite(row, step, jobs)
            ids = [token if token >= 0 else -1 - token for token in ids]
            if forced:
                ids = [row.next(token) for row, token in zip(forced, ids, strict=True)]
            rows.push([[token] for token in ids])
            for row in unfinished:
                if (
                    rows[row].reader.ended
                    or step + 1 >= limits[row]
                    or (stopped and stopped[row].stopped())
                ):
                    rows[row].finish()
            unfinished = [row for row in unfinished if not rows[row].ended]
            if not unfinished:
                return
            tokens = torch.tensor(ids, device=device)[:, None]

    def _choose(
        self, logits: Float[Tensor, "batch vocab"], generators: Sequence[torch.Generator]
    ) -> list[int]:
        """The next token of every row; -1 - token where its logits are not finite."""
        chosen = self.decoding.choose(logits, generators)
        best = logits.amax(-1)  # NaN where any is, and infinite only where no token is left
        ids: list[int] = torch.where(best.isfinite(), chosen, -1 - chosen).tolist()
        return ids


def pad_token_id(tokenizer: Any) -> int:
    """Id to pad prompts with; masked out, so that any would do."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def _non_finite(row: int, step: int, jobs: Sequence[Job]) -> GenerationError:
    length = len(jobs[row].prompt)
    return GenerationError(
        f"expected finite logits, got NaN or infinite ones in row {row} of a batch of "
        f"{len(jobs)}, for its new token {step} (position {length + step}, after a "
        f"prompt of {length}): check the weights and what is attached; {WIDER}"
    )
