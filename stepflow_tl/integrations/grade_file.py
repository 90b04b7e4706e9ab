"""Grades other people's outputs, and compares the verdicts with the scores that came with them.

A file has a row per answer: the response, the right answer, the kind of both, and, if there is one,
the score that somebody else gave. So a grader can be held against another, one difference at a
time.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stepflow_tl.analysis import proportion
from stepflow_tl.errors import BenchmarkError
from stepflow_tl.tasks import grading
from stepflow_tl.tasks.base import Grade
from stepflow_tl.tasks.records import LETTERS
from stepflow_tl.tasks.sources import KINDS
from stepflow_tl.tasks.tables import cell, rows_of_file, shown

_RIGHT = {"true": True, "correct": True, "right": True, "yes": True}
_WRONG = {"false": False, "incorrect": False, "wrong": False, "no": False}


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Where a row holds what; ``resps.0.0`` goes into lists and objects.

    Attributes:
        response: What the model wrote.
        gold: The right answer; of code the tests: ``{"inputs": [...], "outputs": [...]}``, and
            "function" where one is called.
        kind: "math", "number", "choice" or "code".
        score: Whether it was right to somebody else: true, false, or a number, of which a half and
            more is right.
        options: How many options a choice has; 26 where a row does not say.
    """

    response: str = "response"
    gold: str = "gold"
    kind: str = "kind"
    score: str = "score"
    options: str = "options"


@dataclass(frozen=True, kw_only=True)
class Audited:
    """One row, graded.

    Attributes:
        row: Its number.
        kind: How it was graded.
        gold: Its right answer.
        grade: The verdict.
        score: Whether it was right to somebody else; None where nobody said.
    """

    row: int
    kind: str
    gold: Any
    grade: Grade
    score: bool | None

    @property
    def disagrees(self) -> bool:
        """Whether verdict and score differ."""
        return self.score is not None and self.score != self.grade.correct

    def as_json(self) -> dict[str, Any]:
        """The row as JSON."""
        verdict = self.grade._asdict()
        del verdict["error_step"]
        return {
            "row": self.row,
            "kind": self.kind,
            "gold": self.gold,
            "score": self.score,
        } | verdict


@dataclass(frozen=True)
class Audit:
    """All rows of a file, graded.

    Attributes:
        rows: Those that were graded, in order.
        skipped: What was wrong with those that were not.
    """

    rows: tuple[Audited, ...]
    skipped: tuple[str, ...] = ()

    @property
    def disagreements(self) -> tuple[Audited, ...]:
        """Where verdict and score differ: accepted here and refused there first."""
        differ = (row for row in self.rows if row.disagrees)
        return tuple(sorted(differ, key=lambda row: (not row.grade.correct, row.row)))

    def text(self, limit: int | None = 20) -> str:
        """What a reader wants to know, disagreements first; untrusted text is quoted.

        Args:
            limit: How many disagreements are shown; None for all.
        """
        lines = []
        differ = self.disagreements
        for row in differ[:limit]:
            lines += [*_told(row), ""]
        if len(differ) > len(differ[:limit]):
            lines += [f"... and {len(differ) - len(differ[:limit])} more disagreements", ""]
        return "\n".join(lines + self._summary())

    def _summary(self) -> list[str]:
        scored = [row for row in self.rows if row.score is not None]
        lines = []
        if scored:
            agreed = len(scored) - len(self.disagreements)
            only = Counter(row.grade.correct for row in self.disagreements)
            lines.append(
                f"agreement with the stored score: {agreed} of {len(scored)}, "
                f"{proportion(agreed, len(scored))}; right only here: {only[True]}, "
                f"right only there: {only[False]}"
            )
        else:
            lines.append("no row has a stored score")
        for kind in sorted({row.kind for row in self.rows}):
            grades = [row.grade for row in self.rows if row.kind == kind]
            right = sum(grade.correct for grade in grades)
            lines.append(
                f"{kind}: right {right} of {len(grades)}, {proportion(right, len(grades))}"
            )
            rules = Counter((not grade.correct, grade.rule or "") for grade in grades)
            lines += [
                f"  {'wrong' if wrong else 'right'} {count:5}  {rule}"
                for (wrong, rule), count in sorted(
                    rules.items(), key=lambda each: (each[0][0], -each[1], each[0][1])
                )
            ]
        if self.skipped:
            lines.append(f"skipped {len(self.skipped)} rows: {'; '.join(self.skipped[:5])}")
        return lines


