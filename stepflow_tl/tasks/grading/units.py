r"""Units, ordinals, currencies and words that stand behind a number.

``5\text{ cm}``, ``6 × 10⁻³ m/s²``, ``12^{\text{th}}\text{ grade}``, ``\$72,000 \text{ per year}``.
A unit within ``\text`` or ``\mathrm`` is one wherever it stands behind a value. Bare letters are
one only behind a number, where they are known as units and are more than a single letter that
touches it: ``3s`` is three times s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from stepflow_tl.tasks.grading.latex import Ambiguous, Token, is_whole, words

_PREFIXES = {
    **{"k": 3, "M": 6, "G": 9, "T": 12, "c": -2, "m": -3, "u": -6, "μ": -6, "n": -9, "p": -12},
    **{"f": -15, "d": -1, "h": 2, "kilo": 3, "mega": 6, "giga": 9, "centi": -2, "milli": -3},
    **{"micro": -6, "nano": -9, "pico": -12},
}
_PREFIXED = {  # what takes a prefix: its base, and how many of it
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), ("m", "1")),
    **dict.fromkeys(("g", "gram", "grams", "gm"), ("g", "1")),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), ("s", "1")),
    **dict.fromkeys(("J", "joule", "joules", "Joule", "Joules"), ("J", "1")),
    **dict.fromkeys(("N", "newton", "newtons", "Newton", "Newtons"), ("N", "1")),
    **dict.fromkeys(("W", "watt", "watts", "Watt", "Watts"), ("W", "1")),
    **dict.fromkeys(("Pa", "pascal", "pascals", "Pascal", "Pascals"), ("Pa", "1")),
    **dict.fromkeys(("Hz", "hertz", "Hertz"), ("Hz", "1")),
    **dict.fromkeys(("V", "volt", "volts", "Volts"), ("V", "1")),
    **dict.fromkeys(("A", "amp", "amps", "ampere", "amperes"), ("A", "1")),
    **dict.fromkeys(("ohm", "ohms", "Ohm", "Ohms", "Omega", "Ω"), ("ohm", "1")),
    **dict.fromkeys(("F", "farad", "farads"), ("F", "1")),
    **dict.fromkeys(("C", "coulomb", "coulombs", "Coulomb"), ("C", "1")),
    **dict.fromkeys(("T", "tesla", "Tesla"), ("T", "1")),
    **dict.fromkeys(("K", "kelvin", "Kelvin", "kelvins"), ("K", "1")),
    **dict.fromkeys(("L", "l", "liter", "liters", "litre", "litres"), ("L", "1")),
    **dict.fromkeys(("mol", "mole", "moles"), ("mol", "1")),
    **dict.fromkeys(("eV", "electronvolt", "electronvolts"), ("eV", "1")),
    **dict.fromkeys(("cal", "calorie", "calories"), ("cal", "1")),
    **dict.fromkeys(("bar", "bars"), ("bar", "1")),
    **dict.fromkeys(("pc", "parsec", "parsecs"), ("pc", "1")),
    **dict.fromkeys(("bit", "bits"), ("bit", "1")),
    **dict.fromkeys(("byte", "bytes"), ("byte", "1")),
    **dict.fromkeys(("Wb", "weber"), ("Wb", "1")),
    **dict.fromkeys(("erg", "ergs"), ("erg", "1")),
    "Wh": ("J", "3600"),
}
_NO_PREFIX = words(
    "torr Torr mmHg psi AU ly amu Da dyn dyne dynes G gauss Gauss H M acre acres ha "
    "hectare hectares mph kmph kph rpm cd lm lx Bq Sv gallon gallons gal quart quarts "
    "pint pints cup cups"
)
_WHOLE = {
    **dict.fromkeys(("min", "mins", "minute", "minutes"), ("s", "60")),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), ("s", "3600")),
    **dict.fromkeys(("day", "days"), ("s", "86400")),
    **dict.fromkeys(("week", "weeks"), ("s", "604800")),
    **dict.fromkeys(("month", "months"), ("month", "1")),
    **dict.fromkeys(("year", "years", "yr", "yrs"), ("month", "12")),
    **dict.fromkeys(("in", "inch", "inches"), ("ft", "1/12")),
    **dict.fromkeys(("ft", "foot", "feet"), ("ft", "1")),
    **dict.fromkeys(("yd", "yard", "yards"), ("ft", "3")),
    **dict.fromkeys(("mi", "mile", "miles"), ("ft", "5280")),
    **dict.fromkeys(("angstrom", "angstroms", "Angstrom", "Angstroms"), ("m", "1/10000000000")),
    **dict.fromkeys(("lb", "lbs", "pound", "pounds"), ("lb", "1")),
    **dict.fromkeys(("oz", "ounce", "ounces"), ("lb", "1/16")),
    **dict.fromkeys(("ton", "tons", "tonne", "tonnes"), ("ton", "1")),
    **dict.fromkeys(("degree", "degrees", "deg"), ("degree", "1")),
    **dict.fromkeys(("rad", "radian", "radians"), ("rad", "1")),
    **dict.fromkeys(("dollar", "dollars", "USD", "usd"), ("dollar", "1")),
    **dict.fromkeys(("cent", "cents"), ("dollar", "1/100")),
    **dict.fromkeys(("euro", "euros", "EUR"), ("euro", "1")),
    **dict.fromkeys(("Celsius", "celsius"), ("Celsius", "1")),
    **dict.fromkeys(("Fahrenheit", "fahrenheit"), ("Fahrenheit", "1")),
    **dict.fromkeys(("atm", "atmosphere", "atmospheres"), ("atm", "1")),
    **{name: (name, "1") for name in _NO_PREFIX},
    **dict.fromkeys(("unit", "units"), ("", "1")),
}  # fmt: skip
_LONG_ONLY = {"min", "in", "bar"}  # words that no prefix makes
_OF_ANGLES = ("sin", "cos", "tan", "cot", "sec", "csc")
_SCALES = {
    **{"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9},
    **{"trillion": 10**12, "dozen": 12, "millions": 10**6, "billions": 10**9},
}
_BEFORE_A_VALUE = words("cdot times pm mp frac sqrt le ge ne approx cup in")
_ORDINALS = frozenset(["st", "nd", "rd", "th"])
_SQUARES = {"square": 2, "sq": 2, "cubic": 3, "squared": 2, "cubed": 3}
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen", "₹": "rupee"}
_CURRENCIES["¢"] = "cent"
_CHANGES_THE_VALUE = words(
    "not than least most over under below above between no except without minus negative less "
    "more fewer never neither nor exceed exceeds times half halves third thirds fourth fourths "
    "quarter quarters fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths tenth "
    "tenths hundredth hundredths thousandth thousandths millionth millionths twice squared cubed "
    "factorial remainder otherwise else or"
)


BareUnits = Literal["none", "long", "any"]


@dataclass(frozen=True, slots=True)
class Unit:
    """What stands behind a value.

    Attributes:
        text: As it was written.
        bases: Base units and their powers, sorted; empty for words that are no known unit.
        factor: How many of the bases it is.
    """

    text: str
    bases: tuple[tuple[str, Fraction], ...] = ()
    factor: Fraction = Fraction(1)

    def per(self, other: Unit) -> Fraction | None:
        """How many of another unit this one is; None for a unit of another kind.

        Words that are no units are one where those of one side are among the other's.
        """
        if self.bases and other.bases:
            return self.factor / other.factor if self.bases == other.bases else None
        if not self.bases and not other.bases:
            first, second = (_singular(unit.text) for unit in (self, other))
            return Fraction(1) if first <= second or second <= first else None
        unknown = other if self.bases else self
        return Fraction(1) if _singular(unknown.text) <= {"unit", "square", "cubic"} else None


def _singular(text: str) -> set[str]:
    words_ = text.split()
    return {word.lower().rstrip("s") if len(word) > 1 else word for word in words_}


@dataclass(frozen=True, slots=True)
class Quantity:
    """The tokens of a value, and what stood around it.

    Attributes:
        value: The value's own tokens.
        unit: Its unit; None without one.
        percent: Whether it is followed by a sign of per cent.
    """

    value: tuple[Token, ...]
    unit: Unit | None = None
    percent: bool = False


def quantity_of(tokens: Sequence[Token], *, bare: BareUnits) -> Quantity:
    r"""A value without its ordinal ending, currency, per cent, scale and unit.

    Args:
        tokens: A value and what stands around it.
        bare: Which letters outside ``\text`` may be a unit: "none"; "long" for those behind a
            blank that are more than one letter, as a gold may have them; "any" for single ones
            behind a blank, too.

    Raises:
        Ambiguous: Words behind the value change it ("5 or less"), or there are several values
            with a unit each (3 h 20 min).
    """
    rest = list(tokens)
    currency = None
    while rest and rest[0].kind == "sign" and rest[0].text in _CURRENCIES:
        currency = _currency(rest.pop(0))
    if len(rest) > 1 and rest[0].is_sign("-") and rest[1].text in _CURRENCIES:
        currency = _currency(rest.pop(1))
    rest = _without_ordinals(rest)
    start = _unit_start(rest, bare=bare)
    unit = None
    if start is not None:
        value, behind = rest[:start], rest[start:]
        scale, behind = _scale(behind)
        if scale is not None:
            value += [Token("command", "times"), Token("number", str(scale))]
        if behind and _is_percent(behind):
            return Quantity(tuple(value), None, percent=True)
        rest, unit = value, _unit(behind) if behind else None
    if len(rest) > 1 and rest[-1].is_sign("%"):
        return Quantity(tuple(rest[:-1]), None, percent=True)
    if len(rest) > 1 and rest[-1].text in _CURRENCIES:
        currency = _currency(rest.pop())
    return Quantity(tuple(rest), currency or unit)


def _currency(token: Token) -> Unit:
    return Unit(token.text, ((_CURRENCIES[token.text], Fraction(1)),))


def _is_percent(behind: Sequence[Token]) -> bool:
    texts = [token.text.lower() for token in behind]
    return texts in (["percent"], ["percents"], ["per", "cent"], ["percentage", "points"])


def _scale(behind: list[Token]) -> tuple[int | None, list[Token]]:
    """A word such as million, and what follows it."""
    scale = _SCALES.get(behind[0].text.lower()) if behind else None
    return scale, behind if scale is None else behind[1:]


def _without_ordinals(tokens: list[Token]) -> list[Token]:
    r"""``12th``, ``12^{th}``, ``12\text{th}``: without the ending."""
    found: list[Token] = []
    at = 0
    while at < len(tokens):
        length = _ordinal(tokens, at) if found and is_whole(found[-1]) else 0
        if length:
            at += length
            continue
        found.append(tokens[at])
        at += 1
    return found


def _ordinal(tokens: Sequence[Token], at: int) -> int:
    """How many tokens are an ordinal's ending from here on; 0 for none."""
    start = at
    raised = tokens[at].is_sign("^")
    braced = raised and at + 1 < len(tokens) and tokens[at + 1].is_sign("{")
    at += raised + braced
    if at < len(tokens) and tokens[at].kind == "word" and tokens[at].text in _ORDINALS:
        at += 1
    elif (
        "".join(token.text for token in tokens[at : at + 2]) in _ORDINALS
        and all(token.kind == "letter" for token in tokens[at : at + 2])
        and not tokens[at].spaced
        and not tokens[at + 1].spaced
        and (raised or at + 2 == len(tokens) or _begins_anew(tokens[at + 2]))
    ):
        at += 2
    else:
        return 0
    if braced:
        if at >= len(tokens) or not tokens[at].is_sign("}"):
            return 0
        at += 1
    return at - start


