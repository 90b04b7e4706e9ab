r"""What an answer is as a whole: a value, a list, a pair, an interval, an equation, words.

`read` takes an answer apart: a condition that trails it, cases with a condition each, names before
its values, brackets, unions, signs of both kinds. `same_answer` compares two of them piece by piece
and says by which rule they are one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from stepflow_tl.tasks.grading.expressions import MINUS_ONE, Node, number, parse
from stepflow_tl.tasks.grading.latex import (
    Ambiguous,
    Token,
    TooLarge,
    Unreadable,
    same_tokens,
    spelt,
    words,
)
from stepflow_tl.tasks.grading.units import BareUnits, Unit, quantity_of
from stepflow_tl.tasks.grading.values import (
    Undefined,
    allowance,
    exact,
    infinity_of,
    is_constant,
    proportional,
    same_value,
)

_COORDINATES = frozenset("xyz")
_DEEPEST = 8  # brackets within brackets
_MOST_TOKENS = 800  # that are taken apart
_LONGEST_LIST = 40  # elements that are compared in any order
_OPENS = ("(", "[", "{", "\\{")
_CLOSES = (")", "]", "}", "\\}")
_CONDITIONS = words(
    "for where if when whenever provided assuming given such unless since because as"
)
_JOINS = frozenset(["and", "or"])
_LEADS = words("about approximately approx roughly the answer is are usd eur gbp cad aud inr rs")
_ORDERED = frozenset(["<", "<="])
_ORDER = {"<": ("<", 1), "le": ("<=", 1), ">": ("<", -1), "ge": ("<=", -1)}
_RELATIONS = words("le ge ne approx in propto sim cong perp parallel")
_NAMED_SETS = frozenset(["emptyset", "reals", "integers", "naturals", "rationals", "complexes"])
_MATRICES = frozenset(["matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"])
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


# ---------------------------------------------------------------------------------------- reading


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
        raise TooLarge("it is nested too deeply") from None


def _read(tokens: Sequence[Token], bare: BareUnits) -> Shape:
    if len(tokens) > _MOST_TOKENS:
        raise TooLarge(f"it has over {_MOST_TOKENS} tokens")
    reader = _Reader(bare)
    pieces, joins = _split(tokens)
    if any(token.kind == "number" for token in pieces[0]) and pieces[0][-1:]:
        first_words = pieces[0][-1].kind == "word" and pieces[0][-1].upright
        while first_words and len(pieces) > 1 and all(t.kind == "word" for t in pieces[-1]):
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
        raise Unreadable("nothing is left of it")
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
        raise Unreadable("several equations with both signs")
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


def _outside(tokens: Sequence[Token]) -> Iterator[tuple[int, Token]]:
    """Tokens outside all brackets and environments."""
    depth = 0
    for at, token in enumerate(tokens):
        is_open = token.is_sign(*_OPENS) or token.is_command("langle", "lfloor", "lceil")
        is_close = token.is_sign(*_CLOSES) or token.is_command("rangle", "rfloor", "rceil")
        if token.kind == "command":
            is_open = is_open or token.text.startswith("begin ")
            is_close = is_close or token.text.startswith("end ")
        if depth == 0 and not is_open and not is_close:
            yield at, token
        depth += is_open - is_close


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
            return Shape("text", text=" ".join(spelt(tokens)).casefold())

    def element(self, tokens: Sequence[Token]) -> Shape:
        """One element of a list: a body, with a name before it, or a relation."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise TooLarge(f"it is nested deeper than {_DEEPEST}")
        shape = self._element(tokens)
        self.depth -= 1
        return shape

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
        if names == {"in"} and len(sides) == 2 and _is_name(sides[0]):
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
            raise Unreadable("a side is empty")
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
            raise Unreadable("a set by a rule")
        parts = _split_at(inside, lambda token: token.is_sign(",", ";"))
        if any(not part for part in parts):
            raise Unreadable("an element of a set is empty")
        shapes = [self.element(part) for part in parts]
        return Shape("set", tuple(each for shape in shapes for each in _both_signs(shape)))

    def _environment(self, name: str, inside: Sequence[Token]) -> Shape:
        rows = _split_at(inside, lambda token: token.is_sign("\\\\"))
        cells = [_split_at(row, lambda token: token.is_sign("&")) for row in rows if row]
        is_matrix = name in _MATRICES - _ROWS
        if name in _ROWS and not is_matrix:
            if all(len(row) == 1 for row in cells):
                return Shape("list", tuple(self.element(row[0]) for row in cells))
            if all(len(row) == 2 for row in cells):
                rows_ = (Shape("list", tuple(self.cell(cell) for cell in row)) for row in cells)
                return Shape("cases", tuple(rows_))
            raise Unreadable(f"{name} of several columns")
        if not is_matrix or len({len(row) for row in cells}) != 1:
            raise Unreadable(f"{name} is not read here")
        return Shape(
            "matrix",
            tuple(Shape("list", tuple(self.element(_kept(cell)) for cell in row)) for row in cells),
        )


