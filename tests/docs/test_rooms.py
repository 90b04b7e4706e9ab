"""The picture of the rooms is that of the code, and shows a house without circles."""

import importlib.util
import re

import pytest
from helpers import ROOT
from pages import page


@pytest.fixture(scope="module")
def drawing():
    """docs/rooms.py as a module."""
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "rooms.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_that_of_the_code(drawing):
    assert drawing.svg(drawing.rooms()) == drawing.PICTURE.read_text(encoding="utf-8"), (
        "the rooms changed: write their picture with python docs/rooms.py"
    )


def test_few_rooms_and_no_circle(drawing):
    graph = drawing.rooms()
    floor_of = drawing.floors(graph)  # a circle never ends
    assert len(graph) <= 20
    assert all(floor_of[below] < floor_of[room] for room in graph for below in graph[room])


def test_arrows_that_follow_from_others_are_left_out(drawing):
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set(), "d": {"a"}}
    assert drawing.floors(graph) == {"a": 2, "b": 1, "c": 0, "d": 3}
    assert drawing.drawn_arrows(graph) == [("a", "b"), ("b", "c"), ("d", "a")]
    with pytest.raises(RecursionError):
        drawing.floors({"a": {"b"}, "b": {"a"}})


def test_arrows_pass_beside_rooms(drawing):
    graph = {"a": {"b", "z"}, "b": {"c"}, "c": set(), "z": set()}
    x, arrows = drawing.laid_out(graph)
    (long,) = (arrow for arrow in arrows if len(arrow) > 2)
    assert [floor for _, floor in long] == [2, 1, 0]
    assert abs(x[long[1]] - x["b", 1]) > drawing.WIDTH / 2


def test_the_page_tells_of_each_room(drawing):
    table = page("architecture.md").split("Beside the package")[0]
    rows = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert told == {name for room in drawing.rooms() for name in room.split(", ")}