def _begins_anew(token: Token) -> bool:
    return token.spaced or token.kind != "letter"


def _unit_start(tokens: Sequence[Token], *, bare: BareUnits) -> int | None:
    """Where the unit behind a value begins; None without one."""
    depth = 0
    has_number = has_letters = in_function = False
    for at, token in enumerate(tokens):
        if at and depth == 0 and _ends_value(tokens[at - 1]):
            is_number = has_number and not has_letters
            if (
                _begins_in_words(tokens, at)
                or (not in_function and _begins_with_degrees(tokens, at, bare))
                or (is_number and bare != "none" and _begins_bare(tokens[at:], bare))
            ):
                return at
        has_number = has_number or token.kind == "number"
        has_letters = has_letters or token.kind in ("letter", "word")
        in_function = in_function or token.is_command(*_OF_ANGLES)
        depth += token.is_sign("(", "[", "{", "\\{") - token.is_sign(")", "]", "}", "\\}")
    return None


def _begins_in_words(tokens: Sequence[Token], at: int) -> bool:
    """Whether upright words and units are all that follows."""
    token = tokens[at]
    after = tokens[at + 1] if at + 1 < len(tokens) else None
    if token.is_sign("/"):  # $42/hour
        begins = after is not None and after.kind == "word" and after.upright
    elif token.kind == "word":
        is_letter = after is None and len(token.text) == 1 and not is_unit(token.text)  # 5k
        begins = token.upright and not is_letter
    else:
        begins = _words_in_brackets(tokens, at)
    return begins and _is_tail(tokens[at:])


