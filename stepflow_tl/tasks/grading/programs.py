"""Grading a program against its tests, as LiveCodeBench does."""

from __future__ import annotations

import json
import textwrap
import time
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from stepflow_tl.errors import SettingError
from stepflow_tl.tasks.base import Grade
from stepflow_tl.tasks.grading.reading import Response, parts_of, passed, refused, shown
from stepflow_tl.tasks.grading.running import Limits, Ran, run_program
from stepflow_tl.traces.answers import ResponseParts

_FENCES = ("```", "~~~")
_PYTHON = ("python", "python3", "py")
_LIMITS = Limits()
_LONGEST_INT = 4000  # digits
_SAYS = {
    "timeout": "it did not end in time",
    "output_limit": "it printed more than {limits.output_bytes} bytes",
    "file_limit": "its files hold more than {limits.file_bytes} bytes",
    "out_of_memory": "it needs more than {limits.memory_mb} MB",
    "runtime_error": "it failed",
}

__all__ = ["Behavior", "CodeTests", "Limits", "grade_code"]


@dataclass(frozen=True)
class CodeTests:
    """The tests of one problem.

    Attributes:
        inputs: Standard input of each test; with a function, its arguments as JSON, one on a line.
        outputs: What must be printed; with a function, what it must return, as JSON.
        function: The method of the program's `Solution`, or its function, to call; None where
            (or empty, as some files have it) the program reads standard input.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    function: str | None = None

    def __post_init__(self) -> None:
        """Check the tests.

        Raises:
            ValueError: There is none, inputs and outputs do not pair, the function is no name,
                what should be JSON is not, or a NaN is expected, which equals nothing.
        """
        if self.function == "":
            object.__setattr__(self, "function", None)
        if not self.inputs or len(self.inputs) != len(self.outputs):
            raise SettingError(
                f"expected as many inputs as outputs, at least one, got {len(self.inputs)} and "
                f"{len(self.outputs)}"
            )
        if self.function is None:
            return
        if not self.function.isidentifier():
            raise SettingError(f"expected the name of a function, got {self.function!r}")
        for number, (given, wanted) in enumerate(zip(self.inputs, self.outputs, strict=True), 1):
            for text in (*(line for line in given.split("\n") if line.strip()), wanted):
                try:
                    _loaded(text)
                except (ValueError, RecursionError):
                    raise SettingError(
                        f"expected JSON in test {number} of {self.function!r}, got {shown(text)}"
                    ) from None
            if "NaN" in wanted and _loaded(wanted) != _loaded(wanted):
                raise SettingError(
                    f"expected a result in test {number} of {self.function!r} that a program can "
                    f"return, got {shown(wanted)}: NaN equals nothing"
                )


def grade_code(response: Response, tests: CodeTests, *, limits: Limits = _LIMITS) -> Grade:
    """Run a response's last Python block against its tests, until one fails.

    This runs what a model wrote, with the protections that `running` describes and nothing
    more; a task does so only where it was asked to by `allow_code_execution`.

    Output is compared as LiveCodeBench does: line by line without white space around the lines
    and the whole; a line that differs as text must be the same decimal numbers one by one,
    exactly (1.0 is 1, 0.333 is not 0.3333; there is no tolerance). A returned value must equal
    the expected one as JSON; as there, a tuple is taken for a list, but not within another value,
    and here numbers and arrays of numpy are plain ones. Programs find common names imported
    (`List`, `math`, `deque`, ...), `exit`, `quit` and `sys.exit` end a test well, and the exit
    status is the program's own; one whose function is called is imported, so that its main block
    does not run. Integers have any length, and lines may end in CRLF. The expected outputs never
    enter the program's process.

    Args:
        response: Whatever the model wrote, or its parts: the answer is read, the thinking only
            where no answer follows it. The last block labeled Python counts, or without
            any the last without a label; a block that was never closed does not.
        tests: What the program must do.
        limits: What it may use.

    Returns:
        The verdict; its answer is the program. Its kind of error is one of "no_answer",
        "unclosed_block", "wrong_answer", "timeout", "runtime_error", "out_of_memory",
        "output_limit", "file_limit".

    Raises:
        RuntimeError: The protections cannot be had on this system; nothing was run.
    """
    parts = parts_of(response)
    source = _source(parts)
    if isinstance(source, Grade):
        return source
    end = time.monotonic() + limits.total_seconds
    count = len(tests.inputs)
    for number, (given, wanted) in enumerate(zip(tests.inputs, tests.outputs, strict=True), 1):
        at = f"test {number} of {count}: "
        left = end - time.monotonic()
        if left <= 0:
            reason = f"{at}all tests together took over {limits.total_seconds:g} s"
            return refused("timeout", reason, source)
        allowed = Limits(**{**vars(limits), "seconds": min(limits.seconds, left)})
        ran = run_program(source, given, tests.function, allowed)
        failed = _failure(ran, wanted, tests.function, limits)
        if failed is not None:
            return refused(failed[0], at + failed[1], source)
    where = parts.of(True).rstrip(",") if _in_thinking(parts) else ""
    said = f"it passed {count} of {count} tests"
    reason = f"{said}, as the program{where}" if where else said
    return passed(reason, source, read_as=source, rule="the tests")


class Behavior:
    """Programs by what they do on examples: their outputs, which are not compared with any.

    A program runs once, however often it is asked for.
    """

    def __init__(self, tests: CodeTests, *, limits: Limits = _LIMITS) -> None:
        """Take the examples.

        Args:
            tests: Their inputs; what is expected of them is not looked at.
            limits: What a program may use.
        """
        self._tests, self._limits = tests, limits
        self._seen: dict[str, tuple[Any, ...] | None] = {}

    def program(self, response: Response) -> str | None:
        """A response's program; None where it has none, or one that fails on an example."""
        source = _source(parts_of(response))
        return None if isinstance(source, Grade) or self.of(source) is None else source

    def same(self, first: str, second: str) -> bool:
        """Whether two programs do the same on all examples."""
        if first == second:
            return True
        one, two = self.of(first), self.of(second)
        return one is not None and one == two

    def of(self, source: str) -> tuple[Any, ...] | None:
        """What a program prints or returns on each example; None where it fails on one."""
        if source not in self._seen:
            self._seen[source] = self._run(source)
        return self._seen[source]

    def _run(self, source: str) -> tuple[Any, ...] | None:
        done: list[Any] = []
        for given in self._tests.inputs:
            ran = run_program(source, given, self._tests.function, self._limits)
            result = _as_json(ran.result)
            if ran.error is not None or (self._tests.function is not None and result is None):
                return None
            printed = [_decimals(line) or line for line in _lines(ran.output)]
            done.append(printed if self._tests.function is None else result)
        return tuple(done)


