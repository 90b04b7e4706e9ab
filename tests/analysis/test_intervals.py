import numpy as np
import pytest

from stepflow_tl.analysis import (
    bootstrap_accuracy,
    bootstrap_paired_difference,
    clustered_difference,
    compare_paired,
    proportion,
)


def test_wilson_interval_of_a_textbook_case():
    estimate = proportion(81, 263)
    assert estimate.value == pytest.approx(0.308, abs=1e-3)
    assert (estimate.low, estimate.high) == pytest.approx((0.2553, 0.3662), abs=2e-4)
    assert str(estimate) == "0.308 [0.255, 0.366]"


def test_no_success_still_has_an_interval():
    assert proportion(0, 10).low == 0.0
    assert 0.2 < proportion(0, 10).high < 0.35


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (3, 2), (-1, 2)])
def test_impossible_proportions_are_refused(successes, n):
    with pytest.raises(ValueError, match="expected 0 <= successes <= n"):
        proportion(successes, n)


def test_paired_comparison_counts_what_changed():
    before = [True] * 10 + [False] * 10
    after = [True] * 9 + [False] + [True] * 6 + [False] * 4
    outcome = compare_paired(before, after)
    assert (outcome.n, outcome.fixed, outcome.broken) == (20, 6, 1)
    assert outcome.difference.value == pytest.approx(0.25)
    assert outcome.p_value == pytest.approx(0.125)  # two-sided binomial, 6 of 7
    assert outcome.difference.low < 0.25 < outcome.difference.high


def test_equal_runs_differ_by_nothing():
    outcome = compare_paired([True, False], [True, False])
    assert outcome.p_value == 1.0
    assert outcome.difference.value == 0.0
    assert -1.0 < outcome.difference.low < 0.0 < outcome.difference.high < 1.0  # two say little


def test_unequal_runs_are_refused():
    with pytest.raises(ValueError, match="got 1 and 2 answers"):
        compare_paired([True], [True, False])


def test_clusters_widen_the_interval():
    """Ten copies of each of eight values say no more than the eight."""
    values = np.random.default_rng(0).normal(size=(8, 1))
    groups = np.arange(8) % 2 == 0
    once = clustered_difference(values, groups, np.arange(8))[2]
    copies = clustered_difference(values.repeat(10, 0), groups.repeat(10), np.arange(8).repeat(10))[
        2
    ]
    naive = clustered_difference(values.repeat(10, 0), groups.repeat(10), np.arange(80))[2]
    assert copies == pytest.approx(once)
    assert (naive[2] - naive[1]) < 0.6 * (once[2] - once[1])


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    groups, clusters = np.arange(80) % 2 == 0, np.arange(80) // 2
    inside = 0
    for trial in range(200):
        shared = generator.normal(size=(40, 1)).repeat(2, 0)
        values = shared + generator.normal(size=(80, 1)) + 0.5 * groups[:, None]
        _, low, high = clustered_difference(values, groups, clusters, seed=trial, resamples=300)[2]
        inside += bool(low[0] <= 0.5 <= high[0])
    assert 180 <= inside <= 198


def test_undefined_figures_stay_undefined():
    values = np.array([[1.0, np.nan], [2.0, np.nan], [3.0, np.nan], [4.0, np.nan]])
    groups = np.array([True, True, False, False])
    first, second, difference = clustered_difference(values, groups, np.arange(4))
    assert (first[0, 0], second[0, 0], difference[0, 0]) == (1.5, 3.5, -2.0)
    assert np.isnan(difference[:, 1]).all()


def coverage(bounds, truth: float) -> float:
    return float(((bounds[1] - 1e-9 <= truth) & (truth <= bounds[2] + 1e-9)).mean())


@pytest.mark.parametrize(
    ("problems", "fixed", "broken"), [(30, 0.2, 0.1), (50, 0.1, 0.02), (100, 0.5, 0.02)]
)
def test_differences_of_single_answers_are_covered(problems, fixed, broken):
    generator = np.random.default_rng(0)
    chances = [fixed, broken, 1 - fixed - broken]
    changes = generator.choice([1.0, -1.0, 0.0], p=chances, size=(problems, 1_000))
    bounds = bootstrap_paired_difference(changes, np.ones(1_000), resamples=1_000)
    assert 0.935 < coverage(bounds, fixed - broken) < 0.985


def test_few_changes_do_not_collapse_the_interval():
    """Where hardly a problem changes, plain percentiles miss the truth in half of all data sets."""
    generator = np.random.default_rng(0)
    changes = generator.choice([1.0, -1.0, 0.0], p=[0.02, 0.01, 0.97], size=(30, 1_000))
    bounds = bootstrap_paired_difference(changes, np.ones(1_000), resamples=1_000)
    drawn = generator.multinomial(30, np.full(30, 1 / 30), size=1_000) @ changes / 30
    plain = np.stack([changes.mean(0), *np.quantile(drawn, [0.025, 0.975], axis=0)])
    assert coverage(plain, 0.01) < 0.6
    assert coverage(bounds, 0.01) > 0.98


@pytest.mark.parametrize(
    ("problems", "samples", "effect", "shape"),
    [(30, 16, 0.2, (2, 2)), (30, 4, 0.2, (0.5, 0.5)), (100, 8, 0.0, (2, 2)), (30, 4, 0.0, (5, 1))],
)
def test_repeated_answers_are_covered(problems, samples, effect, shape):
    """Problems have chances of their own; the arm solves a share of what the baseline fails."""
    generator = np.random.default_rng(0)
    chances = generator.beta(*shape, size=(problems, 1_000))
    before = generator.binomial(samples, chances) / samples
    after = generator.binomial(samples, chances + (1 - chances) * effect) / samples
    accuracy = shape[0] / sum(shape)
    step = np.full(1_000, samples**-0.5)
    differences = bootstrap_paired_difference(after - before, step, resamples=1_000)
    assert 0.935 < coverage(differences, effect * (1 - accuracy)) < 0.985
    assert 0.935 < coverage(bootstrap_accuracy(before, resamples=1_000), accuracy) < 0.985


def test_answers_to_one_problem_count_less_than_answers_to_many():
    """If problems are all easy or hopeless, eight answers to one tell no more than one does."""
    solved = np.random.default_rng(0).integers(2, size=(40, 1)).astype(float)
    low, high = bootstrap_accuracy(solved)[1:, 0]
    naive = proportion(int(8 * solved.sum()), 8 * 40)
    assert high - low > 2 * (naive.high - naive.low)
    single = proportion(int(solved.sum()), 40)
    assert high - low == pytest.approx(single.high - single.low, rel=0.1)


def test_a_run_without_errors_still_has_an_interval():
    value, low, high = bootstrap_accuracy(np.ones((50, 1)))[:, 0]
    assert (value, high) == (1.0, 1.0)
    assert 0.9 < low < 1.0
