"""How graders read a response and show what they read: untrusted text, whatever a model wrote."""

from __future__ import annotations

import unicodedata

from stepflow_tl.tasks.base import Grade
from stepflow_tl.traces.answers import ResponseParts, last_boxed
from stepflow_tl.traces.reader import read_response

_SHOWN = 80  # characters of an answer that a reason quotes
LONGEST = 2000  # characters of a box; the longest answers of benchmarks have a few hundred
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_MINUSES = dict.fromkeys((0x2010, 0x2011, 0x2012, 0x2013, 0x2212, 0xFE63), "-")
_PLAIN: dict[int, int | str] = {**_FULL_WIDTH, **_MINUSES}


Response = str | ResponseParts
"""What is graded: a text whose thinking and answer are to be found, or both."""


def parts_of(response: Response) -> ResponseParts:
    """Thinking and answer of a response, as the reader of its tokens finds them."""
    return read_response(response) if isinstance(response, str) else response


def boxed(parts: ResponseParts) -> str | Grade:
    r"""The last box's content, cleaned, as `Trace.answer` finds it; a grade where there is none.

    The answer is read; the thinking only where no answer follows it. An unclosed box does not
    count.
    """
    text, of = parts.graded, parts.of_graded
    span = last_boxed(text)
    if span is None:
        if "\\boxed" in text:
            return refused("unclosed_box", rf"a \boxed{{ was opened{_at(of)} but never closed")
        return refused("no_answer", rf"no \boxed{{...}}{_at(of) or ' in the response'}")
    content = clean(text[slice(*span)])
    if not content:
        return refused("empty_box", rf"the last \boxed{{...}}{of} is empty")
    if len(content) > LONGEST:
        why = f"the last box{of} holds {len(content)} characters, more than {LONGEST}"
        return refused("too_long", why, content[:_SHOWN])
    return content


def _at(of: str) -> str:
    """The place of something that is missing: " in the answer"."""
    return f" in{of.removeprefix(' of').rstrip(',')}" if of else ""


def clean(text: str) -> str:
    """Without what cannot be seen: control and format characters, outer dollars, a full stop.

    Full-width characters and the several minus signs become the plain ones.
    """
    seen = "".join(
        " " if char.isspace() else char
        for char in text.translate(_PLAIN)
        if char.isspace() or unicodedata.category(char) not in ("Cc", "Cf", "Cs")
    ).strip()
    if (len(seen) - len(seen.rstrip("\\"))) % 2:  # what is left of a blank, "\\ "
        seen = seen[:-1].rstrip()
    for _ in range(2):
        if seen[:1] == seen[-1:] == "$" and len(seen) > 1:
            seen = seen[1:-1].strip()
    return seen[:-1].rstrip() if seen.endswith(".") and not seen.endswith("..") else seen


def shown(text: str, characters: int = _SHOWN) -> str:
    """The text as a reason quotes it: printable, shortened."""
    cut = text[:characters]
    return repr(cut) + ("..." if len(cut) < len(text) else "")


def refused(
    kind: str,
    reason: str,
    answer: str | None = None,
    *,
    read_as: str | None = None,
    rule: str | None = None,
) -> Grade:
    """The grade of a response that is not right; its rule is the kind of error, unless given."""
    return Grade(False, answer, kind, None, reason, read_as, rule or kind.replace("_", " "))


def passed(reason: str, answer: str, *, read_as: str | None, rule: str) -> Grade:
    """The grade of a right answer."""
    return Grade(True, answer, None, None, reason, read_as, rule)
