"""A reasoning trace: the model's real tokens, tiled by steps.

`Trace` is the only currency of this package: generation makes it, `Trace.from_text` and
`Trace.from_token_ids` make it from anyone's transcript, everything else reads it.

Axes, used word for word everywhere: *batch*, *pos* (token position), *query* and *key* (positions
in their role in attention), *head*, *layer*, *step* (*query_step*, *key_step*).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from stepflow_tl.errors import TraceError
from stepflow_tl.files import read_file, write_file
from stepflow_tl.traces.answers import ResponseParts, boxed_answer, last_boxed
from stepflow_tl.traces.chat import (
    Chat,
    Message,
    check_messages,
    check_token_ids,
    encoded,
    prompt_text,
    spoken_text,
)
from stepflow_tl.traces.cuts import increasing, labels_of_steps, tokens_at
from stepflow_tl.traces.formats import (
    AUTO,
    FORMATS,
    SEGMENTS,
    THINK,
    Format,
    SegmentName,
    named_format,
)
from stepflow_tl.traces.fragments import is_fragment
from stepflow_tl.traces.parts import response_parts
from stepflow_tl.traces.reader import TraceReader
from stepflow_tl.traces.templates import expected_format
from stepflow_tl.traces.tokens import FRAME, TextStream, TokenLabel, end_token_ids, tokenizer_in

_FILE_KIND = "stepflow_tl.Trace"
VIEWS = "stepflow_tl.views"  # a higher floor


@dataclass(frozen=True)
class Step:
    """One step of a trace: the half-open token span ``[start, stop)``.

    Attributes:
        index: Its number in the trace; the question is step 0.
        segment: The segment it lies in.
        start: First token.
        stop: One past the last token.
        text: Its text.
        labels: What somebody says of it, JSON-able: ``{"kind": "plan_generation"}``.
    """

    index: int
    segment: SegmentName
    start: int
    stop: int
    text: str
    labels: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __len__(self) -> int:
        """Number of tokens."""
        return self.stop - self.start

    @property
    def is_fragment(self) -> bool:
        """True for under 10 Latin or 4 CJK characters, or digits only.

        A fragment joins the sentence after it; only where its segment ends first does it stay a
        step of its own, because joining backwards would let a token's step depend on later ones.
        """
        return is_fragment(self.text)


@dataclass(frozen=True)
class Segment:
    """Question, thinking or summary: the half-open token span ``[start, stop)``, frame included."""

    name: SegmentName
    start: int
    stop: int

    def __len__(self) -> int:
        """Number of tokens."""
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """A reasoning trace ``question -> thinking -> summary`` on real token ids.

    Segments tile the tokens. Steps tile each segment but for its *frame*: the tokens of the chat
    template, of the delimiters, the white space around these, and the end token belong to no step.

    Attributes:
        token_ids: The tokens, on the CPU.
        token_texts: Text of each token; joined, they are the whole text.
        segments: The three segments; any may be empty.
        steps: The steps in order. Step 0 is the question where one was found.
        prompt_length: Number of tokens before the response.
        ended: Whether the response reached an end token; False where decoding was cut.
        closed: Whether the thinking ended: all that follows is summary.
        read_as: How it was read, JSON-able: the format's name and cutters, its delimiters where
            they are a caller's own, ``"auto"`` where text decided it.
        metadata: JSON-able facts about its making: model, seed, sample, decoding settings.
    """

    token_ids: Int[Tensor, "pos"]
    token_texts: tuple[str, ...]
    segments: tuple[Segment, Segment, Segment]
    steps: tuple[Step, ...]
    prompt_length: int
    ended: bool
    closed: bool
    read_as: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_token_ids(
        cls,
        model: Any,
        token_ids: Sequence[int] | Int[Tensor, "pos"] | Int[Tensor, "1 pos"],
        *,
        prompt_length: int | None = None,
        format: str | Format = "auto",
        strict: bool = True,
        cuts: Sequence[int] | None = None,
        labels: Sequence[Mapping[str, Any]] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Trace:
        """Cut a sequence of token ids into steps.

        Args:
            model: A model with a ``tokenizer``, or a tokenizer.
            token_ids: The whole sequence, prompt and response, without padding.
            prompt_length: Number of prompt tokens; None to let the first opening delimiter in the
                text end the prompt.
            format: ``"auto"`` for the one that chat template, prompt and response speak, the name
                of a format, or a `Format`.
            strict: Raise where a format's delimiters are expected and none is found.
            cuts: Where somebody else's steps begin, as numbers of tokens, in place of the cutters.
            labels: What is said of the step that begins at each of `cuts`; see `Step.labels`.
            metadata: Facts to keep with the trace.

        Returns:
            The trace. A response that does not open its thinking is thinking from its first token.
            Thinking that never closes runs to the end and leaves the summary empty; after the
            first closing delimiter further ones are ordinary text; tokens after the end token are
            frame.

        Raises:
            TraceError: No token, a prompt longer than the sequence, no delimiter, or cuts that do
                not go up within the sequence.
        """
        ids = _as_ids(token_ids)
        if prompt_length is not None and not 0 < prompt_length <= len(ids):
            raise TraceError(
                f"prompt_length must be between 1 and the {len(ids)} tokens of the sequence, "
                f"got {prompt_length}"
            )
        tokenizer = tokenizer_in(model)
        form = named_format(format)
        try:
            reader = TraceReader(
                tokenizer,
                form,
                prompt_length=prompt_length,
                end_ids=end_token_ids(model),
                cuts=None if cuts is None else frozenset(increasing(cuts, len(ids), "tokens")),
            )
        except ValueError as error:
            raise TraceError(str(error)) from None
        for token_id in ids:
            reader.push(token_id)
        expected = THINK if form.is_auto else form
        if strict and not reader.delimited and not (form.is_auto and prompt_length):
            _refuse_undelimited(expected, len(ids))
        trace = cls.of_reader(ids, reader, metadata=metadata)
        if labels is None:
            return trace
        if cuts is None:
            raise TraceError("expected cuts= beside labels=, got None; or use Trace.with_labels")
        return trace._labeled(cuts, labels)

    @classmethod
    def of_reader(
        cls,
        token_ids: Sequence[int],
        reader: TraceReader,
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> Trace:
        """The trace of the tokens that a reader has read.

        Args:
            token_ids: These tokens.
            reader: Their reader.
            metadata: Facts to keep with the trace.
        """
        segments = _spans([label.segment for label in reader.labels], len(SEGMENTS))
        described = reader.form.describe() | ({AUTO: True} if reader.is_auto else {})
        if reader.has_cuts:
            described |= {"thinking_cutter": "given", "summary_cutter": "given"}
        return cls(
            token_ids=torch.tensor(token_ids, dtype=torch.long),
            token_texts=tuple(reader.texts),
            segments=(
                Segment("question", *segments[0]),
                Segment("thinking", *segments[1]),
                Segment("summary", *segments[2]),
            ),
            steps=_steps([label.step for label in reader.labels], reader),
            prompt_length=reader.prompt_length or segments[0][1],
            ended=reader.ended,
            closed=reader.closed,
            read_as=described,
            metadata=dict(metadata or {}),
        )

    @classmethod
    def from_text(
        cls,
        model: Any,
        text: str,
        *,
        prompt: str | None = None,
        format: str | Format = "auto",
        strict: bool = True,
        cuts: Sequence[int] | None = None,
        labels: Sequence[Mapping[str, Any]] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Trace:
        """Tokenise a transcript and cut it into steps.

        Args:
            model: A model with a ``tokenizer``, or a tokenizer.
            text: The whole transcript with its special tokens written out; without `prompt`, it
                must hold the opening delimiter. No token is added to it.
            prompt: The part of `text` before the response, if it is to be given: it is tokenized
                apart, as when it was generated from.
            format: As in `from_token_ids`.
            strict: Likewise.
            cuts: Where somebody else's steps begin, as numbers of characters of `text`: a step
                begins with the token that holds the first character that is not white space from
                there on, or the next one where that token has begun before.
            labels: What is said of the step that begins at each of `cuts`.
            metadata: Facts to keep with the trace.

        Raises:
            TraceError: `text` does not start with `prompt`, is empty, has no delimiter, or is not
                what its tokens say (characters cannot be counted then); or cuts that do not go up
                within the text.
        """
        tokenizer = tokenizer_in(model)
        if not isinstance(text, str):
            raise TraceError(f"expected the text of a transcript, got {text!r}")
        if prompt is not None and not text.startswith(prompt):
            raise TraceError(f"text must start with the prompt {prompt!r}, got {text[:80]!r}")
        start = len(prompt or "")
        head, tail = (
            encoded(tokenizer, part, TraceError, add_special_tokens=False) if part else []
            for part in (text[:start], text[start:])
        )
        if prompt is None:
            form = named_format(format)
            openers = [f.thinking_open for f in (FORMATS.values() if form.is_auto else [form])]
            if not any(opener is not None and opener in text for opener in openers):
                raise TraceError(
                    f"format {form.name!r} expects one of "
                    f"{[opener for opener in openers if opener]} in the text to see where the "
                    "prompt ends, and found none; pass prompt= (the text before the response)"
                )
        ids = head + tail
        length = len(head) or None
        if cuts is None:
            return cls.from_token_ids(
                model,
                ids,
                prompt_length=length,
                format=format,
                strict=strict,
                labels=labels,
                metadata=metadata,
            )
        try:
            at = tokens_at(TextStream(tokenizer).texts_of(ids), text, cuts)
        except ValueError as error:
            raise TraceError(str(error)) from None
        trace = cls.from_token_ids(
            model,
            ids,
            prompt_length=length,
            format=format,
            strict=strict,
            cuts=sorted({token for token in at if token < len(ids)}),
            metadata=metadata,
        )
        if labels is None:
            return trace
        return trace._labeled(at, labels)

    @classmethod
    def from_chat(
        cls,
        model: Any,
        messages: Sequence[Message],
        *,
        chat: Chat | None = None,
        format: str | Format = "auto",
        metadata: Mapping[str, Any] | None = None,
    ) -> Trace:
        """The trace of a conversation's last message, the assistant's.

        The chat template renders the turns before it. Its own text is appended as it is, for
        templates leave earlier thinking out: ``reasoning_content`` (or ``reasoning``, ``thinking``)
        between the format's delimiters, where the message has it, then ``content``. No end token
        is added.

        Args:
            model: A model with a ``tokenizer``, or a tokenizer.
            messages: ``{"role": "user", "content": "Why?"}`` and so on; the last one is the
                assistant's.
            chat: What else the chat template takes.
            format: As in `from_token_ids`.
            metadata: Facts to keep with the trace.

        Raises:
            TraceError: The last message is not the assistant's, or says nothing.
            GenerationError: A message lacks its role or content, or the tokenizer has no template.
        """
        turns = check_messages(messages)
        if turns[-1]["role"] != "assistant" or len(turns) < 2:
            raise TraceError(
                "expected a conversation whose last message is the assistant's, after the turn "
                f"that it answers, got the roles {[turn['role'] for turn in turns]}"
            )
        tokenizer = tokenizer_in(model)
        prompt = prompt_text(tokenizer, turns[:-1], chat=chat or Chat())
        form = named_format(format)
        if form.is_auto:
            form = expected_format(tokenizer, prompt)
        said = spoken_text(turns[-1], prompt, form)
        if not said:
            raise TraceError(f"expected an answer with some text, got {dict(turns[-1])!r}")
        facts = {"messages": [dict(turn) for turn in turns[:-1]], **(metadata or {})}
        return cls.from_text(
            model, prompt + said, prompt=prompt, format=format, strict=False, metadata=facts
        )

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.token_texts)

    def __eq__(self, other: object) -> bool:
        """Equal tokens, spans and provenance."""
        return isinstance(other, Trace) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Sizes, not contents."""
        sizes = ", ".join(f"{s.name} {len(s)}" for s in self.segments)
        return f"Trace({len(self)} tokens: {sizes}; {len(self.steps)} steps; ended={self.ended})"

    @property
    def tokens(self) -> Int[Tensor, "1 pos"]:
        """The tokens with a batch axis, as TransformerLens takes them."""
        return self.token_ids[None]

    @property
    def question(self) -> Segment:
        """Everything up to and including the delimiter that opens the thinking."""
        return self.segments[0]

    @property
    def thinking(self) -> Segment:
        """The thinking, the delimiter that closes it included."""
        return self.segments[1]

    @property
    def summary(self) -> Segment:
        """What follows the thinking."""
        return self.segments[2]

    @property
    def format_name(self) -> str:
        """Name of the format that it was read in."""
        return str(self.read_as["name"])

    @property
    def unclosed(self) -> bool:
        """Whether a thinking that its format closes never was."""
        return self.parts.expected and not self.closed

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.token_texts)

    def text_of(self, span: Step | Segment) -> str:
        """Text of a step or a segment, frame included."""
        return "".join(self.token_texts[span.start : span.stop])

    @property
    def response(self) -> str:
        """Everything after the prompt."""
        return "".join(self.token_texts[self.prompt_length :])

    @property
    def _delimiters(self) -> dict[str, Any]:
        """The description of its format without what cut its steps."""
        cut = ("thinking_cutter", "summary_cutter", AUTO)
        return {name: value for name, value in self.read_as.items() if name not in cut}

    @cached_property
    def parts(self) -> ResponseParts:
        """Thinking and answer, as graders read them."""
        labels = [
            TokenLabel(segment, step)
            for segment, step in zip(
                self.segment_of_token.tolist(), self.step_of_token.tolist(), strict=True
            )
        ]
        return response_parts(
            self.token_texts,
            labels,
            Format.from_description(self._delimiters),
            prompt_length=self.prompt_length,
            closed=self.closed,
        )

    @property
    def answer(self) -> str | None:
        r"""Content of the last ``\boxed{...}`` of the answer; None without one.

        A box in the thinking counts only where no answer follows it.
        """
        return boxed_answer(self.parts.graded)

    @property
    def answer_span(self) -> tuple[int, int] | None:
        """Half-open token span of `answer`; None without one."""
        segment = self.thinking if self.parts.is_silent else self.summary
        tokens = [
            i for i in range(segment.start, segment.stop) if int(self.step_of_token[i]) != FRAME
        ]
        span = last_boxed("".join(self.token_texts[i] for i in tokens))
        if span is None:
            return None
        inside, at = [], 0
        for i in tokens:
            end = at + len(self.token_texts[i])
            if at < span[1] and end > span[0]:
                inside.append(i)
            at = end
        return (inside[0], inside[-1] + 1) if inside else None

    @cached_property
    def step_of_token(self) -> Int[Tensor, "pos"]:
        """Index of each token's step; `FRAME` (-1) for tokens of none."""
        steps = torch.full((len(self),), FRAME, dtype=torch.long)
        for step in self.steps:
            steps[step.start : step.stop] = step.index
        return steps

    @cached_property
    def segment_of_token(self) -> Int[Tensor, "pos"]:
        """Segment of each token: 0 question, 1 thinking, 2 summary."""
        segments = torch.zeros(len(self), dtype=torch.long)
        for number, segment in enumerate(self.segments):
            segments[segment.start : segment.stop] = number
        return segments

    def steps_in(self, segment: SegmentName) -> tuple[Step, ...]:
        """The steps of one segment."""
        return tuple(step for step in self.steps if step.segment == segment)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per step: index, segment, first token and one past the last, text, labels.

        Texts are untrusted: a notebook escapes them.
        """
        columns = ("index", "segment", "start", "stop", "text")
        rows = [
            {name: getattr(step, name) for name in columns} | dict(step.labels)
            for step in self.steps
        ]
        return pd.DataFrame(rows, columns=None if rows else list(columns))

    def with_metadata(self, **facts: Any) -> Trace:
        """The same trace with more facts kept beside it."""
        return replace(self, metadata={**self.metadata, **facts})

    def with_labels(self, labels: Mapping[int, Mapping[str, Any]]) -> Trace:
        """The same trace with more said of its steps.

        Args:
            labels: By index of the step, JSON-able.

        Raises:
            TraceError: There is no such step.
        """
        missing = sorted(set(labels) - set(range(len(self.steps))))
        if missing:
            raise TraceError(
                f"expected labels of the steps 0 to {len(self.steps) - 1}, got some of {missing}"
            )
        steps = tuple(
            replace(step, labels={**step.labels, **labels.get(step.index, {})})
            for step in self.steps
        )
        return replace(self, steps=steps)

    def _labeled(self, cuts: Sequence[int], labels: Sequence[Mapping[str, Any]]) -> Trace:
        """The same with what is said of the steps that begin at these tokens."""
        try:
            found = labels_of_steps(self.step_of_token.tolist(), cuts, labels)
        except ValueError as error:
            raise TraceError(str(error)) from None
        return self.with_labels(found)

    def to_dict(self) -> dict[str, Any]:
        """All that it is, JSON-able; `from_dict` makes the same trace of it."""
        return {
            "token_ids": self.token_ids.tolist(),
            "token_texts": list(self.token_texts),
            "segments": [asdict(segment) for segment in self.segments],
            "steps": [asdict(step) for step in self.steps],
            "prompt_length": self.prompt_length,
            "ended": self.ended,
            "closed": self.closed,
            "read_as": dict(self.read_as),
            "metadata": dict(self.metadata),
        }

    def _check(self) -> None:
        """Refuse what does not fit together.

        Raises:
            TraceError: Lengths, spans or the format do not.
        """
        size = len(self.token_texts)
        spans: list[Segment | Step] = [*self.segments, *self.steps]
        tiles = [segment.stop for segment in self.segments] == [
            *(segment.start for segment in self.segments[1:]),
            size,
        ]
        if len(self.token_ids) != size or not 0 <= self.prompt_length <= size or not tiles:
            raise TraceError(f"expected segments that tile {size} tokens, got {self.segments}")
        if not all(0 <= span.start <= span.stop <= size for span in spans):
            raise TraceError(f"expected spans within {size} tokens, got others")
        Format.from_description(self._delimiters)

    def to_html(self, path: str | Path, maps: Any = None, **known: Any) -> Path:
        """Write the one-file reader of the trace, and of its maps (`stepflow_tl.views.Reader.of`).

        Args:
            path: The file.
            maps: A `StepMap` of the trace, or several by name; None for the text alone.
            known: What else is known of it: the attributes of `stepflow_tl.views.Reading`.
        """
        return cast("Path", import_module(VIEWS).Reader.of(maps, self, **known).write(path))

    def save(self, path: str | Path) -> None:
        """Write the trace to one safetensors file (token ids, and the rest as JSON)."""
        facts = self.to_dict()
        del facts["token_ids"]
        write_file(path, _FILE_KIND, {"token_ids": self.token_ids}, facts)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace that `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            TraceError: The file is truncated, or not a trace.
        """
        tensors, saved = read_file(path, _FILE_KIND, TraceError)
        return cls.from_dict({**saved, "token_ids": tensors["token_ids"].tolist()})

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Trace:
        """The trace that `to_dict` described.

        Raises:
            TraceError: Something is missing, or is not what it should be.
        """
        facts = dict(facts)
        try:
            facts["segments"] = tuple(Segment(**segment) for segment in facts["segments"])
            facts["steps"] = tuple(Step(**step) for step in facts["steps"])
            facts["token_texts"] = tuple(facts["token_texts"])
            facts["token_ids"] = torch.tensor(facts["token_ids"], dtype=torch.long)
            if "format_name" in facts:  # a file of version 0.1, whose sentences ended at full stops
                cutters = {"thinking_cutter": "full_stop", "summary_cutter": "paragraph"}
                facts["read_as"] = {"name": facts.pop("format_name"), **cutters}
                facts["closed"] = len(facts["segments"][2]) > 0
            trace = cls(**facts)
            trace._check()
            return trace
        except (KeyError, TypeError, IndexError, RuntimeError, ValueError) as error:
            raise TraceError(
                f"expected the description of a trace, got one with {error!r}"
            ) from None


