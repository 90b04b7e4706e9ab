"""What the site does beyond rendering pages: links, equations, notebooks, and no network."""

import importlib.util
import json
import re
import sys

import pytest
import yaml
from helpers import ROOT
from pages import DOCS, PAGES

CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hooks():
    """docs/hooks.py as a module."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("latex2mathml")
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def led(hooks, link, at):
    return hooks.LINK.sub(lambda found: hooks._led(found, at), f"[x]({link})")[4:-1]


@pytest.mark.parametrize(
    ("at", "link", "there"),
    [
        ("maps.md", "results.md", "results.md"),
        ("maps.md", "sweeps.md#statistics", "sweeps.md#statistics"),
        ("maps.md", "#which-gradient", "#which-gradient"),
        ("maps.md", "../figures/strengths.png", "figures/strengths.png"),
        ("maps.md", "../notebooks/02_stepflow.ipynb", "notebooks/02_stepflow.md"),
        ("errors/context.md", "../models.md", "../models.md"),
        ("notebooks/02_stepflow.md", "03_sweep.ipynb", "03_sweep.md"),
        ("notebooks/02_stepflow.md", "../docs/results.md", "../results.md"),
        ("speed.md", "../figures/saliency_cost.png", "figures/saliency_cost.png"),
        ("log.md", "https://arxiv.org", "https://arxiv.org"),
    ],
)
def test_links_of_the_repository_lead_to_pages_of_the_site(hooks, at, link, there):
    assert led(hooks, link, at) == there


def test_code_is_no_link(hooks):
    class Page:
        class file:
            src_uri = "maps.md"

    text = (
        "`f[i](../x)` and\n\n```python\nhooks[name](../x)\n```\n\n[x](../notebooks/03_sweep.ipynb)"
    )
    changed = hooks.on_page_markdown(text, Page, None, None)
    assert changed == text.replace("../notebooks/03_sweep.ipynb", "notebooks/03_sweep.md")


def test_equations_become_mathml(hooks):
    html = r'<div class="arithmatex">\[ \tau_B &lt; \operatorname{mean} v \tag{7, 8} \]</div>'
    made = hooks.on_page_content(html, None, None, None)
    assert made.startswith('<div class="equation"><math') and "<span>(7, 8)</span>" in made
    assert "\\" not in re.sub(r"<annotation.*?</annotation>", "", made)
    assert "&#x0003C;" in made


@pytest.mark.parametrize(
    ("html", "fetches"),
    [
        ('<script src="https://cdn/x.js"></script>', True),
        ('<link rel="stylesheet" href="//cdn/x.css">', True),
        ("@import url(https://fonts/x.css)", True),
        ('<img alt="x" src="https://cdn/x.png">', True),
        ('<link rel="canonical" href="https://here/x.html">', False),
        ('<a href="https://there/">there</a>', False),
        ('<script src="assets/x.js"></script><img src="x.png">', False),
    ],
)
def test_what_fetches_is_seen(hooks, html, fetches):
    assert bool(hooks.FETCHED.search(html)) is fetches


def test_a_site_that_fetches_is_refused(hooks, tmp_path):
    class Config:
        site_dir = str(tmp_path)

    (tmp_path / "index.html").write_text("<a href='https://there/'>there</a>")
    hooks.on_post_build(Config)
    (tmp_path / "index.html").write_text("<script src=https://cdn/x.js></script>")
    with pytest.raises(hooks.PluginError, match="index.html fetches <script src=https://"):
        hooks.on_post_build(Config)


def test_a_notebook_becomes_a_page_and_pictures(hooks):
    made = dict(
        hooks.notebook_pages(ROOT / "notebooks/02_stepflow.ipynb", "notebooks/02_stepflow.md")
    )
    pictures = [name for name in made if name.endswith(".png")]
    page = made["notebooks/02_stepflow.md"]
    assert pictures and all(made[name][:4] == b"\x89PNG" for name in pictures)
    assert all(f"({name.removeprefix('notebooks/')})" in page for name in pictures)
    cells = json.loads((ROOT / "notebooks/02_stepflow.ipynb").read_text())["cells"]
    assert page.count("```python") == sum(cell["cell_type"] == "code" for cell in cells)
    assert "<style" not in page


def test_every_page_is_in_the_menu(hooks):
    menu = set(re.findall(r"[\w/-]+\.md", CONFIG.split("\nnav:")[1]))
    pages = {path.relative_to(DOCS).as_posix() for path in PAGES}
    assert menu == pages | {*hooks.SITE_OF.values()}


def test_each_room_has_a_page_of_the_api(hooks):
    rooms = hooks._api_rooms()
    assert {"traces", "models", "cli"} <= set(rooms)
    page = hooks._api_page("saliency")
    assert "::: stepflow_tl.saliency.maps\n" in page and "._" not in page


def test_nothing_is_fetched_by_its_settings():
    theme = yaml.safe_load(CONFIG.split("\nplugins:")[0].split("\ntheme:")[1])
    assert theme["font"] is False
    assert "http" not in CONFIG
