"""The table of what is verified claims no more than a run has shown."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import ROOT
from verified import BEGIN, COLUMNS, END, Outcome, Plugin, Verified, in_page, with_table

PASSED = {cell: Outcome("passed") for cell in Verified.cells()}
EMPTY = f"before\n{BEGIN}\n{END}\nafter\n"


def plugin(outcomes: dict[Any, Outcome], *, write: bool) -> Plugin:
    made = Plugin(SimpleNamespace(getoption=lambda name: write))  # type: ignore[arg-type]
    made.verified = Verified(dict(outcomes))
    return made


def report(when: str, outcome: str, **properties: Any) -> SimpleNamespace:
    return SimpleNamespace(
        when=when,
        failed=outcome == "failed",
        skipped=outcome == "skipped",
        longrepr=("file", 1, "Skipped: no such bridge"),
        user_properties=[("verified", ["Qwen3", "cache"]), *properties.items()],
    )


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "models.md"
    path.write_text(EMPTY)
    return path


def test_a_written_table_is_the_one_that_is_expected(page: Path) -> None:
    assert plugin(PASSED, write=True).settle(page) == ""
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert text.count("✓") == len(PASSED)
    assert plugin(PASSED, write=False).settle(page) == ""


def test_a_run_that_shows_less_than_the_page_fails(page: Path) -> None:
    plugin(PASSED, write=True).settle(page)
    cell = next(iter(PASSED))
    less = {**PASSED, cell: Outcome("skipped", "no such bridge")}
    message = plugin(less, write=False).settle(page)
    assert message.startswith("models.md claims another table of what is verified than this run")
    assert "–<sup>1</sup>" in message
    assert "<sup>1</sup> no such bridge." in message
    assert message.endswith("pytest tests/conformance --write-table")


def test_a_part_of_the_cells_neither_writes_nor_judges(page: Path) -> None:
    part = dict(list(PASSED.items())[1:])
    n = len(PASSED)
    assert plugin(part, write=False).settle(page) == ""
    message = f"the table was not written: only {n - 1} of {n} cells were run"
    assert plugin(part, write=True).settle(page) == message
    assert page.read_text() == EMPTY


def test_a_failure_is_never_written(page: Path) -> None:
    failed = {**PASSED, ("Qwen3", "cache"): Outcome("failed")}
    message = "the table was not written: ('Qwen3', 'cache') failed"
    assert plugin(failed, write=True).settle(page) == message
    assert page.read_text() == EMPTY


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        ([("setup", "passed")], None),
        ([("setup", "passed"), ("call", "passed")], Outcome("passed")),
        ([("call", "passed"), ("teardown", "failed")], Outcome("failed")),
        ([("setup", "failed")], Outcome("failed")),
        ([("setup", "skipped"), ("teardown", "passed")], Outcome("skipped", "no such bridge")),
    ],
)
def test_the_worst_phase_counts(phases: list[tuple[str, str]], expected: Outcome | None) -> None:
    verified = Verified()
    for phase in phases:
        verified.take(report(*phase))
    assert verified.outcomes.get(("Qwen3", "cache")) == expected


def test_a_note_becomes_a_footnote() -> None:
    verified = Verified(dict(PASSED))
    del verified.outcomes["Qwen3", "cache"]
    verified.take(report("call", "passed", note="in part"))
    assert "✓<sup>1</sup>" in verified.table()
    assert verified.table().endswith("\n\n<sup>1</sup> in part.")


def test_versions_add_up_only_where_the_table_is_the_same() -> None:
    one = with_table(EMPTY, "| a |", "4.3.0")
    both = with_table(one, "| a |", "3.9.0")
    assert in_page(both) == ("| a |", ["3.9.0", "4.3.0"])
    assert with_table(both, "| a |", "3.9.0") == both
    assert in_page(with_table(both, "| b |", "4.3.0")) == ("| b |", ["4.3.0"])


def test_a_page_without_markers() -> None:
    with pytest.raises(ValueError, match="expected <!-- verified: begin --> and .* once each"):
        in_page("nothing")


def test_the_page_has_a_row_for_each_architecture_and_a_column_for_each_check() -> None:
    table, versions = in_page((ROOT / "docs" / "models.md").read_text())
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert [row[0].removeprefix("| ") for row in rows[2:]] == list(
        dict.fromkeys(name for name, _ in Verified.cells())
    )
    assert {len(row) for row in rows} == {len(COLUMNS) + 2}
    assert versions
