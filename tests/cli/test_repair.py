"""`stepflow-tl repair`: what it prints, and what it refuses."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from stepflow_tl.cli.app import app

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
    assert "nothing is repaired" in said or "exact McNemar p = " in said
    stores = sorted(path.name for path in tmp_path.iterdir())
    again = run(*asked, "--tau-max", "0.3", *SMALL, "--out", str(tmp_path))
    assert again.split("diagnosis: ")[-1] == said.split("diagnosis: ")[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == stores


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
