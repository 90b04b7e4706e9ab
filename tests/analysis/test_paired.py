"""Tests of paired answers, against other implementations, by hand, and by simulation."""

import numpy as np
import pytest
from scipy.stats import permutation_test
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar

from stepflow_tl.analysis import holm, mcnemar, sign_flip_mean_test, sign_flip_test


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (0, 2), (7, 4), (1, 9), (30, 12)])
def test_mcnemar_meets_statsmodels(fixed, broken):
    reference = reference_mcnemar([[20, fixed], [broken, 20]], exact=True).pvalue
    assert mcnemar(fixed, broken) == pytest.approx(float(reference))


def test_sign_flips_of_single_answers_are_mcnemars_test():
    differences = np.array([1.0] * 7 + [-1.0] * 2 + [0.0] * 20)
    p_value = sign_flip_test(differences, np.array([1]))
    assert p_value == pytest.approx(mcnemar(7, 2))


def test_sign_flips_by_hand():
    """Sums of +-1, +-0.5: 1.5, 0.5, -0.5, -1.5."""
    assert sign_flip_test(np.array([1.0, 0.5]), np.array([2])) == pytest.approx(0.5)
    assert sign_flip_test(np.array([1.0, -0.5]), np.array([2])) == 1.0
    assert sign_flip_test(np.zeros(5), np.array([4])) == 1.0


def test_sign_flips_meet_scipy():
    generator = np.random.default_rng(0)
    differences = generator.integers(-3, 5, size=12) / 4
    reference = permutation_test(
        (differences,), lambda x, axis: x.sum(axis), permutation_type="samples", n_resamples=10_000
    )
    p_value = sign_flip_test(differences, np.array([4]))
    assert p_value == pytest.approx(float(reference.pvalue))


def test_drawn_flips_meet_counted_ones(monkeypatch):
    differences = np.random.default_rng(0).integers(-6, 9, size=40) / 8
    exact = sign_flip_test(differences, np.array([8]))
    monkeypatch.setattr("stepflow_tl.analysis.paired.LARGEST_EXACT", 0)
    drawn = sign_flip_test(differences, np.array([8]))
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=0.015)


@pytest.mark.parametrize("samples", [(4, 4), (1, 8)])
def test_sign_flips_reject_a_true_null_rarely(samples):
    generator = np.random.default_rng(0)
    chances = generator.beta(0.5, 0.5, size=(1_000, 50))
    first, second = (generator.binomial(k, chances) / k for k in samples)
    p_values = np.array([sign_flip_test(d, np.array(samples)) for d in second - first])
    assert (p_values <= 0.05).mean() < 0.065  # 0.05, and two standard errors of 1,000 trials


def test_sign_flips_find_an_effect():
    generator = np.random.default_rng(0)
    chances = generator.beta(2, 2, size=(100, 60))
    first = generator.binomial(4, chances) / 4
    second = generator.binomial(4, chances + 0.3 * (1 - chances)) / 4
    p_values = np.array([sign_flip_test(d, np.array([4])) for d in second - first])
    assert (p_values <= 0.05).mean() > 0.8


def test_holm_by_hand():
    """Sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04 x 1; never less than the one before."""
    p_values = np.array([0.04, 0.01, np.nan, 0.03, 0.02])
    expected = [0.06, 0.04, np.nan, 0.06, 0.06]
    assert holm(p_values) == pytest.approx(expected, nan_ok=True)
    assert np.isnan(holm(np.full(2, np.nan))).all()


def test_sign_flips_of_real_numbers_by_hand():
    """Sums of +-3, +-1: 4, 2, -2, -4; of +-3, +-1, +-0.5, three of eight lie at 2.5 or beyond."""
    assert sign_flip_mean_test(np.array([3.0, 1.0])) == 0.5
    assert sign_flip_mean_test(np.array([3.0, -1.0])) == 1.0
    assert sign_flip_mean_test(np.array([3.0, -1.0, 0.5, 0.0])) == pytest.approx(6 / 8)
    assert sign_flip_mean_test(np.zeros(4)) == 1.0


def test_sign_flips_of_real_numbers_meet_scipy():
    differences = np.random.default_rng(1).normal(0.4, 1.0, size=11)
    reference = permutation_test(
        (differences,), lambda x, axis: x.sum(axis), permutation_type="samples", n_resamples=10_000
    )
    assert sign_flip_mean_test(differences) == pytest.approx(float(reference.pvalue))


def test_drawn_flips_of_real_numbers_meet_counted_ones(monkeypatch):
    differences = np.random.default_rng(2).normal(0.5, 1.0, size=14)
    exact = sign_flip_mean_test(differences)
    monkeypatch.setattr("stepflow_tl.analysis.paired.EXACT_PROBLEMS", 0)
    drawn = sign_flip_mean_test(differences, resamples=20_500)
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=0.01)


def test_a_number_that_is_none_has_no_p_value():
    assert np.isnan(sign_flip_mean_test(np.array([0.1, np.nan, 0.2])))
    assert np.isnan(sign_flip_mean_test(np.array([0.1, np.inf, 0.2])))