def _kept(cell: list[Token]) -> list[Token]:
    if not cell:
        raise Unreadable("an entry is empty")
    return cell


def _relates(token: Token) -> bool:
    return token.is_sign("=", "<", ">") or token.is_command(*_RELATIONS)


def _closes_at_end(tokens: Sequence[Token]) -> bool:
    """Whether the bracket that opens first closes last."""
    depth = 0
    for at, token in enumerate(tokens):
        is_open = token.is_sign(*_OPENS) or token.is_command("langle", "lfloor", "lceil")
        is_close = token.is_sign(*_CLOSES) or token.is_command("rangle", "rfloor", "rceil")
        if token.kind == "command":
            is_open = is_open or token.text.startswith("begin ")
            is_close = is_close or token.text.startswith("end ")
        depth += is_open - is_close
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


# -------------------------------------------------------------------------------------- comparing


def same_answer(gold: Shape, answer: Shape) -> str | None:
    """By which rule an answer is the gold; None where it is not.

    Raises:
        Unreadable: They cannot be compared here.
    """
    try:
        return _same_answer(gold, answer)
    except RecursionError:
        raise TooLarge("it is nested too deeply") from None


def _same_answer(gold: Shape, answer: Shape) -> str | None:
    allowance()
    if gold.parameter and answer.parameter and gold.parameter != answer.parameter:
        answer = _renamed(answer, {answer.parameter: gold.parameter})
    rule = _Comparison().same(gold, answer)
    if rule is not None:
        return rule
    folded = _folded(gold, answer)
    if folded is None:
        return None
    rule = _Comparison().same(gold, folded)
    return None if rule is None else f"{rule}, capital and small letters taken for one"


def _symbols(shape: Shape) -> frozenset[str]:
    return frozenset(
        name for value in shape.values() if value.node is not None for name in value.node.symbols
    )


def _folded(gold: Shape, answer: Shape) -> Shape | None:
    """The answer with its letters in the gold's case, where each has only one of them."""
    right, given = _symbols(gold), _symbols(answer)
    for names in (right, given):
        if len({name.casefold() for name in names}) < len(names):
            return None
    same_case = {name.casefold(): name for name in right}
    changed = {
        name: same_case[name.casefold()]
        for name in given
        if same_case.get(name.casefold(), name) != name
    }
    return _renamed(answer, changed) if changed else None


def _renamed(shape: Shape, names: dict[str, str]) -> Shape:
    node = None if shape.node is None else _renamed_node(shape.node, names)
    return replace(shape, node=node, items=tuple(_renamed(item, names) for item in shape.items))


def _renamed_node(node: Node, names: dict[str, str]) -> Node:
    parts = tuple(_renamed_node(part, names) for part in node.parts)
    name = names.get(node.name, node.name) if node.kind == "symbol" else node.name
    return Node(node.kind, name, parts, node.value)


