"""How far interventions move a model's predictions, token by token; strengths that move alike.

Teacher-forced: the model runs on a trace's own tokens, once as it is and once under each flow, and
the distributions that predict a token are compared whole. Two interventions can be held against
each other only where they move a model equally far: `calibrate_divergence` finds such strengths.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar, get_args

import pandas as pd
import torch

from stepflow_tl.analysis.teacher import (
    Base,
    DivergenceOf,
    Teacher,
    TokenDivergence,
    divergence_of,
)
from stepflow_tl.errors import InterventionWarning, SettingError
from stepflow_tl.interventions.flow import StepFlow
from stepflow_tl.models.base import Model, ModelView
from stepflow_tl.models.view import view
from stepflow_tl.traces.trace import Trace

Name = TypeVar("Name", bound=Hashable)

_KEPT = 1 << 27  # logits that a calibration keeps from one strength to the next


def token_divergence(
    model: Model | ModelView,
    trace: Trace,
    flow: StepFlow,
    *,
    rows: range | None = None,
    chunk: int = 256,
) -> TokenDivergence:
    """How far a flow moves the predictions of a trace's tokens; see `token_divergences`."""
    return token_divergences(model, trace, {"": flow}, rows=rows, chunk=chunk)[""]


def token_divergences(
    model: Model | ModelView,
    trace: Trace,
    flows: Mapping[Name, StepFlow],
    *,
    rows: range | None = None,
    chunk: int = 256,
) -> dict[Name, TokenDivergence]:
    """How far each of several flows moves the predictions of a trace's tokens.

    With p_t the distribution that predicts token t, and q_t the same under a flow, over the whole
    vocabulary and in float64::

        KL_t = sum_v p_t(v) (log p_t(v) - log q_t(v)),    change_t = log p_t(x_t) - log q_t(x_t)

    The logits of the rows asked for are held once, those of the model without the flows; a flow's
    own are compared chunk by chunk, against a KV cache. Interventions that leave the question alone
    (OEB, SMI and their like) share one pass over it. What is attached to the model beforehand acts
    in both.

    Args:
        model: A `TransformerBridge`, a `HookedTransformer`, or a Hugging Face decoder with a
            ``tokenizer``.
        trace: The trace; its own tokens are run.
        flows: The flows by name.
        rows: Positions of the tokens whose predictions are compared; None for the response's.
        chunk: Positions that are run together.

    Returns:
        The divergence of each flow by its name.

    Raises:
        SettingError: There is no such token, or none before it that predicts it.

    Warns:
        InterventionWarning: For each intervention that never fired.
    """
    teacher = Teacher(view(model), chunk)
    base = teacher.base(trace, rows)
    return {name: teacher.moved(trace, flow, base) for name, flow in flows.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibratedStrength:
    """A strength at which a flow moves a model as far as was asked for.

    Attributes:
        strength: The strength.
        kl: The divergence there, in nats.
        tried: A row per strength that was tried, in order: ``strength``, ``kl``.
    """

    strength: float
    kl: float
    tried: pd.DataFrame


def calibrate_divergence(
    model: Model | ModelView,
    traces: Sequence[Trace],
    make: Callable[[float], StepFlow],
    *,
    target_kl: float,
    low: float = 0.0,
    high: float = 1.0,
    of: DivergenceOf = "mean",
    tolerance: float = 0.05,
    most: int = 40,
    chunk: int = 256,
) -> CalibratedStrength:
    """The strength at which a flow moves the predictions of some traces by a given divergence.

    Example::

        alike = calibrate_divergence(
            model, held_out, lambda s: StepFlow(StepMomentum(alpha=s)), target_kl=0.01, high=4.0
        )

    The strength is bracketed, and the bracket narrowed: to where a line through the square roots of
    its divergences meets that of the target (a small change's divergence grows with its square), at
    least a tenth of the bracket from its ends; to its middle, where that has moved the same end
    twice. Strengths between `low` and `high` need not move the more the larger they are: one of
    those that fit is found.

    Args:
        model: As `token_divergences` takes it.
        traces: Held-out traces: none that results are reported on. Their responses' tokens count
            alike, whichever trace they are of.
        make: From a strength to its flow.
        target_kl: The divergence, in nats a token.
        low: The least strength, which moves less than that.
        high: The greatest strength, which moves more.
        of: "mean" over all tokens, or over their "worst" 5%.
        tolerance: By how much of `target_kl` the divergence may miss it.
        most: Number of strengths to try.
        chunk: As in `token_divergences`.

    Raises:
        SettingError: The target is outside what the range reaches, or the divergence leaps over it;
            there is no trace; a setting is out of range.
    """
    _check(traces, target_kl, low, high, of, tolerance)
    measure = _Measure(Teacher(view(model), chunk), tuple(traces), make, of)
    best = _search(measure, target_kl, low, high, tolerance * target_kl, most)
    tried = pd.DataFrame(measure.tried, columns=["strength", "kl"])
    return CalibratedStrength(strength=best.strength, kl=best.kl, tried=tried)


class _Tried(NamedTuple):
    strength: float
    kl: float


@dataclass(frozen=True)
class _Measure:
    """The divergence at a strength; the model's own predictions are kept while they are few."""

    teacher: Teacher
    traces: tuple[Trace, ...]
    make: Callable[[float], StepFlow]
    of: DivergenceOf
    tried: list[_Tried] = field(default_factory=list)
    bases: dict[int, Base] = field(default_factory=dict)

    def __call__(self, strength: float) -> _Tried:
        """Try a strength."""
        try:
            flow = self.make(strength)
        except SettingError as error:
            raise SettingError(
                f"expected strengths that the flow can be made with, got {strength:g}: {error}"
            ) from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InterventionWarning)  # the divergence says it
            kl = [
                self.teacher.moved(trace, flow, self._base(number)).kl
                for number, trace in enumerate(self.traces)
            ]
        self.tried.append(_Tried(strength, divergence_of(torch.cat(kl), self.of)))
        return self.tried[-1]

    def _base(self, number: int) -> Base:
        if number in self.bases:
            return self.bases[number]
        base = self.teacher.base(self.traces[number])
        if sum(one.logits.numel() for one in (*self.bases.values(), base)) <= _KEPT:
            self.bases[number] = base
        return base


