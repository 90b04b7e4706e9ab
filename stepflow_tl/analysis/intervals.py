"""Intervals for proportions and means: Wilson's, and bootstraps that draw whole problems.

Axes: ``problem``; ``row``, a trace; ``column``, a figure or an arm; ``draw``, a bootstrap sample.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest

from stepflow_tl.errors import SettingError

Bounds = Float[np.ndarray, "3 column"]
"""Value, low and high of each column."""


class Estimate(NamedTuple):
    """A number with its 95% confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """As printed in tables."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def proportion(successes: int, n: int) -> Estimate:
    """A proportion with its Wilson interval (Wilson 1927).

    Raises:
        ValueError: n is not positive, or there are more successes than trials.
    """
    if n < 1 or not 0 <= successes <= n:
        raise SettingError(f"expected 0 <= successes <= n and n >= 1, got {successes} of {n}")
    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high))


def bootstrap_accuracy(
    accuracy: Float[np.ndarray, "problem column"], *, seed: int = 0, resamples: int = 10_000
) -> Bounds:
    """Mean accuracy over problems that were answered several times, with its 95% interval.

    Whole problems are drawn (Efron 1979), from the problems seen and one more that is half right
    and half wrong, so that runs without any error have an interval, too. Simulated for 20
    to 200 problems it covers the truth in 0.95 to 0.99 of data sets, the plain percentile
    bootstrap in 0.84 to 0.95.

    Args:
        accuracy: Share of right answers to each problem, 0 to 1; a column per arm.
        seed: Of the draws.
        resamples: Number of draws.
    """
    ends = np.repeat([[0.0], [1.0]], accuracy.shape[1], axis=1)
    return _smoothed(accuracy, ends, (0.5, 0.5), seed, resamples)


def bootstrap_paired_difference(
    difference: Float[np.ndarray, "problem column"],
    step: Float[np.ndarray, "column"],
    *,
    seed: int = 0,
    resamples: int = 10_000,
) -> Bounds:
    """Mean of per-problem differences, with its 95% interval.

    Whole problems are drawn from those seen and two more: one without a difference, and half a one
    with each of ``step`` and ``-step``. With one answer each (``step`` 1) these are the half
    observations per cell of Agresti and Min (2005), without which too few changes, or none, make
    the interval collapse: at 30 problems of which 3% change, the percentile bootstrap covers the
    truth in 0.47 of all data sets and BCa (Efron 1987) in 0.45, this one in 0.99. Where many
    problems change it is about as wide as theirs.

    Args:
        difference: Share of right answers of an arm minus the baseline's, -1 to 1.
        step: By how much one answer moves a difference: 1 / sqrt(answers per problem).
        seed: Of the draws.
        resamples: Number of draws.
    """
    more = np.stack([np.zeros_like(step), step, -step])
    return _smoothed(difference, more, (1.0, 0.5, 0.5), seed, resamples)


def _smoothed(
    values: Float[np.ndarray, "problem column"],
    more: Float[np.ndarray, "extra column"],
    weights: tuple[float, ...],
    seed: int,
    resamples: int,
) -> Bounds:
    """Percentile bootstrap of the means; problems weigh 1, the extra ones their weights.

    Columns are sorted first, so that the order of the problems decides nothing.
    """
    count = len(values)
    chances = np.concatenate([np.ones(count), weights])
    pool = np.concatenate([np.sort(values, axis=0), more])
    generator = np.random.default_rng(seed)
    drawn = [
        generator.multinomial(count, chances / chances.sum(), size=size) @ pool / count
        for size in [1_000] * (resamples // 1_000) + [resamples % 1_000]  # small in memory
    ]
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975], axis=0)
    return np.stack([values.mean(0), low, high])


def clustered_difference(
    values: Float[np.ndarray, "row column"],
    in_first: Bool[np.ndarray, "row"],
    clusters: Int[np.ndarray, "row"],
    *,
    seed: int = 0,
    resamples: int = 2_000,
) -> tuple[Bounds, Bounds, Bounds]:
    """Group means and their difference, with intervals from resampling whole clusters.

    Args:
        values: One row per trace, one column per figure; NaN where a figure is undefined.
        in_first: Whether a trace belongs to the first group; the others form the second.
        clusters: The problem that each trace answers.
        seed: Of the resampling.
        resamples: Number of bootstrap samples.

    Returns:
        Value, low and high of: the first group's mean, the second's, first minus second. NaN where
        a group has no value.
    """
    _, cluster = np.unique(clusters, return_inverse=True)
    count = int(cluster.max()) + 1
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    sums, sizes = np.zeros((2, count, values.shape[1])), np.zeros((2, count, values.shape[1]))
    for group, member in enumerate((in_first, ~in_first)):
        np.add.at(sums[group], cluster[member], filled[member])
        np.add.at(sizes[group], cluster[member], known[member].astype(float))
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)
    weights = np.concatenate([np.ones((1, count)), weights])
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (weights @ sums) / (weights @ sizes)  # [group, 1 + resamples, column]
    return (_interval(means[0]), _interval(means[1]), _interval(means[0] - means[1]))


def _interval(drawn: Float[np.ndarray, "draw column"]) -> Bounds:
    """First draw as the value, 2.5% and 97.5% quantiles of the others as its interval."""
    result = np.full((3, drawn.shape[1]), np.nan)
    result[0] = drawn[0]
    for column in np.flatnonzero(~np.isnan(drawn[0])):
        result[1:, column] = np.nanquantile(drawn[1:, column], [0.025, 0.975])
    return result
