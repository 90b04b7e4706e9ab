"""The documents' table of what is verified, written and checked by the runs that verify it.

Each conformance test is a column, each architecture a row, and a cell is what came of that test in
this run. Only a run of all cells can be held against the page (and fails where it differs), or
write it, with ``pytest tests/conformance --write-table``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from architectures import ARCHITECTURES

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
COLUMNS: dict[str, str] = {
    "logits": "logits",
    "cache": "cache",
    "batch": "batch",
    "decoding": "decoding",
    "saliency": "saliency",
    "bands": "bands",
    "template": "template",
    "ledger": "ledger",
    "plain": "plain model",
}
"""Names of the tests, without ``test_``, and their headings."""

BEGIN, END = "<!-- verified: begin -->", "<!-- verified: end -->"
_RAN = "Run with transformer-lens "
_PROPERTY = "verified"

Cell = tuple[str, str]  # an architecture's name, a column


@dataclass
class Outcome:
    """What came of one cell.

    Attributes:
        verdict: "passed", "skipped" or "failed".
        note: A reason, or a limit.
    """

    verdict: str
    note: str = ""


@dataclass
class Verified:
    """What came of the cells so far.

    Attributes:
        outcomes: By cell.
    """

    outcomes: dict[Cell, Outcome] = field(default_factory=dict)

    @staticmethod
    def cells() -> list[Cell]:
        """All that there is to verify."""
        return [(row.name, column) for row in ARCHITECTURES for column in COLUMNS]

    @property
    def is_complete(self) -> bool:
        """Whether every cell was run."""
        return all(cell in self.outcomes for cell in self.cells())

    def take(self, report: Any) -> None:
        """Note what a report of pytest says; the worst phase of a test counts."""
        properties = dict(report.user_properties)
        if _PROPERTY not in properties:
            return
        cell: Cell = tuple(properties[_PROPERTY])  # type: ignore[assignment]
        if report.failed:
            self.outcomes[cell] = Outcome("failed")
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            self.outcomes.setdefault(cell, Outcome("skipped", reason.removeprefix("Skipped: ")))
        elif report.when == "call":
            self.outcomes.setdefault(cell, Outcome("passed", properties.get("note", "")))

    def table(self) -> str:
        """Markdown, a row per architecture, with footnotes."""
        notes: list[str] = []
        lines = [
            _row(["architecture", "features", *COLUMNS.values()]),
            _row(["---", "---", *[":-:"] * len(COLUMNS)]),
        ]
        for row in ARCHITECTURES:
            cells = [self._cell(self.outcomes[row.name, column], notes) for column in COLUMNS]
            lines.append(_row([row.name, row.features, *cells]))
        feet = [f"<sup>{number}</sup> {note}." for number, note in enumerate(notes, 1)]
        return "\n".join(lines + (["", " ".join(feet)] if feet else []))

    @staticmethod
    def _cell(outcome: Outcome, notes: list[str]) -> str:
        mark = {"passed": "✓", "skipped": "–", "failed": "✗"}[outcome.verdict]
        if not outcome.note:
            return mark
        if outcome.note not in notes:
            notes.append(outcome.note)
        return f"{mark}<sup>{notes.index(outcome.note) + 1}</sup>"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def in_page(text: str) -> tuple[str, list[str]]:
    """The table in a page, and the versions of transformer-lens that it names.

    Raises:
        ValueError: There are no two markers.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"expected {BEGIN} and {END} once each in {PAGE.name}")
    inside = text.split(BEGIN)[1].split(END)[0].strip()
    table, _, ran = inside.rpartition(f"\n\n{_RAN}")
    return table, re.findall(r"\d+\.\d+\.\d+", ran)


def with_table(text: str, table: str, library: str) -> str:
    """A page with this table, run with this version; others stay where the table is the same."""
    before, versions = in_page(text)
    kept = {*versions, library} if before == table else {library}
    ran = " and ".join(sorted(kept, key=lambda name: tuple(map(int, name.split(".")))))
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    return f"{head}{BEGIN}\n{table}\n\n{_RAN}{ran}.\n{END}{tail}"


class Plugin:
    """Collects outcomes where the reports arrive: here, or with xdist in the controller.

    Args:
        config: pytest's.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.verified, self.message = Verified(), ""
        self.write = config.getoption("write_table")
        self.is_worker = hasattr(config, "workerinput")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Mark each conformance test with its cell."""
        for item in items:
            params: Mapping[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
            column = getattr(item, "originalname", item.name).removeprefix("test_")
            if item.path.parent.name == "conformance" and "architecture" in params:
                if column not in COLUMNS:
                    raise pytest.UsageError(f"{item.name} is no column of {list(COLUMNS)}")
                item.user_properties.append((_PROPERTY, [params["architecture"].name, column]))

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.verified.take(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write or compare the table, once all is known."""
        if self.is_worker or not (self.write or self.verified.outcomes):
            return
        self.message = self.settle(PAGE)
        if self.message and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def settle(self, page: Path) -> str:
        """What is wrong with the page's table, or hinders writing it; empty if nothing."""
        outcomes, cells = self.verified.outcomes, self.verified.cells()
        if not self.verified.is_complete:
            ran = f"only {sum(cell in outcomes for cell in cells)} of {len(cells)} cells were run"
            return f"the table was not written: {ran}" if self.write else ""
        failed = [cell for cell in cells if outcomes[cell].verdict == "failed"]
        if failed:
            return f"the table was not written: {failed[0]} failed" if self.write else ""
        text, table = page.read_text(), self.verified.table()
        if self.write:
            page.write_text(with_table(text, table, version("transformer-lens")))
            return ""
        if in_page(text)[0] != table:
            return (
                f"{page.name} claims another table of what is verified than this run gives:\n\n"
                f"{table}\n\nWrite it with: pytest tests/conformance --write-table"
            )
        return ""

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say what is wrong."""
        if self.message:
            terminalreporter.section("table of what is verified", red=True)
            terminalreporter.line(self.message)