def _search(
    measure: _Measure, target_kl: float, low: float, high: float, near: float, most: int
) -> _Tried:
    ends, moved = [measure(low), measure(high)], list[int]()
    if not ends[0].kl - near <= target_kl <= ends[1].kl + near:
        raise SettingError(
            f"expected a target_kl that strengths from {low:g} to {high:g} reach, got "
            f"{target_kl:g}, where KL goes from {ends[0].kl:g} to {ends[1].kl:g}"
        )
    best = min(ends, key=lambda one: abs(one.kl - target_kl))
    while abs(best.kl - target_kl) > near:
        if len(measure.tried) >= most:
            (start, below), (stop, above) = ends
            raise SettingError(
                f"expected a strength whose KL is {target_kl:g}, give or take {near:g}, got KL "
                f"{below:g} at {start:g} and {above:g} at {stop:g} after {most} tries"
            )
        best = measure(_between(ends[0], ends[1], target_kl, halve=moved[-2:] in ([0, 0], [1, 1])))
        moved.append(int(best.kl > target_kl))
        ends[moved[-1]] = best
    return best


def _between(low: _Tried, high: _Tried, target_kl: float, *, halve: bool) -> float:
    start, stop = math.sqrt(max(0.0, low.kl)), math.sqrt(max(0.0, high.kl))
    share = 0.5 if halve else (math.sqrt(target_kl) - start) / (stop - start)
    return low.strength + (high.strength - low.strength) * min(max(share, 0.1), 0.9)


def _check(
    traces: Sequence[Trace], target_kl: float, low: float, high: float, of: str, tolerance: float
) -> None:
    if not traces:
        raise SettingError("expected held-out traces to calibrate on, got none")
    if not (0.0 < target_kl < math.inf and low < high and 0.0 < tolerance < 1.0):
        raise SettingError(
            "expected target_kl > 0, low < high and a tolerance between 0 and 1, got "
            f"{target_kl:g}, {low:g} and {high:g}, and {tolerance:g}"
        )
    if of not in get_args(DivergenceOf):
        raise SettingError(f"expected of= in {list(get_args(DivergenceOf))}, got {of!r}")
