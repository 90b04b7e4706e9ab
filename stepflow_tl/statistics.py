"""Small statistics: intervals for proportions, exact paired tests, clustered bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest

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
        raise ValueError(f"expected 0 <= successes <= n and n >= 1, got {successes} of {n}")
    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high))


class PairedOutcome(NamedTuple):
    """The same problems answered twice.

    Attributes:
        n: Number of problems.
        before: Accuracy of the first run.
        after: Accuracy of the second run.
        fixed: Wrong before, right after.
        broken: Right before, wrong after.
        difference: after - before, with a bootstrap interval over problems.
        p_value: Exact McNemar test (two-sided binomial on the discordant pairs).
    """

    n: int
    before: Estimate
    after: Estimate
    fixed: int
    broken: int
    difference: Estimate
    p_value: float


def compare_paired(
    before: Sequence[bool], after: Sequence[bool], *, seed: int = 0, resamples: int = 10_000
) -> PairedOutcome:
    """Compare two runs over the same problems, one answer each.

    Raises:
        ValueError: The runs differ in length, or are empty.
    """
    if len(before) != len(after) or not before:
        raise ValueError(
            f"expected two runs over the same problems, got {len(before)} and {len(after)} answers"
        )
    first, second = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    fixed, broken = int((~first & second).sum()), int((first & ~second).sum())
    change = second.astype(float) - first.astype(float)
    generator = np.random.default_rng(seed)
    drawn = change[generator.integers(len(change), size=(resamples, len(change)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    discordant = fixed + broken
    return PairedOutcome(
        n=len(first),
        before=proportion(int(first.sum()), len(first)),
        after=proportion(int(second.sum()), len(first)),
        fixed=fixed,
        broken=broken,
        difference=Estimate(float(change.mean()), float(low), float(high)),
        p_value=float(binomtest(fixed, discordant).pvalue) if discordant else 1.0,
    )


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
