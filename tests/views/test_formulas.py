"""Formulas become MathML, and nothing else does."""

from typing import Any

import pytest
from hostile import HOSTILE

from stepflow_tl.views.mathematics import ATTRIBUTES, TAGS, runs_of


def kinds(text: str) -> str:
    return "".join(run[0] for run in runs_of(text))


def words(tree: Any) -> str:
    return tree if isinstance(tree, str) else "".join(map(words, tree[2]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"So \(\frac{1}{2}\) is half.", "tmt"),
        (r"\[x^2 + y^2\]", "m"),
        ("$$a = b$$ then", "mt"),
        ("with $x_1$ and $y$.", "tmtmt"),
        (r"The answer is \boxed{29}.", "tmt"),
        (r"nested \boxed{\frac{1}{2}}", "tm"),
        ("It costs $5, then $6 each.", "t"),
        ("between $5 and some more words and $6", "t"),
        (r"price \$5 and \$6", "t"),
        (r"unreadable \(\frac{\) stays", "t"),
        ("", "t"),
        ("plain", "t"),
        ("$" * 1000, "t"),
        (r"\(" + "{" * 5000 + r"\)", "t"),
    ],
)
def test_formulas_are_found(text: str, expected: str) -> None:
    assert kinds(text) == expected


def test_a_formula_says_what_it_said() -> None:
    (_, tree, shown), *_ = runs_of(r"\[\frac{12}{5} \leq 3\]")
    assert shown
    assert words(tree) == "125≤3"


@pytest.mark.parametrize("text", [*HOSTILE, r"\(\text{<img src=x onerror=f()>}\)"])
def test_only_mathml_comes_out(text: str) -> None:
    def check(tree: Any) -> None:
        if isinstance(tree, str):
            return
        tag, attributes, children = tree
        assert tag in TAGS
        assert attributes.keys() <= ATTRIBUTES
        for child in children:
            check(child)

    for run in runs_of(text):
        if run[0] == "m":
            check(run[1])
        else:
            assert run[1] in text
