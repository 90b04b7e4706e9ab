import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import DATA
from transformer_lens.model_bridge import TransformerBridge

from stepflow_tl import StepMap, Trace, cli
from stepflow_tl.sweep import Store, StoreError, status
from stepflow_tl.tasks.word_problems import make_problem
from stepflow_tl.text import one_line

QUESTION = make_problem(1, 2).question
AIME = DATA / "benchmarks" / "aime25.jsonl"


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
    for command in ("demo", "generate", "saliency", "diagnose", "sweep", "prompt"):
        assert command in out
    code, out, _ = run("sweep", "--help")
    assert code == 0
    for command in ("run", "resume", "status", "export"):
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


def test_a_prompt_is_printed_whole(run, tmp_path):
    gpqa = DATA / "benchmarks" / "gpqa_diamond.csv"
    code, out, _ = run("prompt", "--task", "gpqa-d", "--path", gpqa, "--item", 2, "--seed", 1)
    assert code == 0
    assert "style default (" in out and "temperature 0.6, top_p 0.95" in out
    assert "gpqa_diamond, item 2 of 3, Biology, seed 1: " in out
    assert "<|User|>Where in a eukaryotic cell" in out
    assert out.endswith("\\boxed{}.<|Assistant|><think>\n\n")
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"question": "Wh\\u001b[31my\\u202e?", "answer": "1"}')
    code, out, _ = run("prompt", "--path", mine, "--kind", "math", "--style", "gpt-oss")
    assert code == 0
    assert "style gpt-oss (" in out and "Wh\\x1b[31my\\u202e?" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name of a benchmark"),
        (("--task", "aime"), "no benchmark 'aime'"),
        (("--path", "none.jsonl", "--kind", "math"), "no benchmark file at none.jsonl"),
        (("--path", AIME, "--task", "aime25", "--item", 3), "an item below 3, got 3"),
        (("--path", AIME, "--task", "aime25", "--style", "x"), "no style 'x'"),
        (
            ("--path", AIME, "--task", "aime25", "--model", "no/such"),
            "no tokenizer: no model 'no/such'",
        ),
        (("--path", AIME, "--task", "aime25", "--model", DATA), "no tokenizer: "),
    ],
)
def test_a_prompt_that_cannot_be_printed(run, arguments, message, unchecked):
    code, _, err = run("prompt", *arguments)
    assert code == 1
    assert err.startswith("error: ") and message in err


def test_other_peoples_outputs_are_graded(run, tmp_path):
    said = tmp_path / "said.jsonl"
    rows = [
        r'{"answer": "\\boxed{1{,}204}", "right": "1204", "acc": 1}',
        r'{"answer": "\\boxed{1}", "right": "\\frac{R}{r}", "acc": 1}',
    ]
    said.write_text("\n".join(rows))
    fields = ["--response", "answer", "--gold", "right", "--score", "acc"]
    code, out, _ = run("grade", said, "--kind", "math", *fields, "--out", tmp_path / "out.jsonl")
    assert code == 0
    assert out.startswith("row 2 (math): wrong here, right there\n")
    assert "agreement with the stored score: 1 of 2, 0.500 [" in out
    verdicts = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(v["correct"], v["rule"]) for v in verdicts] == [
        (True, "equal numbers"),
        (False, "another value"),
    ]
    code, _, err = run("grade", said, *fields)
    assert code == 1 and err.startswith("error: said.jsonl, row 1: expected 'kind', found none")
    said.write_text(said.read_text() + "\n{broken")
    assert run("grade", said, "--kind", "math", *fields)[0] == 1
    code, out, _ = run("grade", said, "--kind", "math", *fields, "--skip-errors", "--limit", 0)
    assert code == 0 and "skipped 1 rows: said.jsonl, line 3: expected JSON" in out
    assert run("grade", tmp_path / "none.jsonl")[0] == 1


def test_a_transcript_as_text_can_be_read(run, saved, tmp_path):
    transcript = tmp_path / "transcript.txt"
    transcript.write_text(Trace.load(saved).text)
    assert run("saliency", transcript)[0] == 0
    work = tmp_path / "map.work"
    for _ in range(2):
        code, out, _ = run("saliency", transcript, "--backend", "fused", "--work-file", work)
        assert code == 0
        assert "backend=fused" in out


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
    assert one_line(" a\n\x1b[31mb\x07 c") == "a [31mb c"


