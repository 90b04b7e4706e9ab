"""Pictures that the pages show say inside what they were made of."""

import pytest
from helpers import ROOT

from stepflow_tl.plots import read_facts

PICTURES = sorted((ROOT / "figures").glob("*.png"))
FACTS = {"settings", "n", "seeds", "models", "versions"}


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_a_picture_says_what_it_was_made_of(path) -> None:
    facts = read_facts(path)
    assert facts.keys() >= FACTS, f"{path.name}: {sorted(facts)}"
    assert facts["settings"] and facts["models"] and facts["versions"]
