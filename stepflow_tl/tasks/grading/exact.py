"""Rational constants, exactly, and the allowance of work that a comparison has."""

from __future__ import annotations

import math
import threading
from fractions import Fraction

from stepflow_tl.tasks.grading.expressions import Node
from stepflow_tl.tasks.grading.latex import TooLarge

LARGEST_FACTORIAL = 2000
_BITS = 100_000  # of an exact number
_ALLOWANCE = 200_000  # operations of one comparison


class _Work(threading.local):
    """What is left of a comparison's allowance, in this thread."""

    left = _ALLOWANCE


_WORK = _Work()


def allowance() -> None:
    """Begin a comparison: its work is counted from here on."""
    _WORK.left = _ALLOWANCE


def spend(amount: int) -> None:
    """Take work off the allowance.

    Raises:
        TooLarge: Nothing is left.
    """
    _WORK.left -= amount
    if _WORK.left < 0:
        raise TooLarge("it could not be compared in the time that is allowed")


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
    spend(1)
    value = _exact(node)
    if value is not None:
        bits = max(value.numerator.bit_length(), value.denominator.bit_length())
        spend(bits // 500)
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
            raise Undefined("it divides by zero, and has no value")
        return first / second
    return _exact_power(first, second)


def _exact_sum(values: list[Fraction]) -> Fraction | None:
    total = Fraction(0)
    for value in values:
        total += value
        bits = total.denominator.bit_length()
        spend(bits // 100)
        if bits > _BITS:
            return None
    return total


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        return _exact_root(base, exponent)
    if base == 0 and exponent < 0:
        raise Undefined("it divides by zero, and has no value")
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
    if not all(v.denominator == 1 and 0 <= v <= LARGEST_FACTORIAL for v in values):
        return None
    whole = [int(v) for v in values]
    if name == "factorial":
        return Fraction(math.factorial(whole[0]))
    if name == "binomial":
        return Fraction(math.comb(*whole))
    if name in ("gcd", "lcm"):
        return Fraction(getattr(math, name)(*whole))
    return None
