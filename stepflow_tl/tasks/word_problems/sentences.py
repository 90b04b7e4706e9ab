"""The words of the reasoner's world: names, items, amounts, and how a premise is worded.

Everything here is plain Python and imports nothing of the package.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal

Role = Literal["start", "chain", "beyond", "distractor"]
Operation = Literal["is", "more", "fewer", "twice", "joined"]

_NAMES = """
    Ann Ben Cal Dan Eve Fay Gus Hal Ida Jim Kay Lee Max Ned Ola Pam Ray Sam Tom Una Vic Wes Yan Zoe
    Amy Bob Cat Don Eli Fred Gil Hugo Ivy Jack Ken Lou Mia Nora Otto Paul Rosa Sue Ted Uma Vera Will
"""
NAMES = tuple(_NAMES.split())
ITEMS = ("books", "coins", "shells", "stamps", "cards", "pens")
AMOUNTS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
AMOUNT_WORDS = {value: word for word, value in AMOUNTS.items()}
CONNECTIVES = ("beside", "near", "unlike", "after")
FIRST_OPENERS = ("First", "Well", "Here")
OPENERS = ("So", "Then", "Now", "And")
SIGNS: dict[str, str] = {"more": "+", "fewer": "-", "twice": "*", "joined": "+"}
LARGEST_VALUE = 30


@dataclass(frozen=True, kw_only=True)
class Premise:
    """One sentence of the question.

    Attributes:
        text: The sentence as displayed.
        person: Who the sentence tells about.
        other: The key: the person it is told relative to; None where a plain count is given.
        operation: How `person`'s count follows from `other`'s ("is" where a plain count is given,
            "joined" where another person's count is added).
        amount: The number it adds, takes away, multiplies by, or states.
        item: What is counted.
        role: What the premise is for in this problem.
        added: The person whose count is added; None but for "joined".
    """

    text: str
    person: str
    other: str | None
    operation: Operation
    amount: int
    item: str
    role: Role
    added: str | None = None


def worded(rng: random.Random, premise: Premise) -> Premise:
    """Return the premise with its text, with a connective of its own."""
    return replace(premise, text=premise_text(rng, premise))


def premise_text(rng: random.Random, premise: Premise) -> str:
    """Word a premise, with a connective drawn anew."""
    if premise.other is None:
        return f"In {premise.item}, {premise.person} has {premise.amount}."
    lead = f"In {premise.item} {rng.choice(CONNECTIVES)} {premise.other}"
    return f"{lead}, {premise.person} has {phrase(premise)}."


def phrase(premise: Premise) -> str:
    """Return what stands after "has" in a premise and in the step that uses it."""
    if premise.operation == "joined":
        return f"{premise.added}'s count more"
    if premise.operation == "twice":
        return "twice as many"
    return f"{AMOUNT_WORDS[premise.amount]} {premise.operation}"


def apply(operation: Operation, value: int, amount: int) -> int:
    """Return the count that an operation makes of `value`."""
    if operation in ("more", "joined"):
        return value + amount
    return {"fewer": value - amount, "twice": value * amount, "is": amount}[operation]


def draw_operation(rng: random.Random, value: int) -> tuple[Operation, int]:
    """Draw an operation that keeps `value` between 1 and `LARGEST_VALUE`."""
    kinds: tuple[Operation, ...] = ("more", "more", "fewer", "fewer", "twice")
    while True:
        operation = rng.choice(kinds)
        amount = 2 if operation == "twice" else rng.choice(tuple(AMOUNTS.values()))
        if 1 <= apply(operation, value, amount) <= LARGEST_VALUE:
            return operation, amount