def _begins_with_degrees(tokens: Sequence[Token], at: int, bare: BareUnits) -> bool:
    r"""Whether a degree sign is all that follows, or it and a letter: ``^\circ C``."""
    length = _degrees_length(tokens[at : at + 4]) if tokens[at].is_sign("^") else 0
    if not length or at + length == len(tokens):
        return length > 0
    return bare != "none" and all(t.kind in ("word", "letter") for t in tokens[at + length :])


def _begins_bare(tail: Sequence[Token], bare: BareUnits) -> bool:
    """Whether letters behind a number are known units, and more likely those than variables."""
    first = tail[0]
    starts = first.kind in ("word", "letter") or first.is_command("mu", "Omega")
    is_single = len(tail) == 1 and first.kind == "letter"
    is_apart = first.spaced and not is_single if bare == "long" else first.spaced or not is_single
    return starts and not first.upright and is_apart and _is_tail(tail) and bool(_unit(tail).bases)


def _words_in_brackets(tokens: Sequence[Token], at: int) -> bool:
    r"""Whether ``(approximately)`` begins here, or ``\frac{\text{m}}{\text{s}}``."""
    token, after = tokens[at], tokens[at + 1 : at + 3]
    if token.is_sign("(") and after and after[0].kind == "word":
        return after[0].upright
    return token.is_command("frac") and len(after) == 2 and after[1].kind == "word"


