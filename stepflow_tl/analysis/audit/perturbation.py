"""RISE and MAS over steps: how fast the answer goes where the steps that a map names are hidden.

The steps before the answer are hidden one after the other, the one first that the map's row of the
answer scores highest, and the log-probability of the answer's tokens is followed. RISE is the area
under this curve, MAS adds how far it lies from what the map promised (FlashTrace's measures, there
over groups of prompt tokens that are replaced by padding; here over steps whose keys are hidden,
and padding is the control). Lower is better in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl.analysis.audit.hiding import (
    Hide,
    Variants,
    check_hiding,
    log_probability,
    pad_token_id,
    run_variants,
)
from stepflow_tl.analysis.audit.truth import check_map
from stepflow_tl.errors import SettingError, StepMapError
from stepflow_tl.models.base import Model, ModelView
from stepflow_tl.models.view import view
from stepflow_tl.saliency.maps import StepMap
from stepflow_tl.saliency.tracing import passing_map
from stepflow_tl.traces.trace import Trace

Curve = Float[np.ndarray, "point"]


def perturbation(
    model: Model | ModelView,
    trace: Trace,
    maps: Mapping[str, StepMap],
    *,
    answer: tuple[int, int] | None = None,
    hide: Hide = "keys",
    batch_size: int = 8,
) -> pd.DataFrame:
    """RISE and MAS of maps of one trace.

    Args:
        model: The model.
        trace: The trace.
        maps: Maps of it by the name of their rule, each with its row of the answer's step; layers
            and heads are averaged, after each row was divided by its sum.
        answer: Span of the answer's tokens; None for that of the last box.
        hide: "keys", from all later queries; "tokens", replaced by padding: off the distribution.
        batch_size: Number of variants of the trace that are run together. A set of steps that
            several maps hide is run once.

    Returns:
        A row per rule: ``rule, rise, mas``, NaN where hiding all steps leaves the answer at least
        as likely as it was; ``steps``, how many there were to hide.

    Raises:
        StepMapError: There is no answer, no step before it, or a map of another trace.
        NonFiniteError: A map has a score that is NaN or infinite.
        SettingError: There is no map, or a setting is out of range.
    """
    if not maps:
        raise SettingError("expected at least one map by the name of its rule, got none")
    span = trace.answer_span if answer is None else answer
    if span is None:
        raise StepMapError(f"expected a boxed answer, or answer=(start, stop), got {trace!r}")
    check_hiding(trace, span, hide, batch_size)
    sources = [step.index for step in trace.steps if step.stop <= span[0]]
    target = int(trace.step_of_token[span[0]])
    sources = [step for step in sources if step != target]
    if not sources:
        raise StepMapError(f"expected a step before the answer, got {trace!r}")
    if target < 0:
        raise StepMapError(f"expected an answer that begins in a step, got token {span[0]}")
    said = {}
    for name, step_map in maps.items():
        check_map(step_map, trace.steps, repr(name))
        said[name] = attribution(step_map, target)[sources]
    orders = {
        name: [sources[i] for i in np.argsort(-scores, kind="stable")]
        for name, scores in said.items()
    }
    curves = deletion_curves(model, trace, orders, span, hide=hide, batch_size=batch_size)
    rows = []
    for name, curve in curves.items():
        falling = falls(curve)
        ordered = np.sort(said[name])[::-1]
        rows.append(
            {
                "rule": name,
                "rise": area(falling),
                "mas": area(mismatch(falling, ordered)),
                "steps": len(sources),
            }
        )
    return pd.DataFrame(rows)


def attribution(step_map: StepMap, target: int) -> Float[np.ndarray, "step"]:
    """A map's row of a step: the mean over layers and heads of row shares, magnitudes taken."""
    rows = step_map.mean_over_heads().normalize("row").scores[:, target].double().abs()
    return rows.mean(0).numpy()


def hops_of(step_map: StepMap) -> StepMap:
    """A map whose rows follow the other rows: `passing_map` of the mean over its layers."""
    return passing_map(step_map.normalize("row").band("all"))


def deletion_curves(
    model: Model | ModelView,
    trace: Trace,
    orders: Mapping[str, Sequence[int]],
    answer: tuple[int, int],
    *,
    hide: Hide = "keys",
    batch_size: int = 8,
) -> dict[str, Curve]:
    """Log-probability of the answer's tokens, in nats, where more and more steps are hidden.

    Args:
        model: The model.
        trace: The trace.
        orders: For each rule, the steps in the order in which they are hidden.
        answer: Span of the answer's tokens.
        hide: As of `perturbation`.
        batch_size: Likewise.

    Returns:
        For each rule a point with nothing hidden, and one after each step.

    Raises:
        SettingError: A setting is out of range.
    """
    check_hiding(trace, answer, hide, batch_size)
    seen = view(model)
    prefixes = {
        name: [frozenset(order[:count]) for count in range(len(order) + 1)]
        for name, order in orders.items()
    }
    sets = sorted({one for points in prefixes.values() for one in points}, key=_latest_first)
    pad = pad_token_id(seen) if hide == "tokens" else 0
    found: dict[frozenset[int], float] = {}
    for first in range(0, len(sets), batch_size):
        some = sets[first : first + batch_size]
        variants = Variants.of(trace, [sorted(one) for one in some], hide, pad)
        values = _log_probability(seen, trace, variants, answer)
        found |= dict(zip(some, values.tolist(), strict=True))
    return {name: np.array([found[one] for one in points]) for name, points in prefixes.items()}


def _latest_first(hidden: frozenset[int]) -> tuple[int, list[int]]:
    """Sets that leave the same prefix alone lie together."""
    return -min(hidden, default=1 << 30), sorted(hidden)


def _log_probability(
    seen: ModelView, trace: Trace, variants: Variants, answer: tuple[int, int]
) -> Float[Tensor, "row"]:
    rows = range(answer[0] - 1, answer[1] - 1)
    total = torch.zeros(len(variants.tokens), dtype=torch.float64)

    def see(queries: range, logits: Float[Tensor, "row query vocab"]) -> None:
        total.add_(log_probability(trace, rows, queries, logits))

    run_variants(seen, trace, variants, see, from_query=rows.start)
    return total


def falls(curve: Curve) -> Curve:
    """A deletion curve from 1, nothing hidden, to 0, everything; never rising again.

    NaN throughout where hiding everything leaves the answer at least as likely as it was.
    """
    whole, nothing = float(curve[0]), float(curve[-1])
    if not whole > nothing:
        return np.full(len(curve), np.nan)
    scaled = np.clip((curve - nothing) / (whole - nothing), 0.0, 1.0)
    return np.minimum.accumulate(scaled)


def mismatch(falling: Curve, scores: Float[np.ndarray, "step"]) -> Curve:
    """The curve, and beside it how far it is from what the scores promised; scaled to [0, 1].

    Args:
        falling: What `falls` gives.
        scores: Scores of the steps in the order in which they were hidden.
    """
    total = float(scores.sum())
    shares = scores / total if total > 0 else np.full(len(scores), 1 / len(scores))
    promised = 1.0 - np.concatenate([[0.0], np.cumsum(shares)])
    both = falling + np.abs(falling - promised)
    low, high = both.min(), both.max()
    return (both - low) / (high - low) if high > low else both


def area(curve: Curve) -> float:
    """Area under a curve over [0, 1], by trapezoids."""
    return float(((curve[1:] + curve[:-1]) / 2).mean())
