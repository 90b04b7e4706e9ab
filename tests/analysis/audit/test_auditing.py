"""Audits of planted maps: a perfect one, a random one, and distance alone."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch

from stepflow_tl.analysis.audit import Truth, audit
from stepflow_tl.errors import NonFiniteError, SettingError, StepMapError
from stepflow_tl.saliency import StepMap
from stepflow_tl.traces.trace import Step

LAYERS = 8


def made(scores: torch.Tensor, layers: int = LAYERS) -> StepMap:
    steps = tuple(Step(i, "thinking", i, i + 1, f"{i}") for i in range(scores.shape[-1]))
    return StepMap(
        scores=scores.expand(layers, -1, -1).tril().float(),
        layers=tuple(range(layers)),
        n_layers=layers,
        steps=steps,
        settings={"rule": "planted"},
    )


def truths(count: int = 40, steps: int = 12, near: float = 0.0) -> list[Truth]:
    """Each step uses one earlier step: any, or with this chance the one before."""
    generator, found = np.random.default_rng(1), []
    for _ in range(count):
        values = torch.zeros(steps, steps)
        for query in range(1, steps):
            key = query - 1 if generator.random() < near else int(generator.integers(query))
            values[query, key] = 1.0
        known = torch.ones(steps, steps, dtype=torch.bool).tril(-1)
        found.append(Truth(name="used", values=values, known=known))
    return found


def random_maps(count: int, steps: int = 12) -> Sequence[StepMap]:
    generator = torch.Generator().manual_seed(3)
    return [made(torch.rand(steps, steps, generator=generator)) for _ in range(count)]


def test_a_perfect_map_scores_one_and_a_random_one_a_half() -> None:
    known = truths()
    maps = {
        "perfect": [made(truth.values + 1e-3) for truth in known],
        "random map": random_maps(len(known)),
    }
    table = audit(maps, known).set_index(["rule", "layer"])
    perfect, noise = table.loc[("perfect", 3)], table.loc[("random map", 3)]
    assert perfect[["auroc", "auroc_low", "within", "recall"]].tolist() == [1.0] * 4
    assert perfect["correlation"] > 0.4  # ranks of 0 and 1, of which there are few ones
    for measure in ("auroc", "within"):
        assert noise[f"{measure}_low"] < 0.5 < noise[f"{measure}_high"]
        own = table.loc[("random", "-")]
        assert own[f"{measure}_low"] < 0.5 < own[f"{measure}_high"]
    assert set(table["n"]) == {40}
    assert list(table.index.get_level_values("layer")[:12]) == [
        *range(LAYERS),
        "shallow",
        "middle",
        "deep",
        "all",
    ]


def test_distance_scores_its_own_and_nothing_within_distance() -> None:
    """Where the step before is used, nearness predicts it, and any map that falls with distance."""
    known = truths(near=1.0)
    steps = torch.arange(12)
    near = made(1.0 / (1 + steps[:, None] - steps).clamp_min(1).float())
    table = audit({"near": [near] * 40}, known).set_index("rule")
    assert table.loc["distance alone", "auroc"] == 1.0
    assert (table.loc["near", "auroc"].iloc[:LAYERS] == 1.0).all()
    mixed = audit({"near": [near] * 40}, truths(near=0.5)).set_index("rule")
    assert mixed.loc["distance alone", "auroc"] == pytest.approx(mixed.loc["near", "auroc"].iloc[0])
    assert 0.6 < mixed.loc["distance alone", "auroc"] < 0.95
    assert mixed.loc["distance alone", "within"] == mixed.loc["near", "within"].iloc[0] == 0.5


def test_a_truth_of_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(9, 9, generator=generator).tril(-1)
    known = torch.ones(9, 9, dtype=torch.bool).tril(-1)
    truth = Truth(name="knock-out", values=values, known=known)
    assert not truth.is_binary
    table = audit([made(values.sqrt())], truth).set_index("layer")
    assert table.loc[0, ["auroc", "within", "recall"]].tolist() == [1.0, 1.0, 1.0]
    assert table.loc[0, "correlation"] == pytest.approx(1.0)


def test_traces_of_a_problem_are_drawn_together() -> None:
    """Twenty copies of two traces say no more than the two."""
    known = truths(2)
    maps = random_maps(2)
    alone = audit(maps, known).iloc[0]
    copies = audit(list(maps) * 10, known * 10, problems=[0, 1] * 10).iloc[0]
    for column in ("auroc", "auroc_low", "auroc_high"):
        assert copies[column] == pytest.approx(alone[column])
    careless = audit(list(maps) * 10, known * 10).iloc[0]
    assert careless["auroc_high"] - careless["auroc_low"] < alone["auroc_high"] - alone["auroc_low"]


def test_a_band_is_the_mean_of_row_shares() -> None:
    known = truths(1)
    loud = 1000.0 * torch.rand(12, 12, generator=torch.Generator().manual_seed(5)) + 1.0
    layers = torch.stack([loud, *[known[0].values * 50 + 1e-3] * 7]).tril()
    both = made(torch.ones(12, 12))
    mixed = StepMap(**{**vars(both), "scores": layers})
    table = audit([mixed], known).set_index("layer")
    assert table.loc[0, "auroc"] < 0.9
    assert table.loc["all", "auroc"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, t: (m[:1], t), "expected a map of each of 2 traces, got 1"),
        (lambda m, t: ({}, t), "expected at least one map and its truth"),
        (
            lambda m, t: (random_maps(2, 5), t),
            "expected a map of the trace's 12 steps, got one of 5",
        ),
    ],
)
def test_what_does_not_fit(change, message) -> None:
    with pytest.raises((StepMapError, SettingError), match=message):
        audit(*change(random_maps(2), truths(2)))


def test_truths_are_of_earlier_steps() -> None:
    with pytest.raises(StepMapError, match="got one on or above"):
        Truth(name="x", values=torch.zeros(3, 3), known=torch.eye(3, dtype=torch.bool))
    known = torch.ones(3, 3, dtype=torch.bool).tril(-1)
    with pytest.raises(StepMapError, match="expected finite numbers"):
        Truth(name="x", values=torch.full((3, 3), torch.nan), known=known)


def test_numbers_that_are_none_are_refused() -> None:
    maps = random_maps(2)
    maps[1].scores[0, 5, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="got NaN or infinity: .* of trace 1"):
        audit(maps, truths(2))


def test_signs_do_not_matter_in_bands_either() -> None:
    (plain,), known = random_maps(1), truths(1)
    signs = torch.where(torch.rand(plain.scores.shape) < 0.5, -1.0, 1.0)
    signed = StepMap(**{**vars(plain), "scores": plain.scores * signs})
    both = [audit([one], known).set_index("layer").drop(columns="rule") for one in (plain, signed)]
    pd.testing.assert_frame_equal(*both)


def test_one_problem_says_nothing_of_others() -> None:
    row = audit(random_maps(1), truths(1)).iloc[0]
    assert row["auroc"] > 0
    assert row[["auroc_low", "auroc_high"]].isna().all()
