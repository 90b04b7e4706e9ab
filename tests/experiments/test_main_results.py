"""The paper's main table on a checkpoint: the command that whoever has the weights will run."""

import json
import re
import subprocess
import sys

import pytest
from helpers import DATA, ROOT

from stepflow_tl.reasoner import WEIGHTS
from stepflow_tl.sweep import Store
from stepflow_tl.tasks.word_problems import make_problems

EXPERIMENTS = ROOT / "experiments"
AIME = DATA / "benchmarks" / "aime24.parquet"
NAME = "DeepSeek-R1-Distill-Qwen-7B"


@pytest.fixture
def main(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import main_results

    yield main_results.main
    for module in ("main_results", "common", "published"):
        sys.modules.pop(module, None)


@pytest.fixture
def checkpoint(tmp_path):
    """The bundled reasoner under the name of a model of the paper."""
    folder = tmp_path / NAME
    folder.symlink_to(WEIGHTS)
    return folder


@pytest.fixture
def own_problems(tmp_path):
    """Word problems of the reasoner as a file of one's own."""
    path = tmp_path / "mine.jsonl"
    rows = [
        {"question": problem.question, "answer": problem.answer, "group": "easy"}
        for problem in make_problems(10, 1, seed=3, split="test")
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def written(folder):
    return json.loads((folder / "main_results.json").read_text())


@pytest.mark.slow
def test_a_row_of_the_table_stands_beside_the_published_one(main, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    command = f"--model {checkpoint} --task aime24 --path {AIME} --samples 2 --max-new-tokens 8"
    main([*command.split(), "--out", str(out)])
    found = written(out)
    (ours,) = [row for row in found["tables"]["with and without StepFlow"] if row["group"] == "all"]
    assert (ours["n"], ours["samples"]) == (3, 2)
    assert {"accuracy_low", "accuracy_high", "baseline_low", "difference_low"} <= set(ours)
    (name,) = [name for name in found["tables"] if "not ours" in name]
    assert found["tables"][name] == [
        {"model": "R1-Distill-7B", "benchmark": "AIME24", "baseline": 54.0, "stepflow": 62.5}
    ]
    assert "not ours" in capsys.readouterr().out
    settings = found["settings"]
    assert settings["style"] == "r1"
    assert settings["samples"] == 2
    assert settings["decoding"]["temperature"] == 0.6 and settings["decoding"]["top_p"] == 0.95
    lengths = found["tables"]["length of the responses"]
    assert [(row["setting"], row["responses"], row["cut"]) for row in lengths] == [
        ("baseline", 6, 6),
        ("StepFlow", 6, 6),
    ]
    rows = Store(out / "results.sqlite").to_dataframe()
    assert sorted(rows["seed"].unique()) == [0, 1]
    assert rows["reason"].notna().all()
    assert (out / "main_results.png").stat().st_size > 5000


@pytest.mark.slow
def test_strengths_are_chosen_on_problems_that_are_not_reported(
    main, own_problems, tmp_path, capsys
):
    out = tmp_path / "out"
    command = f"--path {own_problems} --kind number --style default --calibrate --max-new-tokens 60"
    main([*command.split(), "--tau-max", "0.1", "0.9", "--alpha", "0.06", "--out", str(out)])
    held_out = set(Store(out / "calibration.sqlite").to_dataframe()["problem"])
    reported = set(Store(out / "results.sqlite").to_dataframe()["problem"])
    assert held_out and reported and not held_out & reported
    assert len(held_out | reported) == 10
    found = written(out)
    tried = found["tables"]["calibration: tried on held-out problems"]
    assert sorted((row["tau_max"], row["alpha"]) for row in tried) == [(0.1, 0.06), (0.9, 0.06)]
    assert f"tau_max={tried[0]['tau_max']}" in found["stepflow"]
    assert "the baseline" in capsys.readouterr().out
    assert found["settings"]["task"]["benchmark"]["part"] == "test"


def test_the_prompt_can_be_seen_first(main, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    command = f"--model {checkpoint} --task aime24 --path {AIME} --show-prompt --out {out}"
    main(command.split())
    shown = capsys.readouterr().out
    assert "How many two-digit numbers" in shown and r"within \boxed{}." in shown
    assert "<think>" in shown
    assert not out.exists()


def test_the_commands_of_the_page_are_understood(main):
    import main_results

    page = (EXPERIMENTS.parent / "docs" / "benchmarks.md").read_text()
    commands = re.findall(r"^python experiments/main_results\.py([^#\n]*)", page, re.MULTILINE)
    styles = []
    for command in commands:
        chosen = main_results.parse(command.split())
        styles.append(None if chosen.is_own else chosen.style.name)
        assert chosen.samples == (1 if chosen.is_own else chosen.task().samples)
    assert styles == ["r1", "qwq", "gpt-oss", None]


def test_strengths_of_ones_own(main, checkpoint, tmp_path):
    import main_results

    flow, tried = main_results.chosen_flow(main_results.parse(["--tau-max", "0.3"]))
    assert [item.name for item in flow.interventions] == ["OddsEqualBridge", "StepMomentum"]
    assert flow.interventions[0].tau_max == 0.3 and flow.interventions[1].alpha == 0.06
    assert tried == {}
    flow, _ = main_results.chosen_flow(main_results.parse(["--preset", "release"]))
    assert flow.interventions[1].alpha == 0.2


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--path x.jsonl", "--path needs --task NAME .* or --kind"),
        ("--tau-max 0.1 0.2", "several values .* are for --calibrate"),
        ("--style nobody", "invalid choice: 'nobody'"),
    ],
)
def test_what_does_not_go_together_is_said(main, command, message, capsys):
    with pytest.raises(SystemExit):
        main(command.split())
    assert re.search(message, capsys.readouterr().err)


def test_code_is_not_run_unless_that_is_allowed(main, tmp_path):
    path = DATA / "benchmarks" / "livecodebench.jsonl"
    with pytest.raises(ValueError, match="allow_code_execution=True"):
        main(["--task", "livecodebench", "--path", str(path), "--out", str(tmp_path)])
    assert not list(tmp_path.glob("*.json"))


def test_an_error_is_one_line(tmp_path):
    command = [
        sys.executable,
        EXPERIMENTS / "main_results.py",
        "--task",
        "gpqa-d",
        "--out",
        tmp_path,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: gpqa_diamond could not be loaded")
    assert "its licence must be accepted" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("model", "benchmark", "rows"),
    [
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "gpqa_diamond", [[62.1, 64.5]]),
        ("/models/gpt-oss-20b", "livecodebench", [[70.0, 79.5]]),
        ("openai/gpt-oss-20b", "gsm8k", []),
        ("Qwen/QwQ-32B", "aime24", []),
        ("reasoner", None, []),
    ],
)
def test_published_rows_are_found_by_the_checkpoints_name(main, model, benchmark, rows):
    import published

    found = published.main_row(model, benchmark)
    assert found[["baseline", "stepflow"]].to_numpy().tolist() == rows
