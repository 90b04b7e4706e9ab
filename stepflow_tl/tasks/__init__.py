"""Tasks: problems in groups, and how their answers are read and graded."""

from stepflow_tl.tasks.base import Grade, Item, Task
from stepflow_tl.tasks.word_problems import GivenProblems, WordProblems, as_task

__all__ = ["GivenProblems", "Grade", "Item", "Task", "WordProblems", "as_task"]
