"""Rows of a benchmark into questions and right answers, checked one by one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from stepflow_tl.errors import BenchmarkError
from stepflow_tl.tasks.base import Item
from stepflow_tl.tasks.code_tests import read_tests
from stepflow_tl.tasks.sources import Columns, Kind
from stepflow_tl.tasks.tables import Row, Skip, check_columns, shown

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTERED = re.compile(r"\(?([A-Z])\s*[).:]\s*(\S.*)", re.DOTALL)
_NUMBER = re.compile(r"[-+]?[$]?(\d[\d,]*)?(\.\d+)?%?")


@dataclass(frozen=True)
class Record:
    """One row of a benchmark.

    Attributes:
        item: Its question; the key is of the options and of the starting code, too.
        gold: The right answer; of a choice, the right option; of code, nothing.
        row: Its number.
        options: All options, in a fixed order.
        is_lettered: Whether the options came with letters of their own, which they keep.
        starter: Code to begin with.
        tests: Cells that hold tests, as they came.
        function: What functional tests call.
    """

    item: Item
    gold: str
    row: int
    options: tuple[str, ...] = ()
    is_lettered: bool = False
    starter: str | None = None
    tests: tuple[str, ...] = ()
    function: str | None = None


def records_of(
    rows: Iterable[tuple[int, Row]],
    columns: Columns,
    kind: Kind,
    name: str,
    check: Callable[[Record], None],
    skip: Skip | None = None,
) -> Iterator[Record]:
    """The records of a benchmark's rows.

    Args:
        rows: Numbered rows.
        columns: Which column holds what.
        kind: How answers are graded.
        name: Of the benchmark, for its errors and as a group.
        check: Refuses a record whose right answer is none.
        skip: What is told of a row that is not what it should be, which is left out then; None to
            refuse it.

    Raises:
        BenchmarkError: A row is not what it should be; it says which, what was expected and what
            came.
    """
    for number, row in rows:
        where = f"{name}, row {number}"
        try:
            check_columns(row, columns.needed)
            record = _record(row, number, columns, kind, name)
            check(record)
        except BenchmarkError as error:
            if skip is None:
                raise BenchmarkError(f"{where}: {error}") from None
            skip(f"{where}: {error}")
            continue
        yield record


def check_tests(record: Record, name: str) -> None:
    """Refuse a record whose tests cannot be read.

    Raises:
        BenchmarkError: They cannot; it says why.
    """
    try:
        read_tests(record.tests, record.function)
    except BenchmarkError as error:
        raise BenchmarkError(f"{name}, row {record.row}: {error}") from None


def _record(row: Row, number: int, columns: Columns, kind: Kind, name: str) -> Record:
    question = _text(row, columns.question)
    options: tuple[str, ...] = ()
    starter, gold, is_lettered = None, "", False
    if kind == "choice":
        options, gold, is_lettered = _options(row, columns)
    elif kind == "code":
        starter = _maybe(row, columns.starter, strip=False)
    else:
        gold = _answer(row, columns, kind)
    identity = "\0".join((question, *options, *(() if starter is None else (starter,))))
    item = Item(Item.of(identity, "").key, question, _group(row, columns.group, name))
    return Record(
        item=item,
        gold=gold,
        row=number,
        options=options,
        is_lettered=is_lettered,
        starter=starter,
        tests=tuple(cell for c in columns.tests if (cell := _maybe(row, c)) is not None),
        function=_function(row, columns),
    )


def _answer(row: Row, columns: Columns, kind: Kind) -> str:
    assert columns.answer is not None
    text = _text(row, columns.answer)
    marker = columns.marker or ("####" if kind == "number" else None)
    if columns.marker and columns.marker not in text:
        raise BenchmarkError(
            f"expected the answer after {columns.marker} in {columns.answer!r}, got "
            f"{shown(text, 60)!r}"
        )
    if marker is not None:
        text = text.rpartition(marker)[2].strip()
    is_number = _NUMBER.fullmatch(text) and re.search(r"\d", text)
    if kind == "number" and not is_number:
        raise BenchmarkError(
            f"expected a number such as 1,234.5 in {columns.answer!r}, got {shown(text, 60)!r}"
        )
    return text


def _options(row: Row, columns: Columns) -> tuple[tuple[str, ...], str, bool]:
    """All options, the right one, and whether they came with letters of their own."""
    assert columns.answer is not None
    if columns.options is None:
        gold = _text(row, columns.answer)
        wrong = tuple(_text(row, name) for name in columns.wrong)
        if gold in wrong:
            raise BenchmarkError(f"expected wrong options, found the right one among them: {gold}")
        return (gold, *wrong), gold, False
    given = row[columns.options]
    if isinstance(given, str):
        given = _json(given, columns.options)
    if not isinstance(given, list) or not 2 <= len(given) <= len(LETTERS):
        raise BenchmarkError(
            f"expected a list of 2 to {len(LETTERS)} options in {columns.options!r}, got "
            f"{shown(given, 60)}"
        )
    options = tuple(_text({columns.options: option}, columns.options) for option in given)
    lettered = [_LETTERED.fullmatch(option) for option in options]
    is_lettered = [m and m[1] for m in lettered] == list(LETTERS[: len(options)])
    if is_lettered:
        options = tuple(match[2] for match in lettered if match is not None)
    letters = LETTERS[: len(options)]
    letter = _text(row, columns.answer)
    if len(letter) != 1 or letter.upper() not in letters:
        raise BenchmarkError(
            f"expected the letter of one of {len(options)} options, {letters[0]} to {letters[-1]}, "
            f"in {columns.answer!r}, got {shown(letter, 60)!r}"
        )
    gold = options[letters.index(letter.upper())]
    if len(set(options)) < len(options):
        raise BenchmarkError(f"expected different options, got {shown(options, 80)}")
    return options, gold, is_lettered


def _group(row: Row, column: str | None, name: str) -> str:
    text = _maybe(row, column)
    if text is None:
        return name
    return f"{column} {text}" if text.isdigit() else text


def _function(row: Row, columns: Columns) -> str | None:
    text = _maybe(row, columns.metadata)
    if text is None:
        return None
    facts = _json(text, str(columns.metadata))
    function = facts.get("func_name") if isinstance(facts, dict) else None
    if function == "":
        return None  # as a program that reads its input
    if function is not None and not (isinstance(function, str) and function.isidentifier()):
        raise BenchmarkError(f"expected a function's name as func_name, got {shown(function, 60)}")
    return function


def _json(text: str, column: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BenchmarkError(f"expected JSON in {column!r}, got {shown(text, 60)!r}") from None


def _maybe(row: Row, column: str | None, *, strip: bool = True) -> str | None:
    """A cell's text where there is any."""
    value = None if column is None else row.get(column)
    if column is None or value is None or (isinstance(value, str) and not value.strip()):
        return None
    return _text(row, column, strip=strip)


def _text(row: Row, column: str, *, strip: bool = True) -> str:
    value = row[column]
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and math.isfinite(value):
        value = str(value)
    if not isinstance(value, str):
        raise BenchmarkError(f"expected text in {column!r}, got {shown(value, 60)}")
    if not value.strip():
        raise BenchmarkError(f"expected text in {column!r}, got an empty cell")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BenchmarkError(
            f"expected Unicode text in {column!r}, got half a surrogate pair in {shown(value, 60)}"
        ) from None
    return value.strip() if strip else value
