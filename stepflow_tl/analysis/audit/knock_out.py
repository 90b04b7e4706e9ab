"""What hiding a step does to each later one: the causal reference that needs no sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from stepflow_tl.analysis.audit.hiding import (
    Hide,
    Variants,
    check_hiding,
    log_probability,
    pad_token_id,
    run_variants,
)
from stepflow_tl.analysis.teacher import divergence
from stepflow_tl.errors import NonFiniteError, SettingError, StepMapError
from stepflow_tl.models.base import Model, ModelView
from stepflow_tl.models.view import view
from stepflow_tl.saliency.maps import StepMap
from stepflow_tl.traces.tokens import FRAME
from stepflow_tl.traces.trace import Step, Trace
from stepflow_tl.version import __version__

Average = Literal["kl", "log_kl"]

_LOG_FLOOR = 1e-9  # thought-anchors': ln(KL + 1e-9)


@dataclass(frozen=True, kw_only=True, eq=False)
class KnockOut:
    """What hiding each step did.

    Attributes:
        kl: KL(base || hidden) of the next-token distributions in nats, a mean over the tokens of
            the query step where the key step is hidden; zero on and above the diagonal. With
            average="log_kl" a mean of logarithms, -inf there.
        answer: Change of the answer's log-probability, in nats, where each step is hidden; below
            zero where the answer rests on it. NaN for steps that do not come before the answer, and
            where there is no answer.
        steps: The steps.
        settings: How it was made.
    """

    kl: Float[Tensor, "query_step key_step"]
    answer: Float[Tensor, "key_step"]
    steps: tuple[Step, ...]
    settings: dict[str, Any]

    def as_map(self) -> StepMap:
        """The matrix as a map of one layer, to be drawn and compared like any other."""
        scores = self.kl.masked_fill(self.kl == -torch.inf, 0.0)
        return StepMap(
            scores=scores[None], layers=(0,), n_layers=1, steps=self.steps, settings=self.settings
        )


def knock_out(
    model: Model | ModelView,
    trace: Trace,
    *,
    answer: tuple[int, int] | None = None,
    temperature: float = 1.0,
    average: Average = "kl",
    hide: Hide = "keys",
    batch_size: int = 8,
    progress: bool = False,
) -> KnockOut:
    """Hide each step from all that comes after it, and see what changes.

    The keys of a step are hidden in all layers and heads from the queries of every later token; the
    step itself, and the frame, stay as they are. With p_t the model's distribution of the next
    token at row t, and p_t^j the same where step j is hidden::

        KL[i, j] = mean_{t in step i} sum_v p_t(v) log(p_t(v) / p_t^j(v)),    j < i

    exactly, over the whole vocabulary. thought-anchors calls it attention suppression; their
    variant is ``temperature=0.6, average="log_kl"``: a mean of ln(KL + 1e-9), which a few tokens
    that nothing changes dominate (theirs also drops the tail beyond 100 tokens). One row of a batch
    for each step, over a prefix that is run once; logits are held some queries at a time.

    Interventions and hooks that are attached to the model act in all of it.

    Args:
        model: The model.
        trace: The trace, whose own tokens are run.
        answer: Span of the answer's tokens; None for that of the last box (`Trace.answer_span`),
            or where there is none, no answer.
        temperature: That logits are divided by for KL; the answer's log-probability has none.
        average: "kl", the arithmetic mean over a step's tokens, or "log_kl".
        hide: "keys"; or "tokens", which leaves the step in sight and replaces its tokens by
            padding: a control, off the distribution that the model knows.
        batch_size: Number of steps that are hidden at the same time, one in each row.
        progress: Show a progress bar.

    Raises:
        ValueError: A setting is out of range, or the trace has fewer than two steps.
        NonFiniteError: The model's logits are NaN.
    """
    _check(trace, temperature, average)
    seen = view(model)
    span = trace.answer_span if answer is None else answer
    check_hiding(trace, span, hide, batch_size)
    count = len(trace.steps)
    pad = pad_token_id(seen) if hide == "tokens" else 0
    kl = torch.zeros(count, count, dtype=torch.float64)
    answers = torch.full((count,), torch.nan, dtype=torch.float64)
    sums = _Sums(trace, temperature, average, span)
    with tqdm(total=count, unit="step", disable=not progress) as bar:
        for first in range(0, count, batch_size):
            hidden = range(first, min(count, first + batch_size))
            variants = Variants.of(trace, [[], *([step] for step in hidden)], hide, pad)
            sums.begin(len(hidden))
            run_variants(seen, trace, variants, sums.see)
            kl[:, hidden.start : hidden.stop] = sums.by_step()
            if span is not None:
                known = [step for step in hidden if trace.steps[step].stop <= span[0]]
                change = sums.answer()
                for step in known:
                    answers[step] = change[step - first]
            bar.update(len(hidden))
    later = torch.ones(count, count, dtype=torch.bool).tril(-1)
    nothing = 0.0 if average == "kl" else -torch.inf
    settings = {
        "rule": "knock-out",
        "hide": hide,
        "temperature": temperature,
        "average": average,
        "answer": None if span is None else list(span),
        "model": seen.name,
        "dtype": str(seen.dtype).removeprefix("torch."),
        "version": __version__,
    }
    return KnockOut(
        kl=kl.masked_fill(~later, nothing), answer=answers, steps=trace.steps, settings=settings
    )


class _Sums:
    """Adds up what the rows of a batch say, the first of them being the trace itself."""

    def __init__(
        self, trace: Trace, temperature: float, average: Average, span: tuple[int, int] | None
    ) -> None:
        self._trace, self._temperature, self._average = trace, temperature, average
        self._rows = None if span is None else range(span[0] - 1, span[1] - 1)

    def begin(self, hidden: int) -> None:
        """A batch of so many hidden steps comes."""
        self._kl = torch.zeros(len(self._trace.steps), hidden, dtype=torch.float64)
        self._said = torch.zeros(hidden + 1, dtype=torch.float64)

    def see(self, queries: range, logits: Float[Tensor, "row query vocab"]) -> None:
        """Take some queries."""
        log_p = (logits / self._temperature).log_softmax(-1)
        kl = divergence(log_p[:1], log_p[1:]).clamp_min(0.0).double().cpu()
        if bool(kl.isnan().any()):
            raise NonFiniteError(
                f"expected divergences that are numbers, got NaN at the queries {queries.start} to "
                f"{queries.stop}: the model's logits are NaN or infinite there; check its weights, "
                "or try a wider dtype"
            )
        if self._average == "log_kl":
            kl = (kl + _LOG_FLOOR).log()
        step = self._trace.step_of_token[queries.start : queries.stop]
        on = step != FRAME
        self._kl.index_add_(0, step[on], kl.T[on])
        if self._rows is not None:
            self._said += log_probability(self._trace, self._rows, queries, logits)

    def by_step(self) -> Float[Tensor, "query_step hidden"]:
        """Means over the tokens of each step."""
        sizes = torch.tensor([[len(step)] for step in self._trace.steps])
        return self._kl / sizes.clamp_min(1)

    def answer(self) -> Float[Tensor, "hidden"]:
        """Change of the answer's log-probability."""
        return self._said[1:] - self._said[0]


def _check(trace: Trace, temperature: float, average: str) -> None:
    if len(trace.steps) < 2:
        raise StepMapError(f"expected a trace of at least two steps, got {trace!r}")
    if not 0.0 < temperature < float("inf"):
        raise SettingError(f"expected temperature above 0, got {temperature}")
    if average not in get_args(Average):
        raise SettingError(f"expected average in {list(get_args(Average))}, got {average!r}")
