"""The tokenizer agrees with itself before and after saving, and its template opens `<think>`."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from experiments.reasoner.tokenizer import END, build_tokenizer, prompt_text
from stepflow_tl.reasoner import WEIGHTS
from stepflow_tl.tasks.word_problems import Problem, make_problems
from stepflow_tl.tasks.word_problems.sentences import NAMES

PROBLEMS = [
    problem
    for difficulty in (1, 7, 18)
    for problem in make_problems(30, difficulty, seed=9, split="test")
]


@pytest.fixture(scope="module")
def built() -> PreTrainedTokenizerBase:
    return build_tokenizer()


@pytest.fixture(scope="module")
def shipped() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(WEIGHTS, local_files_only=True)


def _texts(problem: Problem) -> tuple[str, str]:
    return prompt_text(problem.question), problem.response + END


def test_auto_tokenizer_round_trips(shipped: PreTrainedTokenizerBase) -> None:
    for problem in PROBLEMS:
        text = "".join(_texts(problem))
        assert shipped.decode(shipped(text)["input_ids"]) == text


def test_saving_changes_no_token(
    built: PreTrainedTokenizerBase, shipped: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    built.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}', encoding="utf-8")
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for problem in PROBLEMS:
        text = "".join(_texts(problem))
        assert built(text)["input_ids"] == loaded(text)["input_ids"] == shipped(text)["input_ids"]


def test_prompt_and_response_meet_at_a_token_boundary(shipped: PreTrainedTokenizerBase) -> None:
    for problem in PROBLEMS:
        prompt, response = _texts(problem)
        apart = shipped(prompt)["input_ids"] + shipped(response)["input_ids"]
        assert apart == shipped(prompt + response)["input_ids"]


def test_the_template_is_r1_distills(shipped: PreTrainedTokenizerBase) -> None:
    chat = [{"role": "user", "content": "How many?"}]
    text = shipped.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert (
        text
        == "<|begin_of_sentence|><|User|>How many?<|Assistant|><think>\n"
        == prompt_text("How many?")
    )
    ids = shipped.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    assert ids == shipped(text)["input_ids"]
    assert ids.count(shipped.bos_token_id) == 1
    past = [*chat, {"role": "assistant", "content": "aha\n</think>\n\nFour."}]
    assert shipped.apply_chat_template(past, tokenize=False).endswith(
        "<|Assistant|>\n\nFour.<|end_of_sentence|>"
    )


def test_special_tokens_are_told_apart(shipped: PreTrainedTokenizerBase) -> None:
    assert shipped.eos_token == END
    assert len({shipped.bos_token_id, shipped.eos_token_id, shipped.pad_token_id}) == 3
    assert shipped.convert_tokens_to_ids("</think>") not in shipped.all_special_ids
    assert all(len(shipped(f" {name}")["input_ids"]) == 1 for name in NAMES)
    assert len(shipped("30")["input_ids"]) == 2
