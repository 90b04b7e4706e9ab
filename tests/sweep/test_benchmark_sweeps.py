"""Benchmarks under a sweep: what is asked, what is checked first, and what a store remembers."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from helpers import DATA
from small import small
from test_sweep import Stopping, counted

from stepflow_tl.sweep import ConfigError, Store, StoreError, read_config, resume
from stepflow_tl.tasks import STYLES, Benchmark, BenchmarkError, Grade, WordProblems
from stepflow_tl.tasks.grading import CodeTests
from stepflow_tl.tasks.strategies import Decoding, SelfConsistency

FILES = DATA / "benchmarks"
GPQA = Benchmark(name="gpqa_diamond", path=FILES / "gpqa_diamond.csv", n=2)
CODE = Benchmark(name="livecodebench", path=FILES / "livecodebench.jsonl")
SAMPLED = Decoding(max_new_tokens=4, chat=False, format="plain", temperature=1.0, batch_size=2)


@pytest.fixture(autouse=True)
def graders(monkeypatch):
    """Graders that say what they were told."""
    fake = SimpleNamespace(
        grade_choice=lambda said, letter, n: Grade(bool(said), letter, None, None, f"of {n}"),
        grade_code=lambda said, tests: Grade(bool(said), str(said)),
        same_letter=lambda first, second: first == second,
        same_math_answer=lambda first, second: first == second,
        CodeTests=CodeTests,
        grade_math=lambda said, gold: Grade(said.graded == gold, said.graded),
    )
    monkeypatch.setattr("stepflow_tl.tasks.benchmarks.grading", fake)


def test_each_seed_has_its_order_and_its_letter(tiny_model, tmp_path):
    rows = small(tiny_model, problems=GPQA, seeds=range(5), decoding=SAMPLED).run(tmp_path / "s")
    assert len(rows) == 2 * 5 * 3
    assert set(rows["reason"]) == {"of 4"}
    letters = {item.key: [GPQA.right_letter(item, s) for s in range(5)] for item in GPQA.items}
    for key, arm in rows.groupby(["problem", "arm"]):
        assert arm.sort_values("seed")["answer"].tolist() == letters[key[0]]
    assert len({tuple(order) for order in letters.values()}) == 2


def test_a_benchmark_is_resumed_from_the_store(folder, tmp_path, monkeypatch):
    path = tmp_path / "s.sqlite"
    monkeypatch.chdir(FILES)
    task = replace(GPQA, path="gpqa_diamond.csv", part="test", n=None, style=STYLES["r1"])
    sweep = small(folder, problems=task, decoding=SAMPLED, strategy=SelfConsistency(k=2))
    with pytest.raises(KeyboardInterrupt):
        sweep.run(path, executor=Stopping(1))
    monkeypatch.chdir(tmp_path)
    assert len(resume(path)) == len(task.items) * 3


def test_code_is_refused_before_anything_is_decoded(tiny_model, tmp_path):
    with counted(tiny_model) as sizes, pytest.raises(BenchmarkError, match="allow_code_execution"):
        small(tiny_model, problems=CODE).run(tmp_path / "s.sqlite")
    assert sizes == []
    assert not (tmp_path / "s.sqlite").exists()


def test_a_vote_on_hidden_tests_is_refused_before_anything_is_decoded(tiny_model, tmp_path):
    path = tmp_path / "mine.jsonl"
    tests = '[{\\"input\\": \\"1\\", \\"output\\": \\"1\\"}]'
    path.write_text(f'{{"question": "One?", "tests": "{tests}"}}')
    mine = Benchmark(path=path, kind="code", allow_code_execution=True)
    sweep = small(tiny_model, problems=mine, decoding=SAMPLED, strategy=SelfConsistency(k=2))
    with counted(tiny_model) as sizes, pytest.raises(BenchmarkError, match="public examples"):
        sweep.run(tmp_path / "s.sqlite")
    assert sizes == []
    assert len(small(tiny_model, problems=mine).run(tmp_path / "s.sqlite")) == 3


def test_no_file_and_no_store_allows_code_to_be_run(folder, tmp_path):
    path = tmp_path / "s.sqlite"
    allowed = replace(CODE, allow_code_execution=True)
    with pytest.raises(KeyboardInterrupt):
        small(folder, problems=allowed).run(path, executor=Stopping(1))
    with pytest.raises(BenchmarkError, match="allow_code_execution=True"):
        resume(path)
    assert len(resume(path, allow_code_execution=True)) == len(CODE.items) * 3
    config = tmp_path / "sweep.yaml"
    config.write_text("problems: {benchmark: lcb}\nsettings: {p: paper}\n")
    assert not read_config(config).task.allow_code_execution
    assert read_config(config, allow_code_execution=True).task.allow_code_execution


def test_a_file_cannot_trust_a_models_own_code(tmp_path):
    config = tmp_path / "sweep.yaml"
    config.write_text("problems: {n: 1}\nsettings: {p: paper}\nload: {trust_remote_code: true}\n")
    with pytest.raises(ConfigError, match="cannot trust a model's own code"):
        read_config(config)


def test_an_unreadable_benchmark_is_refused_before_the_model_is_loaded(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"question": "1?"}\n')
    task = Benchmark(path=tmp_path / "bad.jsonl", kind="math")
    with pytest.raises(BenchmarkError, match="bad, row 1: expected the columns"):
        small(str(tmp_path / "no model"), problems=task).run(tmp_path / "s.sqlite")


def test_another_wording_is_another_result(tiny_model, tmp_path):
    path = tmp_path / "s.sqlite"
    first = small(tiny_model, problems=GPQA).run(path)
    other = small(tiny_model, problems=replace(GPQA, style="qwq"))
    with pytest.raises(StoreError, match="problems"):
        other.run(path)
    rows = other.run(path, mix=True)
    assert set(rows["problem"]) == set(first["problem"])
    assert not set(rows["hash"]) & set(first["hash"])
    assert len(Store(path).to_dataframe()) == len(rows) + len(first)


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("aime24", Benchmark(name="aime24")),
        ("{name: GPQA-D, n: 7, part: test, held_out: 0.5}",
         Benchmark(name="gpqa_diamond", n=7, part="test", held_out=0.5)),
        ("{path: a.jsonl, kind: math, columns: {question: prompt}, style: gpt-oss}",
         Benchmark(path="a.jsonl", kind="math", columns={"question": "prompt"}, style="gpt-oss")),
        ("{name: lcb, style: {name: mine, code: Go.}}",
         Benchmark(name="lcb", style={"name": "mine", "code": "Go."})),
    ],
)  # fmt: skip
def test_a_benchmark_in_a_file(tmp_path, text, task, unchecked):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"problems: {{benchmark: {text}}}\nsettings: {{p: paper}}\n")
    assert read_config(path).task == task
    assert read_config(path).task != WordProblems()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{benchmark: aime}", "configuration: no benchmark 'aime': expected one of"),
        ("{benchmark: [aime24]}", r"benchmark: expected settings by name, got \['aime24'\]"),
        ("{benchmark: aime24, n: 5}", r"inside it, such as .*got \['n'\] beside it"),
        ("{benchmark: {nam: aime24}}", "argument 'nam'"),
        ("{benchmark: {name: lcb, allow_code_execution: true}}", "--allow-code-execution .* from"),
        ("{benchmark: {path: a.jsonl}}", "expected kind to be one of"),
        ("{benchmark: {name: aime24, n: few}}", "configuration: .*'few'"),
    ],
)
def test_a_wrong_benchmark_is_named(tmp_path, text, message, unchecked):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"problems: {text}\nsettings: {{p: paper}}\n")
    with pytest.raises(ConfigError, match=message):
        read_config(path)
