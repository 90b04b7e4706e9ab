import json

import pandas as pd
import pytest

from stepflow_tl.cli.demo import (
    DemoSettings,
    Solved,
    compare_runs,
    failure_sentence,
    matched_pairs,
    run_demo,
)
from stepflow_tl.cli.demo_failure import LAYERS, MODELS
from stepflow_tl.plots import read_facts
from stepflow_tl.tasks.word_problems import Verdict, make_problem

SMALL = DemoSettings(
    per_set=8,
    difficulties=(2,),
    recall_difficulties=(12,),
    maps_per_outcome=2,
    failure_maps=1,
    max_new_tokens=400,
    batch_size=16,
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder, SMALL)


@pytest.mark.slow
def test_two_processes_find_the_same(demo, tmp_path):
    summary = run_demo(tmp_path, SMALL, processes=2)
    for name in ("table", "verdict", "ledger", "first_errors", "pictures"):
        assert summary[name] == demo[1][name]


@pytest.mark.slow
def test_the_summary_holds_settings_results_and_versions(demo):
    folder, summary = demo
    assert json.loads((folder / "summary.json").read_text())["table"] == summary["table"]
    assert list(summary["settings"]["difficulties"]) == [2]
    assert [(row["problems"], row["n"]) for row in summary["table"]] == [
        ("2", 8),
        ("12, recall", 8),
        ("all", 16),
    ]
    for row in summary["table"]:
        assert row["baseline_low"] <= row["baseline"] <= row["baseline_high"]
    assert "n = 16" in summary["verdict"]
    assert {record["intervention"] for record in summary["ledger"]} == {
        "OddsEqualBridge",
        "StepMomentum",
    }
    assert "transformer-lens" in summary["versions"]


@pytest.mark.slow
def test_every_picture_named_is_there(demo):
    folder, summary = demo
    assert summary["mapped_traces_per_outcome"] > 0
    assert sorted(summary["pictures"]) == [
        "accuracy.png",
        "failure.png",
        "failure_curves.png",
        "step_flow.png",
        "token_and_step_maps.png",
    ]
    for name in summary["pictures"]:
        assert (folder / name).stat().st_size > 10_000
        facts = read_facts(folder / name)
        assert facts["seeds"] == {"problems": SMALL.seed}
        assert set(facts["models"]) == {"reasoner", "reasoner-locked-in"}


@pytest.mark.slow
def test_the_failure_is_planted_seen_and_repaired(demo):
    _, summary = demo
    planted = summary["planted"]
    assert [row["model"] for row in planted["accuracy"]] == list(MODELS)
    assert [row["n"] for row in planted["accuracy"]] == [8, 8, 8]
    lock_in = {
        name: [row["value"] for row in planted["lock_in"] if row["model"] == name]
        for name in MODELS
    }
    healthy, locked, repaired = lock_in.values()
    for layer in LAYERS:
        assert healthy[layer] < repaired[layer] < locked[layer]
    assert "n = 8" in failure_sentence(planted)


@pytest.mark.slow
def test_the_story_is_one_page(demo):
    folder, summary = demo
    page = (folder / summary["page"]).read_text()
    assert page.count('id="row-') >= 8  # facts and two maps, of two chapters at least
    assert len(page) < 1_500_000


def solved(difficulty: int, correct: bool, trace) -> Solved:
    verdict = Verdict(correct=correct, answer=None, first_error=None, error_step=None)
    return Solved(str(difficulty), make_problem(0, difficulty), trace, verdict)


def test_pairs_are_of_one_set_each_in_turn(trace):
    runs = [solved(2, True, trace), solved(2, False, trace), solved(4, True, trace)]
    runs += [solved(4, False, trace), solved(4, False, trace)]
    pairs = matched_pairs(runs, limit=10)
    assert [(a.problem.difficulty, b.problem.difficulty) for a, b in pairs] == [(2, 2), (4, 4)]
    assert all(a.verdict.correct and not b.verdict.correct for a, b in pairs)
    assert len(matched_pairs(runs, limit=1)) == 1


def test_the_table_pairs_the_same_problems(trace):
    before = [solved(2, False, trace), solved(2, True, trace), solved(4, True, trace)]
    after = [solved(2, True, trace), solved(2, True, trace), solved(4, False, trace)]
    table = compare_runs(before, after).set_index("problems")
    assert isinstance(table, pd.DataFrame)
    assert table.loc["2", ["fixed", "broken"]].tolist() == [1, 0]
    assert table.loc["all", ["n", "fixed", "broken"]].tolist() == [3, 1, 1]
