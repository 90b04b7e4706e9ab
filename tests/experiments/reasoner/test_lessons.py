"""Lessons are reproducible, come from the training split, and mask what is not to be learned."""

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from experiments.reasoner.lessons import (
    IGNORED,
    LESSONS,
    Stage,
    draw_batch,
    draw_kind,
    micro_batches,
)
from experiments.reasoner.tokenizer import END, build_tokenizer
from experiments.reasoner.train import STAGES
from stepflow_tl.tasks.word_problems.world import split_of


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer()


def _stage(kind: str) -> Stage:
    return Stage(name="one", tokens=1000, kinds={kind: (1.0, 1.0)}, easy=(1, 2), hard=(3, 4))


@pytest.mark.parametrize("kind", list(LESSONS))
def test_a_batch_is_a_function_of_its_seed(tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    first, again, other = (
        draw_batch(tokenizer, _stage(kind), 0.5, kind=kind, seed=seed, tokens=600)
        for seed in ("a", "a", "b")
    )
    assert first == again != other
    assert sum(len(ids) for ids, _ in first) >= 600
    for ids, labels in first:
        assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
        assert any(label != IGNORED for label in labels)


def test_problems_come_from_the_training_split(tokenizer: PreTrainedTokenizerBase) -> None:
    for ids, labels in draw_batch(
        tokenizer, _stage("problem"), 0.5, kind="problem", seed="s", tokens=4000
    ):
        text = tokenizer.decode(ids)
        assert split_of(text.split("<|User|>")[1].split("<|Assistant|>")[0]) == "train"
        learned = tokenizer.decode(
            [token for token, label in zip(ids, labels, strict=True) if label != IGNORED]
        )
        assert text.endswith("<think>\n" + learned)
        assert learned.endswith(END)


def test_micro_batches_hold_every_sequence_once(tokenizer: PreTrainedTokenizerBase) -> None:
    sequences = draw_batch(tokenizer, _stage("problem"), 0.5, kind="problem", seed="s", tokens=4000)
    cut = micro_batches(sequences, tokens=800, pad=0)
    assert sum(len(ids) for ids, _ in cut) == len(sequences)
    assert all(ids.shape == labels.shape for ids, labels in cut)
    assert all(ids.numel() <= 800 or len(ids) == 1 for ids, _ in cut)
    counted = sum(int((labels != IGNORED).sum()) for _, labels in cut)
    assert counted == sum(label != IGNORED for _, labels in sequences for label in labels)
    assert torch.equal(cut[0][0][0, : len(sequences[0][0])], torch.tensor(sequences[0][0]))


def test_kinds_follow_their_weights() -> None:
    stage = Stage(name="two", tokens=1000, kinds={"repeats": (1.0, 0.0), "sums": (0.0, 1.0)})
    assert {draw_kind(stage, 0.0, seed=str(seed)) for seed in range(20)} == {"repeats"}
    assert {draw_kind(stage, 1.0, seed=str(seed)) for seed in range(20)} == {"sums"}


def test_rates_warm_up_hold_and_decay() -> None:
    stage = Stage(
        name="rates",
        tokens=1000,
        kinds={"sums": (1.0, 1.0)},
        rate=0.5,
        decay_from=0.5,
        final_rate=0.1,
    )
    assert stage.rate_at(0.0) == pytest.approx(0.05)
    assert stage.rate_at(0.4) == pytest.approx(0.5)
    assert stage.rate_at(1.0) == pytest.approx(0.05)


def test_the_recipe_names_only_known_lessons() -> None:
    assert all(set(stage.kinds) <= set(LESSONS) for stage in STAGES)
