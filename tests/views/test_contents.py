"""A table of contents, and the readers that its rows open."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from hostile import HOSTILE
from made_maps import made_map

from stepflow_tl.errors import SettingError
from stepflow_tl.views import Contents, Reader

Open = Callable[..., Any]


def made(count: int = 12) -> Contents:
    rows = pd.DataFrame(
        {
            "arm": [HOSTILE[i % 3] if i < 3 else f"arm {i % 2}" for i in range(count)],
            "answer": range(count),
            "correct": [i % 3 == 0 for i in range(count)],
        }
    )
    readers = [
        Reader.of(
            made_map(["How?", f"Step of row {i}.", "End."]),
            after=made_map(["How?", f"Step of row {i}.", "Other."], seed=1),
        )
        for i in range(count)
    ]
    return Contents(rows, readers, "All answers", HOSTILE[:3])


def answers(page: Any) -> list[str]:
    return [row.inner_text() for row in page.locator("tbody tr td:nth-child(3)").all()]


def test_rows_are_sorted_filtered_and_read(opened: Open) -> None:
    page = opened(made().page())
    assert page.locator("p.told").all_inner_texts() == HOSTILE[:3]
    assert answers(page) == [str(i) for i in range(12)]
    page.click("th button:text-is('answer')")
    page.click("th button:text-is('answer')")
    assert answers(page) == [str(i) for i in range(11, -1, -1)]
    page.keyboard.press("/")
    page.keyboard.type("arm 1 false")
    page.wait_for_selector(".matches:text-is('4 of 12')")
    assert answers(page) == ["11", "10", "7", "5"]  # each word somewhere in the row
    page.fill("#search", "arm 5")
    page.click("tbody a >> nth=0")
    page.wait_for_selector("article")
    texts = page.locator("article[data-step='1'] .body").all_inner_texts()
    assert texts == ["Step of row 5."] * 2
    page.wait_for_selector("article:has-text('Other.') >> text=differs from here")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("article.locked[data-step='0']")
    page.click("header a")
    page.wait_for_selector("tbody")
    assert page.evaluate("window.pwned") is None


def test_readers_and_rows_must_be_as_many() -> None:
    page = made()
    with pytest.raises(SettingError, match="expected a reader for each of 11 rows, got 12"):
        Contents(page.rows.head(11), page.readers).page()
