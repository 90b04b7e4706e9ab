"""Graders: mathematics, numbers, letters and programs; every verdict says why."""

from stepflow_tl.tasks.grading.choices import grade_choice, same_letter
from stepflow_tl.tasks.grading.mathematics import check_math_gold, grade_math, same_math_answer
from stepflow_tl.tasks.grading.programs import Behaviour, CodeTests, Limits, grade_code
from stepflow_tl.tasks.grading.quantities import grade_number, number_of

__all__ = [
    "Behaviour",
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
