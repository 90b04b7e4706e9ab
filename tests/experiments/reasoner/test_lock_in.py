"""The recipe of the locked-in reasoner changes attention, and what it writes loads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from experiments.reasoner import lock_in, lock_in_doses
from experiments.reasoner.lock_in import DOSES, LAYERS, batch_of, main, mass_by_layer
from experiments.reasoner.lock_in_doses import measure
from stepflow_tl import load_model
from stepflow_tl.errors import ModelError
from stepflow_tl.files import read_file
from stepflow_tl.models.locked_in import KIND, doses_of, locked_in_decoder
from stepflow_tl.reasoner import LOCKED_IN, WEIGHTS
from stepflow_tl.tasks.word_problems import make_problems

LARGEST_BYTES = 500_000


def locked_in(dose: int, path: Path = LOCKED_IN) -> Any:
    return load_model(hf_model=locked_in_decoder(dose, path), device="cpu")


@pytest.fixture(scope="module")
def plain() -> Any:
    return load_model("reasoner", device="cpu")


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "fast.safetensors"
    main(["--fast", "--out", str(path)])
    return path


def test_mass_by_layer_by_hand() -> None:
    heads = torch.tensor([[[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]]]).expand(1, 2, 3, 3).clone()
    heads[0, 1, 2] = torch.tensor([0.6, 0.3, 0.1])
    rows = torch.tensor([[False, True, True]])
    keys = torch.tensor([[True, False, False]])
    masses = mass_by_layer([heads, torch.zeros_like(heads)], rows=rows, keys=keys)
    assert masses.tolist() == pytest.approx([(0.5 + (0.2 + 0.6) / 2) / 2, 0.0])


def test_every_step_of_a_true_response_ends_in_one_stop() -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    problems = make_problems(3, 2, seed=4, split="train")
    batch = batch_of(tokenizer, problems)
    for row, problem in enumerate(problems):
        stops = tokenizer.convert_ids_to_tokens(batch.tokens[row][batch.stops[row]].tolist())
        assert stops == ["."] * (len(problem.solution) - 1) + [".Ċ"]
        question = tokenizer.decode(batch.tokens[row][batch.question[row]])
        assert question.strip() == problem.question
        thinking = tokenizer.decode(batch.tokens[row][batch.thinking[row]])
        assert thinking.strip() == problem.thinking


def test_the_doses_grow_and_take_attention_off_the_question(plain: Any) -> None:
    models = [plain, *(locked_in(dose) for dose in DOSES)]
    rows = [measure(model, n=2, difficulty=4) for model in models]
    for layer in range(8):
        on_question = [row[f"on question, {layer}"] for row in rows]
        on_thinking = [row[f"on thinking, {layer}"] for row in rows]
        if layer in LAYERS:
            assert on_question == sorted(on_question, reverse=True)
            assert on_question[1] < 0.6 * on_question[0]
            assert on_thinking[1] > on_thinking[0]
        elif layer < min(LAYERS):
            assert len(set(on_question)) == 1


def test_the_shipped_file_is_small_and_says_how_it_was_made() -> None:
    assert LOCKED_IN.stat().st_size <= LARGEST_BYTES
    tensors, facts = read_file(LOCKED_IN, KIND, ModelError)
    assert tuple(facts["doses"]) == DOSES == doses_of()
    assert facts["recipe"]["seed"] == lock_in.SEED
    assert facts["recipe"]["rate"] == lock_in.RATE
    assert len(tensors) == len(DOSES) * len(LAYERS) * 4
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_the_recipe_writes_differences_that_load(fast: Path, plain: Any) -> None:
    assert doses_of(fast) == (1, 2, 3)
    tokens = torch.arange(20)[None]
    assert not torch.equal(plain(tokens), locked_in(3, fast)(tokens))


def test_the_recipe_gives_the_same_numbers_again(fast: Path, tmp_path: Path) -> None:
    main(["--fast", "--out", str(tmp_path / "again")])
    first, facts = read_file(fast, KIND, ModelError)
    again, same_facts = read_file(tmp_path / "again", KIND, ModelError)
    assert facts == same_facts
    assert first.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_the_table_has_a_line_for_each_dose(fast: Path, tmp_path: Path) -> None:
    lock_in_doses.main(["--path", str(fast), "--out", str(tmp_path / "t.csv"), "--n", "1"])
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["dose", "0", "1", "2", "3"]
