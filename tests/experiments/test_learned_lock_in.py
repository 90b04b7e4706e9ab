"""The failure that is switched on by step is the one that training left in the weights."""

from typing import Any

import pytest
import torch
from helpers import ROOT
from transformers import AutoModelForCausalLM

from stepflow_tl import StepFlow, generate, load_model
from stepflow_tl.errors import ModelError
from stepflow_tl.files import read_file
from stepflow_tl.models.locked_in import KIND
from stepflow_tl.reasoner import LOCKED_IN, WEIGHTS
from stepflow_tl.tasks.word_problems import make_problem
from stepflow_tl.traces.rows import THINKING


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    from learned_lock_in import LearnedLockIn

    return LearnedLockIn


@torch.no_grad()
def test_added_to_every_query_it_is_the_weights(kind: Any, monkeypatch: Any) -> None:
    model = load_model("reasoner", device="cpu")
    trace = generate(model, make_problem(0, 3).question)
    decoder = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32)
    parameters = dict(decoder.named_parameters())
    tensors, _ = read_file(LOCKED_IN, KIND, ModelError)
    for name, tensor in tensors.items():
        dose, parameter = name.split("/")
        if dose == "72" and "q_proj" in parameter:
            parameters[parameter].add_(1.5 * tensor.float())
    trained = load_model("reasoner", hf_model=decoder, device="cpu")
    everywhere = torch.full((1, len(trace)), THINKING)
    monkeypatch.setattr("stepflow_tl.interventions.position.PassPosition.query_segment", everywhere)
    with StepFlow(kind(strength=1.5)).attach(model):
        moved = model(trace.tokens)
    torch.testing.assert_close(moved, trained(trace.tokens), rtol=1e-3, atol=1e-3)
    assert (moved - model(trace.tokens)).abs().max() > 0.1


def test_only_trained_layers_have_one(kind: Any) -> None:
    model = load_model("reasoner", device="cpu")
    trace = generate(model, make_problem(0, 3).question)
    flow = StepFlow(kind(layers=(3,)))
    with pytest.raises(ModelError, match=r"expected a layer out of \[4, 5, 6\], got 3"):
        model.run_with_hooks(trace.tokens, fwd_hooks=flow.fwd_hooks(model, trace))
