"""Tasks: problems in groups, how they are asked, and how their answers are read and graded.

A task (`base`) is word problems (`word_problems`) or a benchmark (`benchmarks`): rows of a table
(`tables`, `sources`, `selection`) become problems (`records`), prompts say how to ask (`prompts`),
graders judge (`grading`, `code_tests`), and a strategy decides how often to ask and which answer to
take (`strategies`).
"""

from stepflow_tl.errors import BenchmarkError
from stepflow_tl.tasks.base import Grade, Item, Task, Vote
from stepflow_tl.tasks.benchmarks import Benchmark
from stepflow_tl.tasks.prompts import STYLES, Style, rendered_prompt, style_for
from stepflow_tl.tasks.sources import SOURCES, Columns, Source, source_of
from stepflow_tl.tasks.strategies import (
    BudgetForcing,
    ChainOfThought,
    Plain,
    SelfConsistency,
    Strategy,
)
from stepflow_tl.tasks.word_problems import GivenProblems, WordProblems, as_task

__all__ = [
    "SOURCES",
    "STYLES",
    "Benchmark",
    "BenchmarkError",
    "BudgetForcing",
    "ChainOfThought",
    "Columns",
    "GivenProblems",
    "Grade",
    "Item",
    "Plain",
    "SelfConsistency",
    "Source",
    "Strategy",
    "Style",
    "Task",
    "Vote",
    "WordProblems",
    "as_task",
    "rendered_prompt",
    "source_of",
    "style_for",
]
