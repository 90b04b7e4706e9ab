"""The model and the trace that every method works on: random weights, random tokens, seeded.

What is measured depends on the shapes, not on the values, so that nothing needs downloading.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 2026
STEP = 25
PROMPT = SUMMARY = 100
WARM_UP = 64
WORDS = "words.json"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a Qwen2 decoder, head_dim = hidden / heads, embeddings tied."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes that keys and values of all layers take per token, in float32."""
        return 2 * 4 * self.layers * self.kv_heads * (self.hidden // self.heads)


QWEN_05B = {"hidden": 896, "heads": 14, "kv_heads": 2, "mlp": 4864}
QWEN_15B = {"hidden": 1536, "heads": 12, "kv_heads": 2, "mlp": 8960}
SHAPES = {
    "third": Shape(layers=8, vocabulary=50_645, **QWEN_05B),
    "0.5b": Shape(layers=24, vocabulary=151_936, **QWEN_05B),
    "1.5b": Shape(layers=28, vocabulary=151_936, **QWEN_15B),
}
"""Qwen2.5-0.5B, -1.5B, and a third of the former: its widths, 8 of 24 layers, a third of its
vocabulary, so that each part's share of the work stays the same."""


@dataclass(frozen=True)
class Spans:
    """Half-open spans of a trace: question, thinking in steps of `STEP` tokens, summary."""

    question: tuple[int, int]
    thinking: tuple[int, int]
    summary: tuple[int, int]

    @classmethod
    def of(cls, tokens: int) -> Spans:
        """A question and a summary of 100 tokens each, or of a quarter of a short trace."""
        question, summary = min(PROMPT, tokens // 4), min(SUMMARY, tokens // 4)
        return cls((0, question), (question, tokens - summary), (tokens - summary, tokens))

    def steps(self) -> list[tuple[str, int, int]]:
        """Segment, start and stop of each step: the question is one; the last may be shorter."""
        found = [("question", *self.question)]
        for name, (start, stop) in (("thinking", self.thinking), ("summary", self.summary)):
            found += [(name, at, min(at + STEP, stop)) for at in range(start, stop, STEP)]
        return found


def token_ids(tokens: int, vocabulary: int) -> list[int]:
    """The trace's token ids, 0 not among them: longer traces go on where shorter ones end."""
    return random.Random(SEED).choices(range(1, vocabulary), k=tokens)


def text_of(ids: list[int]) -> str:
    """The text that the checkpoint's own tokenizer (one word per id) reads as these ids."""
    return " ".join(f"w{i}" for i in ids)


def make_trace(tokens: int, vocabulary: int) -> Any:
    """The `Trace` of those token ids, cut by `Spans`."""
    import torch

    from stepflow_tl.traces.trace import Segment, Step, Trace

    ids, spans = token_ids(tokens, vocabulary), Spans.of(tokens)
    texts = tuple(f"w{i} " for i in ids)
    return Trace(
        token_ids=torch.tensor(ids),
        token_texts=texts,
        segments=(
            Segment("question", *spans.question),
            Segment("thinking", *spans.thinking),
            Segment("summary", *spans.summary),
        ),
        steps=tuple(
            Step(i, name, start, stop, "".join(texts[start:stop]))  # type: ignore[arg-type]
            for i, (name, start, stop) in enumerate(spans.steps())
        ),
        prompt_length=spans.question[1],
        ended=False,
        closed=spans.summary[0] < spans.summary[1],
        read_as={"name": "plain"},
    )


def build_checkpoint(folder: Path, shape: Shape) -> None:
    """Write a seeded random model in float32, and a tokenizer of one word per token id."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(SEED)
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=131_072,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        dtype="float32",
        bos_token_id=None,
        eos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(shape.vocabulary)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    words.save(str(folder / WORDS))


def load_huggingface(folder: Path, attention: str = "sdpa") -> Any:
    """The plain Hugging Face model, its parameters frozen and its weights touched."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    )
    return touched(model)


def touched(model: Any) -> Any:
    """Freeze a model and read every weight once, so that its memory-mapped pages are resident."""
    for parameter in model.eval().parameters():
        parameter.requires_grad_(False).sum()
    return model


def load_words(folder: Path) -> Any:
    """The tokenizer of one word per token id."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(folder / WORDS))
