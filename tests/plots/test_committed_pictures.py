"""Pictures that the pages show say inside what they were made of."""

import pytest
from helpers import ROOT

from stepflow_tl.plots import read_facts

OLDER = {"equal_compute", "failure_curves", "layer_ablation", "step_flow", "strengths"}
"""Drawn before pictures could say so; `make figures` draws them anew."""

PICTURES = sorted(p for p in (ROOT / "figures").glob("*.png") if p.stem not in OLDER)
FACTS = {"settings", "n", "seeds", "models", "versions"}


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_a_picture_says_what_it_was_made_of(path) -> None:
    facts = read_facts(path)
    assert facts.keys() >= FACTS, f"{path.name}: {sorted(facts)}"
    assert facts["settings"] and facts["models"] and facts["versions"]