def _source(parts: ResponseParts) -> str | Grade:
    """The program that counts: the answer's; the thinking's only where no answer has one."""
    in_thinking = _in_thinking(parts)
    return last_program(parts.thinking if in_thinking else parts.answer or parts.thinking)


def _in_thinking(parts: ResponseParts) -> bool:
    return any(fence in parts.thinking for fence in _FENCES) and not any(
        fence in parts.answer for fence in _FENCES
    )


def last_program(response: str) -> str | Grade:
    """The last closed block of Python in a response; a grade where there is none.

    A labeled fence always opens a block, for models forget to close one before.
    """
    blocks: dict[bool, str] = {}
    opened: tuple[str, list[str]] | None = None
    for line in response.split("\n"):
        label = _fence(line)
        if label is None:
            if opened is not None:
                opened[1].append(line)
        elif opened is None or label:
            opened = (label, [])
        else:
            if opened[0] in ("", *_PYTHON):
                blocks[opened[0] != ""] = textwrap.dedent("\n".join(opened[1]))
            opened = None
    if opened is not None and opened[0] in ("", *_PYTHON):
        return refused("unclosed_block", "the last block of code was never closed")
    program = blocks.get(True, blocks.get(False, ""))
    return program if program.strip() else refused("no_answer", "no Python code in the response")


def _fence(line: str) -> str | None:
    """The label of a fence, "" without one; None for any other line."""
    line = line.strip()
    sign = line[:1]
    label = line.lstrip(sign) if sign in ("`", "~") else line
    if len(line) - len(label) < 3 or sign in label:
        return None
    return (label.split() or [""])[0].lower()


def same_output(printed: str, wanted: str) -> bool:
    """Whether a program's output is the expected one, as LiveCodeBench compares."""
    got, right = _lines(printed), _lines(wanted)
    return len(got) == len(right) and all(
        a == b or _same_decimals(a, b) for a, b in zip(got, right, strict=True)
    )


def _failure(ran: Ran, wanted: str, function: str | None, limits: Limits) -> tuple[str, str] | None:
    """The kind of failure and what it was; None for a test that was passed."""
    if ran.error is not None:
        says = _SAYS[ran.error].format(limits=limits)
        return ran.error, says + (f": {shown(ran.complaint, 200)}" if ran.complaint else "")
    if function is None:
        if same_output(ran.output, wanted):
            return None
        return "wrong_answer", _differs("it printed", ran.output.strip(), wanted.strip())
    result = _as_json(ran.result)
    if result is None:
        return "runtime_error", f"it ended before {function!r} returned"
    if result[0] == _loaded(wanted):
        return None
    return "wrong_answer", _differs("it returned", ran.result or "", wanted)


def _differs(did: str, got: str, wanted: str) -> str:
    """Both texts, from shortly before the place where they part."""
    pairs = enumerate(zip(got, wanted, strict=False))
    apart = next((i for i, (a, b) in pairs if a != b), min(len(got), len(wanted)))
    start = 0 if apart < 60 else apart - 20
    where = "" if not start else f" (from character {start})"
    return f"{did} {shown(got[start:])}, expected {shown(wanted[start:])}{where}"


def _as_json(text: str | None) -> tuple[Any] | None:
    try:
        return None if text is None else (_loaded(text),)
    except (ValueError, RecursionError):
        return None


def _loaded(text: str) -> Any:
    """JSON with integers of any length, which `int` refuses beyond 4300 digits.

    Every NaN is one of its own, which equals no other.
    """
    return json.loads(text, parse_int=_whole, parse_constant=float)


def _whole(digits: str) -> int | Decimal:
    return int(digits) if len(digits) < _LONGEST_INT else Decimal(digits)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_decimals(line: str, other: str) -> bool:
    one, two = _decimals(line), _decimals(other)
    try:
        return one is not None and one == two
    except InvalidOperation:  # a signalling NaN
        return False


def _decimals(line: str) -> list[Decimal] | None:
    """The numbers that a line is; None for any other line."""
    try:
        return [Decimal(word) for word in line.split()]
    except InvalidOperation:
        return None
