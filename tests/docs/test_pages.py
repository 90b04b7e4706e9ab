"""What the pages show runs as it stands, and what they say of the code is so."""

import ast
import dataclasses
import importlib
import inspect
import re
from urllib.parse import urlsplit

import matplotlib as mpl
import pytest
import torch
from helpers import ROOT
from matplotlib import pyplot as plt
from pages import DOCUMENTS, PAGES, anchors, blocks, links, page

import stepflow_tl
from stepflow_tl import Trace, cli, step_saliency
from stepflow_tl.sweep import read_config
from stepflow_tl.traces.formats import THINK


def test_formats_and_boundaries_of_ones_own(qwen2, tokenizer):
    ids = tokenizer("Why?[REASON]\nOne.\nTwo.\n[ANSWER]\nSo.")["input_ids"]
    text = f"<think>{'So it is. ' * 12}</think>It is."
    names = {
        **{"model": qwen2, "ids": ids, "n": len(tokenizer("Why?")["input_ids"])},
        **{"text": text, "THINK": THINK, "dataclasses": dataclasses},
    }
    block = next(block for block in blocks(page("steps.md")) if "[REASON]" in block)
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
    block = next(block for block in blocks(page("long-traces.md")) if "work_file=" in block)
    exec("from stepflow_tl import step_saliency\n" + block, {"model": qwen2, "trace": trace})
    assert capsys.readouterr().out == "fused\n"
    assert (tmp_path / "map.work").exists()


def test_the_commands_named_exist():
    commands = {info.name or info.callback.__name__ for info in cli.app.registered_commands}
    commands |= {group.name for group in cli.app.registered_groups}
    named = re.search(r"`stepflow-tl (demo[ |a-z-]*)`", page("get-started.md"))
    assert named is not None
    assert set(named.group(1).split(" | ")) == commands


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")  # beartype takes 0 for no float
def test_the_sweep_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    block = next(block for block in blocks(page("sweeps.md")) if "Sweep(" in block)
    small = block.replace("n=50, difficulties=(16, 17, 18), recall=(6,)", "n=1, difficulties=(1,)")
    assert small != block
    names: dict[str, object] = {}
    exec(small, names)
    assert set(names["rows"]["setting"]) >= {"baseline", "paper", "digest"}
    assert names["trace"].response == names["rows"]["response"].iloc[0]
    assert "McNemar exact" in capsys.readouterr().out


@pytest.mark.usefixtures("unchecked")
def test_the_configuration_is_understood(tmp_path):
    (block,) = blocks(page("sweeps.md"), "yaml")
    (tmp_path / "sweep.yaml").write_text(block)
    sweep = read_config(tmp_path / "sweep.yaml")
    labels = [arm.label for arm in sweep.arms]
    assert len(sweep.task.items) == 200
    assert {"baseline", "paper", "digest", "self_consistency(k=4, temperature=0.7)"} <= set(labels)


@pytest.fixture
def no_window():
    mpl.use("Agg")
    yield
    plt.close("all")


@pytest.mark.usefixtures("no_window")
@pytest.mark.parametrize("name", ["steps.md", "maps.md", "interventions.md"])
def test_the_first_example_of_a_page_runs(name, capsys):
    names: dict[str, object] = {}
    first, *others = blocks(page(name))
    exec(first, names)
    if name == "steps.md":
        assert names["trace"].steps[-1].text in capsys.readouterr().out
    elif name == "maps.md":
        cached = next(block for block in others if "run_with_cache" in block)
        exec(cached, names)
        expected = step_saliency(names["model"], names["trace"], rule="attention").scores
        torch.testing.assert_close(names["attention"].scores, expected, rtol=1e-4, atol=1e-6)
        exec(next(block for block in others if "trace_back" in block), names)
        assert {"segment", "hop_1", "through"} <= set(names["table"].columns)
    else:
        hooks = next(block for block in others if "run_with_hooks" in block)
        exec(hooks, names)
        assert names["logits"].shape[1] == len(names["trace"])


SETTING = re.compile(r"^\| `(\w+)\((\w+)=\)` \|.*?[^\\]\| `([^`]+)` \|", re.MULTILINE)


def test_the_table_of_settings_has_the_defaults_of_the_code():
    rows = SETTING.findall(page("settings.md"))
    assert len(rows) == page("settings.md").count("=)` | ") >= 20
    for owner, name, default in rows:
        parameter = inspect.signature(getattr(stepflow_tl, owner)).parameters[name]
        assert parameter.default == ast.literal_eval(default), f"{owner}({name}=)"


@pytest.mark.parametrize("owner", ["OddsEqualBridge", "StepMomentum", "UniformPriorBridge"])
def test_no_setting_of_an_intervention_is_left_out(owner):
    told = {name for whose, name, _ in SETTING.findall(page("settings.md")) if whose == owner}
    assert told == {field.name for field in dataclasses.fields(getattr(stepflow_tl, owner))}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for link in links(path):
        parts = urlsplit(link)
        if parts.scheme:
            continue
        target = (path.parent / parts.path).resolve() if parts.path else path
        assert target.exists(), link
        assert target.is_relative_to(ROOT.resolve()), link
        if parts.fragment:
            assert parts.fragment in anchors(target), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_is_python_and_names_what_there_is(path):
    for block in blocks(path.read_text(encoding="utf-8")):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stepflow_tl"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), block


def test_pages_name_no_place_of_a_machine():
    for path in PAGES:
        assert not re.search(r"(?<![\w.])/(home|tmp|root|work)/", path.read_text()), path
