"""The commands of the pages on one's own transcripts and on job arrays, run as they stand."""

import json
import shutil

import pytest
from helpers import DATA
from pages import blocks, commands, page, run

from stepflow_tl import load_model
from stepflow_tl.sweep import Store
from stepflow_tl.tasks.word_problems import make_problem

WRITTEN = DATA / "transcripts"


@pytest.fixture
def theirs(tmp_path):
    """Files of other programs, under the names that the page gives them."""
    (chat,) = (WRITTEN / "lm_eval").rglob("samples_words_chat_*")
    shutil.copy(chat, tmp_path / "samples_words.jsonl")
    shutil.copytree(WRITTEN / "inspect", tmp_path / "logs")
    for name in ("completions", "batch_output", "batch_input"):
        shutil.copy(WRITTEN / "openai" / f"{name}.jsonl", tmp_path)
    shutil.copytree(WRITTEN / "thought_anchors" / "math_rollouts", tmp_path / "math_rollouts")
    row = {"task": {"question": make_problem(0, 2).question}, "answers": ["7", "8"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


@pytest.mark.slow
def test_own_transcripts_from_the_shell(theirs):
    told = {command: run(command, theirs) for command in commands(page("transcripts.md"))}
    assert len(told) >= 8
    for command, said in told.items():
        if command.startswith("stepflow-tl import"):
            assert "0 traces" not in said, said
    assert (theirs / "outputs" / "theirs" / "map.png").stat().st_size > 10_000
    assert len((theirs / "outputs" / "all.jsonl").read_text().splitlines()) >= 6
    assert list((theirs / "outputs" / "anchors_again").rglob("chunk_0/solutions.json"))


def test_own_transcripts_in_python(theirs, monkeypatch, capsys):
    monkeypatch.chdir(theirs)
    names = {"model": load_model("reasoner")}
    (block,) = blocks(page("transcripts.md"))
    exec(block, names)
    assert capsys.readouterr().out.startswith("10 10 [")
    assert (theirs / "outputs" / "words.jsonl").is_file()


@pytest.mark.slow
def test_a_job_array(tmp_path):
    """As SLURM runs it: the same script for each task, and the tasks in any order."""
    text = page("sweeps/slurm.md")
    (settings,), (job,) = blocks(text, "yaml"), blocks(text, "sbatch")
    (tmp_path / "sweep.yaml").write_text(settings)
    assert "--array=1-4" in job
    for task in (3, 1, 4, 2):
        run(f"export SLURM_ARRAY_TASK_ID={task}\n{job}", tmp_path)
    submit, *rest = commands(text)
    assert submit == "sbatch --wait sweep.sbatch"
    for command in rest:
        run(command, tmp_path)
    run("stepflow-tl sweep sweep.yaml --store uninterrupted.sqlite", tmp_path)
    paths = [tmp_path / f"{name}.sqlite" for name in ("whole", "uninterrupted")]
    stores = [Store(path).to_dataframe() for path in paths]
    kept = ["hash", "arm", "problem", "response", "correct"]
    rows = [store[kept].sort_values("hash").reset_index(drop=True) for store in stores]
    assert rows[0].equals(rows[1])
    assert (tmp_path / "whole.parquet").is_file()
