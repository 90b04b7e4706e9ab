"""Letters of multiple-choice questions."""

import pytest

from stepflow_tl.tasks.grading import grade_choice

STATE_B = [
    r"\boxed{B}",
    r"\boxed{b}",
    r"\boxed{\text{B}}",
    r"\boxed{(B)}",
    r"\boxed{\textbf{(B)}}",
    r"\boxed{\mathrm{B}}",
    r"\boxed{B. 5 m/s}",
    r"\boxed{\text{(B)} 5 m/s}",
    r"\boxed{Option B}",
    r"\boxed{𝐁}",
    r"\boxed{Ｂ}",
    r"Answer: $\boxed{B}$",
    "Answer: B",
    "The answer is: B",
    "The answer is:\n\n(B) The cell wall",
    "Answer: 【B】",
    "答案：B",
    "故选 B。",
    "Option B.",
    "Option B is correct.",
    "So much for A.\n**B**",
    "<answer>(B) 5 m/s</answer>",
    "ANSWER: **B**",
    "**Answer**: (b)",
    "The answer is (B).",
    "The correct answer is option B.",
    "Final Answer: The final answer is $B$. I hope it is correct.",
    "The best choice is B",
    "The answer is B since option A is wrong",
    "Answer: Ｂ",
    "The answer is B because of A",
    "Answer: B\n\nA and C are wrong.",
    "Answer: C. Wait. Answer: B",
    r"\boxed{C} Wait. Answer: B",
    r"Answer: C. Wait. \boxed{B}",
    r"Perhaps the answer is C</think>\boxed{B}",
    "Perhaps the answer is C</think>Answer: B",
    r"\boxed{B}</think>So it is.",
]


def is_about(response: str) -> tuple[bool, str | None]:
    grade = grade_choice(response, "B")
    assert grade.reason
    return grade.correct, grade.error


@pytest.mark.parametrize("response", STATE_B)
def test_the_right_letter(response: str) -> None:
    grade = grade_choice(response, "B")
    assert grade.correct and grade.answer == "B", grade
    assert grade_choice(response, "D").error == "wrong_answer"


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (r"\boxed{C}", "wrong_answer"),
        ("The answer is (C)", "wrong_answer"),
        (r"\boxed{E}", "out_of_range"),
        ("Answer: E", "out_of_range"),
        (r"\boxed{A, B}", "not_understood"),
        (r"\boxed{AB}", "not_understood"),
        (r"\boxed{B and C}", "not_understood"),
        (r"\boxed{Blue}", "not_understood"),
        (r"\boxed{В}", "not_understood"),  # Cyrillic
        (r"\boxed{5}", "not_understood"),
        ("Answer: A or B", "not_understood"),
        ("Answer: B, C", "not_understood"),
        (r"\boxed{}", "empty_box"),
        (r"\boxed{B", "unclosed_box"),
        ("B", "no_answer"),
        ("The answer is not B", "no_answer"),
        ("The answer is A combination of B", "no_answer"),
        ("The answer is B</think>", "no_answer"),
        ("", "no_answer"),
    ],
)
def test_what_is_not_the_right_letter(response: str, kind: str) -> None:
    assert is_about(response) == (False, kind)


def test_the_reason_says_where_the_letter_stands() -> None:
    assert grade_choice("I think the answer is (C).", "B").reason == (
        "the sentence 'answer is (C)' states C, not the gold B"
    )
    assert grade_choice(r"\boxed{F}", "B").reason == (
        "the last box, 'F', states F, but the options are A to D"
    )


def test_a_is_an_article_too() -> None:
    assert grade_choice("The answer is A because B is not.", "A").correct
    assert grade_choice("The answer is A.", "A").correct
    assert grade_choice("The answer is A better one.", "A").error == "no_answer"


def test_more_options() -> None:
    assert grade_choice("Answer: J", "J", options=10).correct
    assert grade_choice("Answer: K", "J", options=10).error == "out_of_range"


@pytest.mark.parametrize(
    ("letter", "options", "says"),
    [
        ("E", 4, "expected a letter from A to D, got 'E'"),
        ("b", 4, "expected a letter from A to D, got 'b'"),
        ("AB", 4, "expected a letter from A to D, got 'AB'"),
        ("", 4, "expected a letter from A to D, got ''"),
        ("A", 1, "expected 2 to 26 options, got 1"),
        ("A", 27, "expected 2 to 26 options, got 27"),
    ],
)
def test_questions_that_cannot_be(letter: str, options: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        grade_choice("Answer: A", letter, options)


@pytest.mark.parametrize("unit", ["answer ", "answer:*", "Answer: A, ", "*", ",", "{", "\\text"])
@pytest.mark.slow
def test_a_megabyte(unit: str) -> None:
    response = unit * (1_000_000 // len(unit))
    assert not grade_choice(response, "B").correct
    assert not grade_choice(rf"answer{response}\boxed{{{response}}}", "B").correct


def test_words_of_the_answer_are_said_to_be_the_answers():
    grade = grade_choice(r"Perhaps \boxed{A}</think>So the correct option is (B).", "B")
    assert grade.correct
    assert grade.reason == "the sentence 'correct option is (B)' of the answer states B, the gold"
