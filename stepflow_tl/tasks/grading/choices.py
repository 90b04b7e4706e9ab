r"""Grading a multiple-choice question: the letter that the response states last."""

from __future__ import annotations

import re
import unicodedata

from stepflow_tl.answers import ResponseParts, last_boxed
from stepflow_tl.tasks.base import Grade
from stepflow_tl.tasks.grading.reading import (
    Response,
    boxed,
    clean,
    parts_of,
    passed,
    refused,
    shown,
)
from stepflow_tl.tasks.records import LETTERS

_PLAIN = {  # full-width and mathematical letters
    code: unicodedata.normalize("NFKC", chr(code))
    for code in (*range(0xFF21, 0xFF5B), *range(0x1D400, 0x1D6A4))
}
_DRESS = re.compile(
    r"\\(?:text|textbf|mathbf|mathrm|textrm|mathsf|bf|rm|left|right)(?![A-Za-z])|[{}$*_`]"
)
_OPTION = re.compile(
    r"(?:(?i:answer|option|choice)\s*(?:is|:)?\s*)?[(\[]?\s*([A-Za-z])\s*(?:[)\].:](?![A-Za-z]).*|)",
    re.DOTALL,
)
_SEVERAL = re.compile(r"\W{0,9}(?:[,/&;]|\b(?i:and|or)\b)\W{0,9}(?:[Oo]ption )?[A-Z](?![A-Za-z'])")
_ARTICLE = (
    r"\s(?!(?:and|as|because|but|by|due|for|given|or|since|which|with)\b)[a-z]"  # "A better ..."
)
_STATED = re.compile(
    r"\b(?i:answer|(?:correct|right|best)\s(?:choice|option))"
    r"(?i:\s+(?:is|would\s+be|must\s+be))?[\s:=*_$`\"']{0,20}(?i:(?:option|choice)\s)?[*_$`]{0,6}"
    rf"(?:[(\[]\s?([A-Za-z])\s?[)\]]|(A(?!{_ARTICLE})|[B-Z])(?![A-Za-z0-9'’]))"
)


def grade_choice(response: Response, letter: str, options: int = 4) -> Grade:
    r"""Grade the letter that a response states last: in a box, or as "The answer is (C)".

    A box holds a letter alone, in brackets, or before the option's text: ``\boxed{B}``,
    ``\boxed{\text{(B)}}``, ``\boxed{B. 5 m}``. In words it follows "answer" or
    "correct option" and is a capital letter, or one in brackets: "ANSWER: **B**", and, as Qwen's
    models are asked for it, ``"answer": "B"``. Words
    count in the answer, and in all of a response whose thinking never closed; a box in the
    thinking counts only where no answer follows it.
    Full-width and mathematical letters are read as plain ones; letters of other alphabets are
    none.

    Args:
        response: Whatever the model wrote, or its parts.
        letter: The right letter.
        options: How many there are; the first is A.

    Returns:
        The verdict. Its kind of error is one of "no_answer", "unclosed_box", "empty_box",
        "not_understood" (several letters, or none), "out_of_range", "wrong_answer".

    Raises:
        ValueError: There are not 2 to 26 options, or the right letter is none of theirs.
    """
    if not 2 <= options <= len(LETTERS):
        raise ValueError(f"expected 2 to {len(LETTERS)} options, got {options}")
    if len(letter) != 1 or letter not in LETTERS[:options]:
        raise ValueError(f"expected a letter from A to {LETTERS[options - 1]}, got {letter!r}")
    stated = _last_stated(parts_of(response))
    if isinstance(stated, Grade):
        return stated
    where, given = stated
    if given not in LETTERS[:options]:
        reason = f"{where} states {given}, but the options are A to {LETTERS[options - 1]}"
        return refused("out_of_range", reason, given)
    if given == letter:
        return passed(f"{where} states {given}, the gold", given)
    return refused("wrong_answer", f"{where} states {given}, not the gold {letter}", given)


def same_letter(first: str, second: str) -> bool:
    r"""Whether two boxed answers state one letter: ``B`` and ``\text{(b)}`` do.

    What states no single letter is compared as text.
    """
    letters = [_letter_in(answer) or answer.strip() for answer in (first, second)]
    return letters[0] == letters[1]


def _last_stated(parts: ResponseParts) -> tuple[str, str] | Grade:
    """Where the last letter is stated, and which it is."""
    said = parts.said.translate(_PLAIN)
    span = last_boxed(said)
    words = [m for m in _STATED.finditer(said) if span is None or m.start() > span[1]]
    if words:
        last = words[-1]
        text = clean(last.group())
        if _SEVERAL.match(said, last.end()):
            more = said[last.start() : last.end() + 20]
            return refused("not_understood", f"several letters are stated: {shown(more)}")
        return f"the sentence {shown(text)}{parts.of_said}", (last[1] or last[2]).upper()
    inside = boxed(parts)
    if isinstance(inside, Grade):
        return inside
    letter = _letter_in(inside)
    if letter is None:
        return refused(
            "not_understood",
            f"the last box{parts.of_graded} holds no single letter: {shown(inside)}",
            inside,
        )
    return f"the last box{parts.of_graded}, {shown(inside)},", letter


def _letter_in(box: str) -> str | None:
    """The single letter that the content of a box states; None if it states none, or several."""
    text = _DRESS.sub(" ", box.translate(_PLAIN)).strip()
    option = _OPTION.fullmatch(text)
    return None if option is None or _SEVERAL.match(text, option.end(1)) else option[1].upper()
