"""Receiver heads: column scores by hand, and a planted head that comes first."""

import pytest
import torch
from scipy.stats import kurtosis

from stepflow_tl.analysis.audit import receiver_heads, receiver_scores
from stepflow_tl.analysis.audit.receiver_heads import column_scores
from stepflow_tl.errors import SettingError, StepMapError
from stepflow_tl.saliency import StepMap
from stepflow_tl.traces.trace import Step


def made(scores: torch.Tensor) -> StepMap:
    count = scores.shape[-1]
    steps = tuple(Step(i, "thinking", i, i + 1, f"{i}") for i in range(count))
    return StepMap(
        scores=scores.tril(),
        layers=tuple(range(len(scores))),
        n_layers=len(scores),
        steps=steps,
        settings={"rule": "attention"},
    )


def test_columns_by_hand() -> None:
    scores = torch.zeros(1, 1, 16, 16)
    scores[0, 0, 4:, 0] = torch.arange(4.0, 16.0)  # mean 9.5
    scores[0, 0, 15, 11] = 3.0  # its only row that is far enough
    scores[0, 0, 14, 11] = 100.0  # too near
    columns = column_scores(made(scores))[0, 0]
    assert columns[:12].tolist() == [9.5, *[0.0] * 10, 3.0]
    assert torch.from_numpy(columns[12:]).isnan().all()


def test_a_planted_head_comes_first() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = []
    for _ in range(3):
        scores = torch.rand(2, 3, 20, 20, generator=generator)
        scores[1, 2, :, 5] += 10.0
        maps.append(made(scores))
    table = receiver_heads(maps)
    assert table.loc[0, ["layer", "head", "n"]].tolist() == [1, 2, 3]
    known = column_scores(maps[0])[1, 2][:16]
    assert table.loc[0, "low"] <= kurtosis(known) <= table.loc[0, "high"]
    scores = receiver_scores(maps[0], table, top=1)
    assert scores.idxmax() == 5


def test_what_is_refused() -> None:
    with pytest.raises(StepMapError, match="16 steps or more.* got 9"):
        receiver_heads(made(torch.ones(1, 1, 9, 9)))
    with pytest.raises(StepMapError, match="per_head=True"):
        receiver_heads(made(torch.ones(1, 20, 20)))
    with pytest.raises(StepMapError, match="at least one map"):
        receiver_heads([])
    with pytest.raises(SettingError, match="expected proximity >= 1, .* got 0"):
        receiver_heads(made(torch.rand(1, 1, 20, 20)), proximity=0)


def test_heads_that_are_not_in_a_map() -> None:
    wide = made(torch.rand(2, 20, 20).tril()[None].repeat(1, 1, 1, 1))
    heads = receiver_heads(wide)
    with pytest.raises(SettingError, match="expected top >= 1 of some heads, got top=0"):
        receiver_scores(wide, heads, top=0)
    with pytest.raises(StepMapError, match=r"the heads' layers \[7\], got layers"):
        receiver_scores(wide, heads.assign(layer=7))