def audit_file(
    path: str | Path,
    *,
    kind: str | None = None,
    fields: Fields | None = None,
    allow_code_execution: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
) -> Audit:
    """Grade every row of a file.

    Args:
        path: JSON lines, JSON, CSV or Parquet.
        kind: How all rows are graded; None where each says it.
        fields: Where rows hold what; None for the names "response", "gold", "kind", "score" and
            "options".
        allow_code_execution: Whether rows of code may be run.
        on_error: "skip" to leave out, count and name rows that cannot be graded.

    Raises:
        FileNotFoundError: There is no such file.
        BenchmarkError: A row cannot be graded; it says which, what was expected and what came.
        ImportError: The extra ``eval`` is not installed, which mathematics needs.
        RuntimeError: This machine has not what programs are guarded with.
    """
    if on_error not in ("raise", "skip"):
        raise BenchmarkError(f"expected on_error 'raise' or 'skip', got {on_error!r}")
    if kind is not None and kind not in KINDS:
        raise BenchmarkError(f"expected kind to be one of {list(KINDS)}, got {kind!r}")
    skipped: list[str] = []
    skip = skipped.append if on_error == "skip" else None
    found = []
    for number, row in rows_of_file(path, skip):
        try:
            found.append(_audited(number, row, kind, fields or Fields(), allow_code_execution))
        except ValueError as error:
            message = f"{Path(path).name}, row {number}: {error}"
            if skip is None:
                raise BenchmarkError(message) from None
            skip(message)
    if not found:
        raise BenchmarkError(f"{Path(path).name}: expected rows to grade, found none")
    return Audit(tuple(found), tuple(skipped))


def _audited(
    number: int, row: Mapping[str, Any], kind: str | None, fields: Fields, may_run: bool
) -> Audited:
    response = cell(row, fields.response)
    if not isinstance(response, str):
        raise BenchmarkError(f"expected text in {fields.response!r}, got {shown(response, 60)}")
    gold = cell(row, fields.gold)
    how = kind if kind is not None else cell(row, fields.kind)
    if how not in KINDS:
        raise BenchmarkError(f"expected kind to be one of {list(KINDS)}, got {shown(how, 60)}")
    if how == "code":
        if not may_run:
            raise BenchmarkError(
                "grading code runs what the model wrote: expected --allow-code-execution, on a "
                "machine where that does no harm"
            )
        grade = grading.grade_code(response, _tests(gold, fields.gold))
    else:
        right = str(gold) if isinstance(gold, int | float) and not isinstance(gold, bool) else gold
        if not isinstance(right, str):
            raise BenchmarkError(f"expected text in {fields.gold!r}, got {shown(gold, 60)}")
        if how == "math":
            grade = grading.grade_math(response, right)
        elif how == "number":
            grade = grading.grade_number(response, right.rpartition("####")[2])
        else:
            grade = grading.grade_choice(
                response, right.strip(" ().").upper(), _options(row, fields)
            )
    return Audited(row=number, kind=str(how), gold=gold, grade=grade, score=_score(row, fields))


def _tests(gold: Any, name: str) -> grading.CodeTests:
    tests = json.loads(gold) if isinstance(gold, str) else gold
    if not isinstance(tests, Mapping) or not all(
        isinstance(tests.get(each), list) and all(isinstance(text, str) for text in tests[each])
        for each in ("inputs", "outputs")
    ):
        raise BenchmarkError(
            f"expected tests such as {{'inputs': ['1'], 'outputs': ['2']}} in {name!r}, got "
            f"{shown(gold, 60)}"
        )
    return grading.CodeTests(
        inputs=tuple(tests["inputs"]),
        outputs=tuple(tests["outputs"]),
        function=tests.get("function"),
    )


def _options(row: Mapping[str, Any], fields: Fields) -> int:
    options = cell(row, fields.options, missing=len(LETTERS))
    if isinstance(options, list):
        return len(options)
    if isinstance(options, int) and not isinstance(options, bool):
        return options
    raise BenchmarkError(f"expected a number or a list in {fields.options!r}, got {shown(options)}")


def _score(row: Mapping[str, Any], fields: Fields) -> bool | None:
    score = cell(row, fields.score, missing=None)
    if score is None or isinstance(score, bool):
        return score
    if isinstance(score, str):
        said = score.strip().lower()
        if said in _RIGHT or said in _WRONG:
            return said in _RIGHT
        score = _as_number(score)
    if not isinstance(score, int | float) or score != score:
        raise BenchmarkError(
            f"expected true, false or a number in {fields.score!r}, got {shown(score, 60)}"
        )
    return score >= 0.5


def _as_number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _told(row: Audited) -> Iterator[str]:
    """The lines about one disagreement."""
    words = {True: "right", False: "wrong"}
    assert row.score is not None
    yield (f"row {row.row} ({row.kind}): {words[row.grade.correct]} here, {words[row.score]} there")
    yield f"  gold     {shown(row.gold)}"
    yield f"  answer   {'none' if row.grade.answer is None else shown(row.grade.answer)}"
    if row.grade.read_as not in (None, row.grade.answer):
        yield f"  read as  {shown(row.grade.read_as)}"
    yield f"  because  {shown(row.grade.reason or '', 400)}"
