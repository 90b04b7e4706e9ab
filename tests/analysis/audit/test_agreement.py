"""Concordance by hand, against the pairwise count, and at its known ends."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow_tl.analysis.audit.agreement import (
    concordance,
    rank_correlation,
    recall_at,
    within_distance,
)

values = st.lists(st.integers(0, 4), min_size=2, max_size=12)


def counted(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Every comparison, one by one."""
    agree = total = 0.0
    for i in range(len(truth)):
        for j in range(i):
            if truth[i] != truth[j]:
                total += 1
                order = np.sign(scores[i] - scores[j]) * np.sign(truth[i] - truth[j])
                agree += (order + 1) / 2
    return agree, total


def test_by_hand() -> None:
    """Of 2 x 2 comparisons: 3 > 1, 3 > 2, 2 = 2, 2 > 1."""
    found = concordance(np.array([3.0, 2.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0, 0.0]))
    assert found == (3.5, 4.0)


@given(st.data())
def test_it_is_the_count(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 12))
    scores, truth = (
        np.array(data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size)), dtype=float)
        for _ in range(2)
    )
    assert concordance(scores, truth) == pytest.approx(counted(scores, truth))


def test_perfect_and_reversed() -> None:
    truth = np.array([0.0, 0.3, 0.3, 2.0])
    assert concordance(truth, truth) == (5.0, 5.0)
    assert concordance(-truth, truth) == (0.0, 5.0)
    assert concordance(np.zeros(4), truth) == (2.5, 5.0)
    assert concordance(truth, np.ones(4)) == (0.0, 0.0)


def test_within_distance_nearness_says_nothing() -> None:
    distances = np.array([1, 1, 2, 2, 3])
    truth = np.array([1.0, 0.0, 1.0, 0.0, 0.0])
    assert within_distance(-distances.astype(float), truth, distances) == (1.0, 2.0)
    assert within_distance(truth, truth, distances) == (2.0, 2.0)


def test_recall_by_hand() -> None:
    """Of ten pairs one is in the highest tenth; of two that matter one could be."""
    scores = np.arange(10.0)
    truth = np.zeros(10)
    truth[[0, 9]] = 1.0
    assert recall_at(scores, truth) == 1.0
    assert recall_at(-scores, truth) == 1.0
    assert recall_at(np.roll(scores, 5), truth) == 0.0
    assert recall_at(np.zeros(10), truth) == pytest.approx(0.2)  # by chance: 1 of 10, 2 matter
    assert np.isnan(recall_at(scores, np.zeros(10)))


def test_rank_correlation() -> None:
    assert rank_correlation(np.array([1.0, 2.0, 9.0]), np.array([0.1, 0.2, 0.3])) == 1.0
    assert np.isnan(rank_correlation(np.ones(3), np.array([0.1, 0.2, 0.3])))


def test_within_distance_is_the_sum_over_distances() -> None:
    generator = np.random.default_rng(0)
    scores = np.round(generator.random(200), 1)  # with ties
    truth = (generator.random(200) < 0.2).astype(float)
    distances = generator.integers(1, 20, 200)
    each = [
        concordance(scores[distances == one], truth[distances == one])
        for one in np.unique(distances)
    ]
    found = within_distance(scores, truth, distances)
    assert found == pytest.approx((sum(x.agree for x in each), sum(x.total for x in each)))


def test_recall_of_a_truth_that_is_mostly_least() -> None:
    """Two of thirty are above zero: those matter, and none of the others."""
    truth = np.zeros(30)
    truth[[4, 9]] = [0.5, 2.0]
    assert recall_at(truth, truth) == 1.0
    assert recall_at(np.arange(30.0), truth) == 0.0
    assert recall_at(np.zeros(30), truth) == pytest.approx(3 * 2 / 30 / 2)
