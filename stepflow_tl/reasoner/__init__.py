"""The bundled reasoner, data only: weights of a `Qwen2ForCausalLM`, tokenizer and model card.

How it was trained stands in `experiments/reasoner`; the world of word problems that it knows is a
task, `stepflow_tl.tasks.word_problems`.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the model and its tokenizer, for `from_pretrained`."""

__all__ = ["WEIGHTS"]
