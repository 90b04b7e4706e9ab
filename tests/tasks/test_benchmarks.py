import json
import math
import pickle
from collections import Counter
from dataclasses import FrozenInstanceError, replace
from types import SimpleNamespace

import pytest
from helpers import DATA
from hypothesis import given
from hypothesis import strategies as st

from stepflow_tl.tasks import (
    SOURCES,
    STYLES,
    Benchmark,
    BenchmarkError,
    Grade,
    Item,
    source_of,
)
from stepflow_tl.tasks.grading import CodeTests, same_letter
from stepflow_tl.traces.reader import read_response

FILES = DATA / "benchmarks"
SAMPLES = {
    "gsm8k": "gsm8k.jsonl",
    "math500": "math500.jsonl",
    "aime24": "aime24.parquet",
    "aime25": "aime25.jsonl",
    "amc23": "amc23.parquet",
    "gpqa_diamond": "gpqa_diamond.csv",
    "livecodebench": "livecodebench.jsonl",
}
GPQA = Benchmark(name="gpqa_diamond", path=FILES / "gpqa_diamond.csv")
CODE = Benchmark(
    name="livecodebench", path=FILES / "livecodebench.jsonl", allow_code_execution=True
)


def code_tests(inputs, outputs, function=None):
    return CodeTests(inputs=inputs, outputs=outputs, function=function)


@pytest.fixture
def graders(monkeypatch):
    """Graders that only write down what they are asked."""
    asked = []

    def grader(name):
        def grade(*arguments):
            asked.append((name, *arguments))
            return Grade(True, "x", reason=name)

        return grade

    def same_math_answer(*pair):
        asked.append(("same_math_answer", *pair))
        return True

    names = ("grade_math", "grade_number", "grade_choice", "grade_code")
    fake = SimpleNamespace(
        CodeTests=CodeTests,
        same_letter=same_letter,
        same_math_answer=same_math_answer,
        **{name: grader(name) for name in names},
    )
    monkeypatch.setattr("stepflow_tl.tasks.benchmarks.grading", fake)
    return asked


def sample(name: str) -> Benchmark:
    return Benchmark(name=name, path=FILES / SAMPLES[name])


@pytest.mark.parametrize("name", SAMPLES)
def test_every_file_format_is_read(name):
    task = sample(name)
    assert len(task.items) >= 2
    assert len({item.key for item in task.items}) == len(task.items)
    assert all(item.question == item.question.strip() for item in task.items)
    assert all(item.question in task.ask(item, 0) for item in task.items)
    assert len(task.digest) == 16


def test_what_the_samples_say(graders):
    assert [item.group for item in sample("gsm8k").items] == ["gsm8k"] * 4
    assert [i.group for i in sample("math500").items] == [
        "level 1",
        "level 2",
        "level 3",
        "level 2",
    ]
    assert [item.group for item in GPQA.items] == ["Physics", "Chemistry", "Biology"]
    assert [item.group for item in CODE.items] == ["easy", "medium", "hard"]
    for name in ("gsm8k", "math500", "aime24", "amc23"):
        task = sample(name)
        assert all(
            task.grade(item, "said", 3)[:5] == (True, "x", None, None, f"grade_{task.kind}")
            for item in task.items
        )
    assert [asked[1:] for asked in graders] == [
        ("said", gold)
        for gold in (
            *("37", "1,200", "18", "-10"),
            *("\\frac{3}{4}", "\\sqrt{2}", "[-1,3]", "(1,0)"),
            *("009", "022", "120"),
            *("20", "50"),
        )
    ]


def test_a_key_never_changes():
    """Keys are part of every stored cell's hash."""
    assert sample("aime25").items[0] == Item.of(sample("aime25").items[0].question, "aime25")
    assert [item.key for item in GPQA.items] == ["09e9ef8bb4f2", "01fc4b30fdc5", "181beb5523e7"]
    assert CODE.items[1].key != Item.of(CODE.items[1].question, "").key


