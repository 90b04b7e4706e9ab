"""`stepflow-tl repair`: what it prints, and what it refuses."""

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from stepflow_tl.analysis.bands import AccusedBand
from stepflow_tl.cli.app import app
from stepflow_tl.cli.repair import text_of
from stepflow_tl.interventions import OddsEqualBridge, StepFlow
from stepflow_tl.sweep import ClosedLoop

SMALL = ["--n", "3", "--max-new-tokens", "110", "--batch-size", "8", "--maps", "2"]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["repair", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_the_locked_in_reasoner_is_accused_where_it_was_trained(tmp_path: Path) -> None:
    asked = ("--model", "reasoner-locked-in", "--reference", "reasoner", "--problems", "2")
    said = run(*asked, "--tau-max", "0.3", *SMALL, "--out", str(tmp_path))
    assert "diagnosis: lock_in against reference, held-out problems" in said
    accused = next(line for line in said.splitlines() if line.startswith("accused: layers "))
    assert set(accused.removeprefix("accused: layers ").split(", ")) <= {"4", "5", "6"}
    assert "tau_max = 0.3" in said
    assert "lock_in over the accused layers, reported problems" in said
    assert ("nothing is repaired" in said) != ("exact McNemar p = " in said)
    stores = sorted(path.name for path in tmp_path.iterdir())
    again = run(*asked, "--tau-max", "0.3", *SMALL, "--out", str(tmp_path))
    assert again.split("diagnosis: ")[-1] == said.split("diagnosis: ")[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == stores


def found(chosen: bool) -> ClosedLoop:
    row = {"arm": "tau_max = 0.3", "n": 40, "accuracy": 0.9, "baseline": 0.8, "difference": 0.1}
    row |= {"difference_low": 0.02, "difference_high": 0.2, "fixed": 5, "broken": 1}
    tried = pd.DataFrame([row | {"p_value": 0.21875}])
    evidence = {"layer": [4], "value": [0.5], "against": [0.1], "worse": [0.4], "accused": [True]}
    bridge = OddsEqualBridge(layers=(4,), tau_max=0.3)
    return ClosedLoop(
        band=AccusedBand(layers=(4,), evidence=pd.DataFrame(evidence)),
        tried=tried,
        flow=StepFlow(bridge) if chosen else StepFlow(),
        outcome=tried if chosen else None,
        measured=pd.DataFrame({"arm": ["as it is"], "mean": [0.5], "n": [40]}),
    )


def test_a_chosen_repair_is_told_with_what_it_reached() -> None:
    said = text_of(found(chosen=True), "lock_in", "reference")
    assert "accused: layers 4" in said
    assert "chosen: OddsEqualBridge(" in said
    assert "accuracy 0.800 -> 0.900, difference 0.100 [0.020, 0.200], n = 40" in said
    assert "5 fixed, 1 broken, exact McNemar p = 0.219" in said
    assert "nothing is repaired" not in said


def test_where_nothing_was_better_than_none_nothing_is_told_as_chosen() -> None:
    said = text_of(found(chosen=False), "lock_in", "reference")
    assert "no strength was more accurate than none: nothing is repaired" in said
    assert "chosen: " not in said
    assert "McNemar" not in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--problems", "many"), "expected numbers of operations such as '16 17', got 'many'"),
        (("--problems", " "), "expected numbers of operations"),
        (("--task", "no-such-benchmark"), "no-such-benchmark"),
        (("--problems", "2"), "expected --reference, a healthy model of the same tokenizer"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments: tuple[str, ...], expected: str) -> None:
    result = CliRunner().invoke(app, ["repair", *arguments])
    assert result.exit_code != 0
    assert expected in str(result.exception) + result.output
