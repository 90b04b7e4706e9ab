"""Reading the documents: their blocks of code, their links."""

import re
from pathlib import Path

from helpers import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]


def page(name: str) -> str:
    """A page of docs/, by its path there."""
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(source: str, language: str = "python") -> list[str]:
    """The blocks of code of a text."""
    return re.findall(rf"```{language}\n(.*?)```", source, flags=re.DOTALL)


def links(path: Path) -> list[str]:
    """Targets of a document's links and pictures, code left out."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", prose)


def anchors(path: Path) -> set[str]:
    """What a document's headings are called in links."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", head.lower()) for head in heads)
    return {head.strip().replace(" ", "-") for head in plain}
