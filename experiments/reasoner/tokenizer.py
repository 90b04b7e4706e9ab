"""The reasoner's tokenizer: byte-level BPE with Qwen2's own pre-tokenizer; R1-Distill's template.

`AutoTokenizer` replaces whatever pre-tokenizer a `qwen2` folder names by Qwen2's (single digits,
NFC), so the merges are trained with exactly that one: encoding agrees before and after saving.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from stepflow_tl.tasks.word_problems.sentences import ITEMS, NAMES
from stepflow_tl.tasks.word_problems.world import make_problems

BEGIN, END, PAD = "<|begin_of_sentence|>", "<|end_of_sentence|>", "<|pad|>"
USER, ASSISTANT, THINK, THINK_CLOSE = "<|User|>", "<|Assistant|>", "<think>", "</think>"
LARGEST_VOCABULARY = 1024
LONGEST = 2048
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|User|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|Assistant|>' + message['content'].split('</think>')[-1] + eos_token }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
)


def prompt_text(question: str) -> str:
    """Return what the chat template makes of one question, the opened `<think>` included."""
    return f"{BEGIN}{USER}{question}{ASSISTANT}{THINK}\n"


def build_tokenizer() -> Qwen2Tokenizer:
    """Train the tokenizer on the world's own sentences; the result is the same every time."""
    reference = Qwen2Tokenizer(vocab={"<|endoftext|>": 0}, merges=[])
    bare = Tokenizer(models.BPE())
    bare.normalizer = normalizers.NFC()
    bare.pre_tokenizer = reference.backend_tokenizer.pre_tokenizer
    bare.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=LARGEST_VOCABULARY,
        min_frequency=2,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bare.train_from_iterator(_corpus(), trainer)
    vocabulary, merges = _vocabulary_and_merges(bare)
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token=None,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=LONGEST,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [USER, ASSISTANT]})
    tokenizer.add_tokens([THINK, THINK_CLOSE])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _corpus() -> Iterator[str]:
    yield from (f" {name} {item} {item}" for name in NAMES for item in ITEMS for _ in range(4))
    for difficulty in range(1, 9):
        for problem in make_problems(250, difficulty, seed=0, split="train", reach="any"):
            yield problem.question
            yield from problem.response.split("</think>")


def _vocabulary_and_merges(tokenizer: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]
