"""Exact paired tests and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests

from stepflow_tl.analysis.intervals import Estimate, bootstrap_paired_difference, proportion
from stepflow_tl.errors import SettingError

LARGEST_EXACT = 100_000
"""Up to this many different sums, sign flips are counted exactly."""

EXACT_PROBLEMS = 16
"""Up to this many real-valued differences, all 2^n sign flips are counted."""


class PairedOutcome(NamedTuple):
    """The same problems answered twice.

    Attributes:
        n: Number of problems.
        before: Accuracy of the first run.
        after: Accuracy of the second run.
        fixed: Wrong before, right after.
        broken: Right before, wrong after.
        difference: after - before, with a bootstrap interval over problems
            (`bootstrap_paired_difference`).
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
        raise SettingError(
            f"expected two runs over the same problems, got {len(before)} and {len(after)} answers"
        )
    first, second = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    fixed, broken = int((~first & second).sum()), int((first & ~second).sum())
    change = second.astype(float) - first.astype(float)
    bounds = bootstrap_paired_difference(
        change[:, None], np.ones(1), seed=seed, resamples=resamples
    )
    return PairedOutcome(
        n=len(first),
        before=proportion(int(first.sum()), len(first)),
        after=proportion(int(second.sum()), len(first)),
        fixed=fixed,
        broken=broken,
        difference=Estimate(*bounds[:, 0].tolist()),
        p_value=mcnemar(fixed, broken),
    )


def mcnemar(fixed: int, broken: int) -> float:
    """Exact two-sided p-value of McNemar (1947); 1 where nothing changed."""
    return float(binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0


def sign_flip_test(
    differences: Float[np.ndarray, "problem"],
    answers: Int[np.ndarray, "any"],
    *,
    seed: int = 0,
    resamples: int = 10_000,
) -> float:
    """Two-sided paired permutation test: is the mean of the differences zero?

    If both arms answer alike, swapping them within a problem flips the sign of its difference and
    changes nothing else (Fisher 1935; exact where both arms have equally many answers per problem,
    approximate otherwise). With one answer each this is McNemar's exact test. All 2^n flips are
    counted, by adding problem after problem to the distribution of the sum; only where numbers of
    answers vary so much that the sums fall on too fine a grid are ``resamples`` flips drawn.

    Args:
        differences: Share of right answers of an arm minus the baseline's, per problem.
        answers: All numbers of answers per problem that occur, of both arms.
        seed: Of the drawn flips.
        resamples: Number of drawn flips.
    """
    grid = int(np.lcm.reduce(answers))
    steps = np.rint(np.abs(differences) * grid).astype(int)
    steps = steps[steps > 0]
    if not steps.size:
        return 1.0
    total = int(steps.sum())
    if total > LARGEST_EXACT:
        generator = np.random.default_rng(seed)
        signs = generator.integers(2, size=(resamples, len(differences))) * 2.0 - 1.0
        as_far = np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9
        return float((1 + as_far.sum()) / (1 + resamples))
    chances = np.zeros(total + 1)  # of each sum of the steps whose sign is positive
    chances[0] = 1.0
    for step in steps:
        chances /= 2
        chances[step:] += chances[:-step].copy()
    sums = 2 * np.arange(total + 1) - total
    observed = abs(round(float(differences.sum()) * grid))
    return min(1.0, float(chances[np.abs(sums) >= observed].sum()))


def sign_flip_mean_test(
    differences: Float[np.ndarray, "problem"], *, seed: int = 0, resamples: int = 100_000
) -> float:
    """Two-sided sign-flip test of real-valued differences: is their mean zero?

    The null is that each problem's difference is as likely with the other sign (Fisher 1935), as
    it is where exchanging its two sides changes nothing. Up to `EXACT_PROBLEMS` problems with a
    difference, all flips are counted; beyond, ``resamples`` are drawn, the observed one added.

    Args:
        differences: One per problem.
        seed: Of the drawn flips.
        resamples: Number of drawn flips.

    Returns:
        1 where no problem differs; NaN where a difference is NaN or infinite.
    """
    if not np.isfinite(differences).all():
        return float("nan")
    sizes = np.sort(np.abs(differences[differences != 0.0]))
    if not sizes.size:
        return 1.0
    least = abs(float(differences.sum())) * (1.0 - 1e-9)
    if sizes.size <= EXACT_PROBLEMS:
        sums = np.zeros(1)
        for size in sizes:
            sums = np.concatenate([sums + size, sums - size])
        return float((np.abs(sums) >= least).mean())
    generator = np.random.default_rng(seed)
    as_far = 0
    for count in [1_000] * (resamples // 1_000) + [resamples % 1_000]:  # small in memory
        signs = generator.integers(2, size=(count, sizes.size)) * 2.0 - 1.0
        as_far += int((np.abs(signs @ sizes) >= least).sum())
    return (1 + as_far) / (1 + resamples)


def holm(p_values: Float[np.ndarray, "test"]) -> Float[np.ndarray, "test"]:
    """P-values corrected for their number (Holm 1979); NaN stays NaN and does not count."""
    known = ~np.isnan(p_values)
    corrected = p_values.copy()
    if known.any():
        corrected[known] = multipletests(p_values[known], method="holm")[1]
    return corrected
