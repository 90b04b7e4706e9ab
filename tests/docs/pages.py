"""Reading the documents: their blocks of code, their links."""

import os
import re
import subprocess
import sys
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


def commands(source: str) -> list[str]:
    """The commands of a text's bash blocks, a line each."""
    return [line for block in blocks(source, "bash") for line in block.splitlines() if line.strip()]


def run(command: str, folder: Path) -> str:
    """Run a command of a page as it stands, in a folder; what it printed.

    Raises:
        AssertionError: It failed.
    """
    bin_of_python = Path(sys.executable).parent
    path = os.pathsep.join([str(bin_of_python), os.environ.get("PATH", "")])
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path, "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def links(path: Path) -> list[str]:
    """Targets of a document's links and pictures, code left out."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", prose)


def anchors(path: Path) -> set[str]:
    """What a document's headings are called in links."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", head.lower()) for head in heads)
    return {head.strip().replace(" ", "-") for head in plain}
