"""Training is resumable: stopped and resumed, it ends with the weights of an uninterrupted run."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from experiments.reasoner import train
from experiments.reasoner.lessons import Stage
from experiments.reasoner.model import export

STAGES = (
    Stage(name="first", tokens=600, kinds={"repeats": (1.0, 1.0)}, spans=(4, 6), batch=200),
    Stage(name="second", tokens=600, kinds={"problem": (1.0, 1.0)}, hard=(1, 2), batch=300),
)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "STAGES", STAGES)


def _run(setting: train.Setting, *, stages: int) -> train.Learner:
    learner = train.load_learner(setting)
    for _ in range(stages):
        train.run_stage(setting, learner)
        learner.state.update(stage=learner.state["stage"] + 1, step=0)
        train.save_checkpoint(setting, learner)
    return learner


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = train.Setting(folder=tmp_path / "whole")
    parts = train.Setting(folder=tmp_path / "parts")
    for setting in (whole, parts):
        setting.folder.mkdir()
    expected = _run(whole, stages=2)
    _run(parts, stages=1)
    resumed = _run(parts, stages=1)
    assert resumed.state["tokens"] == expected.state["tokens"]
    for name, value in expected.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value)


@pytest.mark.slow
def test_the_export_is_16_bit_and_loads(tmp_path: Path) -> None:
    learner = train.load_learner(train.Setting(folder=tmp_path))
    export(learner.model, learner.tokenizer, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float16
    torch.testing.assert_close(
        loaded.float().state_dict(), learner.model.state_dict(), rtol=1e-3, atol=1e-4
    )
