"""What saliency costs: the benchmark's methods agree, limits hold, tables are right."""

import importlib
import json
import sys
from dataclasses import replace

import pytest
import torch
from helpers import ROOT

FOLDER = ROOT / "benchmarks"
TOKENS = 150


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A checkpoint of the benchmark's kind, tiny."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        workload = importlib.import_module("saliency_cost.workload")
    shape = replace(
        workload.SHAPES["third"], layers=2, hidden=32, heads=4, kv_heads=2, mlp=48, vocabulary=300
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    workload.build_checkpoint(folder, shape)
    return folder


def row(method, tokens, number, **facts):
    kind = "time" if number else "memory"
    return {"method": method, "tokens": tokens, "round": number, "pass": kind} | facts


def test_every_method_of_the_command_line_is_in_the_table() -> None:
    script = importlib.import_module("saliency")
    methods = importlib.import_module("saliency_cost.methods")
    assert tuple(methods.METHODS) == script.METHODS


def test_the_trace_is_tiled_by_steps() -> None:
    trace = importlib.import_module("saliency_cost.workload").make_trace(TOKENS, 300)
    assert [trace.steps[0].start, *(step.stop for step in trace.steps)] == [
        0, *(step.start for step in trace.steps[1:]), TOKENS,
    ]  # fmt: skip
    assert [len(segment) for segment in trace.segments] == [37, 76, 37]


def test_the_tokenizer_reads_its_text_as_the_same_ids(tiny) -> None:
    workload = importlib.import_module("saliency_cost.workload")
    ids = workload.token_ids(40, 300)
    assert workload.load_words(tiny)(workload.text_of(ids))["input_ids"] == ids


@pytest.mark.parametrize("name", ["run_with_cache", "hooks", "fused", "fused + checkpoint"])
def test_methods_of_one_loss_make_the_same_map(tiny, name) -> None:
    methods = importlib.import_module("saliency_cost.methods").METHODS
    trace = importlib.import_module("saliency_cost.workload").make_trace(TOKENS, 300)
    expected, made = (methods[m].run(methods[m].load(tiny), trace) for m in ("naive", name))
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5 * float(expected.max()))


def test_limits_end_a_process_and_say_so() -> None:
    runs = importlib.import_module("saliency_cost.runs")

    def run(code, **limits):
        limits = runs.Limits(**({"seconds": 60, "gib": 8} | limits))
        return runs.fresh_process([sys.executable, "-c", code], limits, {})

    assert run("print('noise'); print('{\"seconds\": 2}')") == {"seconds": 2}
    assert run("import time; time.sleep(60)", seconds=0.5) == {"error": "> 0.5 s"}
    hog = "import time; x = b'1' * 2**28; time.sleep(60)"
    assert run(hog, gib=0.125) == {"error": "> 0.125 GB"}
    assert run("raise ValueError('why')") == {"error": "failed: ValueError: why"}


def test_a_failure_is_repeated_at_greater_lengths_and_a_stopped_run_goes_on() -> None:
    runs = importlib.import_module("saliency_cost.runs")
    seen, rows = [], [row("a", 4, 0, seconds=1.0, peak_gib=1.0)]

    def measure(method, tokens, allocator):
        seen.append((method, tokens, bool(allocator)))
        return {"error": "> 16 GB"} if method == "b" else {"seconds": 1.0, "peak_gib": 1.0}

    runs.run_all(measure, ["a", "b"], [8, 4], 1, rows, lambda: None)
    assert seen == [("b", 4, True), ("a", 4, False), ("a", 8, True), ("a", 8, False)]
    assert [r["failed_at"] for r in rows if r["method"] == "b" and r["tokens"] == 8] == [4, 4]


def test_a_failure_says_nothing_of_smaller_lengths() -> None:
    runs = importlib.import_module("saliency_cost.runs")
    rows = [row("a", 8, 0, error="> 16 GB")]
    runs.run_all(lambda *_: {"seconds": 1.0, "peak_gib": 1.0}, ["a"], [4], 0, rows, lambda: None)
    assert "error" not in rows[-1]


def test_tables_show_ratios_growth_and_failures() -> None:
    tables = importlib.import_module("saliency_cost.tables")
    rows = [
        row(m, t, n, cpu_seconds=s * t * (n + 1), peak_gib=s * t)
        for m, s in (("base", 1.0), ("x", 2.0))
        for t in (2, 4)
        for n in (0, 1, 2)
    ]
    rows += [row("y", 2, 0, error="> 16 GB"), row("y", 4, 0, error="> 16 GB", failed_at=2)]
    text = tables.tables(rows, "base")
    assert "| x | 2.00 (2.00 - 2.00) | 2.00 (2.00 - 2.00) |" in text
    assert "| x | 4.000 | 8.000 | x 2.00 |" in text
    assert text.count("| y | > 16 GB | > 16 GB at 2 |") == 2


def test_the_line_through_the_peaks_is_extrapolated_in_the_open() -> None:
    tables = importlib.import_module("saliency_cost.tables")
    shape = importlib.import_module("saliency_cost.workload").SHAPES["1.5b"]
    rows = [row("streamed", t, 0, seconds=1.0, peak_gib=0.5 + t / 1024) for t in (512, 1024, 2048)]
    text = tables.extrapolation(rows, shape)
    assert "measured at   2048 tokens: 2.500 GiB" in text
    assert "fitted: 0.500 GiB + 1.0000 GiB per 1,024 tokens (largest deviation 0.000 GiB)" in text
    assert "extrapolated to 32,768 tokens: 32.50 GiB, of which keys and values 1.75 GiB" in text


def test_the_chart_is_drawn_from_the_file(tmp_path) -> None:
    rows = [
        row(m, t, n, cpu_seconds=1.0 * t, peak_gib=0.1 * t)
        for m in ("forward + backward", "streamed")
        for t in (2, 4)
        for n in (0, 1)
    ]
    saved = tmp_path / "cost.json"
    saved.write_text(json.dumps({"measurements": [*rows, row("naive", 2, 0, error="> 16 GB")]}))
    script = importlib.import_module("saliency")
    script.main(["--plot", str(saved), "--figure", str(tmp_path / "cost.png")])
    assert (tmp_path / "cost.png").stat().st_size > 10_000
