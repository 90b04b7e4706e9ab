"""Tests of programming problems, as LiveCodeBench keeps them; read without ever unpickling.

Its private tests are base64 of zlib of a pickle, which would run whatever it likes when loaded. The
pickle holds one string, and is read here as just that: opcode by opcode, nothing executed.
"""

from __future__ import annotations

import base64
import json
import pickletools
import zlib
from collections.abc import Sequence
from typing import Any

from stepflow_tl.errors import BenchmarkError
from stepflow_tl.tasks.tables import shown

LARGEST_TESTS = 1 << 30
"""Bytes that the tests of one problem may take once decompressed."""

_TEXT = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_HARMLESS = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP"}


def read_tests(
    columns: Sequence[str], function: str | None
) -> tuple[tuple[str, ...], tuple[str, ...], str | None]:
    """Inputs and outputs of all tests, and the function they call.

    Args:
        columns: The cells that hold tests.
        function: The function that functional tests call.

    Returns:
        Inputs, outputs, and the function's name; None where the tests are fed to a program, as
        they are without a function, too.

    Raises:
        BenchmarkError: A cell holds something else, there is no test, or tests of both kinds.
    """
    tests = [_checked(test) for cell in columns for test in _listed(cell)]
    kinds = {test.get("testtype", "functional" if function else "stdin") for test in tests}
    if len(kinds) != 1 or not kinds <= {"stdin", "functional"}:
        raise BenchmarkError(
            f"expected tests, all of one testtype, stdin or functional, got {len(tests)} of "
            f"{shown(sorted(map(str, kinds)))}"
        )
    called = function or None if kinds == {"functional"} else None
    return tuple(t["input"] for t in tests), tuple(t["output"] for t in tests), called


def pickled_text(data: bytes) -> str:
    """The string in a pickle that holds one string and nothing else.

    Nothing is unpickled: the opcodes are only read.

    Raises:
        BenchmarkError: It holds anything else.
    """
    found: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in _TEXT:
                found.append(str(argument))
            elif opcode.name not in _HARMLESS:
                raise BenchmarkError(
                    f"refused a pickle with the opcode {opcode.name}: expected one string, which "
                    f"needs no such thing; tests are never unpickled"
                )
    except BenchmarkError:
        raise
    except Exception as error:  # whatever a broken stream makes pickletools raise
        raise BenchmarkError(
            f"expected a pickle of one string, got something else: {shown(str(error))}"
        ) from None
    if len(found) != 1:
        raise BenchmarkError(f"expected a pickle of one string, found {len(found)} in it")
    return found[0]


def _listed(cell: str) -> list[Any]:
    text = cell if cell.lstrip()[:1] in ("[", "") else pickled_text(_decompressed(cell))
    if not text.strip():
        return []
    try:
        tests = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BenchmarkError(f"expected tests as JSON, got {shown(text, 60)!r}: {error}") from None
    if not isinstance(tests, list):
        raise BenchmarkError(f"expected a list of tests, got {shown(tests, 60)}")
    return tests


def _decompressed(cell: str) -> bytes:
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(cell.encode(), validate=True), LARGEST_TESTS)
    except (ValueError, zlib.error) as error:
        raise BenchmarkError(
            f"expected tests as JSON, or compressed as LiveCodeBench does, got "
            f"{shown(cell, 60)!r}: {shown(str(error))}"
        ) from None
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise BenchmarkError(
            f"expected whole tests of at most {LARGEST_TESTS} bytes, got more, or a cut end"
        )
    return data


def _checked(test: Any) -> dict[str, str]:
    if not isinstance(test, dict) or not all(
        isinstance(test.get(name), str) for name in ("input", "output")
    ):
        raise BenchmarkError(
            f"expected tests such as {{'input': '1', 'output': '2'}}, got {shown(test, 60)}"
        )
    return test
