"""Benchmarks as tasks: by name from the Hugging Face Hub, or from a local file."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from stepflow_tl.errors import BenchmarkError
from stepflow_tl.tasks import grading
from stepflow_tl.tasks.base import Grade, Item, Task, Vote
from stepflow_tl.tasks.code_tests import read_tests
from stepflow_tl.tasks.grading import CodeTests, check_math_gold, number_of
from stepflow_tl.tasks.prompts import Style, as_style
from stepflow_tl.tasks.records import LETTERS, Record, check_tests, records_of
from stepflow_tl.tasks.selection import Part, chosen, different, fraction
from stepflow_tl.tasks.sources import KINDS, Columns, Kind, Source, plain_columns, source_of
from stepflow_tl.tasks.tables import rows_of_file, rows_of_hub
from stepflow_tl.traces.answers import ResponseParts

_PROGRAM = "```python\nprint(1)\n```"


@dataclass(frozen=True, kw_only=True)
class Benchmark(Task):
    """A benchmark: questions with right answers, and how to grade them.

    Example::

        Benchmark(name="aime24")                                    # through `datasets`
        Benchmark(name="math500", path="math500.jsonl", n=100)      # a local file, same columns
        Benchmark(path="mine.parquet", kind="math")                 # columns question and answer

    Nothing is read before it is needed. What rows say is untrusted: it is checked, never run.

    Attributes:
        name: One of `SOURCES`, in any usual spelling; None for a file of one's own.
        path: A local file (.jsonl, .json, .csv, .parquet) to read instead of the Hub.
        kind: How answers are graded: "math", "number", "choice" or "code". Known benchmarks have
            theirs; a file of one's own needs it.
        columns: Names of columns that are called otherwise, such as ``{"question": "prompt"}``; see
            `Columns`.
        n: Only this many, chosen by the hash of their questions: the same ones in whatever order
            they come, and those of a smaller n are among those of a larger one.
        part: "calibration" for a held-out share to choose settings on, "test" for the others.
        held_out: The share that is held out. Which question is in it depends on nothing but that
            question.
        style: How the question is worded: a name of `STYLES`, a `Style`, or its settings.
        shuffle: Whether a choice's options come in another order for each seed. Options that come
            with letters of their own ("A)21", as AQuA's) keep them, and their order.
        allow_code_execution: Whether grading may run code that the model wrote.
        on_error: "raise" to refuse a file with a row that is not what it should be, or whose right
            answer no response could match; "skip" to leave such rows out, count and name them
            (`skipped`), and warn.
    """

    name: str | None = None
    path: str | Path | None = None
    kind: Kind | None = None
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    n: int | None = None
    part: Part = "all"
    held_out: float = 0.2
    style: str | Style | Mapping[str, Any] = "default"
    shuffle: bool = True
    allow_code_execution: bool = False
    on_error: Literal["raise", "skip"] = "raise"

    def __post_init__(self) -> None:
        """Check the settings; no row is read yet.

        Raises:
            BenchmarkError: No benchmark is called so, or a setting is out of range.
        """
        self._check_types()
        if self.name is None and self.path is None:
            raise BenchmarkError(
                "expected the name of a benchmark, or path= and kind=, got neither"
            )
        if self.name is not None:
            source = source_of(self.name)
            object.__setattr__(self, "name", source.name)
            if self.kind not in (None, source.kind):
                raise BenchmarkError(
                    f"expected kind={source.kind!r} or none for {source.name}, got {self.kind!r}"
                )
            object.__setattr__(self, "kind", source.kind)
        if self.kind not in KINDS:
            raise BenchmarkError(f"expected kind to be one of {list(KINDS)}, got {self.kind!r}")
        if self.part not in get_args(Part):
            raise BenchmarkError(
                f"expected part to be one of {list(get_args(Part))}, got {self.part!r}"
            )
        if self.on_error not in ("raise", "skip"):
            raise BenchmarkError(f"expected on_error 'raise' or 'skip', got {self.on_error!r}")
        if not 0.0 < self.held_out < 1.0 or (self.n is not None and self.n < 1):
            raise BenchmarkError(
                f"expected held_out between 0 and 1, and n >= 1 or none, got {self.held_out} and "
                f"{self.n}"
            )
        object.__setattr__(self, "style", as_style(self.style))
        if self.path is not None:
            object.__setattr__(self, "path", str(self.path))
        self._columns  # noqa: B018  (wrong names are refused here)

    def _check_types(self) -> None:
        for name, kinds in _TYPES.items():
            value = getattr(self, name)
            if not isinstance(value, kinds) or isinstance(value, bool) != (kinds == (bool,)):
                wanted = " or ".join(kind.__name__ for kind in kinds)
                raise BenchmarkError(f"expected {name} to be {wanted}, got {value!r}")

    @property
    def source(self) -> Source | None:
        """Where it comes from; None for a file of one's own."""
        return None if self.name is None else source_of(self.name)

    @property
    def label(self) -> str:
        """Its name, or its file's."""
        return self.name or Path(str(self.path)).stem

    @property
    def samples(self) -> int:
        """Samples per problem as in the paper; 1 for a file of one's own."""
        return 1 if self.source is None else self.source.samples

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """The questions, in their order.

        Raises:
            FileNotFoundError: There is no such file.
            BenchmarkError: It cannot be had, or a row is not what it should be.
        """
        return tuple(record.item for record in self._records.values())

    @property
    def skipped(self) -> tuple[str, ...]:
        """Rows that were left out under ``on_error="skip"``, each with what was wrong with it."""
        return self._loaded[1]

    def ask(self, item: Item, seed: int) -> str:
        """The question in this style's words; a choice's options in an order of this seed."""
        record = self._records[item.key]
        options = [record.options[i] for i in self._order(record, seed)]
        return self._style.ask(self._kind, item.question, options, record.starter)

    def right_letter(self, item: Item, seed: int) -> str:
        """The letter that the right option of a choice has in `ask(item, seed)`."""
        record = self._records[item.key]
        return LETTERS[self._order(record, seed).index(record.options.index(record.gold))]

    def content(self, item: Item, seed: int) -> str:
        """Hash of what is asked and what is right."""
        asked = f"{self._rights[item.key]}\0{self.ask(item, seed)}"
        return hashlib.sha256(asked.encode()).hexdigest()[:16]

    def check(self) -> None:
        """Refuse a benchmark that cannot be read, or whose grading may not run.

        Raises:
            FileNotFoundError: There is no such file.
            BenchmarkError: It cannot be had, a row is wrong or has a right answer that no response
                could match, or code may not be run.
            ImportError: The extra ``eval`` is not installed, which its grader needs.
            RuntimeError: This machine has not what programs are guarded with.
        """
        self._may_run()
        for record in self._records.values():
            if self.kind == "code":
                self._tests(record)
        if self.kind == "math":
            grading.grade_math(r"\boxed{\int_0^1 2x\,dx}", "1")  # which needs math-verify
        elif self.kind == "code":
            grading.grade_code(_PROGRAM, grading.CodeTests(inputs=("",), outputs=("1",)))

    def grade(self, item: Item, response: str | ResponseParts, seed: int = 0) -> Grade:
        """Grade a response to `ask(item, seed)`: its answer; its thinking where none follows it.

        Raises:
            BenchmarkError: It is code, and may not be run.
        """
        record = self._records[item.key]
        if self.kind == "math":
            return grading.grade_math(response, record.gold)
        if self.kind == "number":
            return grading.grade_number(response, record.gold)
        if self.kind == "choice":
            letter = self.right_letter(item, seed)
            return grading.grade_choice(response, letter, len(record.options))
        self._may_run()
        return grading.grade_code(response, self._tests(record))

    def grade_parts(self, item: Item, parts: ResponseParts, text: str, seed: int = 0) -> Grade:
        """Grade a response whose thinking and answer are known."""
        return self.grade(item, parts, seed)

    def read_answer(self, response: str | ResponseParts) -> str | None:
        """The answer in a vote: the letter or number that is graded; else the last box."""
        if self.kind == "choice":
            return grading.grade_choice(response, "A", len(LETTERS)).answer
        if self.kind == "number":
            return grading.grade_number(response, "0").answer
        return super().read_answer(response)

    def same_answer(self, first: str, second: str) -> bool:
        """Whether two answers count as one in a vote: as formulas, as letters, else as text."""
        if self.kind in ("math", "number"):
            return grading.same_math_answer(first, second)
        if self.kind == "choice":
            return grading.same_letter(first, second)
        return super().same_answer(first, second)

    def vote(self, item: Item) -> Vote:
        """How answers vote; programs by what they do on the question's public examples.

        Raises:
            BenchmarkError: The question has no public examples, or code may not be run.
        """
        if self.kind != "code":
            return super().vote(item)
        self._may_run()
        behavior = grading.Behavior(self._examples(self._records[item.key]))
        return Vote(behavior.program, behavior.same)

    def check_votes(self) -> None:
        """Refuse a vote on code without public examples: hidden tests must not choose an answer.

        Raises:
            BenchmarkError: A question has none.
        """
        if self.kind == "code":
            for record in self._records.values():
                self._examples(record)

    def _examples(self, record: Record) -> grading.CodeTests:
        """The public examples: the first column of tests, where others are hidden."""
        if len(self._columns.tests) < 2:
            raise BenchmarkError(
                f"{self.label}: a majority vote on code goes by what programs do on public "
                f"examples, and one column holds all tests; expected columns={{'tests': [those of "
                f"the examples, the hidden ones]}}, or a strategy without a vote"
            )
        try:
            inputs, outputs, function = read_tests(record.tests[:1], record.function)
        except BenchmarkError as error:
            raise BenchmarkError(
                f"{self.label}, row {record.row}: no public examples, by which a majority vote on "
                f"code goes: {error}"
            ) from None
        return grading.CodeTests(inputs=inputs, outputs=outputs, function=function)

    def describe(self) -> dict[str, Any]:
        """Its settings, those that are not the defaults; a file's path from any directory."""
        plain = {
            "columns": {k: list(v) if isinstance(v, tuple) else v for k, v in self.columns.items()},
            "path": None if self.path is None else str(Path(self.path).resolve()),
            "style": self._style.describe(),
        }
        unsaid: dict[str, Any] = {"columns": {}, "style": "default"}
        settings = {
            f.name: value
            for f in fields(self)
            if f.name != "allow_code_execution"  # for whoever runs it again to say
            and (value := plain.get(f.name, getattr(self, f.name))) != unsaid.get(f.name, f.default)
        }
        return {"benchmark": settings}

    @cached_property
    def digest(self) -> str:
        """Hash of the questions, their groups, wording and right answers in order."""
        parts = [repr(self._style), str(self.shuffle)]
        parts += [f"{i.key}\0{i.group}\0{self._rights[i.key]}" for i in self.items]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def _may_run(self) -> None:
        if self.kind == "code" and not self.allow_code_execution:
            raise BenchmarkError(
                f"grading {self.label} runs code that the model wrote: expected "
                f"allow_code_execution=True (--allow-code-execution), on a machine where that does "
                f"no harm, got False"
            )

    def _tests(self, record: Record) -> grading.CodeTests:
        inputs, outputs, function = read_tests(record.tests, record.function)
        try:
            return grading.CodeTests(inputs=inputs, outputs=outputs, function=function)
        except ValueError as error:
            raise BenchmarkError(f"{self.label}, row {record.row}: {error}") from None

    @property
    def _kind(self) -> Kind:
        assert self.kind is not None
        return self.kind

    @property
    def _style(self) -> Style:
        assert isinstance(self.style, Style)
        return self.style

    @property
    def _columns(self) -> Columns:
        known = plain_columns(self._kind) if self.source is None else self.source.columns
        names = {f.name for f in fields(Columns)}
        if not set(self.columns) <= names:
            raise BenchmarkError(
                f"expected columns for some of {sorted(names)}, got {sorted(self.columns)}"
            )
        told: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in self.columns.items()
        }
        return replace(known, **told)

    @cached_property
    def _records(self) -> dict[str, Record]:
        return self._loaded[0]

    @cached_property
    def _loaded(self) -> tuple[dict[str, Record], tuple[str, ...]]:
        """The records by key, and what was wrong with the rows that were skipped."""
        skipped: list[str] = []
        skip = skipped.append if self.on_error == "skip" else None
        if self.path is not None:
            rows = rows_of_file(self.path, skip)
        else:
            assert self.source is not None
            rows = rows_of_hub(self.source)
        given = records_of(rows, self._columns, self._kind, self.label, self._check_gold, skip)
        found = {}
        for record in chosen(different(given), self.part, self.held_out, self.n):
            if self.kind == "code":
                check_tests(record, self.label)
            found[record.item.key] = record
        if skipped:
            warnings.warn(
                f"{self.label}: {len(skipped)} rows were skipped (on_error='skip'): "
                f"{'; '.join(skipped[:5])}{'; ...' if len(skipped) > 5 else ''}",
                UserWarning,
                stacklevel=2,
            )
        if len(found) < (self.n or 1):
            raise BenchmarkError(
                f"{self.label}: expected at least {self.n or 1} problems in part {self.part!r}, "
                f"found {len(found)}"
            )
        return found, tuple(skipped)

    def _check_gold(self, record: Record) -> None:
        """Refuse a right answer that no response could match.

        Tests are read only where their rows are skipped: they may be gigabytes, and those of the
        rows that are chosen are read later.
        """
        try:
            if self.kind == "math":
                check_math_gold(record.gold)
            elif self.kind == "number":
                number_of(record.gold)
            elif self.kind == "code" and self.on_error == "skip":
                inputs, outputs, function = read_tests(record.tests, record.function)
                CodeTests(inputs=inputs, outputs=outputs, function=function)
        except ValueError as error:
            raise BenchmarkError(str(error)) from None

    @cached_property
    def _rights(self) -> dict[str, str]:
        """Hash of what is right, by key."""
        rights = {}
        for key, record in self._records.items():
            parts = (self._kind, record.gold, str(record.function), *record.tests)
            rights[key] = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
        return rights

    def _order(self, record: Record, seed: int) -> list[int]:
        """Each order of the options is equally likely, and the same wherever it is asked for."""
        places = range(len(record.options))
        if not self.shuffle or record.is_lettered:
            return list(places)
        return sorted(places, key=lambda place: fraction("order", record.item.key, seed, place))


_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str, type(None)),
    "path": (str, Path, type(None)),
    "columns": (Mapping,),
    "n": (int, type(None)),
    "held_out": (int, float),
    "style": (str, Style, Mapping),
    "shuffle": (bool,),
    "allow_code_execution": (bool,),
    "on_error": (str,),
}
