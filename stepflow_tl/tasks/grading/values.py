r"""Whether two expressions are worth the same: exactly, to many digits, or at random points.

Rational numbers are compared as such. Other constants are compared to 120 digits behind the point
and in all. Expressions with variables are evaluated at points chosen by the variables' names, all
of them kept apart: positive ones, and where both sides have real values there, others, too; whole
and large ones besides, where a function is in it that changes its rule from place to place
(``|x|``, floors, maxima). Nothing is compared by an absolute tolerance, under which tiny numbers
would be equal.

All work of one comparison is counted (`allowance`), so that a malicious answer is given up early.
"""

from __future__ import annotations

import cmath
import math
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from stepflow_tl.tasks.grading.arithmetic import (
    DIGITS,
    Arithmetic,
    Complex,
    Environment,
    Precise,
    constant,
    defined,
    mpmath_context,
)
from stepflow_tl.tasks.grading.exact import Undefined, exact, is_constant
from stepflow_tl.tasks.grading.expressions import TRIGONOMETRIC, Node
from stepflow_tl.tasks.grading.latex import Unreadable

ROUNDED_DIGITS = 6
"""Significant digits from which on a decimal stands for the number that it is rounded from."""

_CLOSE, _LOST = 1e-9, 1e-13
_SAME_DIGITS = 120
_POINTS = (  # spans of the variables' values, and whether signs are mixed
    *[(0.3, 2.3, False)] * 4,
    *[(0.05, 0.95, False)] * 2,
    *[(1.1, 4.7, False)] * 2,
    *[(0.3, 2.3, True)] * 4,
)
_WIDE_POINTS = (  # whole numbers, too, and large ones: for functions whose rule changes
    *_POINTS,
    *[(1.0, 30.0, True)] * 8,
    *[(1.0, 1e3, True)] * 8,
    *[(1.0, 1e6, True)] * 6,
)
_ENOUGH = 4  # points where both are defined
_PIECEWISE = frozenset(["abs", "floor", "ceiling", "max", "min", "root", "gcd", "lcm"])


def same_value(first: Node, second: Node) -> str | None:
    """By which rule two expressions are one; None where they are not, or one has no value.

    Raises:
        Unreadable: One is too large, or reckons with infinity.
    """
    try:
        if is_constant(first) and is_constant(second):
            return _same_constants(_without_degrees(first), _without_degrees(second))
        if first.has("infinity") or second.has("infinity"):
            signs = [infinity_of(node) for node in (first, second) if node.has("infinity")]
            return "the same infinity" if len(signs) == 2 and signs[0] == signs[1] else None
        return _same_at_points(first, second)
    except Undefined:
        return None


def _without_degrees(node: Node) -> Node:
    r"""Degrees are a unit, but within functions: ``90^\circ`` is 90, ``\sin 30^\circ`` is 1/2."""
    if node.kind == "degrees":
        return _without_degrees(node.parts[0])
    if node.kind == "call" and node.name in TRIGONOMETRIC:
        return node
    parts = tuple(_without_degrees(part) for part in node.parts)
    return Node(node.kind, node.name, parts, node.value)


def infinity_of(node: Node) -> int:
    """1 or -1 for plus or minus infinity.

    Raises:
        Unreadable: It is something else with infinity in it.
    """
    if node.kind == "infinity":
        return 1
    if node.kind == "product" and node.parts[1].kind == "infinity":
        value = exact(node.parts[0])
        if value:
            return 1 if value > 0 else -1
    raise Unreadable("infinity is no number to reckon with")


def _same_constants(first: Node, second: Node) -> str | None:
    if first.kind == "based" or second.kind == "based":
        bases = {node.name for node in (first, second) if node.kind == "based"}
        if len(bases) > 1:
            return None
        first, second = (n.parts[0] if n.kind == "based" else n for n in (first, second))
    one, two = exact(first), exact(second)
    if one is not None and two is not None:
        if one == two:
            return "equal numbers"
        return _rounded(first, second, one, two) or _rounded(second, first, two, one)
    x, y = constant(first), constant(second)
    if _same_to_many_digits((first, second), {}, 1):
        return "equal to many digits"
    library = mpmath_context()
    if library.im(x) or library.im(y):
        return None
    return _rounded(first, second, one, y) or _rounded(second, first, two, x)


