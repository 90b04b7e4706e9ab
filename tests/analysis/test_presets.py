"""All settings of a publication, by one name."""

import pytest

from stepflow_tl import StepFlow, step_saliency
from stepflow_tl.analysis import Preset
from stepflow_tl.errors import SettingError
from stepflow_tl.traces.formats import AUTO


@pytest.mark.parametrize("name", ["paper", "release", "digest"])
def test_a_preset_is_the_flow_of_its_name(name):
    preset = Preset.of(name)
    assert preset.flow == StepFlow.preset(name) == getattr(StepFlow, name)()
    assert (preset.format.name, preset.format.thinking_cutter) == (AUTO, "full_stop")


def test_what_the_release_does_otherwise():
    paper, release, digest = map(Preset.of, ("paper", "release", "digest"))
    assert (paper.objective, paper.diagonal) == ("token", "causal")
    assert (release.objective, release.diagonal) == ("sequence", "full")
    assert digest.rule == "jacobian"


@pytest.mark.parametrize("name", ["paper", "release", "digest"])
def test_maps_are_made_with_it(qwen2, trace, name):
    preset = Preset.of(name)
    maps = step_saliency(qwen2, trace, **preset.saliency)
    assert maps.settings["rule"] == preset.rule
    assert maps.settings.get("diagonal", "causal") == preset.diagonal


@pytest.mark.parametrize("make", [Preset.of, StepFlow.preset])
def test_an_unknown_name(make):
    with pytest.raises(SettingError, match="no preset 'papre': expected one of .*'paper'"):
        make("papre")
