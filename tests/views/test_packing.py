"""What a page carries is what was given, as far as seven bits go."""

import base64
import json
import zlib

import pytest
import torch
from hostile import HOSTILE

from stepflow_tl.errors import NonFiniteError
from stepflow_tl.views.packing import LEVELS, packed_json, packed_scores, unpacked_scores

LARGE = 300, 28


@pytest.mark.parametrize("signed", [False, True])
def test_scores_come_back_within_a_level_of_their_rows_largest(signed: bool) -> None:
    torch.manual_seed(0)
    scores = torch.rand(3, 12, 12).tril() ** 3
    scores = scores * torch.logspace(-6, 3, 12)[:, None]
    if signed:
        scores = scores * torch.randn(3, 12, 12).sign()
    found = unpacked_scores(packed_scores(scores), 3, 12)
    largest = scores.abs().amax(-1, keepdim=True)
    assert ((found - scores).abs() <= largest / LEVELS * 1.01).all()
    small = scores.abs() < largest / 100
    assert ((found - scores).abs()[small] <= largest.expand_as(scores)[small] / LEVELS / 8).all()


def test_what_is_above_the_diagonal_and_zero_rows() -> None:
    scores = torch.ones(1, 3, 3)
    scores[0, 1] = 0
    found = unpacked_scores(packed_scores(scores), 1, 3)
    assert found.tolist() == [[[1, 0, 0], [0, 0, 0], [1, 1, 1]]]


@pytest.mark.parametrize("kind", ["noise", "real"])
def test_a_large_map_stays_small(kind: str) -> None:
    torch.manual_seed(0)
    steps, layers = LARGE
    scores = torch.rand(layers, steps, steps)
    if kind == "real":  # shares fall with distance
        distance = torch.arange(steps)[:, None] - torch.arange(steps)
        scores = scores**4 / (1 + distance.clamp_min(0)) + 1e-4
    assert len(packed_scores(scores.tril())) < 1.5e6


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(wrong: float) -> None:
    with pytest.raises(NonFiniteError, match="expected scores that are numbers"):
        packed_scores(torch.full((1, 2, 2), wrong))


def test_texts_are_letters_of_base64_and_come_back() -> None:
    packed = packed_json(HOSTILE)
    assert packed.isascii()
    assert "<" not in packed
    again = json.loads(zlib.decompress(base64.b64decode(packed), -15))
    assert again == [text.replace("\ud800", "?") for text in HOSTILE]
