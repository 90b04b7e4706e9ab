"""Word problems with known answers and a known dependency graph: the bundled reasoner's world.

A problem is drawn (`world`), worded (`sentences`), asked as a `Task` (`task`), and a response to it
is graded sentence by sentence (`grading`): is it right, and what went wrong first? In reading
order: `sentences`, `world`, `grading`, `task`.
"""

from stepflow_tl.tasks.word_problems.grading import ERROR_KINDS, ErrorKind, Verdict, grade
from stepflow_tl.tasks.word_problems.sentences import Premise
from stepflow_tl.tasks.word_problems.task import GivenProblems, WordProblems, as_task
from stepflow_tl.tasks.word_problems.world import (
    Problem,
    Reach,
    SolutionStep,
    make_problem,
    make_problems,
)

__all__ = [
    "ERROR_KINDS",
    "ErrorKind",
    "GivenProblems",
    "Premise",
    "Problem",
    "Reach",
    "SolutionStep",
    "Verdict",
    "WordProblems",
    "as_task",
    "grade",
    "make_problem",
    "make_problems",
]