def test_the_digest_knows_answers_wording_and_order(written):
    rows = [{"question": "1+1?", "answer": "2"}, {"question": "2+2?", "answer": "4"}]
    wrong = [rows[0], rows[1] | {"answer": "5"}]
    task = Benchmark(path=written(*rows), kind="math")
    others = [
        Benchmark(path=written(*wrong, name="w.jsonl"), kind="math"),
        Benchmark(path=written(*rows[::-1], name="r.jsonl"), kind="math"),
        Benchmark(path=written(*rows, name="n.jsonl"), kind="number"),
        Benchmark(path=task.path, kind="math", style=STYLES["qwq"]),
    ]
    assert len({one.digest for one in (task, *others)}) == 5
    again = written(*rows, name="mine.jsonl")
    assert Benchmark(path=again, kind="math").digest == task.digest
    contents = {one.content(task.items[1], 0) for one in (task, others[0], others[2])}
    assert len(contents) == 3
    assert GPQA.content(GPQA.items[0], 0) != GPQA.content(GPQA.items[0], 1)


@given(key=st.text(), seed=st.integers(), n=st.integers(2, 6))
def test_the_letter_is_of_the_right_option(key, seed, n):
    options = tuple(f"option {i}" for i in range(n))
    task, record = _choice_of(options, options[n // 2], key)
    asked = task.ask(record.item, seed)
    assert f"({task.right_letter(record.item, seed)}) {record.gold}\n" in asked
    assert sorted(line[4:] for line in asked.splitlines() if line[:1] == "(") == sorted(options)
    assert asked == _choice_of(options, options[n // 2], key)[0].ask(record.item, seed)


def test_every_order_is_equally_likely():
    options = ("a", "b", "c")
    orders = Counter(
        tuple(
            _choice_of(options, "a", f"{key}")[0]._order(_choice_of(options, "a", f"{key}")[1], s)
        )
        for key in range(40)
        for s in range(60)
    )
    assert len(orders) == math.factorial(3)
    chi_square = sum((count - 400) ** 2 / 400 for count in orders.values())
    assert chi_square < 20.5  # 5 degrees of freedom: one in a thousand


def test_options_stay_where_they_refer_to_one_another():
    task = replace(GPQA, shuffle=False)
    assert {task.right_letter(task.items[0], seed) for seed in range(20)} == {"A"}
    assert {GPQA.right_letter(GPQA.items[0], seed) for seed in range(40)} == set("ABCD")


def test_letters_are_graded_for_their_seed(graders):
    for seed in range(6):
        GPQA.grade(GPQA.items[1], "said", seed)
    assert [a[2] for a in graders] == [GPQA.right_letter(GPQA.items[1], s) for s in range(6)]
    assert {asked[3] for asked in graders} == {4}


def test_votes(graders):
    assert GPQA.same_answer("B", " (b)") and GPQA.same_answer("\\text{C}", "C.")
    assert not GPQA.same_answer("B", "C")
    sample("math500").same_answer("1/2", "0.5")
    assert graders == [("same_math_answer", "1/2", "0.5")]
    assert CODE.same_answer("x ", "x") and not CODE.same_answer("x", "X")


@pytest.mark.parametrize(
    ("name", "response", "answer"),
    [
        ("gpqa_diamond", 'So it is:\n{"answer": "C"}', "C"),
        ("gpqa_diamond", r"\boxed{\text{(b)}}", "B"),
        ("gpqa_diamond", "I cannot tell.", None),
        ("gsm8k", "There are 1,204 of them.", "1,204"),
        ("gsm8k", "Many.", None),
        ("aime24", r"\boxed{3} or \boxed{4}", "4"),
        ("aime24", "It is 4.", None),
    ],
)
def test_a_vote_is_read_as_it_is_graded(name, response, answer):
    assert sample(name).read_answer(response) == answer


def test_code_is_graded_with_its_tests(graders):
    for item in CODE.items:
        CODE.grade(item, "said")
    first, second, third = (asked[2] for asked in graders)
    assert first == code_tests(("1\n2\n", "10\n-4\n", "0\n0\n"), ("3\n", "6\n", "0\n"))
    assert second == code_tests(("[3, 9, 2]\n0", "[]\n-1"), ("9", "-1"), "largest")
    assert third == code_tests(("ab", "é"), ("abab", "éé"))


def test_code_is_not_run_unless_allowed(graders):
    task = replace(CODE, allow_code_execution=False)
    with pytest.raises(BenchmarkError, match=r"allow_code_execution=True \(--allow.*got False"):
        task.check()
    with pytest.raises(BenchmarkError, match="runs code that the model wrote"):
        task.grade(task.items[0], "said")
    assert graders == []
    CODE.check()
    sample("gsm8k").check()


def test_tests_that_the_grader_refuses_are_found_before(graders, monkeypatch):
    def refuse(**tests):
        raise ValueError("expected JSON, got x")

    monkeypatch.setattr("stepflow_tl.tasks.benchmarks.grading.CodeTests", refuse)
    with pytest.raises(BenchmarkError, match="livecodebench, row 1: expected JSON, got x"):
        CODE.check()


@pytest.mark.parametrize(
    ("task", "grader", "error"),
    [
        (sample("math500"), "grade_math", ImportError("pip install 'stepflow-tl[eval]'")),
        (CODE, "grade_code", RuntimeError("no Landlock")),
    ],
)
def test_a_grader_that_cannot_work_here_is_known_before(task, grader, error, monkeypatch):
    def refuse(*_):
        raise error

    monkeypatch.setattr(f"stepflow_tl.tasks.benchmarks.grading.{grader}", refuse)
    with pytest.raises(type(error), match=str(error)[:10]):
        task.check()


MANY = [{"question": f"{i}+1?", "answer": str(i + 1)} for i in range(200)]


def test_parts_are_stable(written):
    path = written(*MANY)
    whole, held, test = (
        Benchmark(path=path, kind="math", part=part) for part in ("all", "calibration", "test")
    )
    assert 20 < len(held.items) < 60
    assert {*held.items} | {*test.items} == {*whole.items}
    assert not {*held.items} & {*test.items}
    fewer = Benchmark(path=written(*MANY[150:20:-2], name="f.jsonl"), kind="math", part="test")
    assert {i.key for i in fewer.items} == {i.key for i in test.items} & {
        Item.of(row["question"], "").key for row in MANY[150:20:-2]
    }
    more = replace(held, held_out=0.5)
    assert {*held.items} < {*more.items}


@given(n=st.integers(1, 30), more=st.integers(0, 30))
@pytest.mark.slow
def test_a_smaller_n_is_among_a_larger(tmp_path_factory, n, more):
    path = tmp_path_factory.getbasetemp() / "many.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in MANY[:60]))
    few = Benchmark(path=path, kind="math", n=n)
    many = Benchmark(path=path, kind="math", n=n + more)
    assert len(few.items) == n
    assert [item for item in many.items if item in set(few.items)] == list(few.items)


def test_too_few_problems_are_refused(written):
    with pytest.raises(BenchmarkError, match="at least 5 problems in part 'all', found 4"):
        Benchmark(name="gsm8k", path=FILES / "gsm8k.jsonl", n=5).items  # noqa: B018
    with pytest.raises(BenchmarkError, match="mine: expected at least 1 problems .*'all', found 0"):
        Benchmark(path=written(), kind="math").items  # noqa: B018


def test_a_file_of_ones_own(written, graders):
    task = Benchmark(path=FILES / "choice.jsonl", kind="choice")
    assert [item.group for item in task.items] == ["numbers", "choice"]
    assert f"({task.right_letter(task.items[1], 5)}) red" in task.ask(task.items[1], 5)
    path = written({"prompt": "Why?", "target": 7, "level": 3})
    columns = {"question": "prompt", "answer": "target", "group": "level"}
    task = Benchmark(path=path, kind="number", columns=columns)
    assert [(item.question, item.group) for item in task.items] == [("Why?", "level 3")]
    task = Benchmark(path=FILES / "numbers.json", kind="number")
    for item in task.items:
        task.grade(item, "said")
    assert [asked[2] for asked in graders] == ["2.5", "4"]


def test_rows_that_come_twice(written):
    row = {"question": "1+1?", "answer": "2"}
    with pytest.warns(UserWarning, match="1 rows ask what an earlier one asked.*first is row 2"):
        assert len(Benchmark(path=written(row, row), kind="math").items) == 1
    with pytest.raises(BenchmarkError, match="rows 1 and 2 ask the same and have different"):
        Benchmark(path=written(row, row | {"answer": "3"}), kind="math").items  # noqa: B018


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("math", {"q": "1"}, r"mine, row 2: expected the columns \['question', 'answer'\], found "
         r"no \['question', 'answer'\] among \['q'\]; other names"),
        ("math", {"question": "1"}, r"found no \['answer'\]"),
        ("math", {"question": "1", "answer": " "}, "row 2: expected text in 'answer', got an"),
        ("math", {"question": None, "answer": "1"}, "text in 'question', got None"),
        ("math", {"question": "1", "answer": math.nan}, "text in 'answer', got nan"),
        ("math", {"question": "1", "answer": [1]}, r"text in 'answer', got \[1\]"),
        ("math", {"question": "1", "answer": True}, "text in 'answer', got True"),
        ("math", {"question": "\ud800", "answer": "1"}, "half a surrogate pair"),
        ("number", {"question": "1", "answer": "x"}, "a number such as 1,234.5 in 'answer'.*'x'"),
        ("number", {"question": "1", "answer": "#### "}, "a number .*got ''"),
        ("choice", {"question": "1", "answer": "A"}, r"found no \['options'\]"),
        ("choice", {"question": "1", "answer": "C", "options": ["1", "2"]}, "A to B, .*got 'C'"),
        ("choice", {"question": "1", "answer": "AB", "options": ["1", "2"]}, "got 'AB'"),
        ("choice", {"question": "1", "answer": "A", "options": ["1"]}, "list of 2 to 26 options"),
        ("choice", {"question": "1", "answer": "A", "options": "x"}, "JSON in 'options', got"),
        ("choice", {"question": "1", "answer": "A", "options": ["1", None]}, "got None"),
        ("choice", {"question": "1", "answer": "A", "options": ["1", "1"]}, "different options"),
        ("code", {"question": "1"}, r"found no \['tests'\]"),
        ("code", {"question": "1", "tests": "[]"}, "row 2: expected tests, all of one"),
        ("code", {"question": "1", "tests": "[1]", "metadata": "{"}, "JSON in 'metadata', got '{'"),
        ("code", {"question": "1", "tests": "[1]", "metadata": '{"func_name": "a b"}'},
         "a function's name as func_name, got a b"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_explained(written, kind, row, message):
    good = {
        "math": {"question": "0", "answer": "0"},
        "number": {"question": "0", "answer": "-1,000.5"},
        "choice": {"question": "0", "answer": "a", "options": ["1", "2"]},
        "code": {"question": "0", "tests": '[{"input": "1", "output": "1"}]'},
    }[kind]
    with pytest.raises(BenchmarkError, match=message):
        Benchmark(path=written(good, row), kind=kind).items  # noqa: B018


def test_known_benchmarks_want_their_own_columns(written):
    path = written({"question": "How many?", "answer": "It is 4."})
    with pytest.raises(BenchmarkError, match="row 1: expected the answer after #### in 'answer'"):
        Benchmark(name="gsm8k", path=path).items  # noqa: B018
    with pytest.raises(BenchmarkError, match=r"\['problem', 'answer'\], found no \['problem'\]"):
        Benchmark(name="aime24", path=path).items  # noqa: B018


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "name of a benchmark, or path= and kind=, got neither"),
        ({"name": "aime"}, r"no benchmark 'aime': expected one of \['gsm8k', .*'livecodebench_v6'"),
        ({"name": "aime24", "kind": "code"}, "kind='math' or none for aime24, got 'code'"),
        ({"path": "x.jsonl"}, r"kind to be one of \['math', 'number', .*got None"),
        ({"path": "x.jsonl", "kind": "essay"}, "got 'essay'"),
        ({"name": "aime24", "part": "train"}, r"\['all', 'calibration', 'test'\], got 'train'"),
        ({"name": "aime24", "held_out": 1.0}, "held_out between 0 and 1, .*got 1.0 and None"),
        ({"name": "aime24", "n": 0}, "n >= 1 or none, got 0.2 and 0"),
        ({"name": "aime24", "style": "poem"}, r"no style 'poem': expected one of \['r1', "),
        ({"name": "aime24", "style": {"nam": 1}}, "settings of a Style, .*'nam'"),
        ({"name": 24}, "name to be str or NoneType, got 24"),
        ({"path": 3, "kind": "math"}, "path to be str or Path or NoneType, got 3"),
        ({"name": "aime24", "n": "few"}, "n to be int or NoneType, got 'few'"),
        ({"name": "aime24", "n": True}, "n to be int or NoneType, got True"),
        ({"name": "aime24", "held_out": "a"}, "held_out to be int or float, got 'a'"),
        ({"name": "aime24", "kind": ["math"]}, r"got \['math'\]"),
        ({"name": "aime24", "columns": ["a"]}, r"columns to be Mapping, got \['a'\]"),
        ({"name": "aime24", "style": 3}, "style to be str or Style or Mapping, got 3"),
        ({"name": "lcb", "allow_code_execution": "false"}, "to be bool, got 'false'"),
        ({"name": "lcb", "shuffle": 1}, "shuffle to be bool, got 1"),
        ({"name": "aime24", "columns": {"text": "a"}}, r"columns for some of .*got \['text'\]"),
    ],
)
def test_wrong_settings_are_explained(settings, message, unchecked):
    with pytest.raises(BenchmarkError, match=message):
        Benchmark(**settings)


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("MATH-500", "math500"),
        ("aime2024", "aime24"),
        ("AIME 2025", "aime25"),
        ("AMC_2023", "amc23"),
        ("GPQA-Diamond", "gpqa_diamond"),
        ("GPQA-D", "gpqa_diamond"),
        ("LiveCodeBench", "livecodebench"),
        ("livecodebench v6", "livecodebench_v6"),
        ("GSM8K", "gsm8k"),
    ],
)
def test_names_in_any_usual_spelling(spelled, name):
    assert source_of(spelled) is SOURCES[name]
    assert Benchmark(name=spelled) == Benchmark(name=name)


