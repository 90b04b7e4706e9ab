"""From the answer back to the question, by hand."""

import pytest
import torch

from stepflow_tl.errors import NonFiniteError, SettingError, StepMapError
from stepflow_tl.saliency import StepMap
from stepflow_tl.saliency.tracing import chances, passing_map, trace_back
from stepflow_tl.traces.trace import Step

SEGMENTS = ("question", "thinking", "thinking", "summary")
ROWS = [
    [9.0, 0.0, 0.0, 0.0],
    [4.0, 1.0, 0.0, 0.0],  # all of it to the question
    [1.0, 3.0, 5.0, 0.0],  # 1/4, 3/4
    [1.0, 1.0, 2.0, 7.0],  # 1/4, 1/4, 1/2
]


def made(rows: list[list[float]] = ROWS, segments: tuple[str, ...] = SEGMENTS) -> StepMap:
    steps = tuple(Step(i, name, i, i + 1, f"step {i}") for i, name in enumerate(segments))
    return StepMap(
        scores=torch.tensor([rows]), layers=(0,), n_layers=1, steps=steps, settings={"rule": "x"}
    )


def test_by_hand() -> None:
    table = made().trace_back("answer", hops=4)
    assert table["hop_1"].tolist() == [1 / 4, 1 / 4, 1 / 2]
    assert table["hop_2"].tolist() == [1 / 4 + 1 / 8, 3 / 8, 0.0]
    assert table["hop_3"].tolist() == [3 / 8, 0.0, 0.0]
    assert table["hop_4"].tolist() == [0.0, 0.0, 0.0]
    assert table["through"].tolist() == [1.0, 5 / 8, 1 / 2]
    assert table["segment"].tolist() == list(SEGMENTS[:3])


def test_a_walk_ends_in_the_question() -> None:
    """Two steps of it: what was reached is not passed on from the second to the first."""
    rows = [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 3.0, 1.0]]
    table = made(rows, ("question", "question", "summary")).trace_back()
    assert table["through"].tolist() == [0.25, 0.75]


def test_the_whole_map() -> None:
    flows = passing_map(made())
    assert flows.scores[0, 3].tolist() == [1.0, 5 / 8, 1 / 2, 0.0]
    assert flows.scores[0, 2].tolist() == [1.0, 3 / 4, 0.0, 0.0]
    assert flows.settings["hops"] == "all"


def test_a_row_without_scores_leads_nowhere() -> None:
    assert chances(torch.zeros(3, 3)).tolist() == torch.zeros(3, 3).tolist()


def test_targets_that_are_none() -> None:
    with pytest.raises(StepMapError, match="expected a summary"):
        trace_back(made(ROWS[:3], SEGMENTS[:3]))
    with pytest.raises(StepMapError, match="or a step from 0 to 3, got 9"):
        trace_back(made(), 9)
    with pytest.raises(StepMapError, match="or a step from 0 to 3, got True"):
        trace_back(made(), True)
    with pytest.raises(SettingError, match="expected hops >= 1, got -2"):
        trace_back(made(), hops=-2)
    with pytest.raises(NonFiniteError, match="got a map with NaN"):
        trace_back(made([[torch.nan] * 4, *ROWS[1:]]))
