"""Label permutations: what is exchanged, error rates, and confounding by difficulty."""

import numpy as np
import pytest

from stepflow_tl.analysis import label_permutation_test, permute_labels


def outcome_of(values, labels, clusters=None, strata=None, families=None, resamples=300, seed=0):
    rows, columns = values.shape
    return label_permutation_test(
        values,
        labels,
        np.arange(rows) if clusters is None else clusters,
        np.zeros(rows, dtype=int) if strata is None else strata,
        np.zeros(columns, dtype=int) if families is None else families,
        resamples=resamples,
        seed=seed,
    )


def test_labels_stay_in_their_cell_and_with_their_problem():
    labels = np.array([1, 1, 0, 0, 1, 0, 1, 1], dtype=bool)
    clusters = np.array([0, 0, 1, 1, 2, 3, 4, 5])
    cells = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    drawn = permute_labels(labels, clusters, cells, resamples=200)
    pairs = drawn[:, :4].reshape(-1, 2, 2).sum(2)
    assert {tuple(pair) for pair in pairs.tolist()} == {(2, 0), (0, 2)}
    assert (drawn[:, 4] != drawn[:, 5]).all()
    assert 60 < drawn[:, 4].sum() < 140
    assert drawn[:, 6:].all()


def test_a_small_case_by_hand():
    """Of the 20 ways to choose three of six, 2 separate the values as far."""
    values = np.array([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]])
    result = outcome_of(values, np.arange(6) > 2, resamples=20_000)
    assert result.difference[0] == pytest.approx(3.0)
    assert result.p_value[0] == pytest.approx(0.1, abs=0.01)
    assert result.p_holm[0] == result.p_max[0] == result.p_value[0]


def test_difference_within_strata_is_the_textbooks():
    values = np.array([[1.0], [3.0], [5.0], [10.0], [14.0]])
    labels = np.array([True, False, False, True, False])
    result = outcome_of(values, labels, strata=np.array([0, 0, 0, 1, 1]))
    weights = np.array([2 / 3, 1 / 2])  # n1 n0 / (n1 + n0)
    assert result.difference[0] == pytest.approx(weights @ [-3.0, -4.0] / weights.sum())


@pytest.mark.usefixtures("many_tables")
def test_difficulty_that_drives_both_is_no_effect_within_strata():
    """Hard problems have larger measures and fail more often; within a level nothing relates."""
    generator = np.random.default_rng(0)
    naive, within = [], []
    for trial in range(200):
        strata = np.arange(90) % 3
        values = strata[:, None] + generator.normal(size=(90, 1))
        labels = generator.random(90) < np.array([0.85, 0.5, 0.15])[strata]
        naive.append(outcome_of(values, labels, seed=trial).p_value[0])
        within.append(outcome_of(values, labels, strata=strata, seed=trial).p_value[0])
    assert np.mean(np.array(naive) <= 0.05) > 0.95
    assert np.mean(np.array(within) <= 0.05) < 0.05 + 0.03


def test_an_effect_within_strata_is_found():
    generator = np.random.default_rng(0)
    strata = np.arange(90) % 3
    labels = generator.random(90) < 0.5
    values = strata[:, None] + generator.normal(size=(90, 1)) - 1.0 * labels[:, None]
    result = outcome_of(values, labels, strata=strata)
    assert result.p_value[0] < 0.01
    assert result.difference[0] == pytest.approx(-1.0, abs=0.5)


@pytest.mark.usefixtures("many_tables")
def test_several_traces_of_a_problem_do_not_count_as_many_problems():
    """Problems have values and chances of their own, unrelated to each other."""
    generator = np.random.default_rng(0)
    clusters = np.repeat(np.arange(20), 4)
    clustered, naive = [], []
    for trial in range(200):
        values = generator.normal(size=(20, 1)).repeat(4, 0) + 0.3 * generator.normal(size=(80, 1))
        labels = generator.random(80) < generator.beta(0.3, 0.3, size=20).repeat(4)
        clustered.append(outcome_of(values, labels, clusters=clusters, seed=trial).p_value[0])
        naive.append(outcome_of(values, labels, seed=trial).p_value[0])
    assert np.mean(np.array(clustered) <= 0.05) < 0.05 + 0.03
    assert np.mean(np.array(naive) <= 0.05) > 0.15


@pytest.mark.usefixtures("many_tables")
def test_layers_of_a_figure_are_corrected_together():
    """Twelve related layers without effect: the largest |t| corrects less than Holm does."""
    generator = np.random.default_rng(0)
    by_holm, by_max, uncorrected = [], [], []
    for trial in range(200):
        shared = generator.normal(size=(40, 1))
        values = shared + 0.5 * generator.normal(size=(40, 12))
        result = outcome_of(values, np.arange(40) % 2 == 0, seed=trial)
        assert (result.p_max >= result.p_value).all()
        for found, p_values in zip(
            (by_holm, by_max, uncorrected),
            (result.p_holm, result.p_max, result.p_value),
            strict=True,
        ):
            found.append(bool((p_values <= 0.05).any()))
    assert np.mean(by_holm) <= np.mean(by_max) < 0.05 + 0.03
    assert np.mean(uncorrected) > 0.08


def test_families_do_not_mix():
    values = np.random.default_rng(0).normal(size=(30, 4))
    labels = np.arange(30) % 2 == 0
    both = outcome_of(values, labels, families=np.array([0, 1, 0, 1]))
    alone = outcome_of(values[:, [0, 2]], labels)
    assert both.p_holm[[0, 2]] == pytest.approx(alone.p_holm)
    assert both.p_max[[0, 2]] == pytest.approx(alone.p_max)


def test_undefined_and_constant_figures():
    values = np.array([[1.0, np.nan, 2.0, np.nan], [2.0, np.nan, 2.0, 1.0]] * 6)
    labels = np.array([True, False] * 6)
    values[2:, 0] += np.arange(10) % 3
    result = outcome_of(values, labels)
    assert np.isnan(result.p_value).tolist() == [
        False,
        True,
        False,
        True,
    ]  # the last: one kind only
    assert np.isnan(result.difference).tolist() == [False, True, False, True]
    assert (result.p_value[2], result.difference[2]) == (1.0, 0.0)
    assert result.p_holm[0] == pytest.approx(min(1.0, 2 * result.p_value[0]))


def test_a_problem_has_one_stratum():
    with pytest.raises(ValueError, match="expected each problem in one stratum"):
        outcome_of(
            np.zeros((2, 1)),
            np.array([True, False]),
            clusters=np.zeros(2, int),
            strata=np.arange(2),
        )
