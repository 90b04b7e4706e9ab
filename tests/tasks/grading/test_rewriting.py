r"""Answers rewritten: every spelling of one answer is accepted for every other, and no two answers.

`CLASSES` holds spellings of one answer each, and no two classes are equal: a false accept would be
an unequal pair. Numbers, polynomials and lists are drawn besides.
"""

import itertools
import random

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from stepflow_tl.tasks.grading import grade_math, grade_number

CLASSES: list[list[str]] = [
    # numbers
    ["18", "18.0", "018", r"\boldsymbol{18}", r"x = 18", r"18\text{ apples}", r"\frac{36}{2}"],
    ["-18", "−18", r"-\frac{36}{2}", r"n=-18", r"-18\,\mathrm{m}"],
    ["180", "180°", r"180^{\circ}", r"180\text{ degrees}", r"1.8\times 10^2", "1.8e2"],
    ["12345", "12,345", r"12{,}345", r"12\,345", "12 345", r"n = 12,345", r"1.2345\cdot 10^4"],
    ["12346", "12,346", r"12{,}346", r"1.2346 \times 10^{4}"],
    ["1234567", "1,234,567", r"1{,}234{,}567", r"1\,234\,567", r"1.234567\mathrm{E}6"],
    ["0.006", r"6\times10^{-3}", "6·10⁻³", "6e-3", "6 × 10⁻³ m/s²"],
    ["0.0006", r"6\times10^{-4}", "6·10⁻⁴", "6e-4"],
    ["1.6e-19", r"1.6\times 10^{-19}", r"1.60\cdot10^{-19}", r"1.6 \times 10^{-19}\text{ C}"],
    ["1.6e-18", r"1.6\times 10^{-18}", r"1.60\cdot10^{-18}"],
    ["9.1e-31", r"9.1\times 10^{-31}", r"9.1 \times 10^{-31}\ \mathrm{kg}"],
    [r"\frac{3}{8}", "3/8", "0.375", r"\dfrac38", r"\displaystyle\frac{3}{8}"],
    [r"\frac{8}{3}", "8/3", r"2\frac{2}{3}", "2 2/3", r"2.\overline{6}", "2.666667"],
    [r"\sqrt{7}", "√7", r"\boldsymbol{\sqrt{7}}\ ", r"7^{1/2}", r"\frac{7}{\sqrt7}"],
    [r"2\sqrt3", r"\sqrt{12}", "√12", r"2\sqrt{3}\text{ cm}", r"\frac{6}{\sqrt{3}}"],
    [r"\frac{\pi}{2}", r"\frac12\pi", "π/2", r"0.5\pi", r"\arcsin 1"],
    [r"\ln 3", r"\log_e 3", r"\frac{\ln 9}{2}", r"-\ln\frac13", r"\operatorname{ln}(3)"],
    [r"\log_2 3", r"\frac{\ln 3}{\ln 2}", r"\log_{4}9", r"\frac{1}{\log_3 2}"],
    ["e", r"\mathrm{e}", r"\exp(1)", "e^1"],
    ["e^2", r"\mathrm{e}^2", r"\text{e}^{2}", r"\exp 2"],
    ["2e", r"2\mathrm{e}", r"2\,e"],
    ["6-5i", r"6-5\mathrm{i}", r"-5i+6", r"6 - 5\text{i}"],
    ["6+5i", r"6+5\mathrm{i}", r"5i + 6", r"\frac{61}{6-5i}"],
    ["4i", r"4\mathrm{i}", r"4\text{i}", r"\sqrt{-16}"],
    ["120", "5!", r"\binom{10}{3}", r"2^3\cdot 15"],
    [r"2^{10}-1", "1023", "2¹⁰ - 1", r"1{,}023"],
    [r"\infty", "∞", r"+\infty"],
    [r"21^{\text{st}}", "21st", "21", r"21\text{st}", r"21^{\mathrm{st}}\text{ term}"],
    [r"\$72,000 \text{ per year}", "72000", r"72{,}000", r"72\text{ thousand}"],
    ["1.69 Å", "1.69", r"1.69\ \text{\AA}", r"d = 1.69"],
    # expressions
    ["x^2-1", "(x-1)(x+1)", "x² − 1", "-(1-x)(1+x)", r"f(x)=x^2-1", "-1+x^2"],
    ["x^2+1", r"(x-i)(x+i)", "1+x²", r"x\cdot x+1"],
    ["x^3-1", r"(x-1)(x^2+x+1)", "x³-1"],
    ["x-1", "-(1-x)", r"\frac{2x-2}{2}", r"x - \sin^2 x - \cos^2 x"],
    ["3s", r"3\,s", r"s\cdot 3", "s+2s"],
    ["3t", r"3\,t", r"t\cdot 3"],
    [r"\frac{37}{4}m", r"\frac{37m}{4}", r"9.25m"],
    [r"\frac{R}{r}", r"R/r", r"Rr^{-1}"],
    [r"\frac{r}{R}", r"r/R"],
    [r"\pi R^2-\pi r^2", r"\pi(R-r)(R+r)", r"\pi(R^2-r^2)"],
    [r"\frac{m}{2}", r"\frac12 m", "0.5m"],
    ["mgh", r"m\cdot g\cdot h", r"hgm"],
    ["gh", r"g\,h"],
    [r"E_{0}", "E_0", r"E_{\text{0}}"],
    [r"E_{1}", "E_1"],
    [r"\frac{E_{0}}{2}", r"\frac{1}{2}E_0", r"0.5E_{0}"],
    [r"v_{\text{max}}", r"v_{max}", r"v_{\mathrm{max}}"],
    [r"4M_{\odot}", r"4\,M_\odot", r"2(2M_{\odot})"],
    [r"5M_{\odot}", r"5\,M_\odot"],
    [r"\frac{e^{at}-e^{-at}}{2a}", r"\frac{1}{a}\sinh(at)", r"\frac{\sinh at}{a}"],
    [r"\frac{e^{at}+e^{-at}}{2a}", r"\frac{1}{a}\cosh(at)"],
    [r"\tanh x", r"\frac{e^{2x}-1}{e^{2x}+1}", r"\frac{\sinh x}{\cosh x}"],
    [r"\sin 2x", r"2\sin x\cos x", r"2\cos x \sin x"],
    [r"\sin^2 x", r"(\sin x)^2", r"1-\cos^2 x", r"\frac{1-\cos 2x}{2}"],
    [r"\arctan x", r"\tan^{-1} x", r"\tan^{-1}(x)"],
    [r"\frac{1}{4-\omega^{2}}", r"A = \frac{1}{4-\omega^2}, \quad \text{for } \omega^2 \ne 4"],
    [r"\frac{1}{4+\omega^{2}}", r"A = \frac{1}{4+\omega^2}"],
    [r"|x|", r"\sqrt{x^2}", r"\lvert x\rvert"],
    ["x", r"\sqrt[3]{x^3}", r"\frac{x^2}{x}"],
    [r"n(n+1)", r"n^2+n", r"\frac{(n+1)!}{(n-1)!}"],
    # equations and inequalities
    ["y=2x+1", "2x-y+1=0", r"y - 1 = 2x", r"y=1+2x"],
    ["y=2x-1", "2x-y-1=0"],
    ["x^2+y^2=4", r"4=x^2+y^2", r"2x^2+2y^2=8"],
    ["SRMC=LRMC", r"\text{SRMC} = \text{LRMC}"],
    ["SRMC=LRAC", r"\text{SRMC} = \text{LRAC}"],
    [r"\frac{dM}{dt}=\frac{10^5}{0.007}M", r"\frac{dM}{dt} = \frac{10^8}{7}M"],
    [r"x\le 3", r"(-\infty,3]", r"3\ge x", r"\{x \mid x\le 3\}", r"x\in(-\infty, 3]"],
    ["x<3", r"(-\infty,3)", "3>x"],
    [r"-1<x\le 2", r"(-1,2]", r"x\in(-1,2]", r"\left(-1,2\right]"],
    [r"[-1,2]", r"-1\le x\le 2", r"\left[-1, 2\right]"],
    [r"(-\infty,1)\cup(2,\infty)", r"(2,\infty)\cup(-\infty,1)", r"x<1 \text{ or } x>2"],
    [r"x\neq 0", r"x \ne 0"],
    # lists, pairs, sets, matrices
    ["1,-2", "-2, 1", r"x = 1 \text{ or } x = -2", r"\{-2,1\}", r"x=1, x=-2"],
    ["1,2", "2, 1", r"x=1\text{ and }x=2", r"\{1, 2\}"],
    ["-7,-1,1,7", r"\pm 1, \pm 7", r"\{7,1,-1,-7\}"],
    [r"3\pm\sqrt2", r"3+\sqrt2, 3-\sqrt2", r"x = 3\pm\sqrt{2}"],
    [r"(3,-1)", r"(3, -1)", r"\left(3,-1\right)", r"x=3,\ y=-1", r"(x,y)=(3,-1)"],
    [r"(-1,3)", r"x=-1, y=3", r"\langle -1,3\rangle"],
    [r"\{1,2,3\}", r"\left\{3,2,1\right\}", "1,2,3"],
    [r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"],
    [r"\begin{pmatrix}1&3\\2&4\end{pmatrix}", r"\begin{bmatrix} 1 & 3 \\ 2 & 4 \end{bmatrix}"],
    [r"\emptyset", r"\varnothing", r"\{\}", "∅"],
    # words and options
    [r"\text{Friday}", "Friday", r"\textbf{Friday}"],
    [r"\text{Thursday}", "Thursday"],
    [r"\text{even}", "even", r"\textbf{ even}"],
    [r"\text{(C)}", r"\text{(C) Plane}", r"\textbf{(C)}", r"\text{C}"],
    [r"\text{(D)}", r"\textbf{(D) }\text{Cone}", r"\text{(D)}"],
]  # fmt: skip
PAIRS = [
    (number, gold, answer)
    for number, spellings in enumerate(CLASSES)
    for gold, answer in itertools.permutations(spellings, 2)
]


def accepts(gold: str, answer: str) -> bool:
    return grade_math(rf"So it is \boxed{{{answer}}}.", gold).correct


def test_there_are_enough() -> None:
    assert len(PAIRS) >= 300


@pytest.mark.parametrize("number", range(len(CLASSES)))
@pytest.mark.slow
def test_every_spelling_is_accepted(number: int) -> None:
    pairs = itertools.permutations(CLASSES[number], 2)
    assert [pair for pair in pairs if not accepts(*pair)] == []


@pytest.mark.slow
def test_no_other_answer_is_accepted() -> None:
    """As golds and answers come: the first spelling against the others, and drawn pairs."""
    rng = random.Random(0)
    spelled = [(n, text) for n, spellings in enumerate(CLASSES) for text in spellings]
    drawn = [(rng.choice(spelled), rng.choice(spelled)) for _ in range(1000)]
    firsts = list(itertools.permutations([(n, c[0]) for n, c in enumerate(CLASSES)], 2))
    pairs = [(a, b) for (n, a), (m, b) in (*drawn, *rng.sample(firsts, 1000)) if n != m]
    assert len(pairs) >= 1900
    assert [pair for pair in pairs if accepts(*pair)] == []


FORMS = [
    lambda n: str(n),
    lambda n: f"{n:,}",
    lambda n: f"{n:,}".replace(",", "{,}"),
    lambda n: f"{n:,}".replace(",", r"\,"),
    lambda n: f"{n}.00",
    lambda n: rf"\frac{{{3 * n}}}{{3}}",
    lambda n: f"{n}e0",
    lambda n: rf"{n // 10}.{n % 10}\times 10^{{1}}",
    lambda n: rf"x = {n}",
    lambda n: rf"{n}\text{{ people}}",
    lambda n: rf"\boldsymbol{{{n}}}",
    lambda n: rf"{n - 7} + 7",
    lambda n: rf"\$ {n}",
]  # fmt: skip


@settings(max_examples=150)
@given(
    n=st.integers(10, 10**9),
    other=st.sampled_from(["same", "next", "ten", "digits", "less"]),
    first=st.sampled_from(FORMS),
    second=st.sampled_from(FORMS),
)
def test_integers_are_one_only_if_they_are_equal(n, other, first, second) -> None:
    digits = str(n)
    m = {
        "same": n,
        "next": n + 1,
        "ten": 10 * n,
        "digits": int(digits[1::-1] + digits[2:]) if digits[1] != "0" else n,
        "less": n - 1 if n > 10 else n,
    }[other]
    if digits[1] == "0" and other == "digits":
        m = n
    assert accepts(first(n), second(m)) == (n == m)
    if second not in (FORMS[0], FORMS[11]):
        assert grade_number(rf"\boxed{{{second(m)}}}", str(n)).correct == (n == m)


SYMBOLS = sympy.symbols("x y t R r")


@st.composite
def polynomials(draw):
    """A polynomial of low degree, with small whole and rational coefficients."""
    terms = draw(
        st.lists(
            st.tuples(
                st.fractions(min_value=-9, max_value=9, max_denominator=6).filter(bool),
                st.lists(st.sampled_from(SYMBOLS), min_size=0, max_size=3),
            ),
            min_size=1,
            max_size=4,
        )
    )
    return sum(sympy.Rational(c.numerator, c.denominator) * sympy.prod(s) for c, s in terms)


@settings(max_examples=60)
@given(first=polynomials(), second=polynomials())
def test_polynomials_are_one_only_if_they_are_equal(first, second) -> None:
    expanded, factored = sympy.latex(sympy.expand(first)), sympy.latex(sympy.factor(first))
    assert accepts(expanded, factored) and accepts(factored, expanded)
    other = sympy.latex(second)
    assert accepts(expanded, other) == (sympy.expand(first - second) == 0)


@settings(max_examples=60)
@given(
    expression=polynomials(),
    change=st.sampled_from(["sign", "symbol", "constant", "factor", "power"]),
)
def test_a_changed_polynomial_is_refused(expression, change) -> None:
    x, _, _, large, small = SYMBOLS
    other = {
        "sign": -expression,
        "symbol": expression.subs({large: small}),
        "constant": expression + sympy.Rational(1, 1000),
        "factor": expression * sympy.Rational(1001, 1000),
        "power": expression.subs({x: x**2}),
    }[change]
    gold, answer = sympy.latex(sympy.expand(expression)), sympy.latex(sympy.factor(other))
    assert accepts(gold, answer) == (sympy.expand(expression - other) == 0)


@settings(max_examples=60)
@given(
    values=st.lists(st.integers(-20, 20), min_size=2, max_size=5, unique=True),
    change=st.sampled_from(["none", "order", "missing", "sign", "repeated"]),
    named=st.booleans(),
)
def test_lists_of_solutions(values, change, named) -> None:
    other = list(values)
    if change == "order":
        other.reverse()
    elif change == "missing":
        other.pop()
    elif change == "sign":
        other[0] = -other[0] if other[0] and -other[0] not in other else other[0] + 50
    elif change == "repeated":
        other[0] = other[1]
    answer = r" \text{ or } ".join(f"x = {v}" if named else str(v) for v in other)
    gold = ",".join(map(str, values))
    assert accepts(gold, answer) == (sorted(values) == sorted(other))


@settings(max_examples=80)
@given(
    mantissa=st.integers(100, 999),
    exponent=st.integers(-40, 40),
    shift=st.sampled_from([0, 0, 1, -1, 2]),
    digit=st.sampled_from([0, 0, 1]),
    spelling=st.integers(0, 5),
)
def test_powers_of_ten(mantissa, exponent, shift, digit, spelling) -> None:
    def spelled(m: int, e: int, how: int) -> str:
        number = f"{m // 100}.{m % 100:02d}"
        return [
            rf"{number}\times 10^{{{e}}}",
            f"{number}e{e}",
            rf"{number}\cdot10^{{{e}}}",
            rf"{number}\mathrm{{E}}{e}",
            f"{number}×10" + str(e).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")),
            rf"{m}\times 10^{{{e - 2}}}\ \text{{J}}",
        ][how]

    gold = spelled(mantissa, exponent, 0)
    answer = spelled(mantissa + digit, exponent + shift, spelling)
    assert accepts(gold, answer) == (shift == 0 and digit == 0)
