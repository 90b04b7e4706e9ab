"""Chat completions of OpenAI's interface, as their client, vLLM and others store them.

A row holds the request's messages beside the completion, or is one line of a batch's output, whose
request lies in the batch's input. Thinking is ``reasoning_content``, or ``reasoning`` (vLLM since
0.11), or stands in the content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from stepflow_tl.errors import TraceError
from stepflow_tl.integrations.transcripts.transcript import (
    Transcript,
    check_conversation,
    text_of,
)

Requests = Callable[[str], Any]
"""The body of a batch's request by its `custom_id`; None where there is none."""

_REASONING = ("reasoning_content", "reasoning")


def is_openai(row: Mapping[str, Any]) -> bool:
    """Whether a row is a chat completion, a request with its completion, or a line of a batch."""
    return (
        _is_completion(row)
        or _is_completion(row.get("response"))
        or ("custom_id" in row and ("response" in row or "body" in row))
    )


def read_openai(row: Mapping[str, Any], requests: Requests | None) -> Iterator[Transcript | str]:
    """Each choice of a completion, or why it is not read.

    Raises:
        TraceError: There is no completion, or nothing that it answers.
    """
    if "custom_id" in row:
        completion, messages = _of_batch(row, requests)
    elif _is_completion(row):
        completion, messages = row, None
    else:
        request = row.get("request")
        asked_in = request if isinstance(request, Mapping) else row
        completion, messages = row["response"], asked_in.get("messages")
    prompt_ids = completion.get("prompt_token_ids")
    if messages is None and not prompt_ids:
        raise TraceError(
            "a completion without its request: expected the messages that it answers as 'messages' "
            "beside it"
        )
    asked = check_conversation(messages) if messages is not None else ()
    shared = {name: completion.get(name) for name in ("id", "model", "created")}
    if "custom_id" in row:
        shared["custom_id"] = row["custom_id"]
    for number, choice in enumerate(completion["choices"]):
        try:
            yield _of_choice(choice, number, asked, prompt_ids, shared)
        except TraceError as error:
            yield f"choice {number}: {error}"


def _of_choice(
    choice: Mapping[str, Any],
    number: int,
    asked: tuple[Mapping[str, Any], ...],
    prompt_ids: Any,
    shared: Mapping[str, Any],
) -> Transcript:
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise TraceError("expected a message")
    if message.get("tool_calls") or message.get("function_call"):
        raise TraceError(
            "its message calls tools, in words that the completion does not keep; expected an "
            "answer"
        )
    content = text_of(message.get("content"))
    reasoning = next((message[n] for n in _REASONING if message.get(n) is not None), None)
    if not content and not reasoning:
        said = "a refusal" if message.get("refusal") else "a message without text"
        raise TraceError(f"expected an answer, got {said}")
    finish = choice.get("finish_reason")
    facts = {
        **shared,
        "sample": choice.get("index", number),
        "finish_reason": finish,
        "reasoning": None if reasoning is None else "apart",
    }
    ids = choice.get("token_ids")
    exact = bool(prompt_ids and ids)  # of this server's own tokens
    return Transcript(
        messages=asked,
        content=content,
        reasoning=None if reasoning is None else str(reasoning),
        ended=None if finish is None else finish == "stop",
        prompt_ids=tuple(prompt_ids or ()) if exact else None,
        token_ids=tuple(ids or ()) if exact else None,
        facts={name: value for name, value in facts.items() if value is not None},
    )


def _of_batch(row: Mapping[str, Any], requests: Requests | None) -> tuple[Mapping[str, Any], Any]:
    if "body" in row and "response" not in row:
        raise TraceError("a batch's request: expected its output file, with --requests for this")
    response = row["response"] or {}
    body = response.get("body")
    if not _is_completion(body):
        told = row.get("error") or (body or {}).get("error") or {}
        told = told.get("error", told) if isinstance(told, Mapping) else {"message": told}
        said = " ".join(str(told.get("message") or "no completion").split())
        status = response.get("status_code")
        raise TraceError(f"expected a completion, got a failed request (status {status}): {said}")
    if requests is None:
        raise TraceError(
            "a batch's output without its input: expected the file of its requests "
            "(--requests FILE)"
        )
    request = requests(str(row["custom_id"]))
    if request is None:
        raise TraceError(f"expected the request {row['custom_id']!r} among those of the batch")
    assert isinstance(body, Mapping)
    return body, request.get("messages")


def _is_completion(value: Any) -> bool:
    choices = value.get("choices") if isinstance(value, Mapping) else None
    return isinstance(choices, list) and all(
        isinstance(choice, Mapping) and "message" in choice for choice in choices
    )
