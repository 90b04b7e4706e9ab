"""Programs against their tests: what is read, what is compared, what is said."""

import pytest

from stepflow_tl.tasks.grading import CodeTests, Limits, grade_code
from stepflow_tl.tasks.grading.programs import last_program, same_output

DOUBLE = "print(2 * int(input()))"


def block(source: str) -> str:
    return f"Here it is:\n```python\n{source}\n```\nThat is all."


def test_a_program_that_is_right() -> None:
    grade = grade_code(block(DOUBLE), CodeTests(("1\n", "2"), ("2\n", "4")))
    assert grade.correct and grade.answer == DOUBLE
    assert grade.reason == "it passed 2 of 2 tests"


def test_the_first_test_that_fails_is_named() -> None:
    grade = grade_code(block(DOUBLE), CodeTests(("1", "2", "oops"), ("2", "5", "6")))
    assert (grade.correct, grade.error) == (False, "wrong_answer")
    assert grade.reason == "test 2 of 3: it printed '4', expected '5'"


def test_long_outputs_are_shown_where_they_part() -> None:
    tests = CodeTests(("",), ("x" * 1000 + "y",))
    grade = grade_code(block("print('x' * 1000 + '\\x1b[31m')"), tests)
    assert grade.reason is not None and "(from character 980)" in grade.reason
    assert "xx\\x1b[31m'" in grade.reason and len(grade.reason) < 300


@pytest.mark.parametrize(
    ("source", "kind", "says"),
    [
        ("print(1 / 0)", "runtime_error", "ZeroDivisionError: division by zero"),
        ("syntax error(", "runtime_error", "SyntaxError"),
        ("x = '\0'", "runtime_error", "null bytes"),
        ("input(); input()", "runtime_error", "EOFError"),
        ("def f(n): return f(n + 1)\nf(0)", "runtime_error", "RecursionError"),
        ("import os; os._exit(3)", "runtime_error", "status 3"),
        ("import no_such_module", "runtime_error", "ModuleNotFoundError"),
        ("pass", "wrong_answer", "it printed '', expected '2'"),
        ("import sys; sys.stdout = None; print(2)", "wrong_answer", "it printed ''"),
        ("import os; os._exit(0)", "wrong_answer", "it printed ''"),
        ("import os; os.write(1, b'\\xff')", "wrong_answer", "expected '2'"),
    ],
)
def test_programs_that_fail(source: str, kind: str, says: str) -> None:
    grade = grade_code(block(source), CodeTests(("1",), ("2",)))
    assert (grade.correct, grade.error) == (False, kind), grade
    assert grade.reason is not None and grade.reason.startswith("test 1 of 1: "), grade
    assert says in grade.reason, grade


@pytest.mark.parametrize(
    "source",
    [
        "print(2)\nimport sys\nsys.exit(3)",
        "import sys\ntry:\n    sys.exit()\nexcept SystemExit:\n    print(2)",
        "if __name__ == '__main__':\n    print(2)",
        "x: List[int] = [2]\nprint(math.gcd(*x), end='')",
        "print(' 2.00 ')",
        "import sys\nprint(len(sys.stdin.read().split()) + 1)\nprint(sys.stdin.read())",
        "import sys\nsys.setrecursionlimit(10**6)\n"
        "def f(n): return 2 if n == 0 else f(n - 1)\nprint(f(60_000))",
        "import threading\nt = threading.Thread(target=print, args=(2,))\nt.start()\nt.join()",
        "import numpy as np\nprint(np.arange(3).max())",
        "open('notes.txt', 'w').write('2')\nprint(open('notes.txt').read())",
        "from functools import *\n@cache\ndef f(): return 2\nprint(f())",
        "print(2)\nexit()\nprint(3)",
        "print(2)\nquit(1)",
        "print(len(str(2 ** 20000)) - 6019)",
        "print('2\\r')",
    ],
)
def test_programs_that_pass(source: str) -> None:
    tests = CodeTests(("1",), ("2",))
    grade = grade_code(block(source), tests, limits=Limits(seconds=60.0))
    assert grade.correct, grade