def test_samples_are_the_papers():
    wanted = {"aime24": 16, "aime25": 16, "amc23": 16, "gpqa_diamond": 8, "math500": 1}
    assert {name: Benchmark(name=name).samples for name in wanted} == wanted
    assert Benchmark(path="x.jsonl", kind="math").samples == 1


@pytest.mark.parametrize(
    "task",
    [
        Benchmark(name="aime24"),
        CODE,
        Benchmark(path="x.csv", kind="math", n=3, part="test", held_out=0.3, style="gpt-oss-low"),
        Benchmark(
            path="x.jsonl",
            kind="choice",
            columns={"answer": "good", "wrong": ["a", "b"], "options": None},
            style=replace(STYLES["qwen3"], name="mine", math="Go."),
            shuffle=False,
        ),
    ],
    ids=lambda task: task.label,
)
def test_what_it_describes_makes_it_again(task, unchecked, tmp_path, monkeypatch):
    settings = json.loads(json.dumps(task.describe()))
    path = None if task.path is None else settings["benchmark"]["path"]
    monkeypatch.chdir(tmp_path)
    again = Benchmark(**settings["benchmark"])
    expected = replace(task, path=path, columns=again.columns, allow_code_execution=False)
    assert again == expected
    assert again._columns == task._columns


def test_benchmarks_are_frozen_and_travel():
    for task in (GPQA, CODE):
        again = pickle.loads(pickle.dumps(task))
        assert again.items == task.items
        assert again.digest == task.digest
        assert hash(again) == hash(task)
    with pytest.raises(FrozenInstanceError):
        GPQA.n = 3


