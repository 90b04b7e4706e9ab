r"""Whether two expressions are worth the same: exactly, to many digits, or at random points.

Rational numbers are compared as such. Other constants are compared to 30 of 50 digits. Expressions
with variables are evaluated at points chosen by the variables' names, all of them kept apart:
positive ones, and where both sides have real values there, others, too. Nothing is compared by an
absolute tolerance, under which tiny numbers would be equal.
"""

from __future__ import annotations

import cmath
import math
import random
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from stepflow_tl.tasks.grading.expressions import TRIGONOMETRIC, Node
from stepflow_tl.tasks.grading.latex import Unreadable

ROUNDED_DIGITS = 6
"""Significant digits from which on a decimal stands for the number that it is rounded from."""

_BITS = 20_000  # of an exact power
_LARGEST_POWER = 1e5  # binary digits of a value
_LARGEST_FACTORIAL = 2000
_CLOSE, _LOST = 1e-9, 1e-13
_DIGITS, _SAME_DIGITS = 50, 30
_POINTS = (  # spans of the variables' values, and whether signs are mixed
    *[(0.3, 2.3, False)] * 4,
    *[(0.05, 0.95, False)] * 2,
    *[(1.1, 4.7, False)] * 2,
    *[(0.3, 2.3, True)] * 4,
)
_ENOUGH = 4  # points where both are defined

Environment = Mapping[str, Any]


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
    if node.kind == "number":
        return node.value
    if node.kind in ("degrees", "based"):
        return exact(node.parts[0])
    if node.kind not in ("sum", "product", "quotient", "power", "call"):
        return None
    parts = [exact(part) for part in node.parts]
    if not parts or any(part is None for part in parts):
        return None
    values = [part for part in parts if part is not None]
    if node.kind == "call":
        return _exact_call(node.name, values)
    if node.kind == "sum":
        return sum(values, Fraction(0))
    first, second = values
    if node.kind == "product":
        return first * second
    if node.kind == "quotient":
        if second == 0:
            raise Undefined("it divides by zero")
        return first / second
    return _exact_power(first, second)


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        return _exact_root(base, exponent)
    if base == 0 and exponent < 0:
        raise Undefined("it divides by zero")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    return base ** int(exponent) if bits * abs(exponent) <= _BITS else None


def _exact_root(base: Fraction, exponent: Fraction) -> Fraction | None:
    """A power whose exponent is a half: an exact root where there is one."""
    if exponent.denominator != 2 or base < 0:
        return None
    above, below = math.isqrt(base.numerator), math.isqrt(base.denominator)
    if above**2 != base.numerator or below**2 != base.denominator:
        return None
    return _exact_power(Fraction(above, below), Fraction(exponent.numerator))


def _exact_call(name: str, values: list[Fraction]) -> Fraction | None:
    first = values[0]
    if name == "abs":
        return abs(first)
    if name == "root" and values[1] == 2:
        return _exact_root(first, Fraction(1, 2))
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
    """Numbers of 50 digits; real ones until a root or logarithm makes them complex."""

    is_real = False

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
            raise Unreadable("a power is too large")
        return self.library.power(base, exponent)

    def call(self, name: str, values: list[Any]) -> Any:
        first = values[0]
        if name in ("factorial", "binomial"):
            if any(abs(value) > _LARGEST_FACTORIAL for value in values):
                raise Unreadable("a factorial is too large")
            return getattr(self.library, name)(*values)
        if name in ("floor", "ceiling"):
            return getattr(self.library, "floor" if name == "floor" else "ceil")(first)
        if name in ("exp", "sinh", "cosh") and abs(first) > _LARGEST_POWER:
            raise Unreadable("a power is too large")
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
    """The value of a constant to 50 digits, complex where it must be.

    Raises:
        Undefined: It has none.
        Unreadable: It is too large.
    """
    try:
        return _value(node, {}, _Precise(), 1)
    except (ValueError, ArithmeticError, TypeError) as error:
        raise Undefined(str(error)) from None


def same_value(first: Node, second: Node) -> str | None:
    """By which rule two expressions are one; None where they are not.

    Raises:
        Unreadable: One has no value, or is too large.
    """
    try:
        if is_constant(first) and is_constant(second):
            return _same_constants(_without_degrees(first), _without_degrees(second))
        if first.has("infinity") or second.has("infinity"):
            return "the same infinity" if _infinity(first) == _infinity(second) else None
        return _same_at_points(first, second)
    except Undefined as error:
        raise Unreadable(str(error)) from None


def _without_degrees(node: Node) -> Node:
    r"""Degrees are a unit, but within functions: ``90^\circ`` is 90, ``\sin 30^\circ`` is 1/2."""
    if node.kind == "degrees":
        return _without_degrees(node.parts[0])
    if node.kind == "call" and node.name in TRIGONOMETRIC:
        return node
    parts = tuple(_without_degrees(part) for part in node.parts)
    return Node(node.kind, node.name, parts, node.value)


def _infinity(node: Node) -> int:
    """1 or -1 for plus or minus infinity, 0 for anything else."""
    if node.kind == "infinity":
        return 1
    if node.kind == "product" and node.parts[1].kind == "infinity":
        value = exact(node.parts[0])
        return 0 if not value else 1 if value > 0 else -1
    return 0


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
        return f"equal to {_SAME_DIGITS} digits"
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
    if not agree or not _confirmed(both, names, signs):
        return None
    return "equal at random points"


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
    for number, (low, high, mixed) in enumerate(_POINTS):
        at = _point(names, number, low, high, mixed)
        for sign in signs:
            numbers = arithmetic()
            one, two = (_defined(node, at, numbers, sign) for node in both)
            if one is None or two is None:
                continue
            if abs(one - two) > _CLOSE * max(abs(one), abs(two)) + _LOST * numbers.largest:
                return False
            compared += 1
    return True if compared >= _ENOUGH else None


def _point(names: list[str], number: int, low: float, high: float, mixed: bool) -> dict[str, float]:
    """Values of variables: of a name and the point's number, so that no two are related."""
    at = {}
    for name in names:
        own = random.Random(f"{number} {name}")
        at[name] = own.uniform(low, high) * (own.choice((-1, 1)) if mixed else 1)
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
    if apart <= size * library.mpf(10) ** -_SAME_DIGITS:
        return True
    with library.workdps(2 * _DIGITS):
        one, two = (_defined(node, at, _Precise(), sign) for node in both)
        return bool(abs(one - two) <= apart * library.mpf(10) ** -_SAME_DIGITS)


def proportional(first: Node, second: Node) -> int:
    """1 or -1 where one is a positive or negative constant times the other; else 0.

    Two equations whose sides differ by these have one set of solutions.
    """
    names = sorted(first.symbols | second.symbols)
    both = (first, second)
    if first.has("sign") or second.has("sign") or _is_complex(both):
        return 0
    ratios = []
    for number, (low, high, mixed) in enumerate(_POINTS):
        numbers = _Arithmetic(math)
        one, two = (
            _defined(node, _point(names, number, low, high, mixed), numbers, 1) for node in both
        )
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
    for number, (low, high, mixed) in enumerate(_POINTS):
        point = _point(names, number, low, high, mixed)
        at = {name: library.mpf(value) for name, value in point.items()}
        one, two = (_defined(node, at, _Precise(), 1) for node in both)
        if one is not None and two is not None:
            values.append((one, two))
    (one, two), *others = values or [(0, 0)]
    return len(values) >= _ENOUGH and all(
        abs(one * second - two * first) <= abs(one * second) * library.mpf(10) ** -_SAME_DIGITS
        for first, second in others
    )