class _Comparison:
    """Compares shapes; the weakest rule that was needed is the one that is told."""

    def same(self, gold: Shape, answer: Shape) -> str | None:
        if "cases" in (gold.kind, answer.kind):
            return self._cases(gold, answer)
        if gold.kind == "list" or answer.kind == "list":
            return self._lists(gold, answer)
        if gold.chain or answer.chain or gold.name or answer.name:
            return self._named(gold, answer)
        return self._bodies(gold, answer)

    def _cases(self, gold: Shape, answer: Shape) -> str | None:
        """Cases one by one, value and condition, in any order."""
        same_name = not gold.name or not answer.name or same_tokens(gold.name, answer.name)
        if gold.kind != answer.kind or not same_name or len(gold.items) != len(answer.items):
            return None
        left = list(answer.items)
        for case in gold.items:
            for other in left:
                pairs = zip(case.items, other.items, strict=True)
                if all(self.same(one, two) is not None for one, two in pairs):
                    left.remove(other)
                    break
            else:
                return None
        return "the same cases"

    # lists

    def _lists(self, gold: Shape, answer: Shape) -> str | None:
        if _spans(gold) is not None and _spans(answer) is not None:
            return self._bodies(gold, answer)
        right, given = _items(gold), _items(answer)
        if right is None or given is None or len(right) != len(given):
            return None
        ordered = "pair" in (gold.kind, answer.kind)
        names = [_name(item) for item in given]
        gold_names = [_name(item) for item in right]
        if all(gold_names) and all(names) and len(set(names)) == len(names) == len(set(gold_names)):
            if set(gold_names) != set(names):
                return None
            given = tuple(given[names.index(name)] for name in gold_names)
            ordered = True
        elif all(names) and len(set(names)) == len(names):
            if set(names) <= _COORDINATES:
                given = tuple(given[names.index(name)] for name in sorted(names))
            rule = self._in_order(right, _unnamed(given))
            return rule and f"{rule}, one by one"
        if ordered:
            return self._in_order(_unnamed(right), _unnamed(given))
        if "set" in (gold.kind, answer.kind):
            return self._in_any_order(self._different(right), self._different(given))
        return self._in_any_order(right, given)

    def _in_order(self, right: Sequence[Shape], given: Sequence[Shape]) -> str | None:
        if len(right) != len(given):
            return None
        rules = [self.same(one, two) for one, two in zip(right, given, strict=True)]
        return None if any(rule is None for rule in rules) else _weakest(rules)

    def _in_any_order(self, right: Sequence[Shape], given: Sequence[Shape]) -> str | None:
        left, rules = list(given), []
        if len(right) != len(left):
            return None
        if len(right) > _LONGEST_LIST:
            raise TooLarge(f"a list of over {_LONGEST_LIST} elements in any order")
        for one in right:
            for at, two in enumerate(left):
                rule = self.same(one, two)
                if rule is not None:
                    rules.append(rule)
                    del left[at]
                    break
            else:
                return None
        return f"{_weakest(rules)}, in any order"

    def _different(self, items: Sequence[Shape]) -> list[Shape]:
        found: list[Shape] = []
        if len(items) > _LONGEST_LIST:
            raise TooLarge(f"a set of over {_LONGEST_LIST} elements")
        for item in items:
            if all(self.same(other, item) is None for other in found):
                found.append(item)
        return found

    # names and equations

    def _named(self, gold: Shape, answer: Shape) -> str | None:
        if gold.name and answer.name:
            return self._both_named(gold, answer)
        if answer.name:
            rule = self._bodies(gold, _bare(answer))
            if rule is None and answer.about:
                rule = self._one_of_the_sides(gold, answer)
            return rule and f"{rule}, the name before it left out"
        if not _is_name(gold.name):
            return None
        rule = self._bodies(_bare(gold), answer)
        return rule and f"{rule}, the gold's name left out"

    def _one_of_the_sides(self, gold: Shape, answer: Shape) -> str | None:
        for side in answer.chain:
            try:
                rule = self._bodies(gold, _Reader("any").body(side))
            except Unreadable:
                continue
            if rule is not None:
                return rule
        return None

    def _both_named(self, gold: Shape, answer: Shape) -> str | None:
        if len(gold.chain) == 2 and len(answer.chain) == 2:
            rule = self._equations(gold, answer)
            if rule is not None:
                return rule
        if not same_tokens(gold.name, answer.name) and not _names_one(gold, answer):
            renamed = _with_argument_of(gold, answer)  # f(x) = x^2 and f(t) = t^2
            return None if renamed is None else self._bodies(_bare(gold), _bare(renamed))
        return self._bodies(_bare(gold), _bare(answer))

    def _equations(self, gold: Shape, answer: Shape) -> str | None:
        try:
            first, second = (_difference(shape.chain) for shape in (gold, answer))
        except Unreadable:
            return None
        return "one equation" if proportional(first, second) else None

    # bodies

    def _bodies(self, gold: Shape, answer: Shape) -> str | None:
        one, two = _spans(gold), _spans(answer)
        if one is not None and two is not None and (gold.kind, answer.kind) != ("pair", "pair"):
            return _same_spans(one, two)
        if gold.kind == "value" and answer.kind == "value":
            return self._values(gold, answer)
        if {gold.kind, answer.kind} == {"ratio", "value"}:
            return self._ratio(gold, answer)
        if {gold.kind, answer.kind} == {"matrix", "pair"}:
            return self._vector(gold, answer)
        if gold.kind == "set" or answer.kind == "set":
            if "pair" in (gold.kind, answer.kind):
                return None
            right, given = (_items(shape) for shape in (gold, answer))
            if right is None or given is None:
                return None
            return self._in_any_order(self._different(right), self._different(given))
        if gold.kind != answer.kind:
            return None
        if gold.kind in ("words", "named", "text"):
            return "the same words" if gold.text == answer.text else None
        if gold.kind == "relation":
            return self._relations(gold, answer)
        if gold.kind == "union":
            return self._in_any_order(gold.items, answer.items)
        brackets = {gold.text, answer.text}
        if gold.kind == "pair" and len(brackets) == 2 and brackets != {"()", "<>"}:
            return None
        return self._in_order(gold.items, answer.items)

    def _values(self, gold: Shape, answer: Shape) -> str | None:
        assert gold.node is not None and answer.node is not None
        if gold.unit is not None and answer.unit is not None:
            factor = gold.unit.per(answer.unit)
            if factor is None or gold.percent or answer.percent:
                return None
            if factor != 1:
                scaled = Node("product", parts=(number(factor), gold.node))
                rule = same_value(scaled, answer.node)
                return rule and f"{rule}, in another unit"
        if (gold.percent and answer.unit) or (answer.percent and gold.unit):
            return None
        rule = same_value(gold.node, answer.node)
        if rule is not None:
            left_out = gold.unit != answer.unit and (gold.unit is None or answer.unit is None)
            note = ", the unit left out" if left_out else ""
            if gold.percent != answer.percent:
                note += ", a number of per cent"
            return rule + note
        if gold.percent != answer.percent:
            hundred = number(100)
            one = Node("quotient", parts=(gold.node, hundred)) if gold.percent else gold.node
            two = Node("quotient", parts=(answer.node, hundred)) if answer.percent else answer.node
            rule = same_value(one, two)
            return rule and f"{rule}, per cent as hundredths"
        return None

    def _ratio(self, gold: Shape, answer: Shape) -> str | None:
        ratio, value = (gold, answer) if gold.kind == "ratio" else (answer, gold)
        parts = [item.node for item in ratio.items]
        if len(parts) != 2 or value.node is None or any(part is None for part in parts):
            return None
        if any(part.kind == "number" and len(part.name) == 2 for part in parts[1:] if part):
            return None  # a time of day
        quotient = Node("quotient", parts=tuple(part for part in parts if part is not None))
        rule = same_value(quotient, value.node)
        return rule and f"{rule}, a ratio as a quotient"

    def _vector(self, gold: Shape, answer: Shape) -> str | None:
        matrix, pair = (gold, answer) if gold.kind == "matrix" else (answer, gold)
        rows = matrix.items
        if len(rows) == 1:
            entries = rows[0].items
        elif all(len(row.items) == 1 for row in rows):
            entries = tuple(row.items[0] for row in rows)
        else:
            return None
        if pair.text not in ("()", "<>"):
            return None
        return self._in_order(entries, pair.items)

    def _proportional(self, gold: Shape, answer: Shape) -> str | None:
        (left, right), (other_left, other_right) = gold.items, answer.items
        if self.same(left, other_left) is None or right.node is None or other_right.node is None:
            return None
        return "one proportion" if proportional(right.node, other_right.node) == 1 else None

    def _relations(self, gold: Shape, answer: Shape) -> str | None:
        if gold.text != answer.text:
            return None
        if gold.text == "and":
            return self._in_any_order(gold.items, answer.items)
        if gold.text == "propto":
            return self._proportional(gold, answer)
        if gold.text not in _ORDERED and gold.text != "!=":  # both sides may change places
            return self._in_any_order(gold.items, answer.items)
        rule = self._in_order(gold.items, answer.items)
        if rule is not None:
            return rule
        sides = [item.node for shape in (gold, answer) for item in shape.items]
        if any(side is None for side in sides):
            return None
        first, second = (_minus(*pair) for pair in (sides[:2], sides[2:]))  # type: ignore[arg-type]
        direction = proportional(first, second)
        is_same = direction == 1 or (direction == -1 and gold.text == "!=")
        return "one inequality" if is_same else None


