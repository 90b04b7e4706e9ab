"""Graders: mathematics, numbers, letters and programs; every verdict says why.

How an answer in mathematics is read, in this order:

    reading.py        the last box of a response, cleaned
    latex.py          its tokens; units.py what stands behind a value
    expressions.py    expressions; shapes.py lists, pairs, equations, cases, words
    exact.py arithmetic.py values.py    what expressions are worth, and whether they are one
    intervals.py comparing.py           whether two answers are one, and by which rule
    mathematics.py    the verdict; math_process.py and math_worker.py ask math-verify

`quantities` reads numbers by the same parts, `choices` letters; `programs` runs programs through
`running`, under the guard of `guarded` and `seccomp`.
"""

from stepflow_tl.tasks.grading.choices import grade_choice, same_letter
from stepflow_tl.tasks.grading.mathematics import check_math_gold, grade_math, same_math_answer
from stepflow_tl.tasks.grading.programs import Behavior, CodeTests, Limits, grade_code
from stepflow_tl.tasks.grading.quantities import grade_number, number_of

__all__ = [
    "Behavior",
    "CodeTests",
    "Limits",
    "check_math_gold",
    "grade_choice",
    "grade_code",
    "grade_math",
    "grade_number",
    "number_of",
    "same_letter",
    "same_math_answer",
]
