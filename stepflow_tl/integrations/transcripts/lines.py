"""Rows of prompt and response, under whatever names; and those that this package exports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any

from stepflow_tl.errors import TraceError
from stepflow_tl.integrations.transcripts.transcript import Transcript, check_conversation, text_of
from stepflow_tl.tasks.tables import cell, shown
from stepflow_tl.traces.trace import Trace

LAYOUT = "stepflow_tl.trace"
"""What a row says that `exporting` wrote."""

WRITTEN = tuple(field.name for field in fields(Trace))
"""What such a row holds beside the texts of prompt and response."""

_PROMPTS = ("messages", "conversations", "prompt", "question", "problem", "instruction", "input")
_RESPONSES = (
    *("response", "completion", "output", "generation", "generations", "generated_text"),
    *("model_output", "solution", "answer"),
)
_REASONING = ("reasoning_content", "reasoning", "thinking")
_ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Where a row holds what; ``choices.0.text`` goes into lists and objects.

    Attributes:
        prompt: A question, a rendered prompt, or messages; None for the first there is of
            "messages", "conversations" (ShareGPT's), "prompt", "question", "problem", "instruction"
            (with "input" after it), "input".
        response: What the model wrote, or a list of several; None for the last of the messages, if
            it is the assistant's, or for the first there is of "response", "completion", "output",
            "generation", "generations", "generated_text", "model_output", "solution", "answer".
        reasoning: Its thinking, where that is kept apart; None for "reasoning_content",
            "reasoning" or "thinking".
    """

    prompt: str | None = None
    response: str | None = None
    reasoning: str | None = None


def read_line(row: Mapping[str, Any], fields: Fields) -> Iterator[Transcript | str]:
    """Each response of a row, or why it is not read. What else the row has is kept as facts.

    Raises:
        TraceError: There is no prompt or response.
    """
    prompt_name = fields.prompt or _first(row, _PROMPTS, "a prompt", "prompt")
    asked = _cell(row, prompt_name)
    if isinstance(asked, list):
        asked = [_message(turn) for turn in asked]
    answers = isinstance(asked, list) and asked and asked[-1].get("role") == "assistant"
    if prompt_name == "instruction" and isinstance(row.get("input"), str) and row["input"]:
        asked = f"{asked}\n\n{row['input']}"  # Alpaca's
    if answers and fields.response is None:
        response_name, given, asked = prompt_name, asked[-1], asked[:-1]
    else:
        response_name = fields.response or _first(row, _RESPONSES, "a response", "response")
        given = _cell(row, response_name)
    reasoning_name = fields.reasoning or next((n for n in _REASONING if n in row), None)
    reasoning = None if reasoning_name is None else _cell(row, reasoning_name)
    used = {name.partition(".")[0] for name in (prompt_name, response_name, reasoning_name) if name}
    facts = {name: value for name, value in row.items() if name not in used}
    several = given if isinstance(given, list) else [given]
    for number, response in enumerate(several):
        own = reasoning[number] if isinstance(reasoning, list) else reasoning
        try:
            yield _of(asked, response, own, facts, number if len(several) > 1 else None)
        except TraceError as error:
            yield f"response {number}: {error}" if len(several) > 1 else str(error)


def is_written(row: Mapping[str, Any]) -> bool:
    """Whether this package exported the row."""
    return row.get("layout") == LAYOUT


def read_written(row: Mapping[str, Any]) -> Iterator[Transcript | str]:
    """The trace of a row that `exporting` wrote.

    Raises:
        TraceError: It is not whole.
    """
    trace = Trace.from_dict({name: row[name] for name in WRITTEN if name in row})
    starts = list(accumulate(map(len, trace.token_texts), initial=0))
    steps = [step for step in trace.steps if step.segment != "question"]
    ids = trace.token_ids.tolist()
    yield Transcript(
        prompt=trace.text[: starts[trace.prompt_length]],
        rendered=True,
        content=trace.response,
        ended=trace.ended,
        prompt_ids=tuple(ids[: trace.prompt_length]),
        token_ids=tuple(ids[trace.prompt_length :]),
        cuts=tuple(starts[step.start] for step in steps),
        labels=tuple(step.labels for step in steps),
        facts=trace.metadata,
        written=trace,
    )


def _of(
    asked: Any, response: Any, reasoning: Any, facts: Mapping[str, Any], sample: int | None
) -> Transcript:
    if isinstance(response, Mapping):  # a message
        own = (response[name] for name in _REASONING if response.get(name) is not None)
        reasoning, response = next(own, reasoning), text_of(response.get("content"))
    if response is None and reasoning:
        response = ""
    if not isinstance(response, str) or not isinstance(reasoning, str | None):
        raise TraceError(f"expected a response that is text, got {shown(response, 60)}")
    if not response and not reasoning:
        raise TraceError("expected a response with some text, got none")
    facts = {**facts} if sample is None else {"sample": sample, **facts}
    if not isinstance(asked, str):
        asked = check_conversation(asked)
        return Transcript(messages=asked, content=response, reasoning=reasoning, facts=facts)
    if not asked:
        raise TraceError("expected a prompt with some text, got none")
    return Transcript(prompt=asked, content=response, reasoning=reasoning, facts=facts)


def _message(turn: Any) -> Mapping[str, Any]:
    """A message as chat templates take it."""
    if not isinstance(turn, Mapping):
        raise TraceError(f"expected messages with a role and content, got {shown(turn, 60)}")
    if "from" not in turn or "role" in turn:
        return turn
    said = str(turn["from"])
    return {"role": _ROLES.get(said, said), "content": turn.get("value")}


def _first(row: Mapping[str, Any], names: tuple[str, ...], what: str, option: str) -> str:
    found = next((name for name in names if row.get(name) is not None), None)
    if found is None:
        raise TraceError(
            f"expected {what} under one of {list(names)}, found {shown(list(row))}; another name "
            f"is given as {option}= (--{option})"
        )
    return found


def _cell(row: Mapping[str, Any], name: str) -> Any:
    try:
        return cell(row, name)
    except ValueError as error:
        raise TraceError(str(error)) from None
