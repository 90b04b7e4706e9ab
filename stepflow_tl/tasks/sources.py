"""Where the known benchmarks come from, and what their columns are called: all of it data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from stepflow_tl.errors import BenchmarkError

Kind = Literal["math", "number", "choice", "code"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a benchmark's rows hold what.

    Attributes:
        question: What is asked.
        answer: The right answer; of a ``choice`` with `options`, the right one's letter.
        marker: What stands before the answer in its column, after a solution.
        options: A column that holds a list of all options.
        wrong: Columns that hold a wrong option each.
        group: What items are reported under; where it is missing, or None, the benchmark's name.
        starter: Code to begin with; may be missing.
        tests: Columns of tests: JSON ``[{"input": ..., "output": ..., "testtype": ...}]``, or that
            text compressed as LiveCodeBench does. The first must be there.
        metadata: JSON whose ``func_name`` is the function that functional tests call; may be
            missing.
    """

    question: str = "question"
    answer: str | None = "answer"
    marker: str | None = None
    options: str | None = None
    wrong: tuple[str, ...] = ()
    group: str | None = "group"
    starter: str | None = None
    tests: tuple[str, ...] = ()
    metadata: str | None = None

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that must be there."""
        named = (self.question, self.answer, self.options, *self.wrong, *self.tests[:1])
        return tuple(name for name in named if name is not None)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The columns that are read where they are there."""
        named = (self.group, self.starter, self.metadata, *self.tests[1:])
        return (*self.needed, *(name for name in named if name is not None))


@dataclass(frozen=True, kw_only=True)
class Source:
    """A benchmark on the Hugging Face Hub.

    Attributes:
        name: Its name here.
        dataset: Its name there.
        config: Its configuration there.
        split: Its split there.
        files: Read these files of its repository, which `datasets` cannot load.
        kind: How its answers are graded.
        columns: What its columns are called.
        problems: How many there are.
        samples: Samples per problem in the paper.
        licence: Whether its licence must be accepted on its page first.
        aliases: Other spellings, in small letters and digits only.
    """

    name: str
    dataset: str
    config: str | None = None
    split: str = "test"
    files: tuple[str, ...] = ()
    kind: Kind
    columns: Columns
    problems: int
    samples: int = 1
    licence: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def page(self) -> str:
        """Its page."""
        return f"https://huggingface.co/datasets/{self.dataset}"


_PROBLEM = Columns(question="problem", group=None)
_LIVE_CODE = Columns(
    question="question_content",
    answer=None,
    group="difficulty",
    starter="starter_code",
    tests=("public_test_cases", "private_test_cases"),
    metadata="metadata",
)
_WINDOWS = {
    "test.jsonl": 400,
    "test2.jsonl": 111,
    "test3.jsonl": 101,
    "test4.jsonl": 101,
    "test5.jsonl": 167,
    "test6.jsonl": 175,
}


def _live_code(name: str, files: tuple[str, ...], problems: int, *aliases: str) -> Source:
    """LiveCodeBench: `datasets` runs no scripts any more, so its files are read themselves.

    Its versions are windows of time, a file each: v6 is the last; all six together are its
    release_v6, with several gigabytes of tests. (Which of them the paper used is not known.)
    """
    return Source(
        name=name,
        dataset="livecodebench/code_generation_lite",
        files=files,
        kind="code",
        columns=_LIVE_CODE,
        problems=problems,
        aliases=aliases,
    )


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="gsm8k",
            dataset="openai/gsm8k",
            config="main",
            kind="number",
            problems=1319,
            columns=Columns(group=None, marker="####"),
        ),
        Source(
            name="math500",
            dataset="HuggingFaceH4/MATH-500",
            kind="math",
            problems=500,
            columns=Columns(question="problem", group="level"),
        ),
        Source(
            name="aime24",
            dataset="HuggingFaceH4/aime_2024",
            split="train",
            kind="math",
            problems=30,
            columns=_PROBLEM,
            samples=16,
            aliases=("aime2024",),
        ),
        Source(
            name="aime25",
            dataset="math-ai/aime25",
            kind="math",
            problems=30,
            columns=_PROBLEM,
            samples=16,
            aliases=("aime2025",),
        ),
        Source(
            name="amc23",
            dataset="math-ai/amc23",
            kind="math",
            problems=40,
            columns=Columns(group=None),
            samples=16,
            aliases=("amc2023", "amc"),
        ),
        Source(
            name="gpqa_diamond",
            dataset="Idavidrein/gpqa",
            config="gpqa_diamond",
            split="train",
            kind="choice",
            problems=198,
            columns=Columns(
                question="Question",
                answer="Correct Answer",
                wrong=tuple(f"Incorrect Answer {i}" for i in (1, 2, 3)),
                group="High-level domain",
            ),
            samples=8,
            licence=True,
            aliases=("gpqa", "gpqad"),
        ),
        _live_code("livecodebench", tuple(_WINDOWS), sum(_WINDOWS.values()), "lcb"),
        *(
            _live_code(f"livecodebench_v{i}", (file,), problems, f"lcbv{i}")
            for i, (file, problems) in enumerate(_WINDOWS.items(), 1)
        ),
    )
}
"""Sizes as their cards have them; samples per problem as in the paper (arXiv:2604.06695): averages
over 16 samples on AIME and AMC 2023, 8 on GPQA-Diamond, 1 on MATH-500 and LiveCodeBench; GSM8K is
not in its main table."""

_PLAIN = {
    "math": Columns(),
    "number": Columns(),
    "choice": Columns(options="options"),
    "code": Columns(answer=None, starter="starter_code", tests=("tests",), metadata="metadata"),
}


def source_of(name: str) -> Source:
    """The source of a name, in any usual spelling.

    Raises:
        BenchmarkError: No benchmark is called so.
    """
    spelled = re.sub(r"[^a-z0-9]", "", name.lower())
    for source in SOURCES.values():
        if spelled in (source.name.replace("_", ""), *source.aliases):
            return source
    raise BenchmarkError(
        f"no benchmark {name!r}: expected one of {list(SOURCES)}, or path= and kind= for a file"
    )


def plain_columns(kind: Kind) -> Columns:
    """What the columns of a user's own file are called, unless they say otherwise."""
    return _PLAIN[kind]
