"""Settings as command lines write them."""

import pytest
import torch

from stepflow_tl import OddsEqualBridge, StepFlow, StepMomentum
from stepflow_tl.errors import SettingError
from stepflow_tl.integrations.settings import (
    decoding_of,
    flow_of,
    layers_of,
    plain_number,
    precision,
)

GREEDY = {"until": [], "max_gen_toks": 0, "do_sample": False}


@pytest.mark.parametrize(
    ("given", "flow"),
    [
        ({}, StepFlow.paper()),
        ({"preset": ""}, StepFlow.paper()),
        ({"preset": "paper"}, StepFlow.paper()),
        ({"preset": "release"}, StepFlow.release()),
        ({"preset": "digest"}, StepFlow.digest()),
        ({"preset": "none"}, StepFlow()),
        ({"preset": None}, StepFlow()),  # as the harness reads "none"
        ({"oeb_tau": 0, "smi_alpha": 0.0}, StepFlow()),
        ({"oeb_tau": 0}, StepFlow(StepMomentum())),
        ({"smi_alpha": 0}, StepFlow(OddsEqualBridge())),
        (
            {"oeb_tau": 0.3, "oeb_layers": "0-2", "smi_layers": 5, "smi_window": 8},
            StepFlow(
                OddsEqualBridge(tau_max=0.3, layers=range(3)), StepMomentum(layers=5, window=8)
            ),
        ),
    ],
)
def test_flows(given, flow):
    assert flow_of(**given) == flow


def test_layers():
    assert layers_of("oeb_layers", "2-2") == range(2, 3)
    assert layers_of("oeb_layers", "deep") == "deep"
    assert layers_of("oeb_layers", [1, 3]) == [1, 3]
    with pytest.raises(SettingError, match="expected oeb_layers such as 0-6, got '6-0'"):
        layers_of("oeb_layers", "6-0")


@pytest.mark.parametrize("value", [0, -1, "x", 1.5, True, None])
def test_numbers(value):
    assert plain_number("n", "12") == plain_number("n", 12) == 12
    with pytest.raises(SettingError, match="expected n to be a whole number >= 1, got"):
        plain_number("n", value)


def test_decoding():
    assert decoding_of(GREEDY) == (None, {"temperature": 0.0, "top_p": 1.0, "stop": []})
    task = {"until": ["Q:", ""], "max_gen_toks": 7, "do_sample": True, "top_p": 0.9, "top_k": 0}
    assert decoding_of(task) == (7, {"temperature": 1.0, "top_p": 0.9, "stop": ["Q:"]})
    with pytest.raises(SettingError, match=r"generation setting num_beams=4 is unknown"):
        decoding_of(GREEDY | {"num_beams": 4})
    with pytest.raises(ValueError, match=r"expected top_p in \(0, 1\], got 3.0"):
        decoding_of(task | {"top_p": 3})


def test_precision(tmp_path):
    assert precision(None, "reasoner") is None
    assert precision("bfloat16", "reasoner") == torch.bfloat16
    assert precision("auto", "reasoner") == torch.float16
    with pytest.raises(ValueError, match="no configuration of '.*' could be read"):
        precision("auto", str(tmp_path))
