"""Problems are deterministic, agree with their graphs, and are graded sentence by sentence."""

import pytest

from stepflow_tl.tasks.word_problems import ERROR_KINDS, Problem, grade, make_problem, make_problems
from stepflow_tl.tasks.word_problems.sentences import LARGEST_VALUE, apply
from stepflow_tl.tasks.word_problems.world import LARGEST_DIFFICULTY, split_of

DIFFICULTIES = (1, 2, 6, 12, 18)


@pytest.fixture(scope="module", params=DIFFICULTIES)
def problem(request: pytest.FixtureRequest) -> Problem:
    return make_problem(11, request.param, distractors=3)


def test_the_same_seed_gives_the_same_problem() -> None:
    assert make_problem(5, 7) == make_problem(5, 7)
    assert make_problem(5, 7) != make_problem(6, 7)


def test_the_graph_reproduces_every_value(problem: Problem) -> None:
    values: list[int] = []
    for step, (place, uses) in zip(problem.solution, problem.graph, strict=True):
        premise = problem.premises[place]
        before = values[uses[0]] if uses else 0
        assert premise.person == step.person
        assert premise.other == (problem.solution[uses[0]].person if uses else None)
        if premise.operation == "joined":
            assert premise.added == problem.solution[uses[1]].person
            assert premise.amount == values[uses[1]]
            assert uses[1] < uses[0]
        values.append(apply(premise.operation, before, premise.amount))
        assert values[-1] == step.value
        assert 1 <= step.value <= LARGEST_VALUE
    assert values[-1] == problem.answer
    assert len(problem.solution) == problem.difficulty + 1


def test_some_steps_use_two_earlier_ones() -> None:
    problems = make_problems(50, 8, seed=0, split="test")
    uses = [len(used) for problem in problems for _, used in problem.graph]
    assert set(uses) == {0, 1, 2}
    assert 0.1 < uses.count(2) / len(uses) < 0.4


def test_premise_spans_cut_the_question(problem: Problem) -> None:
    cut = [problem.question[start:end] for start, end in problem.premise_spans]
    assert cut == [premise.text for premise in problem.premises]


def test_roles_are_as_asked(problem: Problem) -> None:
    roles = [premise.role for premise in problem.premises]
    assert roles.count("start") == 1
    assert roles.count("chain") == problem.difficulty
    assert roles.count("distractor") == 3
    assert roles.count("beyond") <= 3


def test_every_sentence_is_cut_as_a_step(problem: Problem) -> None:
    assert all(len(step.text) >= 15 and step.text.endswith(".") for step in problem.solution)
    assert all(step.text.count(".") == 1 for step in problem.solution)
    assert problem.response == problem.thinking + "\n</think>\n\n" + problem.summary
    assert len(problem.summary.split("\n\n")) >= 2
    assert problem.summary.endswith(f"\\boxed{{{problem.answer}}}.")


def test_splits_never_meet() -> None:
    train = {problem.question for problem in make_problems(300, 1, seed=0, split="train")}
    test = {problem.question for problem in make_problems(300, 1, seed=0, split="test")}
    assert not train & test
    assert all(split_of(question) == "test" for question in test)


def test_impossible_requests_say_what_was_expected() -> None:
    with pytest.raises(ValueError, match=f"difficulty must be 1 to {LARGEST_DIFFICULTY}, got 0"):
        make_problem(0, 0)
    with pytest.raises(ValueError, match="distractors must be 0 to 4, got 9"):
        make_problem(0, 1, distractors=9)


def test_a_perfect_response_has_no_error(problem: Problem) -> None:
    verdict = grade(problem, problem.response + "<|end_of_sentence|>")
    assert verdict.correct
    assert verdict.answer == str(problem.answer)
    assert verdict.first_error is None
    assert verdict.error_step is None


def test_the_last_box_is_the_answer(problem: Problem) -> None:
    assert grade(problem, problem.response + " \\boxed{99}").answer == "99"
    assert grade(problem, "\\boxed{99} " + problem.response).correct
    assert grade(problem, "nothing").answer is None


def _four_steps() -> Problem:
    return next(
        problem
        for problem in (make_problem(seed, 4, distractors=3) for seed in range(1000))
        if any(
            p.role == "distractor" and p.other == problem.solution[1].person
            for p in problem.premises
        )
        and all(problem.premises[step.premise].operation == "more" for step in problem.solution[1:])
    )


def _replaced(problem: Problem, index: int, old: str, new: str) -> str:
    text = problem.solution[index].text
    assert old in text
    return problem.response.replace(text, text.replace(old, new))


def test_each_kind_of_error_is_told_apart() -> None:
    problem = _four_steps()
    step = problem.solution[2]
    before = problem.solution[1]
    key, result = before.person, f"={step.value} for"
    stranger = problem.solution[4].person
    lure = next(p for p in problem.premises if p.role == "distractor" and p.other == key)
    sentences = [one.text for one in problem.solution]
    tail = "\n</think>\n\n" + problem.summary
    cases = {
        "forgot_premise": _replaced(problem, 2, f"{key}, {step.person}", f"{key}, {stranger}"),
        "misread_premise": _replaced(problem, 2, " more:", " fewer:"),
        "followed_distractor": _replaced(
            problem, 2, f"{key}, {step.person}", f"{key}, {lure.person}"
        ),
        "wrong_carry": _replaced(problem, 2, f": {before.value}", f": {before.value + 1}"),
        "wrong_arithmetic": _replaced(problem, 2, result, f"={step.value + 1} for"),
        "malformed": _replaced(problem, 2, " has ", " has has "),
    }
    for kind, text in cases.items():
        verdict = grade(problem, text)
        assert (verdict.first_error, verdict.error_step) == (kind, 2)
    assert grade(problem, " ".join(sentences[:3]) + tail).first_error == "stopped_early"
    assert (
        grade(problem, " ".join([*sentences, sentences[-1]]) + tail).first_error == "stopped_late"
    )
    assert grade(problem, " ".join(sentences)).first_error == "unfinished"
    assert (
        grade(problem, problem.response.replace("Later", "Sooner")).first_error == "wrong_summary"
    )


def test_every_first_error_has_a_name() -> None:
    problem = make_problem(2, 5)
    for cut in range(0, len(problem.response), 7):
        error = grade(problem, problem.response[:cut]).first_error
        assert error in ERROR_KINDS


@pytest.mark.parametrize(
    "text", ["", "</think>", "\\boxed{" * 5000, "So near " * 5000, "(" * 20000, "1.\n" * 9000]
)
def test_hostile_text_is_graded_quickly(text: str) -> None:
    assert not grade(make_problem(0, 3), text).correct
