"""Predictions compared row by row, by hand."""

import math

import pytest
import torch

from stepflow_tl.analysis.teacher import compared, divergence_of

HALVES = [0.0, 0.0, -math.inf]
QUARTERS = [math.log(0.25), math.log(0.75), -math.inf]


def test_rows_by_hand():
    """KL of (1/2, 1/2) from (1/4, 3/4) is log 2 - log 3 / 2."""
    kl, nll = compared(
        torch.tensor([HALVES, QUARTERS]), torch.tensor([QUARTERS, HALVES]), torch.tensor([0, 1])
    )
    expected = [
        0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75),
        0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5),
    ]
    assert kl.tolist() == pytest.approx(expected, abs=1e-7)
    assert nll.tolist() == pytest.approx([math.log(4), math.log(2)], abs=1e-7)


def test_what_one_rules_out_and_the_other_does_not_is_infinitely_far():
    certain = torch.tensor([[0.0, -math.inf]])
    kl, _ = compared(torch.zeros(1, 2), certain, torch.tensor([0]))
    assert kl.tolist() == [math.inf]
    kl, _ = compared(certain, torch.zeros(1, 2), torch.tensor([0]))
    assert kl.tolist() == pytest.approx([math.log(2)])


def test_blocks_of_rows_are_no_matter(monkeypatch):
    base, new = torch.randn(2, 7, 11)
    following = torch.arange(7)
    whole = compared(base, new, following)
    monkeypatch.setattr("stepflow_tl.analysis.teacher._BLOCK", 23)
    for expected, found in zip(whole, compared(base, new, following), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)


def test_the_worst_are_five_in_a_hundred_and_at_least_one():
    kl = torch.arange(1.0, 41.0, dtype=torch.float64)
    assert divergence_of(kl, "worst") == pytest.approx((40 + 39) / 2)
    assert divergence_of(kl[:3], "worst") == 3.0
    assert divergence_of(kl, "mean") == pytest.approx(20.5)
