"""Maps against a truth: one table for every rule, layer and band, with what distance alone says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl.analysis.audit.agreement import (
    concordance,
    rank_correlation,
    recall_at,
    within_distance,
)
from stepflow_tl.analysis.audit.truth import Truth, check_map
from stepflow_tl.errors import SettingError, StepMapError
from stepflow_tl.models.layers import Band, LayerSpec, resolve_layers
from stepflow_tl.saliency.maps import StepMap

BANDS: tuple[Band, ...] = ("shallow", "middle", "deep", "all")
DISTANCE, RANDOM = "distance alone", "random"

Maps = Mapping[str, Sequence[StepMap] | StepMap] | Sequence[StepMap] | StepMap


def audit(
    maps: Maps,
    truth: Truth | Sequence[Truth],
    *,
    problems: Sequence[int | str] | None = None,
    seed: int = 0,
    resamples: int = 2_000,
) -> pd.DataFrame:
    """Hold maps against what is known, pair of steps by pair of steps.

    Example::

        maps = {"paper": [step_saliency(model, trace) for trace in traces],
                "share": [step_saliency(model, trace, pool="share") for trace in traces]}
        audit(maps, [dependencies(trace, problem, verdict)["premise"] for ...])

    Args:
        maps: A map of each trace (of one trace: the map), or these by the name of the rule that
            made them; heads are averaged.
        truth: What is known of each trace.
        problems: The problem of each trace, whose traces are drawn together by the bootstrap; by
            default each trace is one.
        seed: Of the bootstrap, and of the random scores.
        resamples: Number of bootstrap samples.

    Returns:
        A row per rule and layer, and per band, whose map is the mean of its layers' row shares.
        ``rule, layer`` (a number, or the band's name), ``truth``, ``n`` (traces in which something
        can be compared), and with ``_low`` and ``_high``, 95% percentile intervals from drawing
        whole problems (NaN for one problem): ``auroc``, over all pairs (concordance, where the
        truth is not of 0 and 1); ``within``, the same within equal distance; ``recall``, of what
        matters among the highest tenth; ``correlation``, Spearman's rho, mean over traces. Of
        signed scores magnitudes count. Then the rows of "distance alone"
        (nearer is more) and of "random" scores, without which no number means anything.

    Raises:
        StepMapError: Maps and truths are not of the same traces and steps.
        NonFiniteError: A map has a score that is NaN or infinite.
        SettingError: There is none, or the problems are not as many.
    """
    truths = [truth] if isinstance(truth, Truth) else list(truth)
    by_rule = _by_rule(maps)
    _check(by_rule, truths, problems)
    units = np.arange(len(truths))
    if problems is not None:
        units = pd.factorize(pd.Series(list(problems)).astype(str))[0]
    pairs = [_Pairs(one, seed + number) for number, one in enumerate(truths)]
    rows = []
    for rule, some in by_rule.items():
        for layer in [*some[0].layers, *_bands(some[0])]:
            scores = [_scores(step_map, layer) for step_map in some]
            rows.append(
                {"rule": rule, "layer": layer, **_row(pairs, scores, units, seed, resamples)}
            )
    for name in (DISTANCE, RANDOM):
        scores = [one.nearness if name == DISTANCE else one.noise for one in pairs]
        found = _row(pairs, scores, units, seed, resamples)
        rows.append({"rule": name, "layer": "-", **found})
    table = pd.DataFrame(rows)
    table.insert(2, "truth", truths[0].name)
    return table


class _Pairs:
    """The pairs of one trace that are compared."""

    def __init__(self, truth: Truth, seed: int) -> None:
        self._at = truth.known.nonzero(as_tuple=True)
        self.truth = truth.values[self._at].double().numpy()
        query, key = (axis.numpy() for axis in self._at)
        self.distances = query - key
        size = len(truth.known)
        steps = torch.arange(size, dtype=torch.float64)
        self.nearness = -(steps[:, None] - steps)
        noise = np.random.default_rng(seed).random((size, size))
        self.noise = torch.from_numpy(noise)

    def of(self, scores: Float[Tensor, "query_step key_step"]) -> Float[np.ndarray, "pair"]:
        """The scores of the pairs, rounded so that rounding decides no comparison."""
        found = scores[self._at].double().numpy()
        scale = float(np.abs(found).max(initial=0.0))
        return np.round(found / scale, 9) if scale > 0 else found


def _row(
    pairs: Sequence[_Pairs],
    scores: Sequence[Float[Tensor, "_ _"]],
    units: np.ndarray,
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    given = [one.of(score) for one, score in zip(pairs, scores, strict=True)]
    both = list(zip(pairs, given, strict=True))
    everywhere = [concordance(mine, one.truth) for one, mine in both]
    near = [within_distance(mine, one.truth, one.distances) for one, mine in both]
    recall = [recall_at(mine, one.truth) if len(mine) else np.nan for one, mine in both]
    rho = [rank_correlation(mine, one.truth) for one, mine in both]
    columns = {
        "auroc": np.array(everywhere),
        "within": np.array(near),
        "recall": _as_counts(recall),
        "correlation": _as_counts(rho),
    }
    drawn = _draws(units, seed, resamples)
    row: dict[str, Any] = {"n": sum(one.total > 0 for one in everywhere)}
    for name, counts in columns.items():
        row |= _interval(name, counts, units, drawn)
    return row


def _as_counts(values: Sequence[float]) -> Float[np.ndarray, "trace 2"]:
    """A mean over traces as a ratio of sums; NaN is of no trace."""
    given = np.array(values, dtype=float)
    known = ~np.isnan(given)
    return np.stack([np.where(known, given, 0.0), known.astype(float)], axis=1)


def _draws(units: np.ndarray, seed: int, resamples: int) -> Float[np.ndarray, "draw unit"]:
    """How often each problem is drawn, first as it is."""
    count = int(units.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(
        count, np.full(count, 1 / count), size=resamples
    )
    return np.concatenate([np.ones((1, count)), drawn.astype(float)])


def _interval(
    name: str,
    counts: Float[np.ndarray, "trace 2"],
    units: np.ndarray,
    drawn: Float[np.ndarray, "draw unit"],
) -> dict[str, float]:
    """A ratio of sums with its interval."""
    sums = np.zeros((drawn.shape[1], 2))
    np.add.at(sums, units, counts)
    totals = drawn @ sums
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = totals[:, 0] / totals[:, 1]
    known = ratios[1:][~np.isnan(ratios[1:])]
    if drawn.shape[1] < 2:  # one problem drawn again and again says nothing of others
        known = known[:0]
    low, high = np.quantile(known, [0.025, 0.975]) if known.size else (np.nan, np.nan)
    return {name: float(ratios[0]), f"{name}_low": float(low), f"{name}_high": float(high)}


def _scores(step_map: StepMap, layer: LayerSpec) -> Float[Tensor, "query_step key_step"]:
    """A layer's map, or the mean of a band's row shares."""
    if not isinstance(layer, int):
        part = step_map.select(layer).mean_over_heads().normalize("row")
        return part.scores.double().abs().mean(0)
    found = step_map.mean_over_heads().scores[step_map.layers.index(layer)]
    return found.abs() if bool((found < 0).any()) else found


def _bands(step_map: StepMap) -> list[Band]:
    """The bands whose layers are all in a map."""
    count = step_map.n_layers
    found = {name: resolve_layers(name, count) for name in BANDS if count > 3 or name == "all"}
    return [name for name, layers in found.items() if set(layers) <= set(step_map.layers)]


def _by_rule(maps: Maps) -> dict[str, list[StepMap]]:
    if isinstance(maps, Mapping):
        return {name: _as_list(some) for name, some in maps.items()}
    some = _as_list(maps)
    return {str(some[0].settings.get("rule", "map")) if some else "map": some}


def _as_list(maps: Sequence[StepMap] | StepMap) -> list[StepMap]:
    return [maps] if isinstance(maps, StepMap) else list(maps)


def _check(
    by_rule: Mapping[str, Sequence[StepMap]],
    truths: Sequence[Truth],
    problems: Sequence[int | str] | None,
) -> None:
    if not by_rule or not truths:
        raise SettingError("expected at least one map and its truth, got none")
    if problems is not None and len(problems) != len(truths):
        raise SettingError(f"expected {len(truths)} problems, one per trace, got {len(problems)}")
    for rule, some in by_rule.items():
        if len(some) != len(truths):
            raise StepMapError(
                f"expected a map of each of {len(truths)} traces, got {len(some)} of {rule!r}"
            )
        for number, (step_map, truth) in enumerate(zip(some, truths, strict=True)):
            check_map(step_map, len(truth.known), f"{rule!r} of trace {number}")
            if step_map.layers != some[0].layers:
                raise StepMapError(
                    f"expected maps of the same layers, got {list(step_map.layers)} beside "
                    f"{list(some[0].layers)}"
                )
