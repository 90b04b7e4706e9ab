"""The README is a door, not the house: short, and what it shows runs as it stands."""

import matplotlib as mpl
from helpers import ROOT
from matplotlib import pyplot as plt
from pages import blocks, page

README = (ROOT / "README.md").read_text(encoding="utf-8")
WORDS, LINES, CODE, FOUND = 900, 150, 15, 5


def test_it_is_short():
    assert len(README.split()) <= WORDS
    assert len(README.splitlines()) <= LINES


def test_one_picture_two_commands_fifteen_lines():
    assert README.count("](figures/") == 1
    (shell,) = blocks(README, "bash")
    assert [line.split("#")[0].strip() for line in shell.splitlines()] == ["make demo", "make test"]
    (code,) = blocks(README)
    assert len([line for line in code.splitlines() if line.strip()]) <= CODE
    found = README.split("## What it found")[1].split("\n## ")[0]
    assert found.count("\n* ") <= FOUND


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split()) <= 200


def test_the_fifteen_lines_run(capsys):
    mpl.use("Agg")
    names: dict[str, object] = {}
    (code,) = blocks(README)
    exec(code, names)
    plt.close("all")
    trace = names["trace"]
    assert names["logits"].shape[:2] == (1, len(trace))
    assert trace.steps[1].text in capsys.readouterr().out


def test_getting_started_shows_the_same_lines():
    assert blocks(page("get-started.md"))[0] == blocks(README)[0]
