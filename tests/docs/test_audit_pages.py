"""What the pages on audits and on planted failures show, run as it stands."""

import pytest
from pages import blocks, commands, page, run

from stepflow_tl import load_model, step_saliency
from stepflow_tl.traces.trace import Trace

PLANTED = [4, 5, 6]


@pytest.fixture(scope="module")
def audited() -> dict[str, object]:
    names: dict[str, object] = {}
    exec(blocks(page("audits.md"))[0], names)
    return names


@pytest.mark.slow
def test_shares_find_the_premise_that_the_papers_pooling_does_not(audited) -> None:
    within = audited["table"].set_index(["rule", "layer"])["within"]
    assert within["share", 5] > 0.95 > 0.8 > within["paper", 5]
    assert within["attention", 5] > 0.95
    assert audited["causal"].kl.shape == audited["maps"]["share"].scores.shape[1:]


@pytest.mark.slow
def test_steps_are_sampled(audited, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    block = next(block for block in blocks(page("audits.md")) if "Resampling(" in block)
    small = block.replace("n=2, difficulties=(14,)", "n=1, difficulties=(1,)")
    small = small.replace("seeds=range(20)", "seeds=range(2)")
    assert small.count("n=1") == small.count("range(2)") == 1
    exec(small, audited)
    assert "importance_low" in capsys.readouterr().out


def test_receiver_heads_of_long_traces() -> None:
    model = load_model("reasoner")
    text = "How many?" + "".join(f" In coins, Ann has {n}." for n in range(18))
    ids = model.tokenizer(text)["input_ids"]
    trace = Trace.from_token_ids(model, ids, prompt_length=3, strict=False, format="plain")
    assert len(trace.steps) >= 16
    block = next(block for block in blocks(page("audits.md")) if "receiver_heads(" in block)
    names: dict[str, object] = {
        "long_traces": [trace],
        "model": model,
        "step_saliency": step_saliency,
    }
    exec(block, names)
    assert {"layer", "head", "kurtosis"} <= set(names["heads"].columns)


@pytest.mark.slow
def test_interventions_are_calibrated_alike(capsys) -> None:
    first, *others = blocks(page("interventions.md"))
    names: dict[str, object] = {}
    exec(first, names)
    capsys.readouterr()
    exec(next(block for block in others if "calibrate_divergence" in block), names)
    assert names["alike"].kl == pytest.approx(names["target"], rel=0.05)
    assert len(capsys.readouterr().out.split()) == 2


def test_a_planted_failure_is_seen_where_it_is(capsys) -> None:
    names: dict[str, object] = {}
    exec(blocks(page("planted.md"))[0], names)
    moved = names["locked"]["lock_in"] - names["healthy"]["lock_in"]
    assert sorted(moved.nlargest(3).index) == PLANTED
    assert moved[PLANTED].min() > 0.02 > moved.drop(PLANTED).abs().max()
    assert "lock_in" in capsys.readouterr().out


@pytest.mark.slow
def test_the_loop_is_closed_from_the_shell(tmp_path) -> None:
    (command,) = commands(page("planted.md"))
    small = command.replace("--problems 8 --n 50", "--problems 2 --n 3 --maps 2")
    assert small != command
    said = run(small, tmp_path)
    assert "accused: layers" in said