def _ends_value(token: Token) -> bool:
    if token.kind == "word":
        return False
    if token.kind == "command":
        return token.text not in _BEFORE_A_VALUE
    return token.kind != "sign" or token.text in (")", "]", "}", "!", "|", "%")


def _degrees_length(tokens: Sequence[Token]) -> int:
    r"""How many tokens are a degree sign from here on: ``^\circ`` or ``^{\circ}``."""
    if len(tokens) > 1 and tokens[1].is_command("circ"):
        return 2
    if len(tokens) > 3 and tokens[1].is_sign("{") and tokens[2].is_command("circ"):
        return 4 if tokens[3].is_sign("}") else 0
    return 0


def _is_tail(tokens: Sequence[Token]) -> bool:
    """Whether nothing but words, units and their powers is here.

    Raises:
        Ambiguous: Another value follows.
    """
    for at, token in enumerate(tokens):
        if token.kind in ("word", "letter"):
            if token.upright and token.text.lower() in _CHANGES_THE_VALUE:
                raise Ambiguous(f"{token.text!r} behind a value leaves no single one")
            continue
        if token.is_command("mu", "Omega", "cdot", "circ", "times", "frac"):
            continue
        if token.is_sign(
            "/", "^", "{", "}", "-", "(", ")", ".", "\\*", "'", "$", ",", "!", "?", ":"
        ):
            continue
        if token.kind == "number":
            before = tokens[at - 1] if at else None
            if before is not None and (
                before.is_sign("^", "-") or (before.is_sign("{") and tokens[at - 2].is_sign("^"))
            ):
                continue
            if at and all(t.upright for t in tokens[:at] if t.kind == "word") and tokens[0].upright:
                raise Ambiguous("several values with words between them are no single one")
        return False
    return True


