"""Thinking and answer, put together from labeled tokens."""

from __future__ import annotations

from collections.abc import Sequence

from stepflow_tl.traces.answers import ResponseParts
from stepflow_tl.traces.formats import HARMONY, THINK, Format
from stepflow_tl.traces.tokens import FRAME, TokenLabel

OPENERS = (THINK.thinking_open or "", *HARMONY.header_open, "to=")
"""How a response that opens a thinking, or has headers, may begin."""


def response_parts(
    texts: Sequence[str],
    labels: Sequence[TokenLabel],
    form: Format,
    *,
    prompt_length: int,
    closed: bool,
) -> ResponseParts:
    """Thinking and answer of labeled tokens; steps that do not touch are told apart by a line.

    Args:
        texts: Text of each token.
        labels: Label of each token.
        form: The format that the tokens were read in.
        prompt_length: Number of prompt tokens.
        closed: Whether the thinking ended.
    """
    ordinary = (i for i, label in enumerate(labels) if label.segment and label.step != FRAME)
    first = next(ordinary, len(labels))
    parts: dict[int, list[str]] = {1: [], 2: []}
    into = labels[first].segment if first < len(labels) else 1
    parts[into] = [lead] if (lead := _undecided(texts[prompt_length:first], form)) else []
    last = first - 1
    for position in range(first, len(labels)):
        segment, step = labels[position]
        if segment == 0:
            continue
        if step == FRAME:
            if position == last + 1:
                _drop_delimiter(parts[segment], texts[position], form)
            continue
        if parts[segment] and position != last + 1:
            parts[segment].append("\n")
        parts[segment].append(texts[position])
        last = position
    return ResponseParts(
        thinking="".join(parts[1]).strip(),
        answer="".join(parts[2]).lstrip(),
        closed=closed,
        expected=form.summary_open is not None,
    )


def _undecided(texts: Sequence[str], form: Format) -> str:
    """The beginning of a response that might have become a delimiter, and did not.

    It belongs to no step, but to the response.
    """
    closing = (THINK.summary_open, form.thinking_open, form.summary_open)
    markers = (*OPENERS, *filter(None, closing))
    lead = ""
    for text in texts:
        start = (lead + text).lstrip()
        if start.startswith(markers):
            lead = ""
        elif any(marker.startswith(start) for marker in markers):
            lead = start
        else:
            return lead + text if lead and text.isspace() else lead
    return lead


def _drop_delimiter(written: list[str], completes: str, form: Format) -> None:
    """Drop the tokens of a delimiter that was split, of which this is the last."""
    for marker in filter(None, (form.summary_open, form.thinking_open)):
        tail = "".join(written[-len(marker) :])
        at = (tail + completes).rfind(marker)
        if 0 <= at < len(tail) < at + len(marker):
            written[-len(marker) :] = [tail[:at]]
            return
