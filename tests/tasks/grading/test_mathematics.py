"""Mathematical answers: what is right, what is wrong, and what is said of it."""

import pytest

from stepflow_tl.tasks.grading import grade_math, same_math_answer


def box(answer: str) -> str:
    return rf"So it is \boxed{{{answer}}}."


SAME = [  # gold, answer
    ("33", "033"),
    ("033", "33"),
    ("1204", "1,204"),
    ("1204", r"1{,}204"),
    ("1204", r"1\,204"),
    ("1204", "1 204"),
    ("1204", r"1,\!204"),
    ("32348", r"\$32,348"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac34", "3/4"),
    (r"\frac{3}{2}", "1 1/2"),
    ("-1.5", "-1 1/2"),
    ("1/3", "0.333333"),
    (r"11\sqrt2", r"\sqrt{242}"),
    ("x^2-1", "(x-1)(x+1)"),
    ("5", "x=5"),
    ("x=5", "5"),
    ("5", r"5\text{ cm}"),
    ("90", r"90^\circ"),
    (r"70\%", "0.7"),
    (r"70\%", "70"),
    ("0.7", r"70\%"),
    ("[1,2)", "[1, 2)"),
    (r"(-\infty,1)\cup(2,\infty)", r"(2,\infty)\cup(-\infty,1)"),
    (r"x\in[-2,7]", "[-2,7]"),
    (r"x\le 3", r"(-\infty,3]"),
    (r"(-\infty,3]", r"x\le 3"),
    ("1,2", "2,1"),
    ("x=1, y=2", "1, 2"),
    ("x=1, y=2", "y = 2, x = 1"),
    (r"\{1,2\}", "1, 2"),
    ("(3,1)", "(3, 1)"),
    (r"3\pm\sqrt2", r"3+\sqrt2, 3-\sqrt2"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
    (r"\text{Evelyn}", "Evelyn"),
    ("6-5i", "-5i + 6"),
    ("1000000", "10^6"),
    ("2", "２"),
    ("-2", "−2"),
    ("25", "5²"),
    (r"2\sqrt3", "√12"),
    (r"(-\infty,3]", "(-∞,3]"),
    ("12", "12."),
    ("5", "\u202e5\u200b\0"),
    ("5", "$5$"),
]
OTHERS = [
    ("5", "6"),
    ("0.7", "70"),
    ("1/3", "0.333"),
    ("2", "2.0000001"),
    ("[1,2]", "(1,2)"),
    ("(1,2)", "[1,2)"),
    ("(1,3)", "(3,1)"),
    ("2", "1,2"),
    ("x=1, y=2", "2, 1"),
    ("x=1, y=2", "x = 2, y = 1"),
    ("1,2", "2"),
    ("12", "1204"),
    ("90", r"\frac{\pi}{2}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}"),
    (r"\text{even}", r"\text{odd}"),
    ("5", r"\frac{1}{0}"),
    ("5", "import os"),
]


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_right_answers(gold: str, answer: str) -> None:
    grade = grade_math(box(answer), gold)
    assert grade.correct and grade.error is None, grade
    assert grade.reason is not None and "gold" in grade.reason


@pytest.mark.parametrize(("gold", "answer"), OTHERS)
def test_wrong_answers(gold: str, answer: str) -> None:
    grade = grade_math(box(answer), gold)
    assert not grade.correct and grade.error == "wrong_answer", grade
    assert grade.reason is not None and repr(gold) in grade.reason


@pytest.mark.parametrize(
    ("response", "kind", "says"),
    [
        ("The answer is 5.", "no_answer", r"no \boxed{...}"),
        ("", "no_answer", r"no \boxed{...}"),
        (r"It is \boxed{5", "unclosed_box", "never closed"),
        (box(""), "empty_box", "empty"),
        (box(" \u200b "), "empty_box", "empty"),
        (box("9" * 1_000_000), "too_long", "1000000 characters"),
        (box("{" * 10_000 + "5" + "}" * 10_000), "too_long", "20001 characters"),
        (box("2 0 4"), "not_understood", "side by side"),
        (box("٥"), "not_understood", "no mathematics"),
    ],
)
def test_what_is_no_answer(response: str, kind: str, says: str) -> None:
    grade = grade_math(response, "6")
    assert (grade.correct, grade.error) == (False, kind), grade
    assert grade.reason is not None and says in grade.reason


def test_the_last_closed_box_counts_wherever_it_stands() -> None:
    assert grade_math(box("12") + box("04"), "4").answer == "04"
    assert not grade_math(box("12") + box("04"), "1204").correct
    assert grade_math(r"\boxed{5}</think>So.", "5").correct
    assert grade_math(r"Unfinished thinking: \boxed{5} or \boxed{6", "5").correct
    assert grade_math(r"\boxed{\boxed{5}}", "5").correct


@pytest.mark.parametrize(
    "answer",
    [
        *("9^{9^{9^9}}", "10000000!", "{" * 900 + "5" + "}" * 900, "(" * 500 + "5" + ")" * 500),
        r"\int_0^1 9^{9^{9^9}}\,dx",
    ],
)
def test_what_takes_for_ever_is_no_wrong_answer(answer: str) -> None:
    grade = grade_math(box(answer), "6", seconds=1.0)
    assert not grade.correct
    assert grade.error in ("timeout", "out_of_memory", "crashed", "not_understood"), grade
    assert grade_math(box("2+4"), "6").correct  # and the next one is graded as ever


def test_a_timeout_says_what_the_limit_was() -> None:
    answer = r"\int_0^1 9^{9^{9^9}}\,dx"  # which is left to math-verify
    grade = grade_math(box(answer), "6", seconds=0.5)
    assert grade.error == "timeout" and grade.answer == answer
    assert grade.reason is not None and "within 0.5 s" in grade.reason


def test_a_gold_that_is_no_mathematics_is_compared_as_text() -> None:
    assert grade_math(box(r"\frac{"[:-1] + "("), r"\frac(").correct
    grade = grade_math(box("5"), r"\frac{")
    assert grade.error == "wrong_answer"
    assert grade.reason is not None and "itself no mathematics" in grade.reason


@pytest.mark.parametrize("gold", ["", " ", r"\boxed{", "9" * 3000])
def test_a_gold_that_is_none(gold: str) -> None:
    with pytest.raises(ValueError, match="expected a gold answer of 1 to 2000 characters, got"):
        grade_math(box("5"), gold)


def test_a_gold_may_be_boxed() -> None:
    assert grade_math(box("5"), r"\boxed{5}").correct


def test_votes_for_the_same_answer_are_symmetric() -> None:
    for first, second in ((r"x\le 3", r"(-\infty,3]"), ("x=5", "5"), ("0.5", r"\frac12")):
        assert same_math_answer(first, second)
        assert same_math_answer(second, first)
    assert same_math_answer("no number", "no number")
    assert not same_math_answer("5", "6")
    assert not same_math_answer("5", "")
    assert not same_math_answer("9" * 3000, "5")
    assert not same_math_answer("2 0 4", "6")
    assert not same_math_answer("9^{9^{9^9}}", "5", seconds=0.5)
    assert not same_math_answer(r"\int_0^1 9^{9^{9^9}}\,dx", "5", seconds=0.5)


LONG = r"""
\frac \sqrt \sin \ln \log_ 9^ 9! a e \pi 1e9 ½ √ - ( { | 2^ \text{ \rm{ ' _ x_ x^2_ \begin{array} 1,
x= \pm \overline{ 0.1\overline 2000! ! % : < > \cup a\\ & $ 1e5000* f( E[ 99! \{ \sqrt[3]{
10^{10^{10}} ① \$ , ; . \left \le 1~ for~ or~
"""


@pytest.mark.parametrize("unit", LONG.split())
@pytest.mark.slow
def test_no_answer_raises(unit: str) -> None:
    """As long as an answer may be; with a gold that is a number, an expression or the answer."""
    unit = unit.replace("~", " ")
    answer = unit * (1990 // len(unit))
    for gold in ("5", "x^2+1", f"{answer}+0"[:2000]):
        for inside in (answer, f"{answer}5", f"5{answer}"):
            assert grade_math(box(inside), gold, seconds=5.0).reason
