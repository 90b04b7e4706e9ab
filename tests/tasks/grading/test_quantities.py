"""Numbers as GSM8K asks for them."""

import pytest

from stepflow_tl.tasks.grading import grade_number

RIGHT = [
    "18",
    "So she makes 9 * 2 = $18 every day.",
    "It costs $18.00.",
    r"\boxed{18}",
    r"\boxed{\$18}",
    r"\boxed{18\text{ dollars}}",
    r"\boxed{x = 18}",
    r"\boxed{3 + 15 = 18}",
    r"\boxed{\frac{36}{2}}",
    r"\boxed{17\frac{2}{2}}",
    r"\boxed{18\%}",
    r"\boxed{018}",
    r"\boxed{1.8e1}",
    r"\boxed{18} and not 19",
    r"\boxed{17} no, \boxed{18}",
    "19 or so</think>It is 18.",
    r"\boxed{18}</think>So it is.",
    r"\boxed{19}</think>It is 18.",
    "18th",
    "3-18",
    "**18**",
    "１８",
]


@pytest.mark.parametrize("response", RIGHT)
def test_right_numbers(response: str) -> None:
    grade = grade_number(response, "18")
    assert grade.correct and grade.error is None, grade
    assert grade.reason is not None and "the gold '18'" in grade.reason


@pytest.mark.parametrize(
    ("response", "kind", "answer"),
    [
        ("It is 19.", "wrong_answer", "19"),
        ("-18", "wrong_answer", "-18"),
        ("$-18", "wrong_answer", "-18"),
        ("-$18", "wrong_answer", "-18"),
        (r"\boxed{−18}", "wrong_answer", "-18"),
        ("1,800", "wrong_answer", "1,800"),
        ("18,000.50", "wrong_answer", "18,000.50"),
        ("1 8", "wrong_answer", "8"),
        ("18 / 0", "not_understood", "18 / 0"),
        ("18" * 200, "not_understood", ("18" * 200)[:100]),
        (r"\boxed{3, 18}", "not_understood", "3, 18"),
        (r"\boxed{18 \text{ or } 19}", "not_understood", r"18 \text{ or } 19"),
        (r"\boxed{many}", "not_understood", "many"),
        (r"\boxed{}", "empty_box", None),
        (r"\boxed{", "unclosed_box", None),
        ("eighteen", "no_answer", None),
        ("18</think>", "no_answer", None),
        ("", "no_answer", None),
        ("٨", "no_answer", None),
        ("H2O", "no_answer", None),
    ],
)
def test_other_numbers(response: str, kind: str, answer: str | None) -> None:
    grade = grade_number(response, "18")
    assert (grade.correct, grade.error, grade.answer) == (False, kind, answer), grade
    assert grade.reason


def test_the_reason_says_what_was_read_where() -> None:
    assert grade_number("I say 7, then 8.", "18").reason == (
        "the last number reads '8', which is not the gold '18'"
    )
    assert grade_number(r"\boxed{9,000}", "9000").reason == (
        "the last box reads '9,000', which is the gold '9000'"
    )


@pytest.mark.parametrize(
    ("gold", "response"), [("1,200", "1200"), ("-5", "it is -5"), ("0.5", r"\boxed{\frac12}")]
)
def test_golds(gold: str, response: str) -> None:
    assert grade_number(response, gold).correct


@pytest.mark.parametrize("gold", ["", "eighteen", "3 and 4", "1/0"])
def test_a_gold_that_is_no_number(gold: str) -> None:
    with pytest.raises(ValueError, match="expected a gold answer such as '18', got"):
        grade_number("18", gold)


@pytest.mark.parametrize("unit", ["1,", "1 ", "-", "1/", "\\frac{1}", " ", "18", ".", "$"])
def test_a_megabyte(unit: str) -> None:
    response = unit * (1_000_000 // len(unit))
    assert not grade_number(response, "18").correct
    assert not grade_number(rf"\boxed{{{response}}}", "18").correct
