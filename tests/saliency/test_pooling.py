"""Pooling by hand, the authors' numbers, and the conserved total."""

import pytest
import torch
from helpers import Golden
from hypothesis import given
from hypothesis import strategies as st

from stepflow_tl.saliency import StepPooler
from stepflow_tl.traces.tokens import FRAME

SCORES = torch.tensor([[1.0, 0.0, 0.0], [2.0, 3.0, 0.0], [4.0, 5.0, 6.0]])
STEPS = torch.tensor([0, 1, 1])


@pytest.mark.parametrize(
    ("pool", "diagonal", "expected"),
    [
        ("mean", "causal", [[1.0, 0.0], [3.0, 14 / 3]]),
        ("mean", "full", [[1.0, 0.0], [3.0, 14 / 4]]),
        ("sum", "causal", [[1.0, 0.0], [6.0, 14.0]]),
        ("sum", "full", [[1.0, 0.0], [6.0, 14.0]]),
    ],
)
def test_three_tokens_by_hand(pool: str, diagonal: str, expected: list[list[float]]) -> None:
    pooled = StepPooler(STEPS, 2, pool, diagonal)(SCORES)
    torch.testing.assert_close(pooled, torch.tensor(expected))


@pytest.mark.parametrize("frame_keys", ["in", "out"])
def test_shares_by_hand(frame_keys: str) -> None:
    """Rows [1], [2 3], [4 5 6]: shares 1; .4 .6; 4/15 11/15 of step 1, and their means."""
    pooled = StepPooler(STEPS, 2, "share", frame_keys=frame_keys)(SCORES)
    first = (0.4 + 4 / 15) / 2
    torch.testing.assert_close(pooled, torch.tensor([[1.0, 0.0], [first, 1 - first]]))


def test_the_frame_in_and_out_of_a_shares_denominator() -> None:
    labels = torch.tensor([0, FRAME, 1])
    inside = StepPooler(labels, 2, "share")(SCORES)
    torch.testing.assert_close(inside, torch.tensor([[1.0, 0.0], [4 / 15, 6 / 15]]))
    outside = StepPooler(labels, 2, "share", frame_keys="out")(SCORES)
    torch.testing.assert_close(outside, torch.tensor([[1.0, 0.0], [0.4, 0.6]]))


def test_rows_without_scores_have_no_share() -> None:
    scores = SCORES.clone()
    scores[2] = 0.0
    pooled = StepPooler(STEPS, 2, "share")(scores)
    torch.testing.assert_close(pooled, torch.tensor([[1.0, 0.0], [0.4, 0.6]]))


def test_frame_tokens_drop_out() -> None:
    pooled = StepPooler(torch.tensor([0, FRAME, 1]), 2)(SCORES)
    assert pooled.tolist() == [[1.0, 0.0], [4.0, 6.0]]


def test_a_step_without_tokens_is_empty_not_nan() -> None:
    pooled = StepPooler(torch.tensor([0, 2, 2]), 3)(SCORES)
    assert pooled[1].tolist() == pooled[:, 1].tolist() == [0.0, 0.0, 0.0]


def test_leading_axes_are_kept() -> None:
    pooled = StepPooler(STEPS, 2)(SCORES.expand(4, 2, 3, 3))
    assert pooled.shape == (4, 2, 2, 2)
    assert torch.equal(pooled[3, 1], StepPooler(STEPS, 2)(SCORES))


def test_the_authors_matrix(golden: Golden) -> None:
    facts = golden.pooling
    pooled = StepPooler(torch.tensor(facts["token_to_step"]), 6, "mean", "full")(
        torch.tensor(facts["token_saliency"], dtype=torch.float64)
    )
    expected = torch.tensor(facts["step_matrix"], dtype=torch.float64)
    torch.testing.assert_close(pooled, expected, atol=1e-6, rtol=0)


@given(steps=st.lists(st.integers(-1, 4), min_size=1, max_size=12), data=st.randoms())
def test_sums_conserve_the_total_off_the_frame(steps: list[int], data: object) -> None:
    labels = torch.tensor(steps)
    scores = torch.rand(2, len(steps), len(steps), dtype=torch.float64).tril()
    on = (labels != FRAME).double()
    pooled = StepPooler(labels, 5, "sum")(scores)
    torch.testing.assert_close(pooled.sum((-2, -1)), (scores * on[:, None] * on).sum((-2, -1)))


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_a_flat_causal_map_pools_to_ones(sizes: list[int]) -> None:
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    flat = torch.ones(len(labels), len(labels)).tril()
    pooled = StepPooler(labels, len(sizes))(flat)
    assert torch.equal(pooled, torch.ones(len(sizes), len(sizes)).tril())