def _names_one(gold: Shape, answer: Shape) -> bool:
    """Whether two names may be of one thing: y = 2x + 1 and f(x) = 2x + 1, but not x = 5, y = 5."""
    names = []
    for shape in (gold, answer):
        try:
            node = parse(shape.name)
        except Unreadable:
            return False
        name = node.name.removesuffix("()")
        if node.kind not in ("symbol", "call") or not name.isalpha() or name in _symbols(shape):
            return False
        if shape.kind != "value" or shape.node is None or is_constant(shape.node):
            return False
        names.append(name)
    symbols = _symbols(gold)
    return not symbols & set(names)


def _with_argument_of(gold: Shape, answer: Shape) -> Shape | None:
    """The answer with the variable of the gold, where both are rules of one function."""
    try:
        calls = [parse(shape.name) for shape in (gold, answer)]
    except Unreadable:
        return None
    arguments = [node.parts[0] for node in calls if node.kind == "call" and len(node.parts) == 1]
    if calls[0].name != calls[1].name or len(arguments) < 2:
        return None
    right, given = arguments
    if right.kind != "symbol" or given.kind != "symbol" or right.name in _symbols(answer):
        return None
    return _renamed(answer, {given.name: right.name})


def _minus(left: Node, right: Node) -> Node:
    return Node("sum", parts=(left, Node("product", parts=(MINUS_ONE, right))))


