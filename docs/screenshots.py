"""Screenshots of the reader in headless Chromium, as the pages show them.

    python docs/screenshots.py --story outputs/demo/story.html --long FOLDER --model MODEL

The demo's page; the longest trace up to 3,400 tokens of a folder of labeled traces, in the layout
of thought-anchors, mapped by a model (here SmolLM2-135M); and texts that would like to be more than
text, which are the tests'.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin
from playwright.sync_api import Browser, Page, sync_playwright

from stepflow_tl import load_model, step_saliency
from stepflow_tl.integrations.transcripts import traces_of
from stepflow_tl.models.view import view
from stepflow_tl.version import versions
from stepflow_tl.views import Reader

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "figures"
LONGEST = 3400

Facts = Mapping[str, Any]


def main() -> None:
    """Write the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--story", type=Path, help="the demo's page, beside its summary.json")
    parser.add_argument("--long", type=Path, help="a folder of labeled traces")
    parser.add_argument("--model", help="what maps them")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        hostile = Path(folder) / "hostile.html"
        _shoot(browser, hostile, "reader_hostile", _hostile(hostile), _walk(3))
        if chosen.story:
            summary = json.loads((chosen.story.parent / "summary.json").read_text())
            facts = {"settings": summary["settings"], "versions": summary["versions"]}
            facts |= {"n": 1, "seeds": {"problems": summary["settings"]["seed"]}}
            facts["models"] = {"reasoner": {}, "reasoner-locked-in": {}}
            _shoot(browser, chosen.story, "reader", facts, _difference, fragment="#row=0")
        if chosen.long:
            page = Path(folder) / "long.html"
            facts = _long(page, chosen.long, chosen.model)
            _shoot(browser, page, "reader_long", facts, _kinds)
        browser.close()


def _hostile(path: Path) -> Facts:
    """The tests' hostile texts, with a map that is made up."""
    sys.path[:0] = [str(ROOT / "tests" / "views")]
    from hostile import HOSTILE
    from made_maps import made_map

    made = made_map(["How?", *HOSTILE, "End."])
    Reader.of(made, title="</title><script>window.pwned = 1</script>").write(path)
    return {
        "settings": {"texts": "tests/views/hostile.py"},
        "n": 1,
        "seeds": {"map": 0},
        "models": {"none": "a made map"},
        "versions": versions(),
    }


def _long(path: Path, folder: Path, name: str) -> Facts:
    """The longest labeled trace that is not too long, by the kinds of its steps."""
    model = load_model(name, device="cpu")
    labeled = [
        trace
        for _, trace in traces_of(model, folder)
        if trace is not None and len(trace) <= LONGEST
        if any("function_tags" in step.labels for step in trace.steps)
    ]
    trace = max(labeled, key=len)
    kinds = {
        step.index: {"kind": str(step.labels["function_tags"][0])}
        for step in trace.steps
        if step.labels.get("function_tags")
    }
    maps = step_saliency(model, trace)
    title = f"A published trace of {len(trace):,} tokens"
    maps.to_html(path, trace.with_labels(kinds), title=title)
    return {
        "settings": {key: str(value) for key, value in maps.settings.items()},
        "n": 1,
        "seeds": {},
        "models": {view(model).name: {"weights": view(model).weights_hash()}},
        "versions": versions(),
    }


def _walk(steps: int) -> Callable[[Page], None]:
    def walk(page: Page) -> None:
        for _ in range(steps):
            page.keyboard.press("ArrowDown")

    return walk


def _difference(page: Page) -> None:
    _walk(6)(page)
    page.click("button:text-is('middle')")
    page.check("#difference")


def _kinds(page: Page) -> None:
    page.locator("label:has-text('color') select").select_option("kind")
    page.click("button:text-is('middle')")
    _walk(40)(page)


def _shoot(
    browser: Browser,
    path: Path,
    name: str,
    facts: Facts,
    do: Callable[[Page], None],
    fragment: str = "",
) -> None:
    """Open a page, do something, and keep what is seen, with what it was made of inside."""
    page = browser.new_page(viewport={"width": 1400, "height": 820})
    page.goto(path.resolve().as_uri() + fragment)
    page.wait_for_selector("html[data-ready=yes]")
    do(page)
    page.wait_for_timeout(300)
    picture = FIGURES / f"{name}.png"
    page.screenshot(path=picture)
    page.close()
    inside = PngImagePlugin.PngInfo()
    inside.add_text("Description", json.dumps(facts, sort_keys=True, default=str))
    with Image.open(picture) as image:
        image.convert("RGB").quantize(256).save(picture, pnginfo=inside, optimize=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