def _rounded(short: Node, long: Node, value: Fraction | None, of: Any) -> str | None:
    """Whether a decimal of many digits is a number that has more, or no end, rounded."""
    written = _written(short)
    if written is None or value is None or (isinstance(of, Fraction) and of.denominator == 1):
        return None
    digits, places = written
    other = _written(long)
    if other is not None and other[1] <= places:
        return None
    if digits < ROUNDED_DIGITS and not (places >= ROUNDED_DIGITS and digits >= 4):
        return None
    if not isinstance(of, Fraction):
        value = mpmath_context().mpf(value.numerator) / value.denominator
        half = mpmath_context().mpf(10) ** -places / 2
        return f"equal to {digits} digits" if abs(value - of) <= half else None
    close = abs(value - of) <= Fraction(1, 2) * Fraction(10) ** -places
    return f"equal to {digits} digits" if close else None


def _written(node: Node) -> tuple[int, int] | None:
    """Significant digits of a decimal as it was written, and its places after the point."""
    if node.kind == "product":
        first, second = node.parts
        if first.kind == "number" and first.value == -1:
            return _written(second)
        exponent = exact(second.parts[1]) if second.kind == "power" else None
        if exponent is None or second.parts[0].value != 10 or (inner := _written(first)) is None:
            return None
        return inner[0], inner[1] - int(exponent)
    if node.kind != "number" or not node.name:
        return None
    mantissa, _, power = node.name.lower().lstrip("-").partition("e")
    whole, point, places = mantissa.partition(".")
    if not point and not power:
        return None
    return len((whole + places).lstrip("0")), len(places) - int(power or 0)


def _same_at_points(first: Node, second: Node) -> str | None:
    both = (first, second)
    names = sorted(first.symbols | second.symbols)
    signs = (1, -1) if first.has("sign") or second.has("sign") else (1,)
    agree = None if _is_complex(both) else _agree(both, names, signs, lambda: Arithmetic(math))
    if agree is None:  # with i in it, or real at too few points
        agree = _agree(both, names, signs, lambda: Complex(cmath))
    if agree is None:  # beyond the range of floating-point numbers
        agree = _agree(both, names, signs, Precise)
    if not agree or not _confirmed(both, names, signs):
        return None
    return "equal at random points"


def _points_for(both: tuple[Node, Node]) -> Iterator[tuple[int, float, float, bool, bool]]:
    """Number and span of each point, whether signs are mixed and whether values are whole."""
    pieces = any(n.kind == "call" and n.name in _PIECEWISE for node in both for n in node.walk())
    powers = any(
        n.kind == "power" and n.parts[1].kind == "quotient" for node in both for n in node.walk()
    )
    spans = _WIDE_POINTS if pieces or powers else _POINTS
    for number, (low, high, mixed) in enumerate(spans):
        yield number, low, high, mixed, number >= len(_POINTS) and number % 2 == 0
    if not pieces:
        return
    edges = {abs(n.value) for node in both for n in node.walk() if n.value and abs(n.value) < 1e9}
    for number, edge in enumerate(sorted(edges)[:8], len(spans)):
        yield 2 * number, 0.6 * float(edge), float(edge), False, False
        yield 2 * number + 1, float(edge), 1.6 * float(edge), False, False


def _is_complex(both: tuple[Node, Node]) -> bool:
    return any(n.kind == "call" and n.name == "i" for node in both for n in node.walk())


