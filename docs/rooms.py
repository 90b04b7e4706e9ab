"""The picture of the rooms, from the imports of the package: `python docs/rooms.py` writes it.

A room stands one floor above the highest room that it imports from. An arrow that follows from
others (a room's import of what its imports import) is left out of the picture, not of the table.
"""

import ast
import html
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "stepflow_tl"
PICTURE = ROOT / "docs" / "rooms.svg"
LEAVES = "errors, files, text, version"
"""What the small modules at the root are drawn as: one room, on which all may stand."""

WIDTH, NARROW, HEIGHT, GAP_X, GAP_Y, MARGIN = 118, 8, 34, 20, 40, 20

Spot = tuple[str, int]
"""A room, or an arrow that passes, and a floor."""


def rooms() -> dict[str, set[str]]:
    """Each room, and the rooms that it imports from."""
    leaves = set(LEAVES.split(", "))
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room in leaves | {"__init__"}:
            continue
        named = (LEAVES if name in leaves else name for name in _imported(path))
        found.setdefault(room, set()).update(name for name in named if name != room)
    known = {*found, LEAVES}
    return {LEAVES: set()} | {room: below & known for room, below in found.items()}


def _imported(path: Path) -> Iterator[str]:
    """First parts of the names of this package that a module imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "stepflow_tl" and rest:
                yield rest.split(".")[0]


def floors(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """The floor of each room; a circle is an error.

    Raises:
        RecursionError: Rooms import each other in a circle.
    """

    @cache
    def floor(room: str) -> int:
        return 1 + max((floor(below) for below in graph[room]), default=-1)

    return {room: floor(room) for room in graph}


def drawn_arrows(graph: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that do not follow from others."""

    @cache
    def reach(room: str) -> frozenset[str]:
        return frozenset(graph[room]).union(*(reach(below) for below in graph[room]))

    return [
        (room, below)
        for room in graph
        for below in sorted(graph[room])
        if not any(below in reach(other) for other in graph[room] - {below})
    ]


def laid_out(graph: Mapping[str, set[str]]) -> tuple[dict[Spot, float], list[list[Spot]]]:
    """Where everything stands from left to right, and each arrow as the spots that it runs through.

    An arrow over several floors gets a narrow place on each of them, so that it runs beside rooms.
    """
    floor_of = floors(graph)
    levels: list[list[Spot]] = [[] for _ in range(max(floor_of.values()) + 1)]
    for room in sorted(graph):
        levels[floor_of[room]].append((room, floor_of[room]))
    arrows: list[list[Spot]] = []
    for room, below in drawn_arrows(graph):
        between = range(floor_of[room] - 1, floor_of[below], -1)
        passed = [(f"{room} to {below}", floor) for floor in between]
        for spot in passed:
            levels[spot[1]].append(spot)
        arrows.append([(room, floor_of[room]), *passed, (below, floor_of[below])])
    beside: dict[Spot, list[Spot]] = {}
    for arrow in arrows:
        for upper, lower in pairwise(arrow):
            beside.setdefault(upper, []).append(lower)
            beside.setdefault(lower, []).append(upper)

    x: dict[Spot, float] = {}
    for names in levels:
        _spread(names, graph, x)
    for _ in range(8):  # each floor in the order of what its spots are tied to
        for names in (*levels, *levels[::-1]):
            names.sort(key=lambda spot: (fmean(x[other] for other in beside[spot]), spot))
            _spread(names, graph, x)
    return x, arrows


def _spread(names: list[Spot], graph: Mapping[str, set[str]], x: dict[Spot, float]) -> None:
    """Put the spots of a floor side by side, around 0."""
    sizes = [WIDTH if name in graph else NARROW for name, _ in names]
    left = -(sum(sizes) + GAP_X * (len(sizes) - 1)) / 2
    for spot, size in zip(names, sizes, strict=True):
        x[spot] = left + size / 2
        left += size + GAP_X


def svg(graph: Mapping[str, set[str]]) -> str:
    """The picture: floors from below, arrows to what is imported."""
    x, arrows = laid_out(graph)
    top = max(floor for _, floor in x)
    half = max(abs(place) for place in x.values()) + WIDTH / 2 + MARGIN
    height = 2 * MARGIN + (top + 1) * (HEIGHT + GAP_Y) - GAP_Y

    def roof(floor: int) -> float:
        return MARGIN + (top - floor) * (HEIGHT + GAP_Y)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-half:g} 0 {2 * half:g} {height}" '
        'role="img" font-family="sans-serif" font-size="12">',
        "<title>Rooms of stepflow_tl: an arrow runs to what a room imports</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="#5a6b7b"/></marker></defs>',
        f'<rect x="{-half:g}" width="{2 * half:g}" height="{height}" fill="#fff"/>',
    ]
    for arrow in arrows:
        path = f"M{x[arrow[0]]:g} {roof(arrow[0][1]) + HEIGHT:g}"
        for upper, lower in pairwise(arrow):
            begin, end = roof(upper[1]) + HEIGHT, roof(lower[1])
            middle = (begin + end) / 2
            path += f"C{x[upper]:g} {middle:g} {x[lower]:g} {middle:g} {x[lower]:g} {end:g}"
            if lower != arrow[-1]:
                path += f"v{HEIGHT}"
        lines.append(f'<path d="{path}" fill="none" stroke="#5a6b7b" marker-end="url(#head)"/>')
    for name, floor in x:
        if name not in graph:
            continue
        center, y = x[name, floor], roof(floor)
        size = 9 if name == LEAVES else 13
        lines += [
            f'<rect x="{center - WIDTH / 2:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="5" '
            'fill="#e8eef4" stroke="#2b6a99"/>',
            f'<text x="{center:g}" y="{y + HEIGHT / 2 + 4:g}" text-anchor="middle" '
            f'font-size="{size}" fill="#1c2733">{html.escape(name)}</text>',
        ]
    return "\n".join([*lines, "</svg>\n"])


if __name__ == "__main__":
    PICTURE.write_text(svg(rooms()), encoding="utf-8")
