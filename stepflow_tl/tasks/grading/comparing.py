"""Whether two answers are one, piece by piece, and by which rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from stepflow_tl.tasks.grading.exact import Undefined, allowance, exact, is_constant
from stepflow_tl.tasks.grading.expressions import MINUS_ONE, Node, number, parse
from stepflow_tl.tasks.grading.intervals import same_spans, spans_of
from stepflow_tl.tasks.grading.latex import Ambiguous, Token, TooLarge, Unreadable, same_tokens
from stepflow_tl.tasks.grading.shapes import Shape, is_name, read_side
from stepflow_tl.tasks.grading.values import proportional, same_value

_COORDINATES = frozenset("xyz")
_LONGEST_LIST = 40  # elements that are compared in any order
_ORDERED = frozenset(["<", "<="])


def same_answer(gold: Shape, answer: Shape) -> str | None:
    """By which rule an answer is the gold; None where it is not.

    Raises:
        Unreadable: They cannot be compared here.
    """
    try:
        return _same_answer(gold, answer)
    except RecursionError:
        raise TooLarge("it is nested too deeply, and was not compared") from None


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
        if spans_of(gold) is not None and spans_of(answer) is not None:
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
        elif all(gold_names) and len(set(gold_names)) == len(gold_names):
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
            raise TooLarge(f"a list of over {_LONGEST_LIST} elements is not compared in any order")
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
            raise TooLarge(f"a set of over {_LONGEST_LIST} elements is not compared")
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
        if not is_name(gold.name):
            return None
        rule = self._bodies(_bare(gold), answer)
        return rule and f"{rule}, the gold's name left out"

    def _one_of_the_sides(self, gold: Shape, answer: Shape) -> str | None:
        for side in answer.chain:
            try:
                rule = self._bodies(gold, read_side(side))
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
        one, two = spans_of(gold), spans_of(answer)
        if one is not None and two is not None and (gold.kind, answer.kind) != ("pair", "pair"):
            return same_spans(one, two)
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


def _weakest(rules: Sequence[str | None]) -> str:
    """The rule that is told of several: the longest, which says most."""
    return max((rule for rule in rules if rule is not None), key=len)


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
            raise Ambiguous("a number to another base, or with both signs, is no single number")
        return exact(shape.node)
    except Undefined as why:
        raise Unreadable(str(why)) from None
    except RecursionError:
        raise TooLarge("it is nested too deeply, and was not compared") from None