SOLUTION = """
class Solution:
    def add(self, numbers: List[int], more: int) -> List[int]:
        print("debugging")
        return tuple(number + more for number in numbers)
"""
ADDED = CodeTests(("[1, 2]\n3", "[]\n\n0"), ("[4, 5]", "[]"), "add")


def test_functions_are_called_with_json() -> None:
    assert grade_code(block(SOLUTION), ADDED).correct
    assert grade_code(block("def add(a, b): return [x + b for x in a]"), ADDED).correct


@pytest.mark.parametrize(
    "source",
    [
        "def f(n):\n    return [n]\nif __name__ == '__main__':\n    print(f(int(input())))",
        "def f(n):\n    return [n]\nif __name__ == '__main__':\n    exit(1)",
        "def f(n):\n    return [n]\nexit()",
        "def f(n):\n    return (n,)",
        "import numpy as np\ndef f(n):\n    return np.array([n])",
        "import numpy as np\ndef f(n):\n    return [np.int64(n)]",
        "import numpy as np\ndef f(n):\n    return (np.float32(n),)",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\ndef f(n):\n    "
        "return [A(n).x]",
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\n"
        "class A:\n    x: int\nclass Solution:\n    def f(self, n: int) -> list[int]:\n        "
        "return [A(n).x]",
    ],
)
def test_functions_that_pass(source: str) -> None:
    tests = CodeTests(("3\r\n", "12"), ("[3]", "[12]\n"), "f")
    grade = grade_code(block(source), tests)
    assert grade.correct, grade


def test_values_within_values_are_what_they_are() -> None:
    """As LiveCodeBench compares: only a whole tuple is taken for a list."""
    pairs = CodeTests(("1",), ("[[1, 2]]",), "f")
    assert grade_code(block("def f(n): return [[n, 2]]"), pairs).correct
    assert grade_code(block("def f(n): return ([n, 2],)"), pairs).correct
    grade = grade_code(block("def f(n): return [(n, 2)]"), pairs)
    assert grade.error == "wrong_answer" and '{"tuple": [1, 2]}' in (grade.reason or "")
    named = CodeTests(("1",), ('{"1": 2}',), "f")
    assert grade_code(block("def f(n): return {str(n): 2}"), named).correct
    assert not grade_code(block("def f(n): return {n: 2}"), named).correct


def test_integers_of_any_length() -> None:
    long = "1" + "0" * 4999 + "7"
    for number, right in ((long, True), (long[:-1] + "8", False)):
        stdin = CodeTests((long,), (number,))
        assert grade_code(block("print(int(input()))"), stdin).correct is right
        called = CodeTests((long,), (f"[{number}]",), "f")
        assert grade_code(block("def f(n): return [n]"), called).correct is right


def test_a_function_without_a_name_is_none() -> None:
    assert CodeTests(("1",), ("1",), "").function is None


@pytest.mark.parametrize(
    ("source", "kind", "says"),
    [
        ("def add(a, b): return a", "wrong_answer", "it returned [1, 2], expected [4, 5]"),
        ("def add(a, b): return {1}", "runtime_error", "TypeError"),
        ("def add(a): return a", "runtime_error", "TypeError"),
        ("def other(a, b): return a", "runtime_error", "NameError: no function add"),
        ("import os\nos._exit(0)", "runtime_error", "it ended before 'add' returned"),
        ("def add(a, b):\n    import os\n    os._exit(0)", "runtime_error", "it ended before"),
        ("import sys\nsys.exit()", "runtime_error", "it ended before 'add' returned"),
        ("def add(a, b): raise SystemExit", "runtime_error", "it ended before 'add' returned"),
        ("def add(a, b): print('[4, 5]')", "wrong_answer", "it returned null"),
        ("x = []\nx.append(x)\ndef add(a, b): return x", "runtime_error", "ValueError"),
    ],
)
def test_functions_that_fail(source: str, kind: str, says: str) -> None:
    grade = grade_code(block(source), ADDED)
    assert (grade.correct, grade.error) == (False, kind), grade
    assert grade.reason is not None and says.replace("'", "") in grade.reason.replace("'", "")


