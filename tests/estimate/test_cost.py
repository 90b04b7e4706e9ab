"""Costs by hand, against bounds, and never drifting from what was measured."""

import json
import re
import sys

import pytest
from helpers import ROOT
from shapes import EXPERTS, LARGE, MIDDLE, SMALL, shape
from transformers import AutoConfig

from stepflow_tl import cli
from stepflow_tl.estimate import (
    GPUS,
    MEASURED,
    EstimateError,
    Gpu,
    Run,
    estimate,
    gpu,
    read_architecture,
)

AIME = {"problems": 30, "samples": 16}


def cost(name: str = SMALL, device: str = "h100-sxm", **settings):
    return estimate(read_architecture(shape(name)), Run(**AIME | settings), GPUS[device])


@pytest.fixture
def run(monkeypatch, capsys):
    """Run ``stepflow-tl estimate``; returns exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stepflow-tl", "estimate", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
            raise SystemExit(0)
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return call


def test_memory_by_hand():
    found = cost(max_new_tokens=32_768 - 256)
    assert found.weights == 7_615_616_512 * 2 / 2**30
    assert found.cache_per_token == 2 * 4 * 128 * 28 * 2 / 1024 == 56
    assert found.cache == 56 * 32_768 / 2**20 == 1.75
    room = 0.9 * 80e9 / 2**30
    assert found.run.batch_size == int((room - found.weights) / 1.75)
    assert cost(dtype="float32").weights == 2 * found.weights
    assert cost(dtype="int4").weights == found.weights / 4
    assert cost(dtype="int4").cache == cost().cache


def test_time_by_hand():
    """Batch 1: each token reads all weights but the input embedding, and the cache so far."""
    found = cost(batch_size=1, prompt_tokens=1, max_new_tokens=1000)
    tokens = 480 * 1000
    read = (7_615_616_512 - 152_064 * 3584) * 2 + (1 + 1001) / 2 * 56 * 1024
    prompts = 2 * found.architecture.active * 480 / 989e12
    assert found.plain_hours * 3600 == pytest.approx(tokens * read / 3.35e12 + prompts)
    assert found.stepflow_hours == pytest.approx(1.069 * found.plain_hours)
    assert found.tokens == 2 * tokens
    given = cost(tokens_per_second=1000.0)
    assert given.plain_hours == pytest.approx(480 * 32_768 / 1000 / 3600)


def test_a_large_batch_computes():
    """Where products take longer than reading, they decide."""
    slow = Gpu(memory=141.0, bandwidth=1000.0, tflops=100.0)
    found = estimate(read_architecture(shape(SMALL)), Run(**AIME, max_new_tokens=1000), slow)
    work = 480 * 1256 * 2 * found.architecture.active
    assert found.plain_hours * 3600 >= work / 100e12
    assert found.plain_hours * 3600 == pytest.approx(work / 100e12, rel=0.1)


def test_what_does_not_fit_on_one_gpu_takes_more():
    assert [cost(name).run.gpus for name in (SMALL, MIDDLE, LARGE, EXPERTS)] == [1, 2, 3, 1]
    assert cost(LARGE, device="h200").run.gpus == 2
    held = cost(MIDDLE, gpus=4, batch_size=8)
    assert held.plain_hours == pytest.approx(2 * cost(MIDDLE, gpus=2, batch_size=8).plain_hours)
    assert cost(SMALL, max_new_tokens=100).run.batch_size == 480  # no more than there are


def test_cost_grows_with_what_is_asked():
    base = cost()
    assert cost(tokens=8000).plain_hours < base.plain_hours / 4
    assert cost(tokens=8000).run.batch_size == base.run.batch_size  # room for the limit
    assert cost(samples=32).tokens == 2 * base.tokens
    assert cost(SMALL, device="h200").plain_hours < base.plain_hours
    assert cost(EXPERTS, batch_size=1).plain_hours < cost(SMALL, batch_size=1).plain_hours


@pytest.mark.parametrize(
    ("layers", "width", "mlp", "heads", "tokens", "measured"),
    [(28, 1536, 8960, 12, 32_768, 3.81), (8, 896, 4864, 14, 8192, 0.552)],
)
def test_a_map_needs_what_was_measured(layers, width, mlp, heads, tokens, measured, tmp_path):
    """The two shapes whose maps were measured come out as they did."""
    AutoConfig.for_model(
        "qwen2",
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=mlp,
        num_attention_heads=heads,
        num_key_value_heads=2,
    ).save_pretrained(tmp_path)
    asked = Run(problems=1, samples=1, max_new_tokens=tokens - 256, dtype="float32")
    found = estimate(read_architecture(tmp_path), asked, GPUS["h200"])
    assert found.map_tokens == tokens
    assert found.map_memory == pytest.approx(measured, rel=0.15)


def test_a_map_takes_two_forward_passes():
    found = cost(max_new_tokens=1000, prompt_tokens=24)
    linear = 4 * found.architecture.active * 1024
    attention = 6 * 28 * 28 * 128 * 1024**2
    assert found.map_seconds == pytest.approx(0.95 * (linear + attention) / 989e12, rel=1e-3)


def test_what_was_measured_is_in_the_benchmarks():
    text = (ROOT / "benchmarks" / "README.md").read_text()
    (decoding,) = re.findall(r"batch 1, 48 tokens .* \((1\.\d+) of generate\)", text)
    assert float(decoding) == MEASURED["stepflow_decoding"]
    (times,) = re.findall(r"\n\| streamed \| (1\.07 .*)\|", text)
    assert float(re.findall(r"([\d.]+) \(", times)[-1]) == MEASURED["saliency_time"]
    (memory,) = re.findall(r"\n\| streamed \| (0\..*)\| x", text)
    assert float(memory.split("|")[0]) == MEASURED["saliency_memory_0.5b"]
    (line,) = re.findall(r"([\d.]+) GiB \+ ([\d.]+) GiB per 1,024 tokens", text)
    assert float(line[0]) == MEASURED["saliency_memory_1.5b"]


def test_the_page_shows_what_is_printed(run):
    page = (ROOT / "docs" / "models.md").read_text()
    (shown,) = re.findall(r"<!-- estimate -->\n(.*?)\n<!-- /estimate -->", page, re.DOTALL)
    models = [part for name in (SMALL, MIDDLE, LARGE) for part in ("--model", shape(name))]
    code, out, _ = run(*models, "--task", "aime24", "--samples", 16)
    assert code == 0
    printed = [line for line in out.splitlines() if line.startswith("|")]
    assert shown.splitlines() == printed


def test_the_command_line_says_what_is_assumed(run):
    code, out, _ = run("--model", shape(LARGE), "--task", "math500")
    assert code == 0
    for said in ("Assumed: prompts of 256 tokens", "at least", "at most", "on a CPU", "one after"):
        assert said in out
    assert (
        "at least"
        not in run(
            "--model", shape(SMALL), "--task", "gsm8k", "--tokens", 900, "--tokens-per-second", 2000
        )[1].split("memory of one map")[0]
    )
    assert "experts evenly" in run("--model", shape(EXPERTS), "--task", "gpqa")[1]
    assert "without scales" in run("--model", shape(SMALL), "--task", "gpqa", "--dtype", "int4")[1]


def test_json_holds_all_of_it(run):
    code, out, _ = run("--model", "reasoner", "--task", "aime25", "--max-new-tokens", 600, "--json")
    assert code == 0
    (found,) = json.loads(out)
    assert found["run"]["samples"] == 16
    assert found["architecture"]["layers"] == 8
    assert found["tokens"] == 2 * 30 * 16 * 600
    assert found["gpu"] == {"memory": 80.0, "bandwidth": 3.35, "tflops": 989.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "aime"], "no benchmark 'aime': expected one of ["),
        (["--samples", 0], "expected samples > 0, got 0"),
        (["--tokens", -5], "expected tokens > 0, got -5"),
        (["--tokens", 40_000], "expected tokens <= max_new_tokens=32768, got 40000"),
        (["--max-new-tokens", 0], "expected max_new_tokens > 0, got 0"),
        (["--gpu", "k80"], "unknown GPU 'k80': expected one of ['a100-80gb', "),
        (["--memory", 0], "expected memory > 0, got 0.0"),
        (["--bandwidth", -1], "expected bandwidth > 0, got -1.0"),
        (["--tokens-per-second", 0], "expected tokens_per_second > 0, got 0.0"),
        (["--dtype", "int2"], "unknown dtype 'int2': expected one of ['float32', "),
        (["--batch-size", 100], "expected batch_size of at most 29 on 1 GPUs of 80 GB"),
        (["--memory", 10, "--gpus", 1], "expected at least 2 GPUs of 10 GB for 14.2 GiB"),
        (["--model", "no/such"], "no configuration of 'no/such'"),
    ],
)
def test_errors_are_one_line(run, arguments, message):
    code, _, err = run("--model", shape(SMALL), "--task", "aime24", *arguments)
    assert code == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_gpu_may_be_ones_own():
    assert gpu("h200", memory=100.0) == Gpu(memory=100.0, bandwidth=4.8, tflops=989.0)
    with pytest.raises(EstimateError, match="expected tflops > 0, got 0"):
        Gpu(memory=1.0, bandwidth=1.0, tflops=0.0)
