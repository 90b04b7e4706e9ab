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
import threading
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from stepflow_tl.tasks.grading.expressions import TRIGONOMETRIC, Node
from stepflow_tl.tasks.grading.latex import TooLarge, Unreadable

ROUNDED_DIGITS = 6
"""Significant digits from which on a decimal stands for the number that it is rounded from."""

_BITS = 100_000  # of an exact number
_LARGEST_POWER = 3e4  # binary digits of a value that is not exact
_ALLOWANCE = 200_000  # operations of one comparison
_LARGEST_FACTORIAL = 2000
_CLOSE, _LOST = 1e-9, 1e-13
_DIGITS, _SAME_DIGITS = 150, 120
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

Environment = Mapping[str, Any]


class _Work(threading.local):
    """What is left of a comparison's allowance, in this thread."""

    left = _ALLOWANCE


_WORK = _Work()


def allowance() -> None:
    """Begin a comparison: its work is counted from here on."""
    _WORK.left = _ALLOWANCE


def _spend(amount: int) -> None:
    _WORK.left -= amount
    if _WORK.left < 0:
        raise TooLarge("it takes too long to compare")


class Undefined(Exception):
    """An expression that has no value here."""


def is_constant(node: Node) -> bool:
    """Whether no variable, no function of one's own and no infinity is in it."""
    return not any(
        part.kind in ("symbol", "infinity") or (part.kind == "call" and part.name.endswith("()"))
        for part in node.walk()
    )


