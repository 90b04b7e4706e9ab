"""Intervals of numbers: as they are written, and as inequalities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stepflow_tl.tasks.grading.exact import is_constant
from stepflow_tl.tasks.grading.expressions import Node
from stepflow_tl.tasks.grading.latex import Unreadable
from stepflow_tl.tasks.grading.shapes import Shape
from stepflow_tl.tasks.grading.values import infinity_of, same_value


@dataclass(frozen=True, slots=True)
class Span:
    """An interval: its ends, None for infinite ones, whether they belong, and of which variable."""

    low: Node | None
    high: Node | None
    has_low: bool
    has_high: bool
    of: str | None = None


def spans_of(shape: Shape) -> list[Span] | None:
    """The intervals that a shape is; None for what is none."""
    if shape.kind == "pair":
        return _interval(shape)
    if shape.kind == "named" and shape.text == "reals":
        return [Span(None, None, False, False)]
    if shape.kind == "relation":
        return _bounds(shape)
    if shape.kind == "union" or (shape.kind == "list" and shape.text in ("and", "or")):
        inside = [spans_of(item) for item in shape.items]
        if any(each is None for each in inside):
            return None
        if shape.kind == "list" and any(item.kind == "pair" for item in shape.items):
            return None  # a list of pairs, as like as not
        if shape.text == "and":
            return _bounds(Shape("relation", shape.items, text="and"))
        spans = [span for each in inside if each is not None for span in each]
        return spans if len({span.of for span in spans}) == 1 else None
    return None


def _interval(shape: Shape) -> list[Span] | None:
    if len(shape.items) != 2 or shape.text == "<>":
        return None
    nodes = [item.node for item in shape.items]
    low, high = nodes
    if low is None or high is None:
        return None
    has_low, has_high = shape.text[0] == "[", shape.text[1] == "]"
    is_low, is_high = low.has("infinity"), high.has("infinity")
    if (is_low and infinity_of(low) > 0) or (is_high and infinity_of(high) < 0):
        raise Unreadable("an interval whose ends are exchanged is not read")
    return [
        Span(
            None if is_low else low,
            None if is_high else high,
            has_low and not is_low,
            has_high and not is_high,
        )
    ]


def _bounds(shape: Shape) -> list[Span] | None:
    """The interval of ``a < x <= b`` or ``x < a``."""
    if shape.text == "and":
        pieces = [_bounds(item) for item in shape.items]
        if len(pieces) != 2 or any(piece is None for piece in pieces):
            return None
        (one,), (two,) = (piece for piece in pieces if piece is not None)
        if one.of != two.of or (one.low is None) == (two.low is None):
            return None
        below, above = (one, two) if one.low is not None else (two, one)
        return [Span(below.low, above.high, below.has_low, above.has_high, below.of)]
    if shape.text not in ("<", "<="):
        return None
    left, right = (item.node for item in shape.items)
    if left is None or right is None:
        return None
    belongs = shape.text == "<="
    if left.kind == "symbol" and is_constant(right):
        return [Span(None, right, False, belongs, left.name)]
    if right.kind == "symbol" and is_constant(left):
        return [Span(left, None, belongs, False, right.name)]
    return None


def same_spans(one: Sequence[Span], two: Sequence[Span]) -> str | None:
    """By which rule two unions of intervals are one; None where they are not."""
    left = list(two)
    if len(one) != len(left):
        return None
    for span in one:
        for at, other in enumerate(left):
            if _same_span(span, other):
                del left[at]
                break
        else:
            return None
    return "the same set of numbers"


def _same_span(one: Span, two: Span) -> bool:
    if (one.has_low, one.has_high) != (two.has_low, two.has_high):
        return False
    if one.of is not None and two.of is not None and one.of != two.of:
        return False
    return all(
        (a is None and b is None)
        or (a is not None and b is not None and same_value(a, b) is not None)
        for a, b in ((one.low, two.low), (one.high, two.high))
    )
