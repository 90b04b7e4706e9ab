"""One response of a model as somebody else's file has it, before it meets a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from stepflow_tl.errors import StepFlowError, TraceError
from stepflow_tl.tasks.tables import shown
from stepflow_tl.traces.chat import Message
from stepflow_tl.traces.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """What a model was asked, and what it wrote.

    Attributes:
        messages: The conversation that it answers; empty where there is a `prompt`.
        prompt: What it was asked as one text; None where there are `messages`.
        rendered: Whether `prompt` is what the model read, word for word; False for a question,
            which a chat template is to ask; None where the source does not say.
        content: What it wrote, its thinking included unless `reasoning` has it.
        reasoning: Its thinking, where the source keeps it apart.
        ended: Whether it came to its end; None where the source does not say.
        prompt_ids: Exact tokens of the prompt, where the source has them.
        token_ids: Exact tokens of the response, likewise.
        cuts: Where the source's own steps begin: characters of `prompt` and `content` together.
        labels: What the source says of the step that begins at each cut.
        facts: What else it says, JSON-able; kept as the trace's metadata.
        written: The trace itself, where this package exported it.
    """

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    rendered: bool | None = None
    content: str = ""
    reasoning: str | None = None
    ended: bool | None = None
    prompt_ids: Sequence[int] | None = None
    token_ids: Sequence[int] | None = None
    cuts: tuple[int, ...] | None = None
    labels: tuple[Mapping[str, Any], ...] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    written: Trace | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """A response in a file, or the reason why there is none to be read.

    Attributes:
        file: The file.
        row: Where in it: a line, a sample, a folder.
        kind: Format of the file.
        transcript: The response; None where it is not read.
        reason: Why it is not; None where it is.
    """

    file: str
    row: str
    kind: str
    transcript: Transcript | None = None
    reason: str | None = None


def text_of(content: Any) -> str:
    """The text of a message's content, which may come in parts.

    Raises:
        TraceError: A part is no text: an image, a document, ...
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise TraceError(f"expected content that is text, got {type(content).__name__}")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise TraceError(f"expected content that is text, got a part of type {kind!r}")
        texts.append(text)
    return "".join(texts)


def _as_templates_take(call: Any) -> Any:
    """A call of a tool, its arguments as an object: they travel as text."""
    called = call.get("function") if isinstance(call, Mapping) else None
    if isinstance(called, str):  # Inspect's
        called = {"name": called, "arguments": call.get("arguments")}
    if not isinstance(called, Mapping):
        return call
    arguments = called.get("arguments")
    if isinstance(arguments, str):
        with suppress(ValueError):  # else it is shown as it came
            arguments = json.loads(arguments)
    return {**call, "function": {**called, "arguments": arguments}}


def check_conversation(messages: Any) -> tuple[Message, ...]:
    """The messages that a response answers, their content as text.

    Raises:
        TraceError: There is none, or one is no message.
    """
    if not isinstance(messages, list) or not messages:
        raise TraceError("expected the messages that it answers, got none")
    turns = []
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise TraceError("expected messages with a role and content")
        turn = {name: value for name, value in message.items() if value is not None}
        turn["content"] = text_of(message.get("content"))
        if "tool_calls" in turn:
            turn["tool_calls"] = [_as_templates_take(call) for call in turn["tool_calls"]]
        turns.append(turn)
    if turns[-1]["role"] == "assistant":
        raise TraceError("expected a conversation that ends before the assistant's answer")
    return tuple(turns)


def why(error: Exception) -> str:
    """Why a row is not read, on one line."""
    if isinstance(error, StepFlowError):
        return shown(str(error), 400)
    return f"not laid out as expected: {type(error).__name__}: {shown(str(error), 200)}"
