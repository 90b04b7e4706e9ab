r"""What an answer is as a whole: a value, a list, a pair, an interval, an equation, words.

`read` takes an answer apart: a condition that trails it, cases with a condition each, names before
its values, brackets, unions, signs of both kinds. `comparing` compares two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from stepflow_tl.tasks.grading.exact import is_constant
from stepflow_tl.tasks.grading.expressions import MINUS_ONE, Node, parse
from stepflow_tl.tasks.grading.latex import Ambiguous, Token, TooLarge, Unreadable, spelled, words
from stepflow_tl.tasks.grading.units import BareUnits, Unit, quantity_of

_DEEPEST = 8  # brackets within brackets
_MOST_TOKENS = 800  # that are taken apart
_OPENS = ("(", "[", "{", "\\{")
_CLOSES = (")", "]", "}", "\\}")
_CONDITIONS = words(
    "for where if when whenever provided assuming given such unless since because as"
)
_JOINS = frozenset(["and", "or"])
_LEADS = words("about approximately approx roughly the answer is are usd eur gbp cad aud inr rs")
_ORDER = {"<": ("<", 1), "le": ("<=", 1), ">": ("<", -1), "ge": ("<=", -1)}
_RELATIONS = words("le ge ne approx in propto sim cong perp parallel")
_NAMED_SETS = frozenset(["emptyset", "reals", "integers", "naturals", "rationals", "complexes"])
_MATRICES = frozenset(["matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix"])
_ROWS = frozenset(["array", "cases", "aligned", "align", "gathered", "dcases", "rcases"])

Kind = Literal[
    "value",
    "pair",
    "set",
    "union",
    "relation",
    "words",
    "matrix",
    "named",
    "ratio",
    "list",
    "cases",
    "text",
]


@dataclass(frozen=True, slots=True)
class Shape:
    r"""One answer, or a piece of one.

    Attributes:
        kind: What it is. A "list" has pieces and no brackets.
        items: Its pieces.
        node: The expression of a "value".
        unit: The unit of a "value".
        percent: Whether a "value" is followed by a sign of per cent.
        text: The brackets of a "pair", "<" or "<=" or "!=" of a "relation" (the first item compared
            with the second), the words of "words", the name of a "named" set, "and" or "or" of a
            "list" that is joined so, the characters of a "text" (what is only compared as such).
        name: What stands before an equals sign.
        chain: All sides of an equation.
        about: Whether a sign of approximation stands between the sides.
        parameter: The variable that takes all whole values: n of ``n\pi, n \in \mathbb{Z}``.
    """

    kind: Kind
    items: tuple[Shape, ...] = ()
    node: Node | None = None
    unit: Unit | None = None
    percent: bool = False
    text: str = ""
    name: tuple[Token, ...] = ()
    chain: tuple[tuple[Token, ...], ...] = ()
    about: bool = False
    parameter: str = ""

    def values(self) -> Iterator[Shape]:
        """All values in it."""
        if self.kind == "value":
            yield self
        for item in self.items:
            yield from item.values()


def read(tokens: Sequence[Token], *, bare: BareUnits) -> Shape:
    r"""An answer's shape.

    Args:
        tokens: The answer.
        bare: Which letters outside ``\text`` may be units; see `units.quantity_of`.

    Raises:
        Unreadable: It is of none of the known shapes.
    """
    try:
        return _read(tokens, bare)
    except RecursionError:
        raise TooLarge("it is nested too deeply, and not read") from None


def _read(tokens: Sequence[Token], bare: BareUnits) -> Shape:
    if len(tokens) > _MOST_TOKENS:
        raise TooLarge(f"it has over {_MOST_TOKENS} tokens, and is not read")
    reader = _Reader(bare)
    pieces, joins = _split(tokens)
    if _is_quantity(pieces[0]):
        while len(pieces) > 1 and all(token.kind == "word" for token in pieces[-1]):
            pieces.pop()  # 72 clips in May and April
    conditions = [_condition_start(piece) for piece in pieces]
    if len(pieces) > 1 and sum(start is not None for start in conditions) > 1:
        return Shape(
            "cases", tuple(reader.case(*each) for each in zip(pieces, conditions, strict=True))
        )
    first = next((at for at, start in enumerate(conditions) if start is not None), None)
    if first is not None:  # what trails an answer: , \quad \text{for } x \ne 2
        if any(_is_value(piece) for piece in pieces[first + 1 :]):
            raise Ambiguous("several cases, not all with a condition")
        pieces = [*pieces[:first], pieces[first][: conditions[first]]]
    pieces = [piece for piece in pieces if piece]
    if not pieces:
        raise Unreadable("no value is left of it")
    shapes = [reader.element(piece) for piece in pieces]
    parameter = ""
    while len(shapes) > 1 and joins[len(shapes) - 2 :][:1] == [","]:
        if _is_parameter(shapes[-1]) and not parameter:
            parameter = shapes.pop().name[0].text
        elif _excludes(shapes):
            shapes.pop()
        else:
            break
    flat = [each for shape in shapes for each in _both_signs(shape)]
    if len(flat) == 1:
        return replace(flat[0], parameter=parameter)
    joined = set(joins[: len(shapes) - 1]) - {","}
    text = joined.pop() if len(joined) == 1 else ""
    return Shape("list", tuple(flat), text=text, parameter=parameter)


def _is_quantity(piece: Sequence[Token]) -> bool:
    """Whether a number with words behind it is here."""
    has_number = any(token.kind == "number" for token in piece)
    return has_number and piece[-1].kind == "word" and piece[-1].upright


def _is_parameter(shape: Shape) -> bool:
    r"""Whether this is ``n \in \mathbb{Z}``."""
    return shape.kind == "named" and shape.text == "integers" and len(shape.name) == 1


def _excludes(shapes: Sequence[Shape]) -> bool:
    r"""Whether the last of a list only says what a value is not: ``, x \ne 2``."""
    first, last = shapes[0], shapes[-1]
    return last.text == "!=" and first.kind != "relation"


def _is_value(piece: Sequence[Token]) -> bool:
    """Whether a piece behind a condition is more than a part of it."""
    return not any(_relates(token) for _, token in _outside(piece)) and any(
        token.kind == "number" or (token.kind == "command" and token.text == "frac")
        for _, token in _outside(piece)
    )


def _condition_start(tokens: Sequence[Token]) -> int | None:
    r"""Where a condition begins, such as ``\text{for } n \ge 1``; None without one."""
    for at, token in _outside(tokens):
        if _word(tokens, at, _CONDITIONS) or token.is_command("forall"):
            return at - (at > 0 and tokens[at - 1].is_sign("("))
    return None


def _both_signs(shape: Shape) -> tuple[Shape, ...]:
    """A value with plus-or-minus is two."""
    if not any(value.node is not None and value.node.has("sign") for value in shape.values()):
        return (shape,)
    if shape.chain and len(shape.chain) > 2:
        raise Unreadable("several equations with both signs are not read")
    return tuple(_with_sign(shape, sign) for sign in (1, -1))


def _with_sign(shape: Shape, sign: int) -> Shape:
    node = None if shape.node is None else _signed(shape.node, sign)
    items = tuple(_with_sign(item, sign) for item in shape.items)
    return replace(shape, node=node, items=items, chain=())


def _signed(node: Node, sign: int) -> Node:
    parts = tuple(_signed(part, sign) for part in node.parts)
    if node.kind == "sign":
        assert node.value is not None
        return parts[0] if node.value == sign else Node("product", parts=(MINUS_ONE, *parts))
    return Node(node.kind, node.name, parts, node.value)


def _word(tokens: Sequence[Token], at: int, words: frozenset[str]) -> int:
    """How many tokens are one of these words here, upright or of bare letters; 0 for none."""
    token = tokens[at]
    if token.kind == "word":
        return 1 if token.text.lower() in words else 0
    if token.kind != "letter" or (at and tokens[at - 1].kind == "letter" and not token.spaced):
        return 0
    end = at + 1
    while end < len(tokens) and tokens[end].kind == "letter" and not tokens[end].spaced:
        end += 1
    run = "".join(each.text for each in tokens[at:end])
    return end - at if run.lower() in words and end - at > 1 and token.spaced else 0


def _deeper_by(token: Token) -> int:
    """1 for what opens a bracket or an environment, -1 for what closes one, else 0."""
    opens = token.is_sign(*_OPENS) or token.is_command("langle", "lfloor", "lceil")
    closes = token.is_sign(*_CLOSES) or token.is_command("rangle", "rfloor", "rceil")
    if token.kind == "command":
        opens = opens or token.text.startswith("begin ")
        closes = closes or token.text.startswith("end ")
    return opens - closes


def _outside(tokens: Sequence[Token]) -> Iterator[tuple[int, Token]]:
    """Tokens outside all brackets and environments."""
    depth = 0
    for at, token in enumerate(tokens):
        change = _deeper_by(token)
        if depth == 0 and change == 0:
            yield at, token
        depth += change


def _split(tokens: Sequence[Token]) -> tuple[list[list[Token]], list[str]]:
    """The elements of a list, and what joins each to the next: a comma, "and", "or"."""
    pieces: list[list[Token]] = []
    joins: list[str] = []
    start = skip = 0
    for at, token in _outside(tokens):
        if at < skip:
            continue
        length = 1 if token.is_sign(",", ";") or token.is_command("lor") else 0
        join = "or" if token.is_command("lor") else ","
        if not length and (length := _word(tokens, at, _JOINS)):
            join = "".join(each.text for each in tokens[at : at + length]).lower()
        if not length:
            continue
        if tokens[start:at]:
            pieces.append(list(tokens[start:at]))
            joins.append(join)
        elif joins:  # ", and"
            joins[-1] = join
        start = skip = at + length
    pieces.append(list(tokens[start:]))
    return pieces, joins


def _split_at(tokens: Sequence[Token], is_here: Callable[[Token], bool]) -> list[list[Token]]:
    pieces: list[list[Token]] = []
    start = 0
    for at, token in _outside(tokens):
        if is_here(token):
            pieces.append(list(tokens[start:at]))
            start = at + 1
    return [*pieces, list(tokens[start:])]


class _Reader:
    def __init__(self, bare: BareUnits) -> None:
        self.bare: BareUnits = bare
        self.depth = 0

    def case(self, tokens: Sequence[Token], condition: int | None) -> Shape:
        """A value and its condition, which is compared as text where it is no relation."""
        at = len(tokens) if condition is None else condition
        words = [t for t in tokens[at:] if not _word([t], 0, _CONDITIONS)]
        return Shape("list", (self.cell(tokens[:at]), self.cell(words)))

    def cell(self, tokens: Sequence[Token]) -> Shape:
        """An element, or what is only compared as text."""
        while tokens and (tokens[-1].is_sign(",", ";", ".") or _word(tokens, 0, _CONDITIONS)):
            is_end = tokens[-1].is_sign(",", ";", ".")
            tokens = tokens[:-1] if is_end else tokens[_word(tokens, 0, _CONDITIONS) :]
        try:
            return self.element(tokens)
        except Unreadable:
            text = " ".join(spelled(tokens))
            is_words = all(token.kind == "word" for token in tokens)
            return Shape("text", text=text.casefold() if is_words else text)

    def element(self, tokens: Sequence[Token]) -> Shape:
        """One element of a list: a body, with a name before it, or a relation."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise TooLarge(f"it is nested deeper than {_DEEPEST}, and not read")
        try:
            return self._element(tokens)
        finally:
            self.depth -= 1

    def _element(self, tokens: Sequence[Token]) -> Shape:
        signs = [(at, token) for at, token in _outside(tokens) if _relates(token)]
        if not signs:
            return self.body(tokens)
        ends = [at for at, _ in signs]
        sides = [
            tuple(tokens[start:end])
            for start, end in zip([0, *(at + 1 for at in ends)], [*ends, len(tokens)], strict=True)
        ]
        names = {token.text for _, token in signs}
        if names == {"in"} and len(sides) == 2 and is_name(sides[0]):
            return replace(self.body(sides[-1]), name=sides[0])
        if names <= {"=", "approx"}:
            return self._equation(sides, "approx" in names)
        if names <= {"<", ">", "le", "ge"}:
            return self._inequalities(sides, [token.text for _, token in signs])
        if names == {"ne"} and len(sides) == 2:
            return Shape("relation", tuple(self.body(side) for side in sides), text="!=")
        if names <= {"propto", "sim", "cong", "perp", "parallel"} and len(sides) == 2:
            if names == {"sim"} and not sides[0]:
                return self.body(sides[1])
            return Shape("relation", tuple(self.body(side) for side in sides), text=names.pop())
        raise Unreadable(f"relations of several kinds: {sorted(names)}")

    def _equation(self, sides: list[tuple[Token, ...]], about: bool) -> Shape:
        if sides[0] == ():  # = 5
            sides = sides[1:]
        if len(sides) == 1:
            return self.body(sides[0])
        first, last = sides[0], sides[-1]
        value = self.body(last)
        if value.kind == "value" and value.node is not None and value.node.kind == "symbol":
            named = self.body(first)
            if any(is_constant(v.node) for v in named.values() if v.node is not None):
                first, value = last, named  # 5 = x
        return replace(value, name=first, chain=tuple(sides), about=about)

    def _inequalities(self, sides: list[tuple[Token, ...]], signs: list[str]) -> Shape:
        shapes = []
        for left, right, sign in zip(sides, sides[1:], signs, strict=False):
            text, direction = _ORDER[sign]
            pair = (self.body(left), self.body(right))
            shapes.append(Shape("relation", pair[::direction], text=text))
        return shapes[0] if len(shapes) == 1 else Shape("relation", tuple(shapes), text="and")

    def body(self, tokens: Sequence[Token]) -> Shape:
        """What has no name and is in no list."""
        tokens = _without_leads(tokens)
        if not tokens:
            raise Unreadable("a side has no value")
        unions = _split_at(tokens, lambda token: token.is_command("cup"))
        if len(unions) > 1:
            return Shape("union", tuple(self.body(part) for part in unions))
        if len(tokens) == 1 and tokens[0].is_command(*_NAMED_SETS):
            return Shape("named", text=tokens[0].text)
        if all(token.kind == "word" or token.is_sign(".", "!", "-", "'") for token in tokens):
            return Shape("words", text=words_of(tokens))
        bracketed = self._bracketed(tokens)
        if bracketed is not None:
            return bracketed
        ratio = _split_at(tokens, lambda token: token.is_sign(":"))
        if len(ratio) > 1:
            return Shape("ratio", tuple(self.body(part) for part in ratio))
        quantity = quantity_of(tokens, bare=self.bare)
        if not quantity.value:
            raise Unreadable("no value stands beside its unit")
        if len(quantity.value) < len(tokens):
            inner = self._bracketed(quantity.value)
            if inner is not None:
                return inner
        return Shape(
            "value", node=parse(quantity.value), unit=quantity.unit, percent=quantity.percent
        )

    def _bracketed(self, tokens: Sequence[Token]) -> Shape | None:
        """A pair, an interval, a set, a matrix; None for what is none."""
        first, last = tokens[0], tokens[-1]
        if len(tokens) < 2:
            return None
        if first.is_sign("\\{") and tokens[1].is_command("begin array"):
            return self._environment("cases", tokens[2:-1]) if _closes_at_end(tokens[1:]) else None
        if len(tokens) < 2 or any(True for _ in _outside(tokens)) or not _closes_at_end(tokens):
            return None
        inside = tokens[1:-1]
        if first.is_sign("(", "[") and inside and inside[0].is_command("begin array"):
            return self._environment("matrix", inside[1:-1]) if _closes_at_end(inside) else None
        if first.is_sign("{"):
            return self.element(inside) if inside else None
        if first.kind == "command" and first.text.startswith("begin "):
            return self._environment(first.text.removeprefix("begin "), inside)
        opened = "<" if first.is_command("langle") else first.text
        closed = ">" if last.is_command("rangle") else last.text
        if opened == "\\{" and closed == "\\}":
            return self._set(inside)
        if first.kind == "command" and opened != "<":
            return None
        parts = [part for part in _split_at(inside, lambda token: token.is_sign(",", ";"))]
        if len(parts) < 2:
            return None
        brackets = opened + closed
        if brackets not in ("()", "[]", "(]", "[)", "<>"):
            return None
        return Shape("pair", tuple(self.element(part) for part in parts), text=brackets)

    def _set(self, inside: Sequence[Token]) -> Shape:
        if not inside:
            return Shape("named", text="emptyset")
        bars = [at for at, token in _outside(inside) if token.is_sign("|", ":")]
        if len(bars) == 1:
            named = [token.text for token in inside[: bars[0]]]
            if len(named) == 1 or named[1:] == ["in", "reals"]:
                return self.element(inside[bars[0] + 1 :])
        if bars:
            raise Unreadable("a set by a rule is not read")
        parts = _split_at(inside, lambda token: token.is_sign(",", ";"))
        if any(not part for part in parts):
            raise Unreadable("an element of a set has no value")
        shapes = [self.element(part) for part in parts]
        return Shape("set", tuple(each for shape in shapes for each in _both_signs(shape)))

    def _environment(self, name: str, inside: Sequence[Token]) -> Shape:
        rows = _split_at(inside, lambda token: token.is_sign("\\\\"))
        cells = [_split_at(row, lambda token: token.is_sign("&")) for row in rows if row]
        is_matrix = name in _MATRICES
        if name in _ROWS and not is_matrix:
            if all(len(row) == 1 for row in cells):
                return Shape("list", tuple(self.element(row[0]) for row in cells))
            if all(len(row) == 2 for row in cells):
                rows_ = (Shape("list", tuple(self.cell(cell) for cell in row)) for row in cells)
                return Shape("cases", tuple(rows_))
            raise Unreadable(f"{name} of several columns is not read")
        if not is_matrix or len({len(row) for row in cells}) != 1:
            raise Unreadable(f"{name} is not read here")
        return Shape(
            "matrix",
            tuple(Shape("list", tuple(self.element(_kept(cell)) for cell in row)) for row in cells),
        )