def _unit(tokens: Sequence[Token]) -> Unit:
    """The unit that a tail of words is."""
    text = " ".join(token.text for token in tokens if token.kind in ("word", "letter"))
    tokens = _without_fraction(tokens)
    bases: dict[str, Fraction] = {}
    factor = Fraction(1)
    at, sign, power_of_next = 0, 1, 1
    while at < len(tokens):
        token = tokens[at]
        if token.is_sign("^") and (length := _degrees_length(tokens[at : at + 4])):
            name, at = "degree", at + length
            after, end = _run(tokens, at)
            if after in ("C", "F", "Celsius", "Fahrenheit", "celsius"):
                name, at = {"C": "Celsius", "F": "Fahrenheit"}.get(after, after), end
        elif token.kind in ("word", "letter") or token.is_command("mu", "Omega"):
            name, at = _run(tokens, at)
        else:
            if token.is_sign("/"):
                sign = -1
            elif not token.is_sign("(", ")", ".", "\\*", "{", "}") and not token.is_command(
                "cdot", "times"
            ):
                return Unit(text)
            at += 1
            continue
        if name.lower() == "per":
            sign = -1
            continue
        if name.lower() in _SQUARES:
            power_of_next = _SQUARES[name.lower()]
            continue
        known = _known(name)
        if known is None:
            return Unit(text)
        exponent, at = _exponent(tokens, at)
        exponent *= sign * power_of_next
        power_of_next = 1
        base, size = known
        if base:
            bases[base] = bases.get(base, Fraction(0)) + exponent
            factor *= size**exponent
    kept = tuple(sorted((base, power) for base, power in bases.items() if power))
    return Unit(text, kept, factor)


def _without_fraction(tokens: Sequence[Token]) -> list[Token]:
    r"""``\frac{\text{m}}{\text{s}}`` as ``m/s``."""
    found: list[Token] = []
    for at, token in enumerate(tokens):
        if token.is_command("frac"):
            continue
        if token.is_sign("{") and at and tokens[at - 1].is_sign("}"):
            found.append(Token("sign", "/"))
        found.append(token)
    return found


def _run(tokens: Sequence[Token], at: int) -> tuple[str, int]:
    """The word or the letters without a blank between them that stand here."""
    text = ""
    start = at
    while at < len(tokens):
        token = tokens[at]
        if token.is_command("mu", "Omega"):
            text += "μ" if token.text == "mu" else "Omega"
        elif token.kind == "letter" or (token.kind == "word" and (at == start or text == "μ")):
            if at > start and token.spaced and text != "μ":
                break
            text += token.text
            if token.kind == "word":
                return text, at + 1
        else:
            break
        at += 1
    return text, max(at, start + 1)


def _exponent(tokens: Sequence[Token], at: int) -> tuple[int, int]:
    """The power behind a unit, and where it ends."""
    if at >= len(tokens) or not tokens[at].is_sign("^"):
        return 1, at
    sign, digits = 1, ""
    at += 1
    braced = at < len(tokens) and tokens[at].is_sign("{")
    at += braced
    if at < len(tokens) and tokens[at].is_sign("-"):
        sign, at = -1, at + 1
    if at < len(tokens) and is_whole(tokens[at]) and len(tokens[at].text) < 3:
        digits, at = tokens[at].text, at + 1
    at += braced
    return sign * int(digits or 1), at


def _known(name: str) -> tuple[str, Fraction] | None:
    """The base of a unit, and how many of it; None for a word that is none."""
    if name in _WHOLE or name in _PREFIXED:
        base, size = _WHOLE.get(name) or _PREFIXED[name]
        return base, Fraction(size)
    for length in (1, 4, 5):
        prefix, rest = name[:length], name[length:]
        if prefix in _PREFIXES and rest in _PREFIXED and name not in _LONG_ONLY:
            base, size = _PREFIXED[rest]
            return base, Fraction(size) * Fraction(10) ** _PREFIXES[prefix]
    return None


def is_unit(name: str) -> bool:
    """Whether a word is a known unit."""
    return _known(name) is not None


def with_plain_words(tokens: Sequence[Token]) -> list[Token]:
    r"""The tokens with words behind a number that were not written in ``\text``: ``18 apples``.

    A word has four letters or more, one of them a vowel, and a blank before it.
    """
    found: list[Token] = []
    at = 0
    while at < len(tokens):
        token, end = tokens[at], at
        if token.kind == "letter" and token.spaced and found:
            end += 1
            while end < len(tokens) and tokens[end].kind == "letter" and not tokens[end].spaced:
                end += 1
        run = "".join(each.text for each in tokens[at:end])
        is_word = len(run) >= 4 and any(letter in "aeiouAEIOU" for letter in run)
        if is_word and (found[-1].kind in ("number", "word") or found[-1].is_sign("}", ")", "%")):
            found.append(Token("word", run, spaced=True, upright=True))
        else:
            end = max(end, at + 1)
            found.extend(tokens[at:end])
        at = end
    return found