def _difference(chain: Sequence[Sequence[Token]]) -> Node:
    return _minus(parse(chain[0]), parse(chain[1]))


def _bare(shape: Shape) -> Shape:
    return replace(shape, name=(), chain=(), about=False)


def _unnamed(shapes: Sequence[Shape]) -> list[Shape]:
    return [_bare(shape) for shape in shapes]


def _name(shape: Shape) -> str:
    return " ".join(token.text for token in shape.name)


def _items(shape: Shape) -> tuple[Shape, ...] | None:
    """The elements of what is or may be a list; None for anything else."""
    if shape.kind in ("list", "pair", "set", "union"):
        return shape.items
    return (shape,) if shape.kind in ("value", "words", "relation", "named") else None


def _is_name(tokens: Sequence[Token]) -> bool:
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


def _weakest(rules: Sequence[str | None]) -> str:
    """The rule that is told of several: the longest, which says most."""
    return max((rule for rule in rules if rule is not None), key=len)


# -------------------------------------------------------------------------------------- intervals


@dataclass(frozen=True, slots=True)
class _Span:
    """An interval: its ends, None for infinite ones, whether they belong, and of which variable."""

    low: Node | None
    high: Node | None
    has_low: bool
    has_high: bool
    of: str | None = None


def _spans(shape: Shape) -> list[_Span] | None:
    """The intervals that a shape is; None for what is none."""
    if shape.kind == "pair":
        return _interval(shape)
    if shape.kind == "named" and shape.text == "reals":
        return [_Span(None, None, False, False)]
    if shape.kind == "relation":
        return _bounds(shape)
    if shape.kind == "union" or (shape.kind == "list" and shape.text in ("and", "or")):
        inside = [_spans(item) for item in shape.items]
        if any(each is None for each in inside):
            return None
        if shape.kind == "list" and any(item.kind == "pair" for item in shape.items):
            return None  # a list of pairs, as like as not
        if shape.text == "and":
            return _bounds(Shape("relation", shape.items, text="and"))
        spans = [span for each in inside if each is not None for span in each]
        return spans if len({span.of for span in spans}) == 1 else None
    return None


