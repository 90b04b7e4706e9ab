"""What docs/grading.md says is true."""

import re

import pytest
from helpers import DATA

from stepflow_tl.tasks.grading import grade_choice, grade_math, grade_number

PAGE = (DATA.parent.parent / "docs" / "grading.md").read_text()
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| `")]


def conventions() -> list[tuple[str, str, str]]:
    """Gold, answer and verdict of each line; one verdict may be of all answers."""
    found = []
    for gold, answers, verdicts, *_ in ROWS:
        parts, said = answers.split(" / "), verdicts.split(" / ")
        for part, verdict in zip(parts, said * (len(parts) // len(said)), strict=True):
            for answer in re.findall("`([^`]+)`", part):
                found.append((gold.strip("`"), answer, verdict))
    return found


CONVENTIONS = conventions()


@pytest.mark.parametrize(("gold", "answer", "verdict"), CONVENTIONS)
def test_conventions(gold: str, answer: str, verdict: str) -> None:
    assert grade_math(rf"\boxed{{{answer}}}", gold).correct == (verdict == "right")


def test_the_table_is_read() -> None:
    assert len(CONVENTIONS) >= 28


def test_the_example() -> None:
    block = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[0]
    names: dict[str, object] = {}
    exec(block, names)
    grade = names["grade"]
    assert grade.correct and grade.read_as == r"x=12345\text{people}"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("said", "gold"),
    [(r"\boxed{25\text{ cm}^2}", "25"), (r"\boxed{10^3}", "1000"), ("5 million", "5000000")],
)
def test_numbers(said: str, gold: str) -> None:
    assert grade_number(said, gold).correct


@pytest.mark.parametrize(
    "said", [r"3\pi", r"2\sqrt3", "7n", "> 18", "10:30", r"3\text{ h }20\text{ min}", "3, 18"]
)
def test_what_is_no_single_number(said: str) -> None:
    for gold in ("2", "3", "7", "18", "10", "30", "20"):
        assert not grade_number(rf"\boxed{{{said}}}", gold).correct


@pytest.mark.parametrize(
    "said",
    [
        *(r"\boxed{B} C", "<answer>C</answer> B", "The answer is: **C**", "option C is correct"),
        *("I choose C", "答案：C", "So much.\n**C**", r"\boxed{B} Wait. Answer: C"),
    ],
)
def test_choices(said: str) -> None:
    assert grade_choice(said, "C").correct == (said[:9] != r"\boxed{B}" or "Wait" in said)
