"""Grading a program against its tests, as LiveCodeBench does."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from stepflow_tl.tasks.base import Grade
from stepflow_tl.tasks.grading.reading import Response, parts_of, passed, refused, shown
from stepflow_tl.tasks.grading.running import Limits, Ran, run_program

_FENCE = "```"
_PYTHON = ("python", "python3", "py")
_LIMITS = Limits()
_SAYS = {
    "timeout": "it did not end in time",
    "output_limit": "it printed more than {limits.output_bytes} bytes",
    "file_limit": "its files hold more than {limits.file_bytes} bytes",
    "out_of_memory": "it needs more than {limits.memory_mb} MB",
    "runtime_error": "it failed",
}

__all__ = ["CodeTests", "Limits", "grade_code"]


@dataclass(frozen=True)
class CodeTests:
    """The tests of one problem.

    Attributes:
        inputs: Standard input of each test; with a function, its arguments as JSON, one on a line.
        outputs: What must be printed; with a function, what it must return, as JSON.
        function: The method of the program's `Solution`, or its function, to call; None where
            the program reads standard input.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    function: str | None = None

    def __post_init__(self) -> None:
        """Check the tests.

        Raises:
            ValueError: There is none, inputs and outputs do not pair, the function is no name, or
                what should be JSON is not.
        """
        if not self.inputs or len(self.inputs) != len(self.outputs):
            raise ValueError(
                f"expected as many inputs as outputs, at least one, got {len(self.inputs)} and "
                f"{len(self.outputs)}"
            )
        if self.function is None:
            return
        if not self.function.isidentifier():
            raise ValueError(f"expected the name of a function, got {self.function!r}")
        for number, (given, wanted) in enumerate(zip(self.inputs, self.outputs, strict=True), 1):
            for text in (*(line for line in given.split("\n") if line.strip()), wanted):
                try:
                    json.loads(text)
                except ValueError:
                    raise ValueError(
                        f"expected JSON in test {number} of {self.function!r}, got {shown(text)}"
                    ) from None


def grade_code(response: Response, tests: CodeTests, *, limits: Limits = _LIMITS) -> Grade:
    """Run a response's last Python block against its tests, until one fails.

    This runs what a model wrote, with the protections that `running` describes and nothing
    more; a task does so only where it was asked to by `allow_code_execution`.

    Output is compared as LiveCodeBench does: line by line without white space around the lines
    and the whole; a line that differs as text must be the same decimal numbers one by one,
    exactly (1.0 is 1, 0.333 is not 0.3333; there is no tolerance). A returned value must equal
    the expected one as JSON, tuples as lists. As there, programs find common names imported
    (`List`, `math`, `deque`, ...), `sys.exit` ends a test well, and the exit status is the
    program's own. The expected outputs never enter the program's process.

    Args:
        response: Whatever the model wrote, or its parts: the answer is read, the thinking only
            where no answer follows it. The last block labelled Python counts, or without
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
    in_thinking = _FENCE in parts.thinking and _FENCE not in parts.answer
    source = last_program(parts.thinking if in_thinking else parts.answer or parts.thinking)
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
    where = parts.of(True).rstrip(",") if in_thinking else ""
    said = f"it passed {count} of {count} tests"
    return passed(f"{said}, as the program{where}" if where else said, source)


def last_program(response: str) -> str | Grade:
    """The last closed block of Python in a response; a grade where there is none.

    A labelled fence always opens a block, for models forget to close one before.
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
                blocks[opened[0] != ""] = "\n".join(opened[1])
            opened = None
    if opened is not None and opened[0] in ("", *_PYTHON):
        return refused("unclosed_block", "the last block of code was never closed")
    program = blocks.get(True, blocks.get(False, ""))
    return program if program.strip() else refused("no_answer", "no Python code in the response")


def _fence(line: str) -> str | None:
    """The label of a fence, "" without one; None for any other line."""
    line = line.strip()
    label = line.lstrip("`")
    if len(line) - len(label) < 3 or "`" in label:
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
    if result[0] == json.loads(wanted):
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
        return None if text is None else (json.loads(text),)
    except (ValueError, RecursionError):
        return None


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_decimals(line: str, other: str) -> bool:
    try:
        return [Decimal(word) for word in line.split()] == [Decimal(w) for w in other.split()]
    except InvalidOperation:  # no number, or not one that compares
        return False
