r"""Expressions of an answer: a parser of the LaTeX that answers are written in.

It reads what answers of benchmarks consist of: numbers, variables with indices and primes, sums,
products with and without a sign, fractions, powers, roots, the elementary functions, factorials,
binomial coefficients, absolute values. What it does not know (integrals, sums, limits) is
`Unreadable`, never guessed at. A variable is known by its whole name: ``R`` is not ``r``, ``E_1``
not ``E``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from stepflow_tl.tasks.grading.latex import Ambiguous, Token, TooLarge, Unreadable, is_whole, words

_DEEPEST = 24  # nested groups
_MOST_FACTORS = 150  # tokens of one product
_LARGEST_EXPONENT = 5000  # of e-notation

FUNCTIONS = words(
    "sin cos tan cot sec csc sinh cosh tanh coth sech csch arcsin arccos arctan arsinh "
    "arcosh artanh ln log lg exp"
)
TRIGONOMETRIC = frozenset(["sin", "cos", "tan", "cot", "sec", "csc"])
_INVERSE = {
    **{"sin": "arcsin", "cos": "arccos", "tan": "arctan"},
    **{"sinh": "arsinh", "cosh": "arcosh", "tanh": "artanh"},
}
_SEVERAL = frozenset(["max", "min", "gcd", "lcm"])
_SYMBOLS = words(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron rho "
    "sigma tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi "
    "Omega hbar ell partial nabla aleph Re Im angle square"
)
_ACCENTS = words("hat bar tilde dot ddot widehat widetilde overline underbar check breve acute")
_FENCES = {"(": ")", "[": "]", "\\{": "\\}"}
_FLOORS = {"lfloor": "rfloor", "lceil": "rceil"}
_ALWAYS_FUNCTIONS = frozenset(["f", "F"])
_OFTEN_FUNCTIONS = frozenset(["g", "h", "G", "H", "p", "q", "P", "Q", "u", "y"])


READ = FUNCTIONS.union(
    *(_SEVERAL, _SYMBOLS, _ACCENTS, _FLOORS),
    words(
        "rfloor rceil frac binom sqrt pi infty pm mp cdot times div circ cup reals integers "
        "naturals rationals emptyset"
    ),
)
"""The commands that are read here, or by `shapes`."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node of an expression.

    Attributes:
        kind: "number", "symbol", "sum", "product", "quotient", "power", "call", "sign" (a plus or
            minus of both signs), "degrees", "based" (a number with a base as its index),
            "infinity".
        name: The symbol's or the function's name; of a number how it was written.
        parts: What it is made of.
        value: A number's exact value; of a "sign" 1 for plus or minus, -1 for minus or plus.
    """

    kind: str
    name: str = ""
    parts: tuple[Node, ...] = ()
    value: Fraction | None = None

    def walk(self) -> Iterator[Node]:
        """Itself and all below."""
        yield self
        for part in self.parts:
            yield from part.walk()

    @property
    def symbols(self) -> frozenset[str]:
        """Names of its variables; not i and e, which are numbers."""
        return frozenset(n.name for n in self.walk() if n.kind == "symbol")

    def has(self, *kinds: str) -> bool:
        """Whether a node of one of these kinds is in it."""
        return any(node.kind in kinds for node in self.walk())


def number(value: Fraction | int, written: str = "") -> Node:
    """The node of an exact number."""
    return Node("number", written, value=Fraction(value))


def call(name: str, *parts: Node) -> Node:
    """The node of a function's value."""
    return Node("call", name, parts)


MINUS_ONE = number(-1)


def parse(tokens: Sequence[Token]) -> Node:
    """The expression that tokens are.

    Raises:
        Unreadable: They are none, or hold what this parser does not know.
    """
    parser = _Parser(list(tokens))
    node = parser.sum()
    if parser.next is not None:
        raise Unreadable(f"{parser.next.text!r} stands where nothing was expected")
    return node


