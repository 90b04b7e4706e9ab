"""A model on known traces, teacher-forced: its predictions as it is, and under interventions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepflow_tl.errors import SettingError
from stepflow_tl.interventions.flow import StepFlow
from stepflow_tl.interventions.step_momentum import StepMomentum
from stepflow_tl.models.base import ModelView
from stepflow_tl.traces.rows import Row, Rows, TraceLabels, publish
from stepflow_tl.traces.tokens import end_token_ids
from stepflow_tl.traces.trace import Trace

DivergenceOf = Literal["mean", "worst"]
"""Of the tokens' divergences: their mean, or the mean of the largest `WORST` of them."""

WORST = 0.05
"""Share of tokens that "worst" averages, at least one (as steering-lite's ``calibrate`` does)."""

_PROBE = 8  # tokens on which the quicker way to run a model is held against the model
_BLOCK = 1 << 22  # numbers in float64 at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenDivergence:
    """How far a flow moves the predictions of a trace's tokens.

    Attributes:
        positions: Positions of the tokens in the trace.
        kl: KL(base || intervened) of the distributions that predict each, in nats.
        nll: Negative log-likelihood of each without the flow, in nats.
        nll_change: The same under the flow, minus `nll`.
    """

    positions: range
    kl: Float[Tensor, "token"]
    nll: Float[Tensor, "token"]
    nll_change: Float[Tensor, "token"]

    @property
    def mean_kl(self) -> float:
        """Mean divergence of a token, in nats."""
        return float(self.kl.mean())

    @property
    def worst_kl(self) -> float:
        """Mean divergence of the `WORST` share of tokens, in nats."""
        return divergence_of(self.kl, "worst")


def divergence_of(kl: Float[Tensor, "token"], of: DivergenceOf) -> float:
    """One number for the divergences of some tokens, in nats."""
    if of == "worst":
        kl = kl.topk(max(1, math.ceil(WORST * len(kl)))).values
    return float(kl.mean())


def _checked_rows(trace: Trace, rows: range | None) -> range:
    wanted = range(max(1, trace.prompt_length), len(trace)) if rows is None else rows
    if not wanted or wanted.step != 1 or wanted.start < 1 or wanted.stop > len(trace):
        raise SettingError(
            f"expected positions of some tokens from 1 to before {len(trace)}, got "
            f"{wanted if rows is not None else 'a trace without a response'}"
        )
    return wanted


class Base(NamedTuple):
    """What a model predicts without any flow.

    Attributes:
        tokens: Positions of the tokens that are predicted.
        logits: What predicts them.
        nll: Their negative log-likelihood.
        begin: First position of the thinking, where the runs under flows may part from this one.
        question: KV cache of the positions before.
    """

    tokens: range
    logits: Float[Tensor, "token vocab"]
    nll: Float[Tensor, "token"]
    begin: int
    question: Any


@dataclass(frozen=True)
class Teacher:
    """Runs a model on known traces, in chunks; flows know their segments and steps.

    Attributes:
        seen: The model.
        chunk: Positions that are run together.
    """

    seen: ModelView
    chunk: int

    def __post_init__(self) -> None:
        """Check the chunk.

        Raises:
            SettingError: It is less than one.
        """
        if self.chunk < 1:
            raise SettingError(f"expected a chunk of at least one position, got {self.chunk}")

    def base(self, trace: Trace, rows: range | None = None) -> Base:
        """Run the model as it is.

        Args:
            trace: The trace.
            rows: Positions of the tokens whose predictions are held; None for the response's.

        Raises:
            SettingError: There is no such token, or none before it that predicts it.
            ModelError: The model has no tokenizer.
        """
        tokens = _checked_rows(trace, rows)
        begin = min(trace.question.stop, tokens.stop - 1)
        held, question = [], None
        for part, logits, cache in self._passes(trace, 0, begin, tokens.stop - 1):
            if part.stop == begin:
                question = deepcopy(cache)
            held.append(logits[max(0, tokens.start - 1 - part.start) :].clone())
        logits = torch.cat(held)
        following = trace.token_ids[tokens.start : tokens.stop]
        return Base(tokens, logits, compared(logits, logits, following)[1], begin, question)

    def moved(self, trace: Trace, flow: StepFlow, base: Base) -> TokenDivergence:
        """Run the model under a flow, and compare."""
        tokens, first, cache = base.tokens, 0, None
        if _spares_question(flow):
            first, cache = base.begin, deepcopy(base.question)
        kl, nll = torch.zeros_like(base.nll), base.nll.clone()
        with flow.attach(self.seen):
            passes = self._passes(trace, first, base.begin, tokens.stop - 1, cache)
            for part, logits, _ in passes:
                start = max(part.start, tokens.start - 1)
                at = slice(start - tokens.start + 1, part.stop - tokens.start + 1)
                if start < part.stop:
                    following = trace.token_ids[start + 1 : part.stop + 1]
                    new = logits[start - part.start :]
                    kl[at], nll[at] = compared(base.logits[at], new, following)
        return TokenDivergence(positions=tokens, kl=kl, nll=base.nll, nll_change=nll - base.nll)

    def _passes(
        self, trace: Trace, first: int, begin: int, stop: int, cache: Any = None
    ) -> Iterator[tuple[range, Float[Tensor, "new vocab"], Any]]:
        """Logits of each chunk, and the cache after it; a chunk ends at `begin`."""
        row = Row(TraceLabels(trace, end_token_ids(self.seen)))
        rows = Rows([row])
        rows.push([trace.token_ids[:first].tolist()])
        tokens = trace.tokens.to(self.seen.device)
        with torch.no_grad(), self.seen.for_decoding(tokens[:, :_PROBE]) as quickest:
            for low, high in ((first, begin), (max(first, begin), stop)):
                for start in range(low, high, self.chunk):
                    end = min(start + self.chunk, high)
                    rows.push(trace.tokens[:, start:end].tolist())
                    mask = torch.ones(1, end, dtype=torch.long, device=self.seen.device)
                    with publish(self.seen.model, rows):
                        logits, cache = quickest.run_cached(tokens[:, start:end], mask, cache)
                    yield range(start, end), logits[0], cache
        row.finish()


def _spares_question(flow: StepFlow) -> bool:
    """Whether nothing that runs before the thinking is changed."""
    return all(
        item.reasoning_only and (item.site == "pattern" or isinstance(item, StepMomentum))
        for item in flow.interventions
    )


def compared(
    base: Float[Tensor, "row vocab"],
    new: Float[Tensor, "row vocab"],
    following: Int[Tensor, "row"],
) -> tuple[Float[Tensor, "row"], Float[Tensor, "row"]]:
    """KL(base || new) of each row, and new's negative log-likelihood of the tokens [row]."""
    kl, nll = (torch.empty(len(base), dtype=torch.float64) for _ in range(2))
    block = max(1, _BLOCK // base.shape[1])
    for start in range(0, len(base), block):
        at = slice(start, start + block)
        q = new[at].double().log_softmax(-1)
        nll[at] = -q.gather(-1, following[at, None].to(q.device))[:, 0].cpu()
        p = base[at].double().log_softmax(-1)
        kl[at] = divergence(p, q).cpu()
    return kl, nll


def divergence(
    log_p: Float[Tensor, "*#batch vocab"], log_q: Float[Tensor, "*#batch vocab"]
) -> Float[Tensor, "*batch"]:
    """KL(p || q) of log-probabilities, in nats; what p excludes counts nothing."""
    gap = (log_p - log_q).masked_fill(log_p == -torch.inf, 0.0)
    return (log_p.exp() * gap).sum(-1)