def test_without_matplotlib_the_extra_is_named(run, monkeypatch):
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr("stepflow_tl.load_model", missing)
    code, _, err = run("generate", "Why?")
    assert code == 1
    assert (
        err == "error: No module named 'matplotlib'; pictures need pip install 'stepflow-tl[viz]'\n"
    )


def test_without_lm_eval_the_extra_is_named(run, monkeypatch):
    monkeypatch.delitem(sys.modules, "stepflow_tl.integrations.lm_eval", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, _, err = run("lm-eval", "--model", "stepflow-tl")
    assert code == 1
    assert err.endswith("; lm-eval needs pip install 'stepflow-tl[eval]'\n")


CONFIG = """
model: {folder}
problems: {{n: 4, difficulties: [1, 2]}}
grid: {{OddsEqualBridge: {{tau_max: [0, 0.9, 1.0], layers: all}}}}
decoding: {{max_new_tokens: {tokens}, chat: false, format: plain, batch_size: 2}}
"""


@pytest.fixture
def config(tiny_folder, tmp_path, unchecked):
    """Settings of a sweep of 24 cells."""

    def write(tokens: int = 4) -> Path:
        path = tmp_path / "small.yaml"
        path.write_text(CONFIG.format(folder=tiny_folder("qwen2"), tokens=tokens))
        return path

    return write


def test_a_sweep_from_its_settings_to_a_table(run, config):
    path = config()
    store = path.with_suffix(".sqlite")
    code, out, err = run("sweep", path)
    assert code == 0
    assert "24/24" in err and "cell/s" in err
    assert [line.split()[-4:-2] for line in out.splitlines()[1:4]] == [["8", "8"]] * 3
    assert str(store) in out
    code, again, err = run("sweep", "run", path, "--store", store)
    assert (code, again) == (0, out)
    assert run("sweep", "status", store)[1] in out
    assert run("sweep", "resume", store)[0] == 0
    code, out, _ = run("sweep", "export", store)
    assert (code, out) == (0, f"  {store.with_suffix('.parquet')}: 24 rows\n")
    assert len(pd.read_parquet(store.with_suffix(".parquet"))) == 24
    assert run("sweep", "export", store, "--out", path.with_suffix(".csv"))[0] == 0
    assert len(pd.read_csv(path.with_suffix(".csv"))) == 24


def test_shards_of_a_sweep_are_merged(run, config):
    path = config()
    shards = [path.with_name(f"small.{number}-of-3.sqlite") for number in (1, 2, 3)]
    for number, shard in enumerate(shards, 1):
        code, out, _ = run("sweep", path, "--shard", f"{number}/3")
        assert code == 0 and str(shard) in out
    whole = path.with_name("whole.sqlite")
    code, out, _ = run("sweep", "merge", *shards, "--out", whole)
    assert code == 0 and str(whole) in out and "missing" not in out
    lacking = path.with_name("lacking.sqlite")
    _, out, _ = run("sweep", "merge", shards[0], shards[2], "--out", lacking)
    assert f"missing: shard 2/3; stepflow-tl sweep resume {lacking} finishes it" in out
    assert run("sweep", path, "--store", path.with_suffix(".sqlite"))[0] == 0
    hashes = [set(Store(p).to_dataframe()["hash"]) for p in (whole, path.with_suffix(".sqlite"))]
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 24
    assert run("sweep", "merge", *shards)[0] == 0  # into the first
    assert len(Store(shards[0]).to_dataframe()) == 24
    assert len(Store(shards[1]).to_dataframe()) == 8


def test_transcripts_there_and_back(run, tmp_path):
    rows = tmp_path / "rows.jsonl"
    said = "It is 7.\n</think>\n\nSo: \\boxed{7}"
    lines = [{"prompt": QUESTION, "response": said}, {"prompt": QUESTION}]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{no json\n")
    code, out, err = run("import", rows, "--out", tmp_path / "out")
    assert code == 0
    assert "1 traces (1 of lines), 2 rows not read" in out
    assert "expected a response under one of" in out
    assert "100%" in err
    table = pd.read_csv(tmp_path / "out" / "transcripts.csv")
    assert table["trace"].tolist()[0] == "trace_000001.safetensors"
    assert table["answer"].tolist()[0] == 7
    trace = Trace.load(tmp_path / "out" / "trace_000001.safetensors")
    assert (trace.response, trace.answer) == (said, "7")
    for layout, place in (("lines", "again.jsonl"), ("thought-anchors", "folder")):
        where = tmp_path / place
        code, out, _ = run("export", tmp_path / "out", "--out", where, "--layout", layout)
        assert (code, out) == (0, f"  {where}: 1 traces\n")
    code, out, _ = run("import", tmp_path / "again.jsonl", "--out", tmp_path / "back")
    assert code == 0
    assert Trace.load(tmp_path / "back" / "trace_000001.safetensors") == trace


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "MISSING"], "no transcripts at"),
        (["import", "FILE", "--kind", "pts"], "expected kind to be one of"),
        (["import", "FILE", "--requests", "MISSING"], "no benchmark file at"),
        (["import", "FILE", "--format", "x"], "unknown format 'x'"),
        (["export", "MISSING", "--out", "x.jsonl"], "no stepflow_tl.Trace file at"),
        (["export", "FOLDER", "--out", "x.jsonl"], "no traces (.safetensors) in"),
        (["export", "FILE", "--out", "x.jsonl"], "is not a readable stepflow_tl.Trace file"),
        (["export", "FILE", "--out", "x", "--layout", "pts"], "expected layout to be one of"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_errors_of_transcripts_are_one_line(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": QUESTION, "response": "7"}) + "\n")
    places = {"FILE": rows, "MISSING": tmp_path / "missing.jsonl", "FOLDER": tmp_path / "folder"}
    code, _, err = run(*[places.get(argument, argument) for argument in arguments])
    assert code == 1
    (line,) = [line for line in err.strip().splitlines() if line.startswith("error:")]
    assert message in line


def test_another_sweep_on_the_same_store_must_be_told(run, config):
    path = config()
    assert run("sweep", path)[0] == 0
    config(tokens=3)
    code, _, err = run("sweep", path)
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert "'max_new_tokens': 4" in err and "'max_new_tokens': 3" in err
    assert run("sweep", path, "--mix")[0] == 0
    assert run("sweep", "resume", path.with_suffix(".sqlite"))[0] == 1
    assert run("sweep", "resume", path.with_suffix(".sqlite"), "--mix")[0] == 0
    assert len(Store(path.with_suffix(".sqlite")).to_dataframe()) == 48


def empty_store(path: Path) -> Path:
    Store(path, create=True)
    return path


def damaged(path: Path) -> None:
    with empty_store(path).open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 200_000)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (None, ["sweep", "FILE"], "no configuration at"),
        (lambda p: p.write_text("grid: [3"), ["sweep", "FILE"], "is no YAML"),
        (lambda p: p.write_text("seeds: 3"), ["sweep", "FILE"], "expected problems, such as"),
        (
            lambda p: p.write_text("problems: {}\nsettings: {p: paper}\nseeds: 3"),
            ["sweep", "FILE"],
            "seeds such as (0, 1), got 3",
        ),
        (
            lambda p: p.write_text("problems: {}\nsettings: {p: [{layers: all}]}"),
            ["sweep", "FILE"],
            "got {'layers': 'all'}",
        ),
        (
            lambda p: p.write_text("problems: {}\nsettings: {p: paper}\nmodel: no/such"),
            ["sweep", "FILE"],
            "no model 'no/such'",
        ),
        (None, ["sweep", "resume", "FILE"], "no sweep store at"),
        (None, ["sweep", "FILE", "--shard", "3"], "expected --shard such as 3/16"),
        (None, ["sweep", "merge", "FILE", "other"], "no sweep store at"),
        (empty_store, ["sweep", "merge", "FILE"], "expected stores to merge, got none"),
        (None, ["sweep", "status", "FILE"], "no sweep store at"),
        (None, ["sweep", "export", "FILE"], "no sweep store at"),
        (lambda p: p.write_text("a: 1"), ["sweep", "status", "FILE"], "is no sweep store"),
        (empty_store, ["sweep", "resume", "FILE"], "remembers no sweep"),
        (damaged, ["sweep", "status", "FILE"], "no sweep store, damaged"),
        (damaged, ["sweep", "export", "FILE"], "no sweep store, damaged"),
        (empty_store, ["sweep", "export", "FILE", "--out", "a.xlsx"], "ends with .parquet or"),
    ],
)
def test_errors_of_sweeps_are_one_line(run, tmp_path, make, arguments, message, unchecked):
    path = tmp_path / "file"
    if make is not None:
        make(path)
    code, _, err = run(*[path if argument == "FILE" else argument for argument in arguments])
    assert message in err
    assert (code, len(err.strip().splitlines())) == (1, 1)


