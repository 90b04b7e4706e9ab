import json

import numpy as np
import pytest
import torch
from helpers import DATA

from stepflow_tl import StepMap, compare_groups, diagnose, step_saliency
from stepflow_tl.analysis.diagnostics import LOCK_IN, MEASURES, undefined_measures
from stepflow_tl.traces.trace import Step

SUMMARY = (
    "summary_on_thinking",
    "summary_on_summary",
    "summary_on_question",
    "half_life",
    "final_block",
    "final_heat_anomaly",
)


def step_map(scores, segments: str) -> StepMap:
    """A map of one layer; segments as letters, e.g. "qtts"."""
    names = {"q": "question", "t": "thinking", "s": "summary"}
    steps = tuple(Step(i, names[s], i, i + 1, "x") for i, s in enumerate(segments))
    scores = torch.tensor(scores, dtype=torch.float32)
    scores = scores[None] if scores.ndim == 2 else scores
    return StepMap(
        scores=scores,
        layers=tuple(range(len(scores))),
        n_layers=len(scores),
        steps=steps,
        settings={},
    )


def test_lock_in_by_hand():
    scores = [[9, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 2, 3, 4]]
    measures = diagnose(step_map(scores, "qttt")).iloc[0]
    assert measures["self_share"] == pytest.approx(0.4)
    assert measures["neighbor_share"] == pytest.approx(0.3)
    assert measures["earlier_share"] == pytest.approx(0.2)
    assert measures["question_share"] == pytest.approx(0.1)
    assert measures["lock_in"] == pytest.approx(0.7)
    assert np.isnan(measures["summary_on_thinking"])
    assert np.isnan(measures["half_life"])


def test_decay_by_hand():
    scores = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [2, 1, 3, 4]]
    measures = diagnose(step_map(scores, "qtts")).iloc[0]
    assert measures["summary_on_question"] == pytest.approx(0.2)
    assert measures["summary_on_thinking"] == pytest.approx(0.4)
    assert measures["summary_on_summary"] == pytest.approx(0.4)
    assert measures["half_life"] == pytest.approx(2 / 3)  # 3 of 4 lie on the last step
    assert measures["final_block"] == pytest.approx(4.0)
    assert measures["analysis_block"] == pytest.approx(0.5)
    assert measures["final_heat_anomaly"] == pytest.approx(8.0)


@pytest.mark.parametrize(("shares", "half_life"), [([1, 1, 1, 1], 2.0), ([1, 0, 0, 0], 3.5)])
def test_half_life_grows_with_reach(shares, half_life):
    scores = np.tril(np.ones((5, 5)))
    scores[4, :4] = shares
    assert diagnose(step_map(scores, "tttts")).iloc[0]["half_life"] == pytest.approx(half_life)


def test_block_figures_meet_the_authors():
    golden = json.loads((DATA / "pooling.json").read_text())
    measures = diagnose(step_map(golden["step_matrix"], "qtttss")).iloc[0]
    for ours, theirs in (
        ("final_block", "final_block_intensity"),
        ("analysis_block", "analysis_block_intensity"),
        ("final_heat_anomaly", "final_heat_anomaly"),
    ):
        assert measures[ours] == pytest.approx(golden["metrics"][theirs], rel=1e-5)


def test_scale_does_not_matter_to_shares():
    scores = np.tril(np.random.default_rng(0).random((6, 6)))
    one, other = (
        diagnose(step_map(scores * factor, "qtttts"))[["lock_in", "half_life"]]
        for factor in (1.0, 1e-6)
    )
    assert np.allclose(one, other, rtol=1e-4)


def test_a_real_map_has_shares_that_sum_to_one(qwen2, trace):
    table = diagnose(step_saliency(qwen2, trace, per_head=True))
    assert table["layer"].tolist() == [0, 1, 2, 3]
    assert table["depth"].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    shares = table[["self_share", "neighbor_share", "question_share", "earlier_share"]]
    assert np.allclose(shares.sum(axis=1), 1.0)
    of_summary = table[["summary_on_thinking", "summary_on_summary", "summary_on_question"]]
    assert np.allclose(of_summary.sum(axis=1), 1.0)


@pytest.mark.slow
def test_groups_are_compared_layer_by_layer():
    generator = np.random.default_rng(0)
    tables, correct = [], []
    for i in range(40):
        right = i % 2 == 0
        scores = np.tril(generator.random((2, 5, 5)))
        scores[0, np.arange(5), np.arange(5)] += 0.0 if right else 5.0  # lock-in of wrong traces
        tables.append(diagnose(step_map(scores, "qttts")))
        correct.append(right)
    result = compare_groups(tables, correct=correct, problems=[i // 2 for i in range(40)])
    assert len(result) == 2 * len(MEASURES)
    lock_in = result[result["measure"] == "lock_in"]
    locked, free = lock_in.iloc[0], lock_in.iloc[1]
    assert locked["difference_high"] < 0.0 < locked["wrong"] - locked["correct"]
    assert free["difference_low"] < 0.0 < free["difference_high"]
    assert (result["n_correct"] == 20).all()
    assert locked["p_value"] <= locked["p_max"] <= locked["p_holm"] < 0.05 < free["p_value"]
    assert locked["difference_within"] == pytest.approx(locked["difference"])
    within = compare_groups(
        tables,
        correct=correct,
        problems=[i // 2 for i in range(40)],
        strata=["easy", "easy", "hard", "hard"] * 10,
    )
    assert within.loc[lock_in.index[0], "p_holm"] < 0.05
    assert within["difference"].equals(result["difference"])


def test_what_cannot_be_compared_is_refused():
    table = diagnose(step_map(np.tril(np.ones((4, 4))), "qtts"))
    with pytest.raises(ValueError, match="got 1, 2 and 1"):
        compare_groups([table], correct=[True, False], problems=[0])
    with pytest.raises(ValueError, match="got 1 correct and 0 wrong"):
        compare_groups([table], correct=[True], problems=[0])
    with pytest.raises(ValueError, match="expected 2 strata, one per trace, got 1"):
        compare_groups([table] * 2, correct=[True, False], problems=[0, 1], strata=["easy"])


@pytest.mark.parametrize(
    ("segments", "missing"),
    [
        ("qttts", {}),
        ("qttt", {name: "needs a summary, there is none" for name in SUMMARY}),
        ("qts", {name: "needs three thinking steps, there are 1" for name in LOCK_IN}),
        (
            "qs",
            {name: "needs three thinking steps, there are 0" for name in LOCK_IN}
            | dict.fromkeys(
                ("half_life", "analysis_block", "final_heat_anomaly"),
                "needs thinking, there is none",
            ),
        ),
    ],
)
def test_what_is_undefined_is_said_by_name(segments, missing):
    """Whatever is NaN is named, and nothing else is."""
    count = len(segments)
    made = step_map((torch.rand(count, count).tril() + torch.eye(count)).tolist(), segments)
    table = diagnose(made)
    assert table.attrs["undefined"] == undefined_measures(made) == missing
    nan = {name for name in MEASURES if table[name].isna().any()}
    assert nan == set(missing)
