"""What all figures share: colors, settings, text that is never markup, files."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font, get_font_names
from PIL import Image

from stepflow_tl.errors import SettingError
from stepflow_tl.version import __version__

OUTCOME_COLORS = {"correct": "#2b6a99", "wrong": "#c23b3b"}

BASELINE_COLOR = "#7a7a7a"
ARM_COLOR = "#2b6a99"
FAMILY_COLORS = ("#2b6a99", "#d9822b", "#3f9b5a", "#8e5ea2", "#4fa9c9", "#c23b3b", "#6b6b6b")
FAMILY_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
FAINT = "#eeeeee"
INK = "#333333"
POINTS = 72.0  # in an inch
NO_LETTER = "\N{REPLACEMENT CHARACTER}"

_PDF_SUBJECT = re.compile(rb"/Subject \(((?:[^()\\]|\\.)*)\)", re.DOTALL)
_PDF_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)

_FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "IPAexGothic",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "Arial Unicode MS",
    "Noto Sans",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
    "Noto Emoji",
)


def _fonts() -> list[str]:
    """DejaVu Sans, and those fonts installed here that know scripts which it lacks."""
    installed = set(get_font_names())
    return ["DejaVu Sans", *(font for font in _FALLBACK_FONTS if font in installed)]


FONTS = _fonts()
STYLE: dict[Any, Any] = {
    "font.family": FONTS,
    "text.usetex": False,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
    "svg.hashsalt": "stepflow_tl",
}


def save_figure(
    figure: Figure,
    path: str | Path,
    *,
    formats: Sequence[str] = ("png",),
    facts: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write a figure, without dates, so that equal data gives equal bytes; then close it.

    Args:
        figure: The figure.
        path: Where to, whatever its suffix.
        formats: Of the files.
        facts: What the figure was made of, JSON-able: settings, n, seeds, model, versions. They go
            into the file, where `read_facts` finds them.

    Returns:
        The files written: `path` with each format's suffix.
    """
    base = Path(path).with_suffix("")
    base.parent.mkdir(parents=True, exist_ok=True)
    made_by = f"stepflow_tl {__version__}"
    inside: dict[str, dict[str, Any]] = {
        "png": {"Software": made_by},
        "pdf": {"CreationDate": None, "Producer": None, "Creator": made_by},
        "svg": {"Date": None, "Creator": made_by},
    }
    if facts is not None:
        said = json.dumps(dict(facts), sort_keys=True, separators=(",", ":"), default=str)
        for form, name in (("png", "Description"), ("pdf", "Subject"), ("svg", "Description")):
            inside[form][name] = said
    files = []
    for form in formats:
        files.append(base.with_suffix(f".{form}"))
        with mpl.rc_context(STYLE):  # ticks are made when drawn
            figure.savefig(files[-1], metadata=inside.get(form), dpi=STYLE["savefig.dpi"])
    plt.close(figure)
    return files


def read_facts(path: str | Path) -> dict[str, Any]:
    """What a picture of `save_figure` says of its making.

    Args:
        path: A .png or .pdf file.

    Returns:
        The facts that were given; empty where none were.

    Raises:
        FileNotFoundError: There is no such file.
        SettingError: It is of another format.
    """
    file = Path(path)
    if file.suffix == ".png":
        with Image.open(file) as image:
            said = image.info.get("Description")
    elif file.suffix == ".pdf":
        found = _PDF_SUBJECT.search(file.read_bytes())
        said = None if found is None else _PDF_ESCAPE.sub(rb"\1", found[1]).decode("ascii")
    else:
        raise SettingError(f"expected a .png or .pdf file, got {file.name!r}")
    facts: dict[str, Any] = json.loads(said) if said else {}
    return facts


def drawable(text: str) -> str:
    """The text, with the replacement character for letters that no font of `FONTS` has."""
    known = _letters_of_fonts()
    return "".join(c if ord(c) in known else NO_LETTER for c in text)


@cache
def _letters_of_fonts() -> frozenset[int]:
    files = [findfont(FontProperties(family=font)) for font in FONTS]
    return frozenset(code for file in files for code in get_font(file).get_charmap())


def literal(text: object) -> str:
    """Text that matplotlib draws as it stands: one line, no mathtext, nothing unprintable."""
    line = " ".join(str(text).split())
    shown = "".join(c if c.isprintable() else NO_LETTER for c in line)
    return shown.replace("$", r"\$")


def literal_lines(text: object) -> str:
    """Literal text that keeps its line breaks, as a title may have some."""
    return "\n".join(literal(line) for line in str(text).splitlines())


def wrapped(text: object, width: int = 38, *, lines: int = 3) -> str:
    """Literal text, broken into lines, first of all before a ``+``; what is too long is cut."""
    rows: list[str] = []
    for part in " ".join(str(text).split()).replace(" + ", "\n+ ").split("\n"):
        if rows and len(rows[-1]) + 1 + len(part) <= width:
            rows[-1] += f" {part}"
        else:
            rows += textwrap.wrap(part, width)
    if len(rows) > lines:
        rows = [*rows[: lines - 1], rows[lines - 1][: width - 1] + "…"]
    return "\n".join(literal(row) for row in rows)


def signed(points: float) -> str:
    """A difference with its sign and one decimal; a dash where it is not known."""
    if points != points:
        return "–"
    text = f"{points:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def percent(fraction: float) -> str:
    """A fraction as a percentage with one decimal; a dash where it is not known."""
    return "–" if fraction != fraction else f"{100 * fraction:.1f}"
