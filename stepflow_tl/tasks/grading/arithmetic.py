"""Values of expressions: with floating-point numbers, complex ones, and 150 digits."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from stepflow_tl.tasks.grading.exact import LARGEST_FACTORIAL, Undefined, spend
from stepflow_tl.tasks.grading.expressions import Node
from stepflow_tl.tasks.grading.latex import TooLarge

DIGITS = 150
_LARGEST_POWER = 3e4  # binary digits of a value that is not exact

Environment = Mapping[str, Any]


class Arithmetic:
    """Floating-point numbers of one kind, and what functions are with them."""

    is_real = True
    price = 1  # of an operation

    def __init__(self, library: Any) -> None:
        self.library = library
        self.largest = 0.0  # of the terms of sums: what is lost where they cancel

    def number(self, value: Fraction) -> Any:
        """The number of an exact one."""
        return value.numerator / value.denominator

    def kept(self, value: Any) -> Any:
        """The value itself.

        Raises:
            Undefined: It is infinite.
        """
        if not abs(value) < math.inf:
            raise Undefined("it is not finite")
        return value

    def sum(self, terms: list[Any]) -> Any:
        """The sum of terms."""
        self.largest = max(self.largest, *(float(abs(term)) for term in terms))
        return self.kept(sum(terms))

    def power(self, base: Any, exponent: Any) -> Any:
        """A power."""
        if base == 0 and exponent == 0:
            return base * 0 + 1
        if self.is_real and base < 0 and exponent != int(exponent):
            raise Undefined("a power of a negative number is not real")
        return base**exponent

    def root(self, value: Any, degree: Any) -> Any:
        """A root; of an odd degree also of negative numbers."""
        if degree == 2:
            return self.library.sqrt(value)
        if self.is_real and value < 0 and degree == int(degree) and int(degree) % 2:
            return -self.root(-value, degree)
        return self.power(value, 1 / degree)

    def imaginary(self) -> Any:
        """The imaginary unit."""
        raise Undefined("an imaginary number is no real one")

    def call(self, name: str, values: list[Any]) -> Any:
        """A function's value."""
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
            raise Undefined(f"{name} is not known of a complex number")
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


class Complex(Arithmetic):
    """Complex floating-point numbers."""

    is_real = False

    def imaginary(self) -> Any:
        """The imaginary unit."""
        return 1j

    def power(self, base: Any, exponent: Any) -> Any:
        """A power."""
        return 1.0 if exponent == 0 else base**exponent


class Precise(Arithmetic):
    """Numbers of many digits; real ones until a root or logarithm makes them complex."""

    is_real = False
    price = 20

    def __init__(self) -> None:
        super().__init__(mpmath_context())

    def number(self, value: Fraction) -> Any:
        """The number of an exact one."""
        return self.library.mpf(value.numerator) / value.denominator

    def kept(self, value: Any) -> Any:
        """The value itself.

        Raises:
            Undefined: It is infinite.
        """
        if not self.library.isfinite(value):
            raise Undefined("it is not finite")
        return value

    def imaginary(self) -> Any:
        """The imaginary unit."""
        return self.library.mpc(0, 1)

    def root(self, value: Any, degree: Any) -> Any:
        """A root; of an odd degree also of negative numbers."""
        real = self.library.im(value) == 0 and self.library.im(degree) == 0
        if real and self.library.re(value) < 0 and degree == int(degree) and int(degree) % 2:
            return -self.root(-value, degree)
        return super().root(value, degree)

    def power(self, base: Any, exponent: Any) -> Any:
        """A power."""
        if base != 0 and abs(exponent) * (abs(self.library.log(abs(base), 2)) + 1) > _LARGEST_POWER:
            raise TooLarge("a power is too large, and was not reckoned")
        return self.library.power(base, exponent)

    def call(self, name: str, values: list[Any]) -> Any:
        """A function's value."""
        first = values[0]
        if name in ("factorial", "binomial"):
            if any(abs(value) > LARGEST_FACTORIAL for value in values):
                raise TooLarge("a factorial is too large, and was not reckoned")
            return getattr(self.library, name)(*values)
        if name in ("floor", "ceiling"):
            return getattr(self.library, "floor" if name == "floor" else "ceil")(first)
        if name in ("exp", "sinh", "cosh") and abs(first) > _LARGEST_POWER:
            raise TooLarge("a power is too large, and was not reckoned")
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
def mpmath_context() -> Any:
    """A context of mpmath of its own: nobody else's precision changes."""
    from mpmath import MPContext

    context = MPContext()
    context.dps = DIGITS
    return context


def _value(node: Node, at: Environment, numbers: Arithmetic, sign: int) -> Any:
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
    spend(numbers.price)
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
            raise Undefined("it divides by zero, and has no value")
        return numbers.kept(first / second)
    return numbers.kept(numbers.power(first, second))


def defined(node: Node, at: Environment, numbers: Arithmetic, sign: int) -> Any:
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
        return _value(node, {}, Precise(), 1)
    except (ValueError, ArithmeticError, TypeError) as error:
        raise Undefined(str(error)) from None