def _choice_of(options, gold, key):
    """A task of one choice that no file holds."""
    from stepflow_tl.tasks.records import Record

    record = Record(item=Item(key, "Which?", "g"), gold=gold, row=1, options=options)
    task = Benchmark(path="none.jsonl", kind="choice")
    task.__dict__["_records"] = {key: record}
    return task, record


GOOD = {"question": "0", "answer": "0"}


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("math", {"question": "1", "answer": "\\frac{"}, "a gold answer that a box can hold, got"),
        ("math", {"question": "1", "answer": "}{"}, "a gold .* whose braces do not pair"),
        ("math", {"question": "1", "answer": "9" * 3000}, "a gold answer of 1 to 2000 characters"),
        ("math", {"question": "1", "answer": "\\boxed{"}, "a gold answer of 1 to 2000 characters"),
        ("number", {"question": "1", "answer": "1,2,3"}, "a gold answer such as '18', got '1,2,3'"),
    ],
)
def test_a_right_answer_that_none_could_match_is_named(written, kind, row, message):
    with pytest.raises(BenchmarkError, match=f"mine, row 2: expected {message}"):
        Benchmark(path=written(GOOD, row), kind=kind).check()


def test_a_nan_equals_nothing(written):
    tests = json.dumps([{"input": "1", "output": "[NaN]", "testtype": "functional"}])
    row = {"question": "1", "tests": tests, "metadata": '{"func_name": "f"}'}
    task = Benchmark(path=written(row), kind="code", allow_code_execution=True)
    with pytest.raises(BenchmarkError, match="mine, row 1: expected a result .* NaN equals noth"):
        task.check()