def _kept(cell: list[Token]) -> list[Token]:
    if not cell:
        raise Unreadable("an entry has no value")
    return cell


def _relates(token: Token) -> bool:
    return token.is_sign("=", "<", ">") or token.is_command(*_RELATIONS)


def _closes_at_end(tokens: Sequence[Token]) -> bool:
    """Whether the bracket that opens first closes last."""
    depth = 0
    for at, token in enumerate(tokens):
        depth += _deeper_by(token)
        if depth == 0:
            return at == len(tokens) - 1
    return False


def _without_leads(tokens: Sequence[Token]) -> list[Token]:
    """Without words before a value that do not change it."""
    kept = list(tokens)
    while (
        len(kept) > 1
        and kept[0].kind == "word"
        and kept[0].text.lower() in _LEADS
        and not all(token.kind == "word" for token in kept)
    ):
        kept.pop(0)
        if kept[0].is_sign(":"):
            kept.pop(0)
    return kept


def read_side(tokens: Sequence[Token]) -> Shape:
    """The shape of one side of an equation.

    Raises:
        Unreadable: It is of none of the known shapes.
    """
    return _Reader("any").body(tokens)


def words_of(tokens: Sequence[Token]) -> str:
    """The words of a text, in small letters with one blank between them."""
    parts: list[str] = []
    for token in tokens:
        if token.kind not in ("word", "letter", "number"):
            continue
        touches = parts and not token.spaced and token.kind == "letter"
        if touches:
            parts[-1] += token.text
        else:
            parts.append(token.text)
    while len(parts) > 1 and parts[0].lower() in ("a", "an", "the"):
        parts.pop(0)
    text = " ".join(parts)
    return text if len(text) < 3 and text.lower() not in ("no", "ok") else text.casefold()


def is_name(tokens: Sequence[Token]) -> bool:
    """Whether this names a value: a variable, a function's value, a derivative, words."""
    if all(token.kind == "word" for token in tokens):
        return True
    first, last = tokens[0], tokens[-1]
    inside = tokens[1:-1]
    if (first.is_sign("(") and last.is_sign(")")) or first.text.startswith("begin "):
        return all(token.kind == "letter" or token.is_sign(",", "\\\\") for token in inside)
    if first.kind == "letter" and [t.text for t in inside[:5]] == ["^", "{", "-", "1", "}"]:
        return last.is_sign(")")  # f^{-1}(x)
    letters = [token for token in tokens if token.kind == "letter"]
    if len(letters) == len(tokens) and len(tokens) > 1 and not any(t.spaced for t in tokens[1:]):
        return len(tokens) <= 3 and all(t.text.isupper() for t in tokens)  # a segment, an angle
    try:
        node = parse(tokens)
    except Unreadable:
        return False
    if node.kind == "product":  # y(x), P(A)
        return all(part.kind == "symbol" for part in node.parts) and any(
            token.is_sign("(") for token in tokens
        )
    return node.kind == "symbol" or (node.kind == "call" and node.name.endswith("()"))
