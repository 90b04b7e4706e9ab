"""What a chat template and a rendered prompt say of the response that follows.

The vocabulary says nothing: instruct models have ``<think>`` in theirs and never think, and
templates write ``</think>`` where no token of that name exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from jinja2 import TemplateError

from stepflow_tl.traces.formats import HARMONY, MESSAGE_ENDS, PLAIN, THINK, Format

_PROBE = "Which words are these?"
_DELIMITERS = tuple(m for m in (THINK.thinking_open, THINK.summary_open) if m)
_ASSISTANT = f"{HARMONY.header_open[0]}assistant"
_KNOWN: WeakKeyDictionary[Any, tuple[Any, Template]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Template:
    """What a tokenizer's chat template says.

    Attributes:
        ending: What it writes between the user's words and the response, without delimiters of
            thinking; empty where there is no template, or it could not be filled in.
        form: The format whose delimiters it writes or strips anywhere; `PLAIN` for none.
    """

    ending: str
    form: Format


def template_of(tokenizer: Any) -> Template:
    """What the chat template of a tokenizer says; looked at once."""
    source = getattr(tokenizer, "chat_template", None)
    known = _KNOWN.get(tokenizer)
    if known is None or known[0] != source:
        known = _KNOWN[tokenizer] = (source, _read(tokenizer, str(source or "")))
    return known[1]


def expected_format(tokenizer: Any, prompt: str) -> Format:
    """The format that a response to this prompt may be expected in; `PLAIN` where none is.

    A prompt that ends with a delimiter of thinking, or in the middle of a message's header, says
    it itself. Else it is the template's format, if the template rendered the prompt.
    """
    end = prompt.rstrip()
    if _opens_message(end):
        return HARMONY
    if end.endswith(_DELIMITERS):
        return THINK
    template = template_of(tokenizer)
    return template.form if template.ending and end.endswith(template.ending) else PLAIN


def _opens_message(prompt: str) -> bool:
    """Whether a prompt ends in a message of the assistant's, or in its header."""
    _, found, rest = prompt.rpartition(HARMONY.header_open[0])
    is_open = not any(end in rest for end in MESSAGE_ENDS)
    return bool(found) and is_open and "assistant".startswith(rest[: len("assistant")])


def _read(tokenizer: Any, source: str) -> Template:
    form = PLAIN
    if HARMONY.header_open[-1] in source:
        form = HARMONY
    elif any(delimiter in source for delimiter in _DELIMITERS):
        form = THINK
    try:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": _PROBE}], add_generation_prompt=True, tokenize=False
        )
    except (TemplateError, AttributeError, KeyError, TypeError, ValueError):
        return Template("", form)
    ending = str(asked).rpartition(_PROBE)[2].rstrip()
    if ending.endswith(_ASSISTANT):
        form = HARMONY
    while ending.endswith(_DELIMITERS):
        ending = ending[: ending.rindex("<")].rstrip()
    return Template(ending, form)
