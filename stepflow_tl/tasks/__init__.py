"""Tasks: problems in groups, and how their answers are read and graded."""

from stepflow_tl.errors import BenchmarkError
from stepflow_tl.tasks.base import Grade, Item, Task, Vote
from stepflow_tl.tasks.benchmarks import Benchmark
from stepflow_tl.tasks.prompts import STYLES, Style, rendered_prompt, style_for
from stepflow_tl.tasks.sources import SOURCES, Columns, Source, source_of
from stepflow_tl.tasks.word_problems import GivenProblems, WordProblems, as_task

__all__ = [
    "SOURCES",
    "STYLES",
    "Benchmark",
    "BenchmarkError",
    "Columns",
    "GivenProblems",
    "Grade",
    "Item",
    "Source",
    "Style",
    "Task",
    "Vote",
    "WordProblems",
    "as_task",
    "rendered_prompt",
    "source_of",
    "style_for",
]