def test_wrong_rows_may_be_skipped_counted_and_named(written):
    path = written(
        GOOD,
        {"question": "1"},
        {"question": "2", "answer": "\\frac{"},
        {"question": "3", "answer": "3"},
    )
    path.write_text(path.read_text() + "{broken\n[1]\n")
    with pytest.raises(BenchmarkError, match="mine, row 2"):
        Benchmark(path=path, kind="math").items  # noqa: B018
    task = Benchmark(path=path, kind="math", on_error="skip")
    with pytest.warns(UserWarning, match=r"mine: 4 rows were skipped \(on_error='skip'\): mine, r"):
        assert [item.question for item in task.items] == ["0", "3"]
    assert [said.partition(": ")[0] for said in task.skipped] == [
        *("mine, row 2", "mine, row 3", "mine.jsonl, line 5", "mine.jsonl, row 6"),
    ]
    assert task.describe()["benchmark"]["on_error"] == "skip"
    assert Benchmark(path=written(GOOD), kind="math", on_error="skip").skipped == ()


def test_wrong_tests_are_skipped_before_problems_are_chosen(written):
    good = {"tests": '[{"input": "1", "output": "1"}]'}
    rows = [{"question": str(i)} | good for i in range(5)]
    path = written({"question": "a", "tests": "[]"}, *rows)
    task = Benchmark(path=path, kind="code", on_error="skip", n=5)
    with pytest.warns(UserWarning, match="1 rows were skipped"):
        assert len(task.items) == 5


