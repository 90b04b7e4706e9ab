"""Decoding: prompts in, traces out, under whatever interventions are attached.

`generate` (`generation`) takes prompts and a `Decoding` (`settings`), and hands batches of jobs to
the loop that drives the model (`batch`). `budget` limits the thinking, `stopping` ends an answer at
a text.
"""

from stepflow_tl.decoding.budget import ThinkingBudget
from stepflow_tl.decoding.generation import generate
from stepflow_tl.decoding.settings import Decoding

__all__ = ["Decoding", "ThinkingBudget", "generate"]
