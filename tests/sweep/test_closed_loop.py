"""The closed loop on the bundled reasoner: where a planted bridge-like shift is undone."""

from typing import Any

import pytest

from stepflow_tl import Decoding, StepFlow, WordProblems, load_model
from stepflow_tl.errors import SettingError
from stepflow_tl.interventions import PlantedLockIn
from stepflow_tl.sweep import closed_loop
from stepflow_tl.sweep.closed_loop import AS_IT_IS, REPAIRED

LAYERS = (4, 5, 6)
SHORT = Decoding(max_new_tokens=110, batch_size=8)


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model("reasoner", device="cpu")


def problems(seed: int) -> WordProblems:
    return WordProblems(n=4, difficulties=(2,), seed=seed)


def test_the_reference_accuses_the_planted_layers(model, tmp_path) -> None:
    planted = StepFlow(PlantedLockIn(strength=0.6, layers=LAYERS))
    found = closed_loop(
        problems(1),
        problems(2),
        tmp_path,
        model=model,
        base=planted,
        reference=model,
        against="reference",
        width=3,
        tau_max=(0.1,),
        maps=3,
        decoding=SHORT,
    )
    assert found.band.layers == LAYERS
    assert found.tried["arm"].tolist() == ["tau_max = 0.1"]
    assert found.tried["n"].tolist() == [4]
    assert found.measured["arm"].iloc[0] == AS_IT_IS
    if found.flow.interventions:
        (bridge,) = found.flow.interventions
        assert (bridge.layers, bridge.keys) == (LAYERS, "question")
        assert found.outcome is not None and found.measured["arm"].tolist() == [AS_IT_IS, REPAIRED]
    else:
        assert found.outcome is None


def test_nothing_is_chosen_where_nothing_is_better(model, tmp_path) -> None:
    """All problems of two operations are solved already; a stopped run goes on in its stores."""
    settings = {"model": model, "maps": 2, "decoding": SHORT, "tau_max": (0.05,), "layers": (1,)}
    found = closed_loop(problems(1), problems(2), tmp_path, **settings)
    assert (found.flow, found.outcome) == (StepFlow(), None)
    assert found.measured["n"].tolist() == [2]
    before = sorted(path.name for path in tmp_path.iterdir())
    again = closed_loop(problems(1), problems(2), tmp_path, **settings)
    assert again.tried.equals(found.tried)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_problems_are_held_out(model, tmp_path) -> None:
    with pytest.raises(SettingError, match="held-out problems that are not reported on, got 4"):
        closed_loop(problems(1), problems(1), tmp_path, model=model)
