"""Running a trace with keys hidden: what a model says where it may not look at some tokens.

A key is hidden from every query that comes late enough, in all layers and heads, by a score of
minus infinity before the softmax. Several variants of one trace are the rows of one batch, over a
prefix that is run once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepflow_tl.errors import SettingError, StepMapError
from stepflow_tl.models.base import ModelView
from stepflow_tl.models.precision import widened
from stepflow_tl.traces.rows import publish
from stepflow_tl.traces.trace import Trace

Hide = Literal["keys", "tokens"]

_LOGITS_AT_ONCE = 1 << 22


@dataclass(frozen=True, eq=False)
class Variants:
    """Variants of one trace, a row each.

    Attributes:
        tokens: Their tokens.
        hidden_from: For each key, the first query that does not see it; the length for none.
    """

    tokens: Int[Tensor, "row pos"]
    hidden_from: Int[Tensor, "row pos"]

    @classmethod
    def of(
        cls, trace: Trace, hidden: Sequence[Sequence[int]], how: Hide = "keys", pad: int = 0
    ) -> Variants:
        """A row for each set of steps, none of which is seen by what comes after it.

        Args:
            trace: The trace.
            hidden: For each row the numbers of the steps that are hidden.
            how: "keys": hidden from all later queries, their tokens as they are; "tokens": in
                plain sight, each token replaced by `pad` (a control off the distribution).
            pad: Id of a token that says nothing.
        """
        size = len(trace)
        tokens = trace.token_ids.repeat(len(hidden), 1)
        hidden_from = torch.full_like(tokens, size)
        for row, steps in enumerate(hidden):
            for step in (trace.steps[number] for number in steps):
                if how == "keys":
                    hidden_from[row, step.start : step.stop] = step.stop
                else:
                    tokens[row, step.start : step.stop] = pad
        return cls(tokens, hidden_from)

    def same_until(self, trace: Trace) -> int:
        """Number of first positions at which all rows are the trace itself."""
        hidden = int(self.hidden_from.min())
        changed = (self.tokens != trace.token_ids).any(0).nonzero()
        return min(hidden, int(changed[0, 0]) if len(changed) else len(trace))


def check_hiding(trace: Trace, answer: tuple[int, int] | None, hide: str, batch_size: int) -> None:
    """Refuse what cannot be hidden, or asked of.

    Raises:
        SettingError: The answer is not within the trace, or a setting is out of range.
    """
    if answer is not None and not 0 < answer[0] < answer[1] <= len(trace):
        raise SettingError(
            f"expected answer=(start, stop) within the {len(trace)} tokens, got {answer}"
        )
    if hide not in get_args(Hide):
        raise SettingError(f"expected hide in {list(get_args(Hide))}, got {hide!r}")
    if batch_size < 1:
        raise SettingError(f"expected batch_size >= 1, got {batch_size}")


See = Callable[[range, Float[Tensor, "row query vocab"]], None]
"""Is shown positions of some queries, and the rows' logits there, in float32 or wider."""


def run_variants(
    view: ModelView,
    trace: Trace,
    variants: Variants,
    see: See,
    *,
    from_query: int | None = None,
) -> None:
    """Run all rows, and show their logits some queries at a time.

    Whatever interventions and hooks are attached to the model act, too; every row is then run from
    its first token, as they expect.

    Args:
        view: The model.
        trace: The trace that the rows are variants of.
        variants: The rows.
        see: Is shown the logits.
        from_query: The first position whose logits are shown; what lies before it, and is not the
            same in all rows, is run in one piece. None for where the rows begin to differ.
    """
    size, rows = len(trace), len(variants.tokens)
    followed = bool(view.hooks_on())
    differ = 0 if followed else max(0, min(variants.same_until(trace), size - 1))
    shown_from = differ if from_query is None else from_query
    start = min(differ, shown_from)
    tokens = variants.tokens.to(view.device)
    place = _Place(variants.hidden_from)
    with (
        publish(view.model, trace),
        torch.inference_mode(),
        _quickest(view, trace, followed) as run,
    ):
        cache = None
        if start:
            mask = torch.ones(1, start, dtype=torch.long, device=view.device)
            _, cache = run.run_cached(tokens[:1, :start], mask, None)
            cache = run.repeated(cache, rows)
        queries = max(1, _LOGITS_AT_ONCE // (rows * _vocabulary(view)))
        with run.keys_hidden(place.seen):
            begin = start
            while begin < size:
                whole = begin < shown_from
                place.stop = stop = min(size, shown_from if whole else begin + queries)
                mask = torch.ones(rows, stop, dtype=torch.long, device=view.device)
                logits, cache = run.run_cached(tokens[:, begin:stop], mask, cache)
                if not whole:
                    see(range(begin, stop), widened(logits))
                begin = stop


def log_probability(
    trace: Trace, rows: range, queries: range, logits: Float[Tensor, "row query vocab"]
) -> Float[Tensor, "row"]:
    """What some queries add to the log-probability of the tokens that follow some rows, in nats.

    Args:
        trace: The trace.
        rows: Positions whose next tokens count.
        queries: Positions that the logits are of.
        logits: The variants' logits.
    """
    wanted = [t - queries.start for t in rows if t in queries]
    following = trace.token_ids[[queries.start + t + 1 for t in wanted]].to(logits.device)
    plain = logits[:, wanted].log_softmax(-1)
    index = following[None, :, None].expand(len(plain), -1, 1)
    return plain.gather(-1, index)[..., 0].double().sum(-1).cpu()


@contextmanager
def _quickest(view: ModelView, trace: Trace, followed: bool) -> Iterator[ModelView]:
    """The view to run with: of a bridge its decoder, unless somebody's hooks are on it."""
    if followed:
        yield view
        return
    with view.for_decoding(trace.tokens[:, :8].to(view.device)) as quick:
        yield quick


class _Place:
    """Where the present pass ends, and which keys its queries see.

    Attributes:
        stop: One past the last position of the pass.
    """

    def __init__(self, hidden_from: Int[Tensor, "row pos"]) -> None:
        self.stop = 0
        self._hidden_from = hidden_from

    def seen(self, queries: int, keys: int) -> Bool[Tensor, "row 1 query key"]:
        """Which of the last keys each of the last queries may see."""
        position = torch.arange(self.stop - queries, self.stop)
        hidden_from = self._hidden_from[:, None, self.stop - keys : self.stop]
        return (position[:, None] < hidden_from)[:, None]


def _vocabulary(view: ModelView) -> int:
    decoder = view.decoder
    if decoder is None:
        return int(view.model.cfg.d_vocab)
    return int(decoder.config.get_text_config().vocab_size)


def pad_token_id(view: ModelView) -> int:
    """Id of the tokenizer's padding token, else of its end token.

    Raises:
        StepMapError: It has neither.
    """
    tokenizer = view.tokenizer
    for name in ("pad_token_id", "eos_token_id"):
        found = getattr(tokenizer, name, None)
        if isinstance(found, int):
            return found
    raise StepMapError(
        "expected a tokenizer with a padding or an end token, to put in place of a step's, got none"
    )
