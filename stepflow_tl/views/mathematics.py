r"""Text as runs of plain text and of mathematics, which becomes MathML.

A run is ``["t", text]`` or ``["m", tree, display]``; a tree is ``[tag, attributes, children]`` with
strings among the children. Tags and attributes are those of the lists below and no others: what
else a formula asks for (links, styles, scripts in ``\text``) is shown as the text it is.
"""

from __future__ import annotations

import html
import re
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element

TAGS = frozenset(
    [
        "math",
        "mrow",
        "mi",
        "mn",
        "mo",
        "mtext",
        "mspace",
        "ms",
        "mfrac",
        "msqrt",
        "mroot",
        "mstyle",
        "merror",
        "mpadded",
        "mphantom",
        "menclose",
        "msub",
        "msup",
        "msubsup",
        "munder",
        "mover",
        "munderover",
        "mmultiscripts",
        "mprescripts",
        "none",
        "mtable",
        "mtr",
        "mtd",
        "mlabeledtr",
    ]
)
ATTRIBUTES = frozenset(
    [
        "accent",
        "accentunder",
        "align",
        "columnalign",
        "columnlines",
        "columnspacing",
        "depth",
        "display",
        "displaystyle",
        "fence",
        "form",
        "height",
        "largeop",
        "linethickness",
        "lspace",
        "mathvariant",
        "maxsize",
        "minsize",
        "movablelimits",
        "notation",
        "rowalign",
        "rowlines",
        "rowspacing",
        "rspace",
        "scriptlevel",
        "separator",
        "stretchy",
        "symmetric",
        "voffset",
        "width",
    ]
)

_MOST = 2_000  # characters of a formula
_DEEPEST = 40
_FORMULA = re.compile(
    r"\\\((?P<inline>.+?)\\\)|\\\[(?P<shown>.+?)\\\]|\$\$(?P<dollars>[^$]+?)\$\$"
    r"|(?<![\\$\w])\$(?P<dollar>[^\s$](?:[^$\n]{0,400}?[^\s\\$])?)\$(?![\w$])"
    r"|(?P<boxed>\\boxed\{(?:[^{}\n]|\{[^{}\n]*\}){1,400}\})",
    re.DOTALL,
)

Run = list[Any]


def runs_of(text: str) -> list[Run]:
    """Cut a text into runs; a formula that cannot be read stays text."""
    found: list[Run] = []
    end = 0
    for match in _FORMULA.finditer(text):
        kind = match.lastgroup or ""
        tree = _tree_of(match[kind])
        if tree is None or (kind == "dollar" and not _is_formula(match[kind])):
            continue
        if match.start() > end:
            found.append(["t", text[end : match.start()]])
        found.append(["m", tree, kind in ("shown", "dollars")])
        end = match.end()
    if end < len(text) or not found:
        found.append(["t", text[end:]])
    return found


def _is_formula(text: str) -> bool:
    """Whether what stands between two dollars is not just the words between two prices."""
    return not re.search(r"[a-z]{3,} [a-z]{2,}", re.sub(r"\\[a-zA-Z]+", "", text))


def _tree_of(formula: str) -> Run | None:
    if len(formula) > _MOST or formula.count("{") > 200:
        return None
    try:
        tree = _safe(convert_to_element(formula), 0)
    except Exception:  # the library raises whatever its walk meets: the formula stays text
        return None
    return tree


def _safe(element: Element, depth: int) -> Run | None:
    """The element as plain data; None where it is not one of MathML, or nested too deep."""
    tag = element.tag.rpartition("}")[2]
    if tag not in TAGS or depth > _DEEPEST:
        return None
    children: list[Any] = [html.unescape(element.text)] if element.text else []
    for child in element:
        made = _safe(child, depth + 1)
        if made is None:
            return None
        children.append(made)
        if child.tail:
            children.append(html.unescape(child.tail))
    attributes = {name: value for name, value in element.attrib.items() if name in ATTRIBUTES}
    return [tag, attributes, children]
