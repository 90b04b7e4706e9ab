"""The README's examples run as they stand."""

import dataclasses
import re

import matplotlib as mpl
import pytest
from helpers import ROOT
from matplotlib import pyplot as plt

from stepflow_tl import Trace, cli
from stepflow_tl.sweep import read_config
from stepflow_tl.traces.formats import THINK

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_fifteen_lines_run(capsys):
    mpl.use("Agg")
    names: dict[str, object] = {}
    exec(BLOCKS[0], names)
    plt.close("all")
    trace = names["trace"]
    assert names["logits"].shape[:2] == (1, len(trace))
    assert trace.steps[1].text in capsys.readouterr().out


def test_formats_and_boundaries_of_ones_own(qwen2, tokenizer):
    ids = tokenizer("Why?[REASON]\nOne.\nTwo.\n[ANSWER]\nSo.")["input_ids"]
    text = f"<think>{'So it is. ' * 12}</think>It is."
    names = {
        **{"model": qwen2, "ids": ids, "n": len(tokenizer("Why?")["input_ids"])},
        **{"text": text, "THINK": THINK, "dataclasses": dataclasses},
    }
    block = next(block for block in BLOCKS if "[REASON]" in block)
    mine, theirs = block.split("trace = Trace.from_text")
    exec("from stepflow_tl import Format, Trace\n" + mine, names)
    steps = [step.text.strip() for step in names["trace"].steps]
    assert steps == ["Why?", "One.", "Two.\n[ANSWER", "So."]  # a delimiter of several tokens
    exec("trace = Trace.from_text" + theirs, names)
    assert [step.labels for step in names["trace"].steps_in("thinking")] == [
        *({}, {"kind": "plan_generation"}, {}),
    ]
    assert names["authors"].thinking_cutter == "full_stop"


def test_a_long_trace_is_mapped(qwen2, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ids = [i % 300 for i in range(1100)]
    trace = Trace.from_token_ids(tokenizer, ids, prompt_length=40, strict=False)
    block = next(block for block in BLOCKS if "work_file=" in block)
    exec("from stepflow_tl import step_saliency\n" + block, {"model": qwen2, "trace": trace})
    assert capsys.readouterr().out == "fused\n"
    assert (tmp_path / "map.work").exists()


def test_the_commands_named_exist():
    commands = {info.name or info.callback.__name__ for info in cli.app.registered_commands}
    commands |= {group.name for group in cli.app.registered_groups}
    named = re.search(r"`stepflow-tl (demo[ |a-z-]*)`", README)
    assert named is not None
    assert set(named.group(1).split(" | ")) == commands


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")  # beartype takes 0 for no float
def test_the_sweep_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    block = next(block for block in BLOCKS if "Sweep(" in block)
    small = block.replace("n=50, difficulties=(16, 17, 18), recall=(6,)", "n=1, difficulties=(1,)")
    assert small != block
    names: dict[str, object] = {}
    exec(small, names)
    assert set(names["rows"]["setting"]) >= {"baseline", "paper", "digest"}
    assert names["trace"].response == names["rows"]["response"].iloc[0]
    assert "McNemar exact" in capsys.readouterr().out


@pytest.mark.usefixtures("unchecked")
def test_the_configuration_is_understood(tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "sweep.yaml").write_text(block)
    sweep = read_config(tmp_path / "sweep.yaml")
    labels = [arm.label for arm in sweep.arms]
    assert len(sweep.task.items) == 200
    assert {"baseline", "paper", "digest", "self_consistency(k=4, temperature=0.7)"} <= set(labels)
