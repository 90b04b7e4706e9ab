"""How large the reader's page is, and how soon it is there, in headless Chromium.

    python benchmarks/reader.py

Maps are made up: shares that fall with distance, and noise, which nothing packs. A page is there
when its script has drawn text, map and controls. The baseline is a page of one step. The median of
five pages, each in a context of its own; it needs playwright and Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from playwright.sync_api import Browser, sync_playwright

from stepflow_tl.saliency.maps import StepMap
from stepflow_tl.traces.trace import Step
from stepflow_tl.views import Reader

SIZES = ((1, 1), (30, 28), (100, 28), (300, 28), (1000, 28))


def main() -> None:
    """Print a line for each page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        pages = {
            (steps, layers, kind): _page(Path(folder), steps, layers, kind)
            for steps, layers in SIZES
            for kind in ("shares", "noise")[: 1 if steps == 1 else 2]
        }
        times: dict[tuple[int, int, str], list[float]] = {name: [] for name in pages}
        for _ in range(chosen.rounds):
            for name, path in pages.items():
                times[name].append(_seconds(browser, path))
        baseline = statistics.median(times[1, 1, "shares"])
        for (steps, layers, kind), found in times.items():
            size = pages[steps, layers, kind].stat().st_size / 1e6
            median = statistics.median(found)
            print(
                f"{steps:5d} steps x {layers} layers of {kind:7s} {size:6.2f} MB  "
                f"{median:.2f} s  {median / baseline:.2f} times the page of one step",
                flush=True,
            )
        browser.close()


def _page(folder: Path, steps: int, layers: int, kind: str) -> Path:
    torch.manual_seed(0)
    scores = torch.rand(layers, steps, steps)
    if kind == "shares":
        distance = torch.arange(steps)[:, None] - torch.arange(steps)
        scores = scores**4 / (1 + distance.clamp_min(0)) + 1e-4
    texts = [
        f"So in step {n} it is {n} + 1 = {n + 1}, as \\(x_{{{n}}}\\) says." for n in range(steps)
    ]
    made = StepMap(
        scores=scores.tril(),
        layers=tuple(range(layers)),
        n_layers=layers,
        steps=tuple(
            Step(n, "thinking" if n else "question", 9 * n, 9 * n + 9, text)
            for n, text in enumerate(texts)
        ),
        settings={"rule": "made"},
    )
    return Reader.of(made).write(folder / f"{steps}-{layers}-{kind}.html")


def _seconds(browser: Browser, path: Path) -> float:
    context = browser.new_context()
    page = context.new_page()
    begun = time.perf_counter()
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    spent = time.perf_counter() - begun
    context.close()
    return spent


if __name__ == "__main__":
    main()