def _derivative(above: Node, below: Node) -> Node | None:
    r"""``\frac{dM}{dt}`` is a name, and no fraction of products; None for what is a fraction.

    Raises:
        Unreadable: It is a derivative of another kind.
    """
    for sign in (Node("symbol", "d"), Node("symbol", "\\partial")):
        first = above.parts[0] if above.kind == "product" else above
        if below.kind != "product" or below.parts[0] != sign:
            continue
        if first != sign and not (first.kind == "power" and first.parts[0] == sign):
            continue
        if above.kind == "product" and all(
            node.parts[0] == sign and node.parts[1].kind == "symbol" for node in (above, below)
        ):
            over, under = (node.parts[1].name for node in (above, below))
            return Node("symbol", f"{sign.name}{over}/{sign.name}{under}")
        raise Unreadable("this kind of derivative is not read")
    return None


def _repeated(text: str) -> Fraction:
    """``0.1666...``: what a decimal is whose last digits come again and again.

    Raises:
        Unreadable: None do.
    """
    places = text.partition(".")[2]
    for length in range(1, len(places) // 2 + 1):
        period = places[-length:]
        times = 3 if length == 1 else 2
        if places.endswith(period * times):
            repeated = Fraction(int(period), 10**length - 1)
            shift = Fraction(10) ** (length - len(places))
            return Fraction(text[: len(text) - length]) + repeated * shift
    raise Unreadable("a decimal with dots whose digits do not repeat")


class _Parser:
    """Recursive descent; `at` is the next token."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.at, self.depth = tokens, 0, 0
        self.bars = 0  # absolute values that are open

    @property
    def next(self) -> Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def _takes(self, *signs: str) -> bool:
        token = self.next
        if token is not None and token.is_sign(*signs):
            self.at += 1
            return True
        return False

    def _takes_command(self, *names: str) -> str | None:
        token = self.next
        if token is not None and token.is_command(*names):
            self.at += 1
            return token.text
        return None

    def _expect(self, sign: str) -> None:
        if not self._takes(sign):
            raise Unreadable(f"{sign!r} was not found")

    def sum(self) -> Node:
        self._deeper()
        terms = [self._signed(self._sign() or 1)]
        while (sign := self._sign()) is not None:
            terms.append(self._signed(sign))
        self.depth -= 1
        return terms[0] if len(terms) == 1 else Node("sum", parts=tuple(terms))

    def _deeper(self) -> None:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise TooLarge(f"it is nested deeper than {_DEEPEST}, and not read")

    def _sign(self) -> int | str | None:
        """1, -1, "pm" or "mp" where one is next."""
        if self._takes("+"):
            return 1
        if self._takes("-"):
            return -1
        return self._takes_command("pm", "mp")

    def _signed(self, sign: int | str) -> Node:
        while (more := self._sign()) is not None:  # 3 + -2
            if isinstance(sign, str) or isinstance(more, str):
                raise Unreadable("two signs side by side are not read")
            sign *= more
        term = self._product()
        if isinstance(sign, str):
            return Node("sign", parts=(term,), value=Fraction(1 if sign == "pm" else -1))
        if sign == 1:
            return term
        if term.kind == "number" and term.value is not None:
            return number(-term.value, f"-{term.name}")
        return Node("product", parts=(MINUS_ONE, term))

    def _product(self) -> Node:
        left = self._power()
        start = self.at
        while (token := self.next) is not None:
            if self.at - start > _MOST_FACTORS:
                raise TooLarge(f"a product of over {_MOST_FACTORS} tokens is not read")
            if token.is_command("cdot", "times") or token.is_sign("\\*"):
                self.at += 1
                left = Node("product", parts=(left, self._negated_power()))
            elif token.is_sign("/") or token.is_command("div"):
                self.at += 1
                left = Node("quotient", parts=(left, self._negated_power()))
            elif self._begins_factor(token):
                if token.kind == "number" and self.tokens[self.at - 1].kind == "number":
                    left = self._mixed(left)
                    continue
                mixed = self._mixed_fraction(left)
                left = mixed or Node("product", parts=(left, self._power()))
            else:
                break
        return left

    def _negated_power(self) -> Node:
        sign = -1 if self._takes("-") else 1
        self._takes("+")
        factor = self._power()
        return factor if sign == 1 else Node("product", parts=(MINUS_ONE, factor))

    def _mixed(self, whole: Node) -> Node:
        """``1 1/2``: a whole number, a blank and a fraction."""
        tokens = self.tokens[self.at : self.at + 3]
        before = self.tokens[self.at - 2] if self.at > 1 else None
        if (
            len(tokens) < 3
            or not tokens[1].is_sign("/")
            or not all(is_whole(token) for token in (tokens[0], tokens[2]))
            or not is_whole(self.tokens[self.at - 1])
            or whole.kind != "number"
            or (before is not None and not before.is_sign("-", "+", "(", "{", "["))
            or int(tokens[2].text) == 0
        ):
            raise Ambiguous("several numbers side by side are no single one")
        self.at += 3
        return self._whole_and(whole, Fraction(int(tokens[0].text), int(tokens[2].text)))

    def _mixed_fraction(self, whole: Node) -> Node | None:
        r"""``1\frac{1}{2}``: a whole number and a fraction of two."""
        token = self.next
        if (
            token is None
            or not token.is_command("frac")
            or whole.kind != "number"
            or not is_whole(self.tokens[self.at - 1])
        ):
            return None
        start = self.at
        fraction = self._atom()
        values = [part.value for part in fraction.parts]
        if fraction.kind == "quotient" and all(
            part.kind == "number" and part.name.isdigit() for part in fraction.parts
        ):
            above, below = values
            assert above is not None and below is not None
            if below != 0 and not (self.next is not None and self.next.is_sign("^")):
                return self._whole_and(whole, above / below)
        self.at = start
        return None

    @staticmethod
    def _whole_and(whole: Node, part: Fraction) -> Node:
        assert whole.value is not None
        return number(whole.value + part, whole.name)

    def _begins_factor(self, token: Token) -> bool:
        if token.kind in ("number", "letter", "word"):
            return True
        if token.kind == "sign":
            if token.text == "|":
                return self.bars == 0
            return token.text in ("(", "[", "{", "\\{")
        return token.text not in ("pm", "mp", "cdot", "times", "div", "rfloor", "rceil", "circ")

    def _power(self) -> Node:
        base = self._atom()
        while (token := self.next) is not None:
            if token.is_sign("^"):
                self.at += 1
                base = self._raised(base)
            elif token.is_sign("!"):
                self.at += 1
                if self.next is not None and self.next.is_sign("!"):
                    raise Unreadable("a double factorial is not read")
                base = call("factorial", base)
            elif token.is_sign("%"):
                self.at += 1
                base = Node("quotient", parts=(base, number(100)))
            else:
                break
        return base

    def _raised(self, base: Node) -> Node:
        """What stands after a circumflex: an exponent, or the sign of degrees."""
        tokens = self.tokens[self.at : self.at + 3]
        if tokens and tokens[0].is_command("circ"):
            self.at += 1
            return Node("degrees", parts=(base,))
        if len(tokens) == 3 and tokens[0].is_sign("{") and tokens[1].is_command("circ"):
            self.at += 2
            self._expect("}")
            return Node("degrees", parts=(base,))
        self._deeper()
        sign = -1 if self._takes("-") else 1
        exponent = self._argument()
        if self.next is not None and self.next.is_sign("^"):
            self.at += 1
            exponent = self._raised(exponent)
        self.depth -= 1
        if sign == -1:
            exponent = Node("product", parts=(MINUS_ONE, exponent))
        return Node("power", parts=(base, exponent))

    def _argument(self, *, digit: bool = False) -> Node:
        """A group in braces, or one token; with `digit` one digit of a number."""
        token = self.next
        if token is None:
            raise Unreadable("it ends where something must follow")
        if token.is_sign("{"):
            return self._fenced("{", "}")
        if digit and is_whole(token) and len(token.text) > 1:
            rest = Token("number", token.text[1:])
            self.tokens[self.at : self.at + 1] = [Token("number", token.text[0]), rest]
        return self._atom()

    def _fenced(self, left: str, right: str) -> Node:
        self._expect(left)
        bars, self.bars = self.bars, 0
        inside = self.sum()
        self.bars = bars
        self._expect(right)
        return inside

    def _atom(self) -> Node:
        token = self.next
        if token is None:
            raise Unreadable("it ends where something must follow")
        if token.kind == "number":
            self.at += 1
            return self._number(token.text)
        if token.kind in ("letter", "word"):
            return self._named(token)
        if token.kind == "sign":
            if token.text == "{":
                return self._fenced("{", "}")
            if token.text in _FENCES:
                return self._fenced(token.text, _FENCES[token.text])
            if token.text == "|":
                return self._absolute()
            raise Unreadable(f"{token.text!r} begins no value")
        return self._command(token.text)

    def _number(self, text: str) -> Node:
        exponent = text.lower().partition("e")[2]
        if exponent and abs(int(exponent)) > _LARGEST_EXPONENT:
            raise Unreadable(f"the exponent {exponent} is not in range")
        value = number(Fraction(text), text)
        if self._takes("_"):
            return Node("based", self._index_text(), (value,))
        if self._takes_command("overline", "bar", "dot") is not None:
            return self._repeating(text)
        if "." in text and self._takes_command("ldots") is not None:
            return number(_repeated(text))
        return value

    def _repeating(self, text: str) -> Node:
        r"""``0.1\overline{6}``: digits that repeat for ever."""
        braced = self._takes("{")
        token = self.next
        if "." not in text or token is None or not is_whole(token):
            raise Unreadable("a line over what is no repeating decimal")
        self.at += 1
        if braced:
            self._expect("}")
        places = len(text.partition(".")[2])
        repeated = Fraction(int(token.text), 10 ** len(token.text) - 1) / 10**places
        return number(Fraction(text) + repeated)

    def _named(self, token: Token) -> Node:
        self.at += 1
        name = token.text
        if token.kind == "letter" and name in ("i", "e") and not self._is_indexed():
            return Node("call", "i" if name == "i" else "e")
        return self._symbol(name)

    def _is_indexed(self) -> bool:
        return self.next is not None and self.next.is_sign("_", "'")

    def _symbol(self, name: str) -> Node:
        """A variable, with its index and primes; or the value of a function of that name."""
        index = primes = ""
        while (token := self.next) is not None:
            if token.is_sign("_"):
                self.at += 1
                index += self._index_text()
            elif token.is_sign("'"):
                self.at += 1
                primes += "'"
            elif (
                token.is_sign("^")
                and self.at + 1 < len(self.tokens)
                and self.tokens[self.at + 1].is_command("prime")
            ):
                self.at += 2
                primes += "'"
            else:
                break
        if (raised := self._power_before_an_index()) is not None:
            index, exponent = raised
            return Node("power", parts=(Node("symbol", f"{name}_{index}"), exponent))
        whole = name + (f"_{index}" if index else "") + primes
        if (arguments := self._function_of(name)) is not None:
            return call(f"{whole}()", *arguments)
        return Node("symbol", whole)

    def _power_before_an_index(self) -> tuple[str, Node] | None:
        """``x^2_1``: the index and the power; None for anything else."""
        tokens = self.tokens[self.at : self.at + 4]
        if len(tokens) < 4 or not tokens[0].is_sign("^") or not is_whole(tokens[1]):
            return None
        if not tokens[2].is_sign("_"):
            return None
        self.at += 3
        return self._index_text(), number(int(tokens[1].text))

    def _function_of(self, name: str) -> tuple[Node, ...] | None:
        token = self.next
        if token is None or token.spaced:
            return None
        if token.is_sign("["):  # the mean E[X]
            return self._several("[", "]")
        if not token.is_sign("("):
            return None
        if len(name) > 1 and name.isalpha():  # Var(X)
            return self._several("(", ")")
        after = self.tokens[self.at + 1 : self.at + 3]
        is_plain = (
            len(after) == 2 and after[0].kind in ("number", "letter") and after[1].is_sign(")")
        )
        if name not in _ALWAYS_FUNCTIONS and not (name in _OFTEN_FUNCTIONS and is_plain):
            return None
        return self._several("(", ")")

    def _several(self, left: str, right: str) -> tuple[Node, ...]:
        self._expect(left)
        bars, self.bars = self.bars, 0
        parts = [self.sum()]
        while self._takes(","):
            parts.append(self.sum())
        self.bars = bars
        self._expect(right)
        return tuple(parts)

    def _index_text(self) -> str:
        """What stands below: its characters, without braces and blanks."""
        token = self.next
        if token is None:
            raise Unreadable("an index was not found")
        self.at += 1
        if not token.is_sign("{"):
            return token.text
        depth = 1
        texts: list[str] = []
        while (token := self.next) is not None:
            self.at += 1
            depth += token.is_sign("{") - token.is_sign("}")
            if depth == 0:
                return "".join(texts)
            texts.append("" if token.is_sign("{", "}") else token.text)
        raise Unreadable("an index is not closed")

    def _absolute(self) -> Node:
        self._expect("|")
        self.bars += 1
        inside = self.sum()
        self.bars -= 1
        self._expect("|")
        return call("abs", inside)

    def _command(self, name: str) -> Node:
        self.at += 1
        if name == "frac":
            above = self._argument(digit=True)
            below = self._argument(digit=True)
            return _derivative(above, below) or Node("quotient", parts=(above, below))
        if name == "binom":
            above = self._argument(digit=True)
            return call("binomial", above, self._argument(digit=True))
        if name == "sqrt":
            return self._root()
        if name in FUNCTIONS:
            return self._function(name)
        if name in _SEVERAL:
            token = self.next
            left = "(" if token is None or not token.is_sign("\\{") else "\\{"
            return call(name, *self._several(left, _FENCES[left]))
        if name in _FLOORS:
            inside = self.sum()
            if self._takes_command(_FLOORS[name]) is None:
                raise Unreadable(f"\\{_FLOORS[name]} was not found")
            return call("floor" if name == "lfloor" else "ceiling", inside)
        if name == "pi":
            return call("pi")
        if name == "infty":
            return Node("infinity")
        if name in _ACCENTS:
            return self._symbol(f"{name} {self._accented()}")
        if name in _SYMBOLS:
            return self._symbol(f"\\{name}")
        raise Unreadable(f"\\{name} is not among what is read here")

    def _accented(self) -> str:
        token = self.next
        if token is None:
            raise Unreadable("it ends where something must follow")
        return self._index_text()

    def _root(self) -> Node:
        degree = number(2)
        if self._takes("["):
            degree = self.sum()
            self._expect("]")
        token = self.next
        if token is not None and token.is_sign("("):
            return call("root", self._fenced("(", ")"), degree)
        return call("root", self._argument(), degree)

    def _function(self, name: str) -> Node:
        power: Node | None = None
        base: Node | None = None
        while (token := self.next) is not None and token.is_sign("^", "_"):
            self.at += 1
            if token.text == "_":
                base = self._argument()
                continue
            sign = -1 if self._takes("-") else 1
            exponent = self._argument()
            if sign == -1 and exponent.value is not None:
                exponent = number(-exponent.value)
            if exponent.value == -1 and name in _INVERSE:
                name = _INVERSE[name]
            else:
                power = exponent
        argument = self._function_argument()
        if base is not None:
            if name != "log":
                raise Unreadable(f"\\{name} with an index is not read")
            node = Node("quotient", parts=(call("ln", argument), call("ln", base)))
        else:
            node = call(name, argument)
        return node if power is None else Node("power", parts=(node, power))

    def _function_argument(self) -> Node:
        r"""In brackets, or the product of factors that follow: ``\sin 2x \cos x``."""
        token = self.next
        if token is None:
            raise Unreadable("a function has no argument")
        if token.is_sign("(", "["):
            return self._fenced(token.text, _FENCES[token.text])
        sign = -1 if self._takes("-") else 1
        left = self._power()
        only_numbers = left.kind == "number"
        while (token := self.next) is not None and self._begins_factor(token):
            if token.kind == "command" and (
                token.text in FUNCTIONS or (token.text in ("frac", "sqrt") and not only_numbers)
            ):
                break
            if token.is_sign("(", "[", "\\{") and not only_numbers:
                break
            if token.kind == "number":
                break
            left = Node("product", parts=(left, self._power()))
            only_numbers = False
        return left if sign == 1 else Node("product", parts=(MINUS_ONE, left))
