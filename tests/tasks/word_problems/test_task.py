import json
import pickle
from dataclasses import FrozenInstanceError

import pytest

from stepflow_tl.tasks import GivenProblems, Grade, Item, WordProblems, as_task
from stepflow_tl.tasks.word_problems import make_problem, make_problems

SMALL = WordProblems(n=3, difficulties=(2, 3), recall=(4,))
HOSTILE = ["", "\0", "</think>" * 5000, "\\boxed{" * 5000, "\ud800", "\\boxed{" + "9" * 9999 + "}"]


def test_problems_come_group_by_group():
    assert [item.group for item in SMALL.items] == ["2"] * 3 + ["3"] * 3 + ["4, recall"] * 3
    assert len({item.key for item in SMALL.items}) == 9
    expected = make_problems(3, 2, seed=2026, split="test")
    assert [SMALL.problem(item) for item in SMALL.items[:3]] == expected
    expected = make_problems(3, 4, seed=2026, split="test", reach="any")
    assert [SMALL.problem(item) for item in SMALL.items[6:]] == expected


def test_a_key_never_changes():
    """Keys are part of every stored cell's hash."""
    assert Item.of("How many?", "2") == Item("ba352e24c64c", "How many?", "2")
    assert SMALL.digest == "4c743c2f7dcb90a9"


def test_the_digest_tells_problem_sets_apart():
    sets = [
        SMALL,
        WordProblems(n=2, difficulties=(2, 3), recall=(4,)),
        WordProblems(n=3, difficulties=(3, 2), recall=(4,)),
        WordProblems(n=3, difficulties=(2, 3)),
        WordProblems(n=3, difficulties=(2, 3), recall=(4,), seed=1),
    ]
    assert len({task.digest for task in sets}) == len(sets)


def test_what_it_describes_makes_it_again(unchecked):
    again = WordProblems(**json.loads(json.dumps(SMALL.describe())))
    assert again == SMALL
    assert again.digest == SMALL.digest


def test_a_true_response_is_right_and_a_changed_one_says_where():
    for item in SMALL.items:
        problem = SMALL.problem(item)
        right = str(problem.answer)
        said = f"the last box is {right}"
        assert SMALL.grade(item, problem.response) == Grade(True, right, reason=said)
        first, second = problem.solution[:2]
        wrong = problem.response.replace(second.text, second.text.replace("=", "=1", 1), 1)
        assert first.text in wrong
        # the box is still right, and only answers decide
        assert SMALL.grade(item, wrong) == Grade(
            True, right, "wrong_arithmetic", 1, f"{said}; wrong_arithmetic in step 1"
        )
        boxed = problem.response.replace("boxed{", "boxed{1")
        said = f"the last box is 1{right}, not {right}; wrong_summary in summary"
        assert SMALL.grade(item, boxed) == Grade(False, f"1{right}", "wrong_summary", reason=said)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:9]))
def test_untrusted_text_is_only_wrong(text):
    grade = SMALL.grade(SMALL.items[0], text)
    assert not grade.correct
    assert (
        grade.reason is not None and f"not {SMALL.problem(SMALL.items[0]).answer}" in grade.reason
    )
    assert grade.answer is None or len(grade.answer) <= 40


def test_answers_are_equal_but_for_blanks():
    assert SMALL.same_answer("7", " 7 ")
    assert not SMALL.same_answer("7", "8")


def test_given_problems_are_the_same_items():
    problems = [SMALL.problem(item) for item in SMALL.items[:6]]
    given = as_task(problems)
    assert isinstance(given, GivenProblems)
    assert given.items == SMALL.items[:6]
    assert given.describe() == {"given": given.digest}
    assert as_task(SMALL) is SMALL
    assert as_task(tuple(problems)).digest == given.digest
    assert [item.group for item in as_task([problems[3], problems[0]]).items] == ["3", "2"]


def test_tasks_travel():
    assert SMALL.items  # what is cached travels along
    for task in (SMALL, as_task([make_problem(1, 2)])):
        again = pickle.loads(pickle.dumps(task))
        assert again.items == task.items
        assert again.digest == task.digest


def test_word_problems_are_frozen(unchecked):
    lists = WordProblems(n=1, difficulties=[2])
    assert lists.difficulties == (2,)
    assert hash(lists) == hash(WordProblems(n=1, difficulties=(2,)))
    with pytest.raises(FrozenInstanceError):
        lists.n = 2


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: WordProblems(n=0), ValueError, "n >= 1 and at least one difficulty, got n=0"),
        (lambda: WordProblems(difficulties=()), ValueError, r"difficulties=\(\), recall=\(\)"),
        (lambda: WordProblems(difficulties=16), TypeError, "difficulties such as .*got 16"),
        (lambda: WordProblems(difficulties=("16",)), TypeError, "difficulties such as .*'16'"),
        (lambda: WordProblems(difficulties=(0,)), ValueError, r"difficulties .*1 to \d+, got \(0,"),
        (lambda: WordProblems(recall=(99,)), ValueError, r"recall .*1 to \d+, got \(99,\)"),
        (lambda: WordProblems(difficulties=(2, 2)), ValueError, r"different.*got \(2, 2\)"),
        (lambda: as_task([]), ValueError, "at least one, got 0"),
        (lambda: as_task([make_problem(1, 1)] * 2), ValueError, "got 2 of which 1 differ"),
        (lambda: as_task("Why?"), TypeError, "expected a Task such as .*got str"),
        (lambda: as_task({"a": 1}), TypeError, "got dict"),
        (lambda: as_task(["Why?"]), TypeError, "got list"),
    ],
)
def test_bad_tasks_are_explained(make, error, message, unchecked):
    with pytest.raises(error, match=message):
        make()


def test_groups_that_share_a_question_are_refused():
    """Short chains are drawn alike whether any count may be added later, or the first only."""
    both = WordProblems(n=50, difficulties=(1,), recall=(1,))
    with pytest.raises(ValueError, match=r"groups '1' and '1, recall' share one that begins 'How"):
        assert both.items