def exact(node: Node) -> Fraction | None:
    """A rational constant's value; None for anything else, or what would be too large.

    Raises:
        Undefined: It divides by zero.
    """
    _spend(1)
    value = _exact(node)
    if value is not None:
        bits = max(value.numerator.bit_length(), value.denominator.bit_length())
        _spend(bits // 500)
        return value if bits <= _BITS else None
    return None


def _exact(node: Node) -> Fraction | None:
    if node.kind == "number":
        return node.value
    if node.kind in ("degrees", "based"):
        return exact(node.parts[0])
    if node.kind not in ("sum", "product", "quotient", "power", "call"):
        return None
    values: list[Fraction] = []
    for part in node.parts:
        value = exact(part)
        if value is None:
            return None
        values.append(value)
    if node.kind == "call":
        return _exact_call(node.name, values) if values else None
    if node.kind == "sum":
        return _exact_sum(values)
    first, second = values
    if node.kind == "product":
        return first * second
    if node.kind == "quotient":
        if second == 0:
            raise Undefined("it divides by zero")
        return first / second
    return _exact_power(first, second)


def _exact_sum(values: list[Fraction]) -> Fraction | None:
    total = Fraction(0)
    for value in values:
        total += value
        bits = total.denominator.bit_length()
        _spend(bits // 100)
        if bits > _BITS:
            return None
    return total


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        return _exact_root(base, exponent)
    if base == 0 and exponent < 0:
        raise Undefined("it divides by zero")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    return base ** int(exponent) if bits * abs(exponent) <= _BITS else None


def _exact_root(base: Fraction, exponent: Fraction) -> Fraction | None:
    """A power whose exponent is a fraction: an exact root where there is one."""
    degree = exponent.denominator
    if (base < 0 and degree % 2 == 0) or degree > 64:
        return None
    sizes = [_whole_root(part, degree) for part in (abs(base.numerator), base.denominator)]
    if None in sizes or (base == 0 and exponent < 0):
        return None
    above, below = (size for size in sizes if size is not None)
    root = Fraction(above if base >= 0 else -above, below)
    return _exact_power(root, Fraction(exponent.numerator))


def _whole_root(number: int, degree: int) -> int | None:
    """The whole root of a whole number; None where there is none."""
    if degree == 2:
        root = math.isqrt(number)
    else:
        low, high = 0, 1 << (number.bit_length() // degree + 1)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**degree <= number else (low, middle - 1)
        root = low
    return root if root**degree == number else None


def _exact_call(name: str, values: list[Fraction]) -> Fraction | None:
    first = values[0]
    if name == "abs":
        return abs(first)
    if name == "root" and values[1].denominator == 1 and 2 <= values[1] <= 64:
        return _exact_root(first, 1 / values[1])
    if name in ("floor", "ceiling"):
        return Fraction(math.floor(first) if name == "floor" else math.ceil(first))
    if name in ("max", "min"):
        return max(values) if name == "max" else min(values)
    if not all(v.denominator == 1 and 0 <= v <= _LARGEST_FACTORIAL for v in values):
        return None
    whole = [int(v) for v in values]
    if name == "factorial":
        return Fraction(math.factorial(whole[0]))
    if name == "binomial":
        return Fraction(math.comb(*whole))
    if name in ("gcd", "lcm"):
        return Fraction(getattr(math, name)(*whole))
    return None


class _Arithmetic:
    """Floating-point numbers of one kind, and what functions are with them."""

    is_real = True
    price = 1  # of an operation

    def __init__(self, library: Any) -> None:
        self.library = library
        self.largest = 0.0  # of the terms of sums: what is lost where they cancel

    def number(self, value: Fraction) -> Any:
        return value.numerator / value.denominator

    def kept(self, value: Any) -> Any:
        if not abs(value) < math.inf:
            raise Undefined("it is infinite")
        return value

    def sum(self, terms: list[Any]) -> Any:
        self.largest = max(self.largest, *(float(abs(term)) for term in terms))
        return self.kept(sum(terms))

    def power(self, base: Any, exponent: Any) -> Any:
        if base == 0 and exponent == 0:
            return base * 0 + 1
        if self.is_real and base < 0 and exponent != int(exponent):
            raise Undefined("a power of a negative number")
        return base**exponent

    def root(self, value: Any, degree: Any) -> Any:
        if degree == 2:
            return self.library.sqrt(value)
        if self.is_real and value < 0 and degree == int(degree) and int(degree) % 2:
            return -self.root(-value, degree)
        return self.power(value, 1 / degree)

    def imaginary(self) -> Any:
        raise Undefined("an imaginary number")

    def call(self, name: str, values: list[Any]) -> Any:
        library = self.library
        first = values[0]
        if name in _RECIPROCAL:
            return 1 / getattr(library, _RECIPROCAL[name])(first)
        if name in _LIBRARY:
            return getattr(library, _LIBRARY[name])(first)
        if name == "lg":
            return library.log(first) / library.log(10)
        if name == "abs":
            return abs(first)
        if not self.is_real:
            raise Undefined(f"{name} of a complex number")
        if name in ("max", "min"):
            return max(values) if name == "max" else min(values)
        if name in ("floor", "ceiling"):
            return getattr(library, "floor" if name == "floor" else "ceil")(first) * 1.0
        if name == "factorial":
            return library.gamma(first + 1)
        if name == "binomial":
            gamma = library.gamma
            return gamma(first + 1) / (gamma(values[1] + 1) * gamma(first - values[1] + 1))
        raise Undefined(f"{name} has no value")

    def unknown(self, name: str, values: list[Any]) -> Any:
        """A function that nothing is known of: some smooth one, chosen by its name."""
        rng = random.Random(name)
        total = sum((rng.uniform(0.5, 1.5) * value for value in values), rng.uniform(0.1, 0.9))
        return self.library.sin(total) + total * total * rng.uniform(0.2, 0.4)


class _Complex(_Arithmetic):
    is_real = False

    def imaginary(self) -> Any:
        return 1j

    def power(self, base: Any, exponent: Any) -> Any:
        return 1.0 if exponent == 0 else base**exponent


class _Precise(_Arithmetic):
    """Numbers of many digits; real ones until a root or logarithm makes them complex."""

    is_real = False
    price = 20

    def __init__(self) -> None:
        super().__init__(_mpmath())

    def number(self, value: Fraction) -> Any:
        return self.library.mpf(value.numerator) / value.denominator

    def kept(self, value: Any) -> Any:
        if not self.library.isfinite(value):
            raise Undefined("it is infinite")
        return value

    def imaginary(self) -> Any:
        return self.library.mpc(0, 1)

    def root(self, value: Any, degree: Any) -> Any:
        real = self.library.im(value) == 0 and self.library.im(degree) == 0
        if real and self.library.re(value) < 0 and degree == int(degree) and int(degree) % 2:
            return -self.root(-value, degree)
        return super().root(value, degree)

    def power(self, base: Any, exponent: Any) -> Any:
        if base != 0 and abs(exponent) * (abs(self.library.log(abs(base), 2)) + 1) > _LARGEST_POWER:
            raise TooLarge("a power is too large")
        return self.library.power(base, exponent)

    def call(self, name: str, values: list[Any]) -> Any:
        first = values[0]
        if name in ("factorial", "binomial"):
            if any(abs(value) > _LARGEST_FACTORIAL for value in values):
                raise TooLarge("a factorial is too large")
            return getattr(self.library, name)(*values)
        if name in ("floor", "ceiling"):
            return getattr(self.library, "floor" if name == "floor" else "ceil")(first)
        if name in ("exp", "sinh", "cosh") and abs(first) > _LARGEST_POWER:
            raise TooLarge("a power is too large")
        if name in ("max", "min"):
            return max(values) if name == "max" else min(values)
        return super().call(name, values)


_RECIPROCAL = {"cot": "tan", "sec": "cos", "csc": "sin"}
_RECIPROCAL |= {"coth": "tanh", "sech": "cosh", "csch": "sinh"}
_LIBRARY = {
    **{name: name for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "exp")},
    **{"arcsin": "asin", "arccos": "acos", "arctan": "atan", "ln": "log", "log": "log"},
    **{"arsinh": "asinh", "arcosh": "acosh", "artanh": "atanh"},
}


@lru_cache(maxsize=1)
def _mpmath() -> Any:
    """A context of mpmath of its own: nobody else's precision changes."""
    from mpmath import MPContext

    context = MPContext()
    context.dps = _DIGITS
    return context


def _value(node: Node, at: Environment, numbers: _Arithmetic, sign: int) -> Any:
    """The value of an expression.

    Args:
        node: The expression.
        at: Values of variables.
        numbers: In which numbers to reckon.
        sign: 1 or -1: which of both signs plus-or-minus stands for.

    Raises:
        Undefined: It has none here.
        Unreadable: It is too large.
    """
    _spend(numbers.price)
    if node.kind == "number":
        assert node.value is not None
        return numbers.kept(numbers.number(node.value))
    if node.kind == "symbol":
        return at[node.name]
    if node.kind in ("based", "infinity"):
        raise Undefined(f"{node.kind} has no value")
    if node.kind == "call" and not node.parts:
        if node.name == "i":
            return numbers.imaginary()
        return numbers.library.pi if node.name == "pi" else numbers.library.e
    parts = [_value(part, at, numbers, sign) for part in node.parts]
    if node.kind == "degrees":
        return parts[0] * numbers.library.pi / 180
    if node.kind == "sign":
        assert node.value is not None
        return parts[0] * (sign * int(node.value))
    if node.kind == "sum":
        return numbers.sum(parts)
    if node.kind == "call":
        if node.name.endswith("()"):
            return numbers.unknown(node.name, parts)
        if node.name == "root":
            return numbers.kept(numbers.root(*parts))
        return numbers.kept(numbers.call(node.name, parts))
    first, second = parts
    if node.kind == "product":
        return numbers.kept(first * second)
    if node.kind == "quotient":
        if second == 0:
            raise Undefined("it divides by zero")
        return numbers.kept(first / second)
    return numbers.kept(numbers.power(first, second))


def _defined(node: Node, at: Environment, numbers: _Arithmetic, sign: int) -> Any:
    """The value; None where there is none."""
    try:
        return _value(node, at, numbers, sign)
    except (Undefined, ValueError, ArithmeticError, TypeError):
        return None


def constant(node: Node) -> Any:
    """The value of a constant to 150 digits, complex where it must be.

    Raises:
        Undefined: It has none.
        Unreadable: It is too large.
    """
    try:
        return _value(node, {}, _Precise(), 1)
    except (ValueError, ArithmeticError, TypeError) as error:
        raise Undefined(str(error)) from None


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
    raise Unreadable("it reckons with infinity")


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
    library = _mpmath()
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
        value = _mpmath().mpf(value.numerator) / value.denominator
        half = _mpmath().mpf(10) ** -places / 2
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
    agree = None if _is_complex(both) else _agree(both, names, signs, lambda: _Arithmetic(math))
    if agree is None:  # with i in it, or real at too few points
        agree = _agree(both, names, signs, lambda: _Complex(cmath))
    if agree is None:  # beyond the range of floating-point numbers
        agree = _agree(both, names, signs, _Precise)
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
    arithmetic: Callable[[], _Arithmetic],
) -> bool | None:
    """Whether they agree wherever both are defined; None where that is at too few points."""
    compared = 0
    for span in _points_for(both):
        at = _point(names, *span)
        for sign in signs:
            numbers = arithmetic()
            one, two = (_defined(node, at, numbers, sign) for node in both)
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
    library = _mpmath()
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
    library = _mpmath()
    one, two = (_defined(node, at, _Precise(), sign) for node in both)
    if one is None or two is None:
        return None
    apart, size = abs(one - two), max(abs(one), abs(two))
    if apart == 0 and size == 0:
        return True
    before = 0 if size == 0 else max(0, int(library.log(size, 10)))
    with library.workdps(2 * _DIGITS + 2 * before):
        one, two = (_defined(node, at, _Precise(), sign) for node in both)
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
        numbers = _Arithmetic(math)
        one, two = (_defined(node, _point(names, *span), numbers, 1) for node in both)
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
    library = _mpmath()
    values = []
    for span in _points_for(both):
        point = _point(names, *span)
        at = {name: library.mpf(value) for name, value in point.items()}
        one, two = (_defined(node, at, _Precise(), 1) for node in both)
        if one is not None and two is not None:
            values.append((one, two))
    (one, two), *others = values or [(0, 0)]
    return len(values) >= _ENOUGH and all(
        abs(one * second - two * first) <= abs(one * second) * library.mpf(10) ** -_SAME_DIGITS
        for first, second in others
    )
