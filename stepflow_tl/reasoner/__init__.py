"""The bundled reasoner: a small model of word problems with known answers and dependencies.

The weights beside this package are a `Qwen2ForCausalLM` in Hugging Face format; nothing imported
here needs torch.
"""

from pathlib import Path

from stepflow_tl.reasoner.grading import ERROR_KINDS, ErrorKind, Verdict, grade
from stepflow_tl.reasoner.sentences import Premise
from stepflow_tl.reasoner.world import Problem, Reach, SolutionStep, make_problem, make_problems

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the model and its tokenizer, for `from_pretrained`."""

__all__ = [
    "ERROR_KINDS",
    "WEIGHTS",
    "ErrorKind",
    "Premise",
    "Problem",
    "Reach",
    "SolutionStep",
    "Verdict",
    "grade",
    "make_problem",
    "make_problems",
]
