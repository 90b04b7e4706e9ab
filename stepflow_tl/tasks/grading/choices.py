r"""Grading a multiple-choice question: the letter in the last box, or the last one in words."""

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

_PLAIN: dict[int, str] = {  # full-width signs and letters, mathematical letters
    code: unicodedata.normalize("NFKC", chr(code))
    for code in (*range(0xFF01, 0xFF5F), *range(0x1D400, 0x1D6A4))
}
_FONTS = (
    r"\\(?:text|textbf|textit|textrm|mathbf|mathrm|mathsf|mathit|boldsymbol|bm|bf|rm|left|right)"
    r"(?![A-Za-z])"
)
_BLANKS = r"\\(?:quad|qquad)(?![A-Za-z])|\\[,;:! ()\[\]]|~"
_DRESS_OF_BOX = re.compile(rf"{_FONTS}|{_BLANKS}|[{{}}$*`]")
_DRESS_OF_WORDS = re.compile(rf"{_FONTS}|{_BLANKS}|[{{}}$*`]|(?<!\w)_+|_+(?!\w)")
_OPTION = re.compile(
    r"(?:(?i:the\s)?(?i:answer|option|choice)\s*(?i:is|:)?\s*)?"
    r"[(\[]?\s*([A-Za-z])\s*(?:[)\].:](?![A-Za-z]).*|,\s.*|\s[-–—]\s.*|\s\(.*\)|\s\d.*|)",
    re.DOTALL,
)
_SEVERAL = re.compile(r"\W{0,9}(?:[,/&;]|\b(?i:and|or)\b)\W{0,9}(?:[Oo]ption )?[A-Z](?![A-Za-z'])")
_SEVERAL_BEFORE = re.compile(r"(?<![A-Za-z'])[A-Z]\)?\s{0,3}(?:[,/&]|and|or|nor)\s{0,3}\(?$")
_ARTICLE = (
    r"\s(?!(?:and|as|because|but|by|due|for|given|or|since|which|with)\b)[a-z]"  # "A better ..."
)
_LETTER = rf"(?:[(\[]\s?([A-Za-z])\s?[)\]]|(A(?!{_ARTICLE})|[B-Z])(?![A-Za-z0-9'’]))"
_KIND = r"(?i:(?:option|choice|answer|letter)\s{0,3})?"
_STATED = [
    # "the answer is C", "Answer: (C)", "correct option = C", '"answer": "C"'
    re.compile(
        r"\b(?<!wrong )(?<!incorrect )(?<!false )(?<!tempting )(?<!common )"
        r"(?i:answer|(?:correct|right|best)\s(?:choice|option))[\"']{0,2}\s{0,3}"
        r"(?P<verb>(?i:is|was|would\sbe|must\sbe|should\sbe|has\sto\sbe)\s{1,3}"
        r"(?i:(?:therefore|thus|then|hence|clearly|simply|indeed|just|definitely)\s)?|[=:]){1,2}"
        rf"[\s:\"']{{0,20}}{_KIND}{_LETTER}"
    ),
    re.compile(rf"\b(?i:final\sanswer|best\sanswer)\s{{1,3}}{_KIND}{_LETTER}"),
    # "option C is correct", "B is the correct answer"
    re.compile(
        rf"(?<![A-Za-z0-9'’\\])(?<!statement )(?<!Statement ){_KIND}{_LETTER}\s{{1,3}}"
        r"(?i:is|must\sbe|has\sto\sbe|should\sbe)\s{1,3}"
        r"(?i:(?:indeed|clearly|therefore|thus|hence|also|definitely)\s)?(?i:the\s)?"
        r"(?i:(?:only|single|one|best|most|likely|appropriate|correct|right)\s){0,4}"
        r"(?i:correct|right|best|answer)\b(?!\s(?i:for|if|to\sanother|only\sif|when)\b)"
    ),
    # "I choose B", "we select option (B)", "Choose B."
    re.compile(
        r"(?:\b(?i:I|we|so|thus|therefore|hence)['’]?(?i:d|ll)?\s{1,3}(?i:(?:would|will|must|therefore|thus)\s)?"
        r"|(?:^|[.!\n]\s{0,3}))(?i:choose|pick|select|go\swith|opt\sfor|mark)\s"
        rf"{{1,3}}{_KIND}{_LETTER}"
    ),
    re.compile(rf"(?:答案|正确选项|正确答案)\s?(?:应?(?:是|为|选)|:)?\s?:?\s?(?:选项)?{_LETTER}"),
    re.compile(rf"(?<![不未])选(?:项|择)?\s?:?\s?{_LETTER}"),
]
_SENTENCE = re.compile(r"[.!?\n;。！？；](?=\s|$|[^\x00-\x7f])")
_DENIED = re.compile(
    r"n['’]t\s(?:think|believe|mean)|\bnot\s(?:true|the\scase|say|mean|think|claim)|\bdoubt"
    r"|\b(?:many|some|most|others?|people|students?|one\smight|you\smight|they)\b[^.]{0,40}"
    r"\b(?:would|might|may|will|pick|choose|think|say|claim|answer)"
    r"|\b(?:tempt|mistak|at\sfirst\sglance|it\s(?:may|might)\sseem)",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(r"\b(?:if|had|were|unless|suppose)\b", re.IGNORECASE)
_TAG = re.compile(
    r"<(answer|final_answer|choice|option)>([^<>]{1,400})</\1>", re.IGNORECASE | re.DOTALL
)
_RETRACTED = re.compile(
    r"\b(?:wait|correction|on\ssecond\sthought|scratch\sthat|i\smade\sa\smistake)\b", re.IGNORECASE
)
_LAST_LINE = re.compile(r"(?:\*\*|__)\s{0,3}([(\[]?[A-Z](?:[)\].:].{0,300})?)\s{0,3}(?:\*\*|__)\.?")


def grade_choice(response: Response, letter: str, options: int = 4) -> Grade:
    r"""Grade the letter that a response gives: in its last box, or in words.

    A box holds a letter alone, in brackets, or before the option's text: ``\boxed{B}``,
    ``\boxed{\text{(B)}}``, ``\boxed{B. 5 m}``, ``\boxed{C, 12 m}``. It comes first: what is said of
    another option after it does not replace it, but where it is taken back ("Wait. Answer: B").
    Without a letter in a box, the last tag counts (``<answer>B</answer>``), or the last statement
    in words: "The answer is (B)", "ANSWER: **B**", "option B is correct", "I choose B",
    ``"answer": "B"``, a last line that is a letter in bold. Letters are capitals, or in brackets;
    what is denied ("is not B"), supposed ("would be B if") or told of others states none. Words
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
    stated = _stated(parts_of(response))
    if isinstance(stated, Grade):
        return stated
    rule, where, given = stated
    if given not in LETTERS[:options]:
        reason = f"{where} states {given}, but the options are A to {LETTERS[options - 1]}"
        return refused("out_of_range", reason, given, read_as=given, rule=rule)
    if given == letter:
        reason = f"{where} states {given}, the gold"
        return passed(reason, given, read_as=given, rule=rule)
    reason = f"{where} states {given}, not the gold {letter}"
    return refused("wrong_answer", reason, given, read_as=given, rule=rule)


def same_letter(first: str, second: str) -> bool:
    r"""Whether two boxed answers state one letter: ``B`` and ``\text{(b)}`` do.

    What states no single letter is compared as text.
    """
    letters = [letter_in(answer) or answer.strip() for answer in (first, second)]
    return letters[0] == letters[1]


def letter_in(box: str) -> str | None:
    """The single letter that the content of a box states; None if it states none, or several."""
    text = _DRESS_OF_BOX.sub(" ", box.translate(_PLAIN)).strip()
    option = _OPTION.fullmatch(text)
    return None if option is None or _SEVERAL.match(text, option.end(1)) else option[1].upper()


_Stated = tuple[str, str, str]  # the rule, where it stands, the letter


def _stated(parts: ResponseParts) -> _Stated | Grade:
    """The letter of a response, and where it stands."""
    inside = boxed(parts)
    said = parts.said.translate(_PLAIN)
    in_words = None
    if parts.closed and parts.is_silent:  # the box is in the thinking, before what is said
        in_words = _in_a_tag(said, parts) or _in_words(said, parts) or _in_bold(said, parts)
    if in_words is not None:
        return in_words
    if isinstance(inside, str):
        span = last_boxed(said)
        if span is not None and (again := _taken_back(said[span[1] :], parts)) is not None:
            return again
        letter = letter_in(inside)
        where = f"the last box{parts.of_graded}, {shown(inside)},"
        if letter is not None:
            return "the letter in the last box", where, letter
        reason = f"the last box{parts.of_graded} holds no single letter: {shown(inside)}"
        none = refused("not_understood", reason, inside)
        if _SEVERAL.search(_DRESS_OF_BOX.sub(" ", inside)):
            return none
    else:
        none = inside
    return _in_a_tag(said, parts) or _in_words(said, parts) or _in_bold(said, parts) or none


def _taken_back(after: str, parts: ResponseParts) -> _Stated | Grade | None:
    """What is stated after a box that is taken back."""
    found = _RETRACTED.search(after)
    return None if found is None else _in_words(after[found.end() :], parts)


def _in_a_tag(said: str, parts: ResponseParts) -> _Stated | None:
    for tag in reversed(list(_TAG.finditer(said))):
        if (letter := letter_in(tag[2])) is not None:
            return "the letter in a tag", f"the tag {shown(clean(tag[0]))}{parts.of_said}", letter
    return None


def _in_bold(said: str, parts: ResponseParts) -> _Stated | None:
    lines = said.strip().rsplit("\n", 1)
    found = _LAST_LINE.fullmatch(lines[-1].strip())
    letter = None if found is None else letter_in(found[1])
    if letter is None:
        return None
    where = f"the last line, {shown(clean(lines[-1]))},{parts.of_said}"
    return "the letter in the last line", where, letter


def _in_words(said: str, parts: ResponseParts) -> _Stated | Grade | None:
    """The last letter that words state; a grade where they state several at once."""
    text = _DRESS_OF_WORDS.sub(" ", said)
    text = re.sub(r"[ \t\xa0]{2,}", " ", text)
    found = sorted(
        (m for pattern in _STATED for m in pattern.finditer(text)), key=lambda m: m.end()
    )
    for match in reversed(found):
        if _is_denied(text, match):
            continue
        letter = next(group for group in match.groups()[-2:] if group)
        if (
            _SEVERAL.match(text, match.end(match.lastindex or 0))
            or _SEVERAL_BEFORE.search(text[: match.start()][-12:])
        ):  # fmt: skip
            more = text[max(0, match.start() - 4) : match.end() + 20]
            return refused("not_understood", f"several letters are stated: {shown(more)}")
        where = f"the sentence {shown(clean(match.group()))}{parts.of_said}"
        return "the letter stated in words", where, letter.upper()
    return None


def _is_denied(text: str, match: re.Match[str]) -> bool:
    """Whether the sentence before a statement makes it none."""
    before = text[max(0, match.start() - 200) : match.start()]
    before = _SENTENCE.split(before)[-1]
    if _DENIED.search(before):
        return True
    verb = match.groupdict().get("verb") or ""
    return "would" in verb.lower() and _SUPPOSED.search(before) is not None
