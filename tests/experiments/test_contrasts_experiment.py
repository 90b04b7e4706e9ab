"""Correct against wrong solutions: which pairs are taken, how they are read; after a kill."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest
from helpers import ROOT

from stepflow_tl import StepFlow

EXPERIMENTS = ROOT / "experiments"
WORDS = ["Ann has 4.", "4 + 3 = <<4+3=7>>7.", "7 - 2 = 5.", "A: 5"]


@pytest.fixture
def contrasts(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import contrasts

    yield contrasts
    for module in ("contrasts", "common", "parts"):
        sys.modules.pop(module, None)


def solved(**solutions):
    """A problem with solutions that are correct where their last line is right."""
    said = {
        name: {"is_correct": text.endswith("A: 5"), "solution": text}
        for name, text in solutions.items()
    }
    return {"question": f"How many, {sorted(said)}?", "ground_truth": "A: 5", **said}


GOOD, BAD = "\n".join(WORDS), "\n".join([*WORDS[:3], "A: 6"])


def test_pairs_are_taken_within_a_family_first(contrasts, written):
    path = written(
        solved(a_1=GOOD, b_1=BAD),
        solved(a_1=GOOD, a_2=BAD, b_1=BAD, b_2=BAD),
        solved(a_1=GOOD, a_2=GOOD),
    )
    first, second = contrasts.read_pairs(path)
    assert (first.problem, first.sources, first.is_across) == (1, ("a_1", "a_2"), False)
    assert (second.problem, second.is_across) == (0, True)
    assert first.correct.splitlines()[1] == "4 + 3 = 7."  # without the calculator's annotation
    assert first.wrong.endswith("A: 6")


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(WORDS[:3]),  # no answer
        "\n".join(WORDS[1:]),  # too few lines
        "\n".join([*WORDS, "Done."]),  # goes on after it
        "\n".join(["x" * 1_000, *WORDS]),
    ],
)
def test_what_is_left_out(contrasts, text):
    assert contrasts.is_usable(GOOD)
    assert not contrasts.is_usable(text)


def test_lines_are_thinking_and_the_answer_is_the_summary(contrasts, qwen2):
    qwen2.tokenizer.chat_template = None
    trace = contrasts.trace_of(qwen2, "How many?", BAD)
    assert "Question: How many?\nAnswer:\nAnn has 4." in trace.text
    assert trace.closed and trace.ended
    steps = [(step.segment, step.text.strip()) for step in trace.steps][1:]
    assert [segment for segment, _ in steps] == ["thinking"] * 3 + ["summary"]
    assert steps[0][1] == WORDS[0] and steps[-1][1] == "6"


def test_every_arm_intervenes_and_none_comes_twice(contrasts):
    arms = contrasts.given_arms(fast=False)
    assert len(arms) == 18 + 9 + 3 + 1 and len(set(arms.values())) == len(arms)
    assert all(isinstance(flow, StepFlow) and flow.interventions for flow in arms.values())
    assert contrasts.REFERENCE in contrasts.given_arms(fast=True)


def test_rules_that_are_not_known_are_left_out(contrasts):
    rules = {"new": {"pool": "votes"}, "old": {"objective": "sequence", "diagonal": "full"}}
    assert list(contrasts._accepted(rules, fast=False)) == ["old"]


def test_too_few_problems_are_said(contrasts, written, tmp_path):
    path = written(solved(a_1=GOOD, a_2=BAD))
    with pytest.raises(SystemExit, match="expected 5 problems beside 1 held out, got 0 with"):
        contrasts.main(["--fast", "--solutions", str(path), "--out", str(tmp_path)])


def test_a_file_that_is_not_there_is_said(contrasts, tmp_path, capsys):
    with pytest.raises(SystemExit):
        contrasts.main(["--model", "reasoner", "--solutions", str(tmp_path / "none.jsonl")])
    assert "expected --solutions FILE, got" in capsys.readouterr().err


def counted(path):
    """Number of results that are kept."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return database.execute("SELECT COUNT(*) FROM parts").fetchone()[0]
    except sqlite3.OperationalError:  # not made yet
        return 0


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(contrasts, tmp_path, monkeypatch):
    """A process that is killed, a run that breaks off, and the end equals an uninterrupted one."""
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    contrasts.main(["--fast", "--out", str(whole)])
    written = {
        path.name: path.read_bytes() for path in whole.glob("*.*") if path.suffix != ".sqlite"
    }
    assert {"contrasts.json", "contrasts.png", "contrasts_maps.png"} <= set(written)

    command = [sys.executable, EXPERIMENTS / "contrasts.py", "--fast", "--out", torn]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    parts = torn / "contrasts-parts.sqlite"
    while counted(parts) < 2 and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = counted(parts)
    assert 2 <= kept < counted(whole / "contrasts-parts.sqlite")
    assert not list(torn.glob("*.json"))

    measured, calls = contrasts.token_divergences, []

    def breaking(model, trace, flows):
        calls.append(trace)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measured(model, trace, flows)

    monkeypatch.setattr(contrasts, "token_divergences", breaking)
    with pytest.raises(KeyboardInterrupt):
        contrasts.main(["--fast", "--out", str(torn)])
    assert counted(parts) > kept
    contrasts.main(["--fast", "--out", str(torn)])
    assert {name: (torn / name).read_bytes() for name in written} == written

    said = contrasts.OWN_SOLUTIONS.read_text()
    texts = [text for line in said.splitlines() for text in solution_lines(json.loads(line))]
    everything = b"".join([*written.values(), (whole / "contrasts-parts.sqlite").read_bytes()])
    assert not [text for text in texts if text.encode() in everything]


def solution_lines(row):
    said = [one["solution"] for one in row.values() if isinstance(one, dict)]
    return [row["question"], *(line for text in said for line in text.splitlines()[:-1])]
