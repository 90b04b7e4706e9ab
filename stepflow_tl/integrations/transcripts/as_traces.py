"""Transcripts as traces in a model's own tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from stepflow_tl.errors import TraceError
from stepflow_tl.integrations.transcripts.transcript import Transcript
from stepflow_tl.traces.chat import Chat, prompt_text, spoken_text
from stepflow_tl.traces.formats import USER_TURNS, Format, named_format
from stepflow_tl.traces.reader import without_ends
from stepflow_tl.traces.templates import expected_format
from stepflow_tl.traces.tokens import TextStream, end_token_ids, special_ids, tokenizer_in
from stepflow_tl.traces.trace import Trace

START = "start_token"
"""Under which a trace's metadata has the start token that was put before its prompt."""


def as_trace(
    model: object,
    transcript: Transcript,
    *,
    chat: Chat | None = None,
    format: str | Format = "auto",
) -> Trace:
    """The trace of a transcript.

    Exact tokens are taken where the source has them and the tokenizer says the same text with them.
    Else a prompt that was rendered is taken word for word, messages and questions are rendered by
    the tokenizer's chat template, and the response is encoded after it. Steps are the source's own
    where it has some.

    Args:
        model: A model with a ``tokenizer``, or a tokenizer.
        transcript: What was asked and answered.
        chat: What else the chat template takes.
        format: As in `Trace.from_token_ids`.

    Raises:
        TraceError: It has nothing that the model could read: exact tokens of another tokenizer and
            no prompt, or a text that the tokens do not say.
        GenerationError: There is no chat template for messages, or it refuses them.
    """
    tokenizer = tokenizer_in(model)
    facts = json.loads(json.dumps(dict(transcript.facts), default=str))
    if transcript.token_ids is not None and transcript.prompt_ids is not None:
        ids = [*transcript.prompt_ids, *_unpadded(transcript.token_ids, end_token_ids(model))]
        if _say(tokenizer, transcript, ids, chat or Chat()):
            if transcript.written is not None:
                return transcript.written
            trace = Trace.from_token_ids(
                model,
                ids,
                prompt_length=len(transcript.prompt_ids),
                format=format,
                strict=False,
                metadata=facts,
            )
            return _ended(trace, transcript)
        if transcript.prompt is None and not transcript.messages:
            raise TraceError(
                "its tokens are another tokenizer's, and there is no prompt beside them: expected "
                "the tokenizer of the model that wrote it"
            )
    prompt, start = _prompt(tokenizer, transcript, chat or Chat())
    cuts = None if transcript.cuts is None else [len(start) + cut for cut in transcript.cuts]
    if start:
        facts[START] = start
    form = named_format(format)
    said = _said(transcript, prompt, expected_format(tokenizer, prompt) if form.is_auto else form)
    trace = Trace.from_text(
        model,
        prompt + said,
        prompt=prompt,
        format=format,
        strict=False,
        cuts=cuts,
        labels=transcript.labels,
        metadata=facts,
    )
    return _ended(trace, transcript)


def _prompt(tokenizer: Any, transcript: Transcript, chat: Chat) -> tuple[str, str]:
    """The prompt as the model reads it, and what was put before the transcript's own."""
    if transcript.prompt is None:
        return _rendered(tokenizer, transcript, chat), ""
    prompt = transcript.prompt
    is_question = not (transcript.rendered or _is_rendered(tokenizer, prompt))
    if is_question and getattr(tokenizer, "chat_template", None):
        return prompt_text(tokenizer, prompt, chat=chat), ""
    start = getattr(tokenizer, "bos_token", None) or ""
    if prompt.startswith(start) or not _begins(tokenizer):
        start = ""
    return start + prompt, start


def _rendered(tokenizer: Any, transcript: Transcript, chat: Chat) -> str:
    """A conversation by the chat template; a developer's turn is the system's to one without."""
    knows = "developer" in str(getattr(tokenizer, "chat_template", None))
    turns = [
        turn if knows or turn["role"] != "developer" else {**turn, "role": "system"}
        for turn in transcript.messages
    ]
    return prompt_text(tokenizer, turns, chat=chat)


def _begins(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its start token before a text."""
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id


def _is_rendered(tokenizer: Any, prompt: str) -> bool:
    """Whether a prompt holds what only chat templates write."""
    specials = (tokenizer.decode([i]) for i in special_ids(tokenizer))
    known = {opening for opening, _ in USER_TURNS if "<" in opening}
    return any(marker and marker in prompt for marker in (*specials, *known))


def _said(transcript: Transcript, prompt: str, form: Format) -> str:
    """What the model wrote. An answer in a conversation that nothing tells a thinking of has none.

    (Read as it stands, the whole of it would be a thinking that never closes.)
    """
    content, reasoning = transcript.content, transcript.reasoning
    if transcript.written is not None:
        return without_ends(content)  # the end token was another tokenizer's
    delimiters = (form.thinking_open, form.summary_open, *form.header_open)
    is_told = any(marker in content for marker in delimiters if marker)
    if reasoning is None and transcript.messages and transcript.ended and not is_told:
        reasoning = "" if form.summary_open else None
    if reasoning is None or not (reasoning.strip() or form.summary_open):
        return content
    message = {"role": "assistant", "content": content, "reasoning_content": reasoning}
    return spoken_text(message, prompt, form)


def _say(tokenizer: Any, transcript: Transcript, ids: list[int], chat: Chat) -> bool:
    """Whether tokens say the transcript's text, and its prompt, to this tokenizer.

    Two tokenizers may share all tokens but their markers.
    """
    if not ids or max(ids) >= len(tokenizer) or min(ids) < 0:
        return False
    split = len(transcript.prompt_ids or ())
    texts = TextStream(tokenizer).texts_of(ids)
    if transcript.written is not None:
        return "".join(texts) == f"{transcript.prompt}{transcript.content}"
    prompt, response = "".join(texts[:split]), "".join(texts[split:])
    told_by_template = bool(transcript.messages and getattr(tokenizer, "chat_template", None))
    if told_by_template and not _alike(_rendered(tokenizer, transcript, chat), prompt):
        return False
    told = [part for part in (transcript.reasoning, transcript.content) if part]
    return all(part.strip() in response for part in told)


def _alike(one: str, other: str) -> bool:
    """Whether two texts are equal but for white space."""
    return "".join(one.split()) == "".join(other.split())


def _unpadded(ids: Sequence[int], ends: frozenset[int]) -> list[int]:
    """Token ids without what a batch of several was padded with: more of its end token."""
    kept = list(ids)
    while len(kept) > 1 and kept[-1] == kept[-2] and kept[-1] in ends:
        kept.pop()
    return kept


def _ended(trace: Trace, transcript: Transcript) -> Trace:
    """The trace, which has ended if its source says so; its end token is not made up."""
    return trace if transcript.ended is None else replace(trace, ended=transcript.ended)
