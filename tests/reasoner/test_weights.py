"""The shipped weights load offline like any Hugging Face model, and solve held-out problems."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2ForCausalLM,
)

from experiments.reasoner.evaluate import respond, table, tabulate
from stepflow_tl.reasoner import WEIGHTS
from stepflow_tl.tasks.word_problems import grade, make_problems

LARGEST_BYTES = 8 * 2**20


@pytest.fixture(scope="module")
def tokenizer(offline: None) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def model(offline: None) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def offline() -> None:
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    yield
    patch.undo()


def test_the_folder_is_small_and_holds_safetensors_only() -> None:
    files = {path.name: path.stat().st_size for path in Path(WEIGHTS).iterdir()}
    assert sum(files.values()) <= LARGEST_BYTES
    assert [name for name in files if name.endswith(".safetensors")] == ["model.safetensors"]
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]


def test_it_is_a_qwen2_with_quarters(model: PreTrainedModel) -> None:
    assert isinstance(model, Qwen2ForCausalLM)
    assert model.config.num_hidden_layers % 4 == 0
    assert model.config.tie_word_embeddings


def test_it_solves_held_out_problems(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    problems = make_problems(24, 4, seed=77, split="test")
    texts = respond(model, tokenizer, problems)
    right = sum(grade(problem, text).correct for problem, text in zip(problems, texts, strict=True))
    assert right >= 20


def test_a_batch_answers_like_its_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    problems = make_problems(4, 2, seed=5, split="test")
    together = respond(model, tokenizer, problems)
    assert [respond(model, tokenizer, [problem])[0] for problem in problems] == together


def test_the_table_counts_first_errors() -> None:
    problems = make_problems(3, 2, seed=3, split="test")
    verdicts = [
        grade(problems[0], problems[0].response),
        grade(problems[1], ""),
        grade(problems[2], "no"),
    ]
    row = tabulate(2, verdicts)
    assert (row.n, row.correct, row.errors) == (3, 1, {"unfinished": 1, "malformed": 1})
    assert "| 2 | 3 | 0.333 |" in table([row])
