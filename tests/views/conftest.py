"""A headless Chromium, where there is one."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stepflow_tl.views import Reader

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    driver = pytest.importorskip(
        "playwright.sync_api", reason="the reader's page is tested with playwright: pip install it"
    )
    if CHROMIUM is None:
        pytest.skip("the reader's page is tested in Chromium: apt-get install chromium")
    with driver.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a reader's page; nothing may be asked of a network, and no error may be left."""
    context = chromium.new_context(viewport={"width": 1400, "height": 900})
    troubles: list[str] = []

    def open_page(reader: Reader | str, **options: Any) -> Any:
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda said: troubles.append(said.text))
        page.on(
            "request",
            lambda asked: asked.url.startswith("file:") or troubles.append(asked.url),
        )
        path = tmp_path / "page.html"
        path.write_text(reader if isinstance(reader, str) else reader.page(), encoding="utf-8")
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready=yes]", timeout=60_000)
        return page

    yield open_page
    context.close()
    assert troubles == []