def test_what_was_not_returned_cannot_be_made_up() -> None:
    """The expected outputs are not in the program's process, and a result is only ever data."""
    source = """
import os, sys, gc
seen = [str(x) for x in gc.get_objects() if isinstance(x, (str, dict))]
found = any("secret-of-" + "the-test" in x for x in seen + list(os.environ.values()) + sys.argv)
for fd in range(64):
    try:
        os.write(fd, b'"secret"\\n{"correct": true}\\n')
    except OSError:
        pass
print("found" if found else "nothing")
"""
    grade = grade_code(block(source), CodeTests(("1",), ("secret-of-" + "the-test",)))
    assert grade.error == "wrong_answer" and "nothing" in (grade.reason or "")


def test_time_for_all_tests_together() -> None:
    tests = CodeTests(("",) * 100, ("",) * 100)
    grade = grade_code(
        block("import time; time.sleep(0.3)"), tests, limits=Limits(total_seconds=1.0)
    )
    assert grade.error == "timeout"


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\na\n```\n```python\nb\n```", "b"),
        ("```python\na\n```\n```\nb\n```", "a"),
        ("```\na\n```\n```\nb\n```", "b"),
        ("```py\na\n```\n```text\nb\n```", "a"),
        ("```Python3\na\n```", "a"),
        ("````python\na\n````", "a"),
        ("  ```python\n  a\n    b\n  ```", "a\n  b"),
        ("~~~python\na\n~~~", "a"),
        ("```python\na\n\n```python\nb\n```", "b"),
        ("```python\na = '`' + \"```x```\"\n```", "a = '`' + \"```x```\""),
        ("<think>```python\na\n```</think>\n```python\nb\n```", "b"),
    ],
)
def test_the_last_block_of_python(response: str, program: str) -> None:
    assert last_program(response) == program


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        ("print(2)", "no_answer"),
        ("", "no_answer"),
        ("```python\n\n```", "no_answer"),
        ("```c++\nint x;\n```", "no_answer"),
        ("```python\nprint(2)", "unclosed_block"),
        ("```python\nprint(1)\n```\n```python\nprint(2)", "unclosed_block"),
        ("```" + "a" * 1_000_000 + "`", "no_answer"),
        ("`" * 1_000_000, "unclosed_block"),
        ("```\n" * 250_001, "unclosed_block"),
    ],
)
def test_no_program(response: str, kind: str) -> None:
    grade = grade_code(response, CodeTests(("1",), ("2",)))
    assert (grade.correct, grade.error, grade.answer) == (False, kind, None)
    assert grade.reason


@pytest.mark.parametrize(
    ("printed", "wanted", "same"),
    [
        ("1 2\n3\n", "1 2\n3", True),
        ("  1 2  \n3", "1 2\n3", True),
        ("1\r\n2\r\n", "1\n2", True),
        ("1.0 2", "1 2.00", True),
        ("1e3", "1000", True),
        ("yes", "yes", True),
        ("", "\n", True),
        ("1 2", "1  2", True),
        ("a b", "a  b", False),
        ("YES", "yes", False),
        ("0.333", "0.3333", False),
        ("1.0000001", "1", False),
        ("1 2", "1\n2", False),
        ("1", "1\n1", False),
        ("1\n\n2", "1\n2", False),
        ("nan", "NaN", False),
        ("sNaN", "1", False),
        ("50000000000000000", "50000000000000001", False),
        ("1e999999999", "2", False),
    ],
)
def test_outputs_are_compared_line_by_line(printed: str, wanted: str, same: bool) -> None:
    assert same_output(printed, wanted) is same


def test_tests_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="expected as many inputs as outputs, at least one, got 0"):
        CodeTests((), ())
    with pytest.raises(ValueError, match="got 2 and 1"):
        CodeTests(("1", "2"), ("1",))
    with pytest.raises(ValueError, match="expected the name of a function, got 'a b'"):
        CodeTests(("1",), ("1",), "a b")
    with pytest.raises(ValueError, match="expected JSON in test 2 of 'f', got 'oops'"):
        CodeTests(("1", "2\noops"), ("1", "2"), "f")