def start(*arguments: object) -> subprocess.Popen:
    """The real command line in a process of its own."""
    code = "import sys; from stepflow_tl.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(cli.__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )


def hear_ctrl_c() -> None:
    """A shell lets what it runs in the background ignore it, and all that this starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(process: subprocess.Popen, path: Path, rows: int) -> None:
    """Until the store holds so many rows."""
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError, StoreError):  # it is being made
            if status(path)["done"].sum() >= rows:
                return
        time.sleep(0.05)
    raise AssertionError(f"ended too early: {process.communicate()}")


@pytest.mark.slow
def test_ctrl_c_and_kill_9_leave_a_store_to_resume(run, config):
    path = config(tokens=120)
    store = path.with_suffix(".sqlite")
    process = start("sweep", path)
    wait_for(process, store, 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert f"go on with: stepflow-tl sweep resume {store}" in err
    stopped = len(Store(store).to_dataframe())
    assert 2 <= stopped < 24

    process = start("sweep", "resume", store)
    wait_for(process, store, stopped + 2)
    process.kill()
    process.communicate(timeout=120)
    killed = len(Store(store).to_dataframe())
    assert stopped + 2 <= killed < 24
    assert killed % 2 == 0

    assert run("sweep", "resume", store)[0] == 0
    rows = Store(store).to_dataframe()
    assert len(rows) == 24
    assert rows["hash"].is_unique


def test_ctrl_c_before_there_is_a_store_promises_nothing(run, config, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stepflow_tl.sweep.sweep.load_model", interrupt)
    code, _, err = run("sweep", config())
    assert code == 130
    assert "resume" not in err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            "2.00 GiB more",
        ),
        (OSError(28, "No space left on device"), "no space left on the disk for model 'reasoner'"),
        (MemoryError(), "out of memory"),
    ],
)
def test_what_a_machine_lacks_is_one_line(run, monkeypatch, error, message):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(TransformerBridge, "boot_transformers", fail)
    code, _, err = run("generate", "Why?")
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert message in err


def test_precision_batches_and_prompts_without_a_template(run, tiny_folder, tmp_path):
    folder = tiny_folder("qwen2")
    ask = ["generate", "Why?", "--model", folder, "--max-new-tokens", 5]
    code, _, err = run(*ask)
    assert code == 1 and "no chat template" in err and "--no-chat" in err
    settings = ["--no-chat", "--dtype", "bfloat16", "--device-map", "cpu", "--batch-size", 1]
    assert run(*ask, *settings, "--out", tmp_path)[0] == 0
    code, _, err = run(*ask, "--dtype", "int8")
    assert code == 1 and "expected a dtype such as 'float32'" in err
    place = tmp_path / "made" / "map.safetensors"
    trace = tmp_path / "trace_0000.safetensors"
    arguments = ["saliency", trace, "--model", folder, "--chunk", 3, "--dtype", "auto"]
    assert run(*arguments, "--out", place)[0] == 0
    assert place.is_file()


def test_thinking_that_never_closes(run, tiny_folder, tmp_path):
    text = tmp_path / "open.txt"
    text.write_text("Why?<think>It is so. Because it has more pens. So it")
    folder, place = tiny_folder("qwen2"), tmp_path / "map.safetensors"
    code, _, err = run("saliency", text, "--model", folder, "--objective", "summary")
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert "its thinking never closed, and it was cut" in err
    assert run("saliency", text, "--model", folder, "--out", place)[0] == 0
    code, out, _ = run("diagnose", place)
    assert code == 0 and "needs a summary, there is none" in out and "NaN" not in out
    code, out, _ = run("generate", QUESTION, "--max-new-tokens", 3)
    assert code == 0 and "(cut at max_new_tokens, its thinking never closed)" in out