def _as_ids(token_ids: Any) -> list[int]:
    if hasattr(token_ids, "ndim"):
        if token_ids.ndim == 2 and token_ids.shape[0] == 1:
            token_ids = token_ids[0]
        if token_ids.ndim != 1:
            raise TraceError(
                f"expected the token ids of one sequence, [pos] or [1, pos], "
                f"got shape {list(token_ids.shape)}"
            )
        token_ids = token_ids.tolist()
    ids = check_token_ids(list(token_ids), None, TraceError)
    if not ids:
        raise TraceError("expected at least one token, got none")
    if max(ids) >= 2**63:
        raise TraceError(f"expected token ids of a vocabulary, got {max(ids)}")
    return ids


def _refuse_undelimited(form: Format, size: int) -> None:
    if form.thinking_open is not None:
        raise TraceError(
            f"format {form.name!r} expects {form.thinking_open!r} before the thinking: expected "
            f"it in the {size} tokens, which hold none; pass another format, or prompt_length with "
            "format='plain'"
        )


def _spans(labels: list[int], count: int) -> list[tuple[int, int]]:
    """Half-open spans of the non-decreasing labels 0..count-1; empty ones stand at their place."""
    starts = [sum(label < number for label in labels) for number in range(count + 1)]
    return [(starts[number], starts[number + 1]) for number in range(count)]


def _steps(labels: list[int], reader: TraceReader) -> tuple[Step, ...]:
    spans: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        if label != FRAME:
            span = spans.setdefault(label, [position, position])
            span[1] = position + 1
    first = min(spans, default=0)
    return tuple(
        Step(
            index=number - first,
            segment=SEGMENTS[reader.labels[start].segment],
            start=start,
            stop=stop,
            text="".join(reader.texts[start:stop]),
        )
        for number, (start, stop) in sorted(spans.items())
    )
