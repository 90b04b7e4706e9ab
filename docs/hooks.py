"""What mkdocs does beyond rendering `docs/`, without a network.

* Documents that live elsewhere in the repository, notebooks and figures become pages and files of
  the site, and links to them, which are right on any page of the repository, are led there.
* The API has a page for each room, from the package itself.
* Equations become MathML, which browsers draw without a script.
* A page that would fetch anything from a network is an error.
"""

import ast
import base64
import html
import json
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
from rooms import LEAVES, floors, rooms

ELSEWHERE = {
    "benchmarks/README.md": "speed.md",
    "experiments/LOG.md": "log.md",
    "stepflow_tl/reasoner/MODEL_CARD.md": "model-card.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
}
"""Documents of the repository, and their pages."""

NOTEBOOKS = {
    f"notebooks/{path.name}": f"notebooks/{path.stem}.md"
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
}
SITE_OF = {**ELSEWHERE, **NOTEBOOKS}
REPOSITORY_OF = {page: path for path, page in SITE_OF.items() if path != "README.md"}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
CODE = re.compile(r"(^```.*?^```$|`[^`\n]*`)", re.DOTALL | re.MULTILINE)
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
FETCHED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*?\ssrc=[\"']?(?:https?:)?//"
    r"|<link\b(?![^>]*\brel=[\"']?(?:canonical|prev|next)\b)[^>]*?\shref=[\"']?(?:https?:)?//"
    r"|(?:@import|url\()\s*[\"']?(?:https?:)?//",
    re.IGNORECASE,
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """A page for each room, from the top floor to the bottom."""
    config.nav.append({"API": [{room: f"api/{room}.md"} for room in _api_rooms()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is not in `docs/`."""
    added: dict[str, str | bytes] = {f"api/{room}.md": _api_page(room) for room in _api_rooms()}
    for path, page in ELSEWHERE.items():
        if path != "README.md":
            added[page] = (ROOT / path).read_text(encoding="utf-8")
    for path, page in NOTEBOOKS.items():
        added.update(notebook_pages(ROOT / path, page))
    added.update({f"figures/{p.name}": p.read_bytes() for p in (ROOT / "figures").glob("*.png")})
    for name, content in added.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links of the repository to pages of the site."""
    at = page.file.src_uri
    return "".join(
        part if part.startswith("`") else LINK.sub(lambda link: _led(link, at), part)
        for part in CODE.split(markdown)
    )


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Equations as MathML."""
    return EQUATION.sub(_equation, html)


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that fetches something.

    Raises:
        PluginError: A page or a style sheet names a file on a network.
    """
    site = Path(config.site_dir)
    for path in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        found = FETCHED.search(path.read_text(encoding="utf-8"))
        if found:
            raise PluginError(
                f"expected a site that needs no network, but {path.relative_to(site)} fetches "
                f"{found.group()}..."
            )


def _led(link: re.Match[str], at: str) -> str:
    target = urlsplit(link[2])
    if target.scheme or not target.path:
        return link[0]
    home = REPOSITORY_OF.get(at, f"docs/{at}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(home), target.path))
    there = SITE_OF.get(path, path.removeprefix("docs/"))
    led = posixpath.relpath(there, posixpath.dirname(at) or ".")
    fragment = f"#{target.fragment}" if target.fragment else ""
    return f"{link[1]}{led}{fragment}{link[3]}"


def _equation(found: re.Match[str]) -> str:
    latex = html.unescape(found[2]).strip()
    tags = re.findall(r"\\tag\{([^}]*)\}", latex)
    latex = re.sub(r"\\tag\{[^}]*\}", "", latex)
    latex = re.sub(r"\\operatorname\*?", r"\\mathrm", latex)
    block = found[1] == "div"
    math = convert(latex, display="block" if block else "inline")
    if not block:
        return math
    return f'<div class="equation">{math}<span>{"".join(f"({tag})" for tag in tags)}</span></div>'


def _api_rooms() -> list[str]:
    floor_of = floors(rooms())
    return sorted(floor_of.keys() - {LEAVES}, key=lambda room: (-floor_of[room], room))


def _api_page(room: str) -> str:
    folder = ROOT / "stepflow_tl" / room
    lines = [f"# {room}"]
    for path in sorted(folder.rglob("*.py"), key=lambda path: path.with_suffix("").parts):
        package = path.stem == "__init__"
        if path.stem.startswith("_") and not package:
            continue
        inside = (path.parent if package else path.with_suffix("")).relative_to(ROOT)
        lines.append(f"::: {'.'.join(inside.parts)}\n    options:\n      heading_level: 2")
        if package:  # what it hands on is shown where it is made
            lines[-1] += f"\n      members: {json.dumps(_made_in(path))}"
    return "\n\n".join(lines) + "\n"


def _made_in(path: Path) -> list[str] | bool:
    made = [
        node.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    ]
    return made or False


def notebook_pages(path: Path, page: str) -> Iterator[tuple[str, str | bytes]]:
    """A notebook's page and its pictures, as files of the site."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines: list[str] = []
    pictures = 0
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines.append(source)
            continue
        lines.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data: dict[str, Any] = output.get("data", {})
            if "image/png" in data:
                pictures += 1
                name = f"{path.stem}-{pictures}.png"
                yield (
                    f"{posixpath.dirname(page)}/{name}",
                    base64.b64decode(_joined(data["image/png"])),
                )
                lines.append(f"![Figure {pictures} of this notebook]({name})")
            elif "text/html" in data:
                table = re.sub(
                    r"<style.*?</style>", "", _joined(data["text/html"]), flags=re.DOTALL
                )
                table = re.sub(r"<table[^>]*>", "<table>", table)  # the site's own style
                lines.append(re.sub(r"\n\s*", "", table))
            else:
                said = _joined(output.get("text", data.get("text/plain", "")))
                lines.append(f"```text\n{said.rstrip()}\n```")
    yield page, "\n\n".join(lines) + "\n"


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)
