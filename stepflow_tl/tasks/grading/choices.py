r"""Grading a multiple-choice question: the letter in the last box, or the last one in words."""

from __future__ import annotations

import re
import unicodedata

from stepflow_tl.errors import SettingError
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
from stepflow_tl.traces.answers import ResponseParts, last_boxed

_PLAIN: dict[int, str] = {  # full-width signs and letters, mathematical letters
    code: unicodedata.normalize("NFKC", chr(code))
    for code in (*range(0xFF01, 0xFF5F), *range(0x1D400, 0x1D6A4))
}
_PLAIN |= {ord("【"): "(", ord("】"): ")"}
_FONTS = (
    r"\\(?:text|textbf|textit|textrm|mathbf|mathrm|mathsf|mathit|boldsymbol|bm|bf|rm|left|right)"
    r"(?![A-Za-z])"
)
_BLANKS = r"\\(?:quad|qquad)(?![A-Za-z])|\\[,;:! ()\[\]]|~"
_TAGS = r"</?(?:b|i|u|strong|em|mark|code|p|br|span)\s?/?>"
_DRESS_OF_BOX = re.compile(rf"{_FONTS}|{_BLANKS}|[{{}}$*`]")
_DRESS_OF_WORDS = re.compile(
    rf"{_FONTS}|{_BLANKS}|{_TAGS}|(?<![_^])[{{}}]|[$*`#]|(?<!_)(?:(?<!\w)_+|_+(?![\w{{]))",
    re.IGNORECASE,
)
_OPTION = re.compile(
    r"(?:(?i:the\s)?(?i:answer|option|choice)\s*(?i:is|:)?\s*)?"
    r"(?:[(\[]{1,2}\s*([A-Za-z])\s*[)\]]{1,2}.*|([A-Za-z])\s*(?:[)\].:](?![A-Za-z]).*)?"
    r"|([A-Z])(?:,\s.*|\s[-–—]\s(?![A-Za-z]$).*|\s\(..{2,}\)|\s+\d.*))",
    re.DOTALL,
)
_JOINED = r"(?:[,/&;+、和与及或]|\b(?i:and|or|as\swell\sas|plus)\b)"
_SEVERAL = re.compile(
    rf"\W{{0,9}}{_JOINED}\W{{0,9}}(?i:(?:option|possibly|maybe|perhaps)\s)?"
    r"(?:[A-HJ-Z](?![A-Za-z'’])|I(?![A-Za-z'’]|\s[a-z]|\s?,?\s?(?:think|believe)))"
    r"|\W{0,3}[(\[]\s?[A-Za-z]\s?[)\]]|\s[A-HJ-Z](?=\s*(?:[.,;)]|$))"
)
_SEVERAL_SMALL = re.compile(r"[)\]]?\s?(?:[,/&;]|and|or)\s?[(\[]?\s?(?:[b-h]\b|a(?!\s?\w))")
_SEVERAL_BEFORE = re.compile(r"(?<![A-Za-z'])[A-Z]\)?\s{0,3}(?:[,/&]|and|or|nor)\s{0,3}\(?$")
_NO_LETTER = re.compile(r"[A-Z\s,&/]*|.*\b(?:none|neither|all|both|no\s\w+)\b.*", re.IGNORECASE)
# "A better ..."
_ARTICLE = r"\s(?!(?:and|as|because|but|by|due|for|given|or|since|which|with|is|must)\b)[a-z]"
_NO_FORMULA = (
    r"(?![A-Za-z0-9'’(])(?!\s?[=^_·/→<>×*∩∪²³⁰-⁹₀-₉\\])(?!\s?\+\s?[a-z+])(?!-\w)"
    r"(?!\s?\+\s?[A-Z]\b\s?=)"
)
_LETTER = (
    rf"(?:[(\[]{{1,2}}\s?([A-Za-z])\s?[)\]]{{1,2}}|[\"'“‘]([A-Z])[\"'”’]|[\"“]?"
    rf"(A(?!{_ARTICLE})|I(?!\s[a-z])|[B-HJ-Z]){_NO_FORMULA})"
)
_KIND = r"(?i:(?:option|choice|answer|letter)\s{0,3})?"
_VERB = r"(?i:is|was|would\sbe|must\sbe|should\sbe|has\sto\sbe|=)"
_SURELY = (
    r"(?i:(?:therefore|thus|then|hence|clearly|simply|indeed|just|definitely|most\slikely|probably)"
    r"[\s,]\s?)?"
)
_NOT_THIS = "".join(
    rf"(?<!{word}\s)"
    for word in ("wrong", "incorrect", "false", "tempting", "common", "worst", "likely", "first")
)
_STATED = [
    # "the answer is C", "Answer: (C)", "correct option = C", '"answer": "C"'
    re.compile(
        rf"\b{_NOT_THIS}(?<!['’]s\s)(?i:answer|solution|(?:correct|right|best)\s(?:choice|option|"
        r"statement))[\"']{0,2}(?i:\s(?:to|for|of)\s(?:this|the)\s(?:question|problem))?(?i:\shere)?"
        rf"\s{{0,3}}(?:(?P<verb>{_VERB})\s{{0,3}}{_SURELY}[:：]?|[:：])"
        rf"[\s:：\"'“‘]{{0,20}}{_KIND}(?:{_LETTER}|(?P<small>[a-z])(?=\s?[.)]?\s*(?:\n|$)))"
    ),
    re.compile(rf"\b(?i:final\sanswer|best\sanswer)\s{{1,3}}{_KIND}{_LETTER}"),
    re.compile(
        rf"(?:^|\n)\W{{0,4}}(?i:(?:final\s)?answer)\W{{0,4}}\n\s{{0,4}}{_LETTER}\s*(?:\n|$)"
    ),
    # "option C is correct", "B is the correct answer"
    re.compile(
        r"(?:(?:^|[.!?\n;:,])\s{0,3}|\b(?i:so|thus|hence|therefore|that|only|and|but|means|is)"
        rf"\s{{1,3}}|\b(?=(?i:option|choice|answer)\s)){_KIND}{_LETTER}\s{{1,3}}"
        r"(?P<is>(?i:is|must\sbe|has\sto\sbe|should\sbe))\s{1,3}"
        r"(?i:(?:indeed|clearly|therefore|thus|hence|also|definitely)\s)?(?i:the\s)?"
        r"(?i:(?:only|single|one|best|most|likely|appropriate|correct|right)\s){0,4}"
        r"(?i:correct|right|best|answer)\b"
        r"(?!\s?,?\s(?i:for|if|to\sanother|only|when|of|but|in|about|except|as\sfar|prevented|\w+ed)\b)"
    ),
    # "I choose B", "we select option (B)", "Choose B."
    re.compile(
        r"(?:\b(?i:I|we|so|thus|therefore|hence)['’]?(?i:d|ll)?\s{1,3}"
        r"(?i:(?:would|will|must|therefore|thus)\s)?|(?:^|[.!\n]\s{0,3}))"
        r"(?i:choose|pick|select|go\swith|opt\sfor|mark)\s"
        rf"{{1,3}}{_KIND}{_LETTER}(?!\s(?:such|as|so|to|for|with|=)\b)"
    ),
    # "Hence (C)." at the end
    re.compile(rf"\b(?i:hence|therefore|thus|so),?\s{{1,3}}{_KIND}{_LETTER}\s?\.?\s*$"),
    re.compile(
        rf"(?<!错误)(?<!错误的)(?:答案|正确选项|正确答案)\s?(?:应?(?:是|为|选))?\s?[:：]?\s?(?:选项)?{_LETTER}"
    ),
    re.compile(rf"(?<!不)(?<!不应)(?<!不能)(?<!不可)(?<!未)选(?:项|择)?\s?[:：]?\s?{_LETTER}"),
]
_ALSO = re.compile(r"\s?,?\s?(?:and|as\swell\sas)\s?\(?(?i:(?:option|choice)\s)?\(?")
_SENTENCE = re.compile(r"[.!?\n;。！？；](?=\s|$|[^\x00-\x7f])")
_DENIED = re.compile(
    r"(?:n['’]t|\bnot|cannot)\s(?:think|believe|mean|say|claim|see|true|the\scase|sure|be\sthat)"
    r"|\b(?:none|neither|doubt|disagree|nobody|no\sone|no\sway|unlikely|whether|previously|initially|originally)"
    r"|\b(?:wrong|incorrect|false)\s(?:to|that)|\bfirst\sI\b|\bmy\sfirst\b"
    r"|\b(?:many|some|most|others?|people|students?|one\smight|you\smight|they)\b[^.]{0,40}"
    r"\b(?:would|might|may|will|pick|choose|think|say|claim)"
    r"|\b(?:tempt|mistak|at\sfirst|it\s(?:may|might)\sseem)",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(r"\b(?:if|had|were|unless|suppose|assume|assuming|let['’]s\s\w+)\b", re.I)
_UNREAL = re.compile(r"\bif\b.*\b(?:were|had|was)\b|^\s*(?:had|were)\b", re.IGNORECASE)
_WITHDRAWN = re.compile(
    r"\s?\?|[,.]?\s{0,3}(?:but\s)?(?:which|that|this|it)\s(?:was|is)\s(?:wrong|incorrect|false|a\smist)",
    re.IGNORECASE,
)
_TAG = re.compile(
    r"<(answer|final_answer|choice|option)>([^<>]{1,400})</\1>", re.IGNORECASE | re.DOTALL
)
_RETRACTED = re.compile(
    r"\b(?:wait|correction|on\ssecond\sthought|scratch\sthat|i\smade\sa\smistake)\b", re.IGNORECASE
)
_LAST_LINE = re.compile(
    r"[#\s]*(?:(?:\*\*|__)\s{0,3}([(\[]?[A-Z](?:[)\].:].{0,300})?)\s{0,3}(?:\*\*|__)|\[\[([A-Z])\]\]"
    r"|(?i:option|choice)\s([(\[]?[A-Z][)\]]?))\.?"
)


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
        raise SettingError(f"expected 2 to {len(LETTERS)} options, got {options}")
    if len(letter) != 1 or letter not in LETTERS[:options]:
        raise SettingError(f"expected a letter from A to {LETTERS[options - 1]}, got {letter!r}")
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
    if option is None:
        return None
    assert option.lastindex is not None
    letter, end = option[option.lastindex], option.end(option.lastindex)
    closed = end + len(re.match(r"\s*[)\]]{0,2}", text[end:]).group())  # type: ignore[union-attr]
    several = _SEVERAL.match(text, closed) or _SEVERAL.match(text, end)
    if several or (letter.islower() and _SEVERAL_SMALL.match(text, end)):
        return None
    if re.search(r"\(\s*or\b[^()]{0,20}\b[A-Z]\s*\)", text):
        return None
    return letter.upper()


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
        if _NO_LETTER.fullmatch(_DRESS_OF_BOX.sub(" ", inside).strip()):
            return none
    else:
        none = inside
    return _in_a_tag(said, parts) or _in_words(said, parts) or _in_bold(said, parts) or none


def _taken_back(after: str, parts: ResponseParts) -> _Stated | Grade | None:
    """What is stated after a box that is taken back."""
    found = _RETRACTED.search(after)
    return None if found is None else _in_words(after[found.end() :], parts)


def _in_a_tag(said: str, parts: ResponseParts) -> _Stated | Grade | None:
    """The letter in the last tag; a grade where that holds several, or says that there is none."""
    tags = list(_TAG.finditer(said))
    if not tags:
        return None
    tag, where = tags[-1], f"the tag {shown(clean(tags[-1][0]))}{parts.of_said}"
    letter = letter_in(tag[2])
    if letter is not None:
        return "the letter in a tag", where, letter
    if _NO_LETTER.fullmatch(tag[2].strip()) or _SEVERAL_BEFORE.search(tag[2].strip()[:-1]):
        return refused("not_understood", f"{where} holds no single letter", tag[2].strip())
    return None


def _in_bold(said: str, parts: ResponseParts) -> _Stated | None:
    lines = said.strip().rsplit("\n", 1)
    found = _LAST_LINE.fullmatch(lines[-1].strip())
    letter = None if found is None else letter_in(found[1] or found[2] or found[3])
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
    for number, match in enumerate(reversed(found), 1):
        if _is_denied(text, match):
            continue
        letter, start = _letter_of(match)
        others = {
            _letter_of(other)[0]
            for other in found[:-number]
            if _ALSO.fullmatch(text[other.end() : start]) and not _is_denied(text, other)
        }
        if (
            _SEVERAL.match(text, match.end("is" if "is" in match.re.groupindex else 0))
            or (letter.islower() and _SEVERAL_SMALL.match(text, match.end()))
            or _SEVERAL_BEFORE.search(text[: match.start()][-12:])
            or others - {letter}
        ):
            more = text[max(0, match.start() - 4) : match.end() + 20]
            return refused("not_understood", f"several letters are stated: {shown(more)}")
        where = f"the sentence {shown(clean(match.group()))}{parts.of_said}"
        return "the letter stated in words", where, letter.upper()
    return None


def _letter_of(match: re.Match[str]) -> tuple[str, int]:
    """The letter that a statement states, and where it stands."""
    named = {*match.re.groupindex.values()} - {match.re.groupindex.get("small")}
    number = next(n for n in range(1, match.re.groups + 1) if n not in named and match[n])
    return match[number], match.start(number)


def _is_denied(text: str, match: re.Match[str]) -> bool:
    """Whether the sentence around a statement makes it none."""
    letter, start = _letter_of(match)
    before = _SENTENCE.split(text[max(0, start - 200) : start])[-1]
    if _DENIED.search(before) or _UNREAL.search(before) or _WITHDRAWN.match(text, match.end()):
        return True
    if letter == "i" and "(ii)" in text:
        return True
    verb = (match.groupdict().get("verb") or "").lower()
    is_open = "would" in verb or match.groupdict().get("is") is not None
    return is_open and _SUPPOSED.search(before) is not None
