import sys
from pathlib import Path

import pytest

from stepflow_tl import StepMap, Trace, cli
from stepflow_tl.reasoner import make_problem

QUESTION = make_problem(1, 2).question


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line; returns exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stepflow-tl", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
            raise SystemExit(0)
        output = capsys.readouterr()
        return stop.value.code or 0, output.out, output.err

    return call


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A trace of the reasoner, made through the command line."""
    folder = tmp_path_factory.mktemp("traces")
    sys.argv = ["stepflow-tl", "generate", QUESTION, "--out", str(folder)]
    with pytest.raises(SystemExit):
        cli.main()
    return folder / "trace_0000.safetensors"


def test_help_teaches(run):
    code, out, _ = run("--help")
    assert code == 0
    for command in ("demo", "generate", "saliency", "diagnose"):
        assert command in out
    assert "tau_max (paper: 0.15)" in run("generate", "--help")[1]


def test_from_question_to_figures(run, saved, tmp_path):
    trace = Trace.load(saved)
    assert trace.metadata["question"] == QUESTION
    step_map, picture = tmp_path / "map.safetensors", tmp_path / "map.png"
    code, out, _ = run("saliency", saved, "--out", step_map, "--picture", picture)
    assert code == 0
    assert picture.stat().st_size > 10_000
    assert StepMap.load(step_map).steps == trace.steps
    code, out, _ = run("diagnose", step_map)
    assert code == 0
    assert "lock_in" in out
    assert len(out.strip().splitlines()) == 1 + StepMap.load(step_map).n_layers


def test_generate_shows_steps_and_the_ledger(run):
    code, out, _ = run("generate", QUESTION, "--stepflow", "--max-new-tokens", 60)
    assert code == 0
    assert "question" in out and "thinking" in out and "answer:" in out
    assert "OddsEqualBridge" in out


def test_a_transcript_as_text_can_be_read(run, saved, tmp_path):
    transcript = tmp_path / "transcript.txt"
    transcript.write_text(Trace.load(saved).text)
    assert run("saliency", transcript)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["saliency", "missing.safetensors"], "no stepflow_tl.Trace file at missing.safetensors"),
        (["diagnose", "missing.safetensors"], "no stepflow_tl.StepMap file"),
        (["generate", "Why?", "--model", "no/such-model"], "no model 'no/such-model'"),
        (["generate", ""], "question with some text"),
        (["generate", "Why?", "--stepflow", "--tau-max", "2"], "tau_max in [0, 1], got 2.0"),
        (["generate", "Why?", "--temperature", "-1"], "temperature >= 0, got -1.0"),
    ],
)
def test_errors_are_one_line(run, arguments, message):
    code, _, err = run(*arguments)
    assert code == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err


def test_an_unknown_rule_is_explained(run, saved, unchecked):
    code, _, err = run("saliency", saved, "--rule", "magic")
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert "expected rule in ['attention_x_gradient'" in err


def test_ctrl_c_is_no_traceback(run, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stepflow_tl.load_model", interrupt)
    assert run("generate", "Why?")[0] == 130


def test_model_output_cannot_steer_the_terminal():
    assert cli.printable(" a\n\x1b[31mb\x07 c") == "a [31mb c"


def test_without_matplotlib_the_extra_is_named(run, monkeypatch):
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr("stepflow_tl.load_model", missing)
    code, _, err = run("generate", "Why?")
    assert code == 1
    assert (
        err == "error: No module named 'matplotlib'; pictures need pip install 'stepflow-tl[viz]'\n"
    )