def _agree(
    both: tuple[Node, Node],
    names: list[str],
    signs: tuple[int, ...],
    arithmetic: Callable[[], Arithmetic],
) -> bool | None:
    """Whether they agree wherever both are defined; None where that is at too few points."""
    compared = 0
    for span in _points_for(both):
        at = _point(names, *span)
        for sign in signs:
            numbers = arithmetic()
            one, two = (defined(node, at, numbers, sign) for node in both)
            if one is None or two is None:
                continue
            if abs(one - two) > _CLOSE * max(abs(one), abs(two)) + _LOST * numbers.largest:
                return False
            compared += 1
    return True if compared >= _ENOUGH else None


def _point(
    names: list[str], number: int, low: float, high: float, mixed: bool, whole: bool = False
) -> dict[str, float]:
    """Values of variables: of a name and the point's number, so that no two are related."""
    at = {}
    for name in names:
        own = random.Random(f"{number} {name}")
        value = own.uniform(low, high)
        at[name] = (float(round(value)) if whole else value) * (own.choice((-1, 1)) if mixed else 1)
    return at


def _confirmed(both: tuple[Node, Node], names: list[str], signs: tuple[int, ...]) -> bool:
    """Whether they agree to many digits, too, at a point where both are defined."""
    library = mpmath_context()
    for number, (low, high, mixed) in enumerate(_POINTS[::3]):
        point = _point(names, number, low, high, mixed)
        at = {name: library.mpf(value) for name, value in point.items()}
        for sign in signs:
            same = _same_to_many_digits(both, at, sign)
            if same is not None:
                return same
    return False


def _same_to_many_digits(both: tuple[Node, Node], at: Environment, sign: int) -> bool | None:
    """Whether values agree; None where one has none.

    What is left of a sum whose terms cancel is zero if it shrinks as more digits are reckoned with.
    """
    library = mpmath_context()
    one, two = (defined(node, at, Precise(), sign) for node in both)
    if one is None or two is None:
        return None
    apart, size = abs(one - two), max(abs(one), abs(two))
    if apart == 0 and size == 0:
        return True
    before = 0 if size == 0 else max(0, int(library.log(size, 10)))
    with library.workdps(2 * DIGITS + 2 * before):
        one, two = (defined(node, at, Precise(), sign) for node in both)
        if one is None or two is None:
            return None
        finer = abs(one - two)
        least = library.mpf(10) ** -_SAME_DIGITS
        return bool(finer <= size * least / library.mpf(10) ** before or finer <= apart * least)


def proportional(first: Node, second: Node) -> int:
    """1 or -1 where one is a positive or negative constant times the other; else 0.

    Two equations whose sides differ by these have one set of solutions.
    """
    names = sorted(first.symbols | second.symbols)
    both = (first, second)
    if first.has("sign") or second.has("sign") or _is_complex(both):
        return 0
    ratios = []
    for span in _points_for(both):
        numbers = Arithmetic(math)
        one, two = (defined(node, _point(names, *span), numbers, 1) for node in both)
        if one is None or two is None:
            continue
        if min(abs(one), abs(two)) <= _CLOSE * numbers.largest:  # zero, as far as can be told
            return 0
        ratios.append(one / two)
    if len(ratios) < _ENOUGH:
        return 0
    if any(abs(ratio - ratios[0]) > _CLOSE * abs(ratios[0]) for ratio in ratios):
        return 0
    return (1 if ratios[0] > 0 else -1) if _is_constant_ratio(both, names) else 0


def _is_constant_ratio(both: tuple[Node, Node], names: list[str]) -> bool:
    """Whether the ratio is the same to many digits: x - 59047 and x - 59048 are nearly alike."""
    library = mpmath_context()
    values = []
    for span in _points_for(both):
        point = _point(names, *span)
        at = {name: library.mpf(value) for name, value in point.items()}
        one, two = (defined(node, at, Precise(), 1) for node in both)
        if one is not None and two is not None:
            values.append((one, two))
    (one, two), *others = values or [(0, 0)]
    return len(values) >= _ENOUGH and all(
        abs(one * second - two * first) <= abs(one * second) * library.mpf(10) ** -_SAME_DIGITS
        for first, second in others
    )
