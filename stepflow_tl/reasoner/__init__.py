"""The bundled reasoner, data only: weights of a `Qwen2ForCausalLM`, tokenizer and model card.

Beside it a difference to its weights: the same model, fine-tuned until it locks in.

How it was trained stands in `experiments/reasoner`; the world of word problems that it knows is a
task, `stepflow_tl.tasks.word_problems`.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the model and its tokenizer, for `from_pretrained`."""

LOCKED_IN = Path(__file__).parent / "locked_in.safetensors"
"""File of the differences that make it lock in (`stepflow_tl.models.locked_in`)."""

__all__ = ["LOCKED_IN", "WEIGHTS"]