def test_lettered_options_keep_their_letters(written):
    """As AQuA's come."""
    options = ["A)21", "B)21.5", "C) 22", "D)22.5", "E)23"]
    row = {"question": "How many?", "options": options, "correct": "E"}
    columns = {"answer": "correct"}
    task = Benchmark(path=written(row), kind="choice", columns=columns)
    for seed in range(8):
        assert task.right_letter(task.items[0], seed) == "E"
        asked = task.ask(task.items[0], seed)
        assert "(A) 21\n(B) 21.5\n(C) 22\n(D) 22.5\n(E) 23\n" in asked
    assert task.grade(task.items[0], r"\boxed{E}").correct
    for others in (["A)1", "B)2", "D)3"], ["1)x", "2)y"], ["A", "B"]):
        row = {"question": "?", "options": others, "correct": "B"}
        task = Benchmark(path=written(row), kind="choice", columns=columns)
        assert {task.right_letter(task.items[0], seed) for seed in range(20)} != {"B"}


ADDS = "```python\nprint(sum(map(int, input().split())))\n```"
ADDS_TOO = "```python\na, b = map(int, input().split())\nprint(f'{a + b}.0')\n```"
SUBTRACTS = "```python\na, b = map(int, input().split())\nprint(a - b)\n```"
FAILS = "```python\nraise ValueError\n```"


def test_programs_vote_by_what_they_do(written):
    row = {
        "question": "Add.",
        "public": '[{"input": "1 2", "output": "never looked at"}, {"input": "5 5", "output": ""}]',
        "hidden": '[{"input": "3 4", "output": "7"}]',
    }
    columns = {"tests": ["public", "hidden"]}
    path = written(row)
    task = Benchmark(path=path, kind="code", columns=columns, allow_code_execution=True)
    task.check_votes()
    vote = task.vote(task.items[0])
    programs = [vote.read(read_response(said)) for said in (ADDS, ADDS_TOO, SUBTRACTS, FAILS)]
    adds, adds_too, subtracts, fails = programs
    assert fails is None  # it has no vote
    assert adds != adds_too and vote.same(adds, adds_too) and not vote.same(adds, subtracts)
    assert vote.read(read_response("No program.")) is None
    with pytest.raises(BenchmarkError, match="runs code that the model wrote"):
        replace(task, allow_code_execution=False).vote(task.items[0])


def test_a_vote_on_code_without_public_examples_is_refused(written):
    row = {"question": "Add.", "tests": '[{"input": "1", "output": "1"}]'}
    task = Benchmark(path=written(row), kind="code", allow_code_execution=True)
    with pytest.raises(BenchmarkError, match="one column holds all tests; expected columns="):
        task.check_votes()
    row = {"question": "Add.", "public": "[]", "hidden": row["tests"]}
    task = replace(task, path=written(row), columns={"tests": ["public", "hidden"]})
    with pytest.raises(BenchmarkError, match="row 1: no public examples, by which a majority"):
        task.check_votes()
    Benchmark(path=written(GOOD), kind="math").check_votes()