def _interval(shape: Shape) -> list[_Span] | None:
    if len(shape.items) != 2 or shape.text == "<>":
        return None
    nodes = [item.node for item in shape.items]
    low, high = nodes
    if low is None or high is None:
        return None
    has_low, has_high = shape.text[0] == "[", shape.text[1] == "]"
    is_low, is_high = low.has("infinity"), high.has("infinity")
    if (is_low and infinity_of(low) > 0) or (is_high and infinity_of(high) < 0):
        raise Unreadable("an interval whose ends are exchanged")
    return [
        _Span(
            None if is_low else low,
            None if is_high else high,
            has_low and not is_low,
            has_high and not is_high,
        )
    ]


def _bounds(shape: Shape) -> list[_Span] | None:
    """The interval of ``a < x <= b`` or ``x < a``."""
    if shape.text == "and":
        pieces = [_bounds(item) for item in shape.items]
        if len(pieces) != 2 or any(piece is None for piece in pieces):
            return None
        (one,), (two,) = (piece for piece in pieces if piece is not None)
        if one.of != two.of or (one.low is None) == (two.low is None):
            return None
        below, above = (one, two) if one.low is not None else (two, one)
        return [_Span(below.low, above.high, below.has_low, above.has_high, below.of)]
    if shape.text not in ("<", "<="):
        return None
    left, right = (item.node for item in shape.items)
    if left is None or right is None:
        return None
    belongs = shape.text == "<="
    if left.kind == "symbol" and is_constant(right):
        return [_Span(None, right, False, belongs, left.name)]
    if right.kind == "symbol" and is_constant(left):
        return [_Span(left, None, belongs, False, right.name)]
    return None


def _same_spans(one: Sequence[_Span], two: Sequence[_Span]) -> str | None:
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


def _same_span(one: _Span, two: _Span) -> bool:
    if (one.has_low, one.has_high) != (two.has_low, two.has_high):
        return False
    if one.of is not None and two.of is not None and one.of != two.of:
        return False
    return all(
        (a is None and b is None)
        or (a is not None and b is not None and same_value(a, b) is not None)
        for a, b in ((one.low, two.low), (one.high, two.high))
    )


def sole_number(shape: Shape) -> Fraction | None:
    """The rational number that a shape is; None for anything else.

    Raises:
        Unreadable: It divides by zero.
    """
    allowance()
    try:
        if shape.kind != "value" or shape.node is None or not is_constant(shape.node):
            return None
        if shape.node.has("based", "sign"):
            raise Ambiguous("a number to another base, or with both signs")
        return exact(shape.node)
    except Undefined as why:
        raise Unreadable(str(why)) from None
    except RecursionError:
        raise TooLarge("it is nested too deeply") from None
