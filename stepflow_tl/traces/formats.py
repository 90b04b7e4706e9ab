"""How a model writes its reasoning: the delimiters between question, thinking and summary, as data.

A `Format` names them, and how the segments are cut into steps (see `stepflow_tl.traces.cutters`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from stepflow_tl.errors import SettingError
from stepflow_tl.traces.cutters import new_cutter
from stepflow_tl.traces.cutting import Cutting

SegmentName = Literal["question", "thinking", "summary"]
SEGMENTS: tuple[SegmentName, ...] = ("question", "thinking", "summary")

AUTO = "auto"
"""Name of the format that chat template, prompt and text decide."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """The delimiters of a reasoning trace, and how its segments are cut into steps.

    A delimiter closes the segment before it: its tokens, and white space that follows them,
    are *frame* at the end of that segment and belong to no step. Where the tokenizer splits a
    delimiter over several tokens, only its last token can be known for one: the tokens before it
    stay with the step they follow.

    A response that does not begin with `thinking_open` is thinking from its first token, and
    `summary_open` closes it.

    Where headers open messages (Harmony), the text after the last opening of `thinking_open` and
    `summary_open` names a channel, and a message belongs to a segment by its channel: a constraint
    or a kind of content may follow the name (``final <|constrain|>json``). A message to a recipient
    (``to=...``), of another role or in another channel is frame: calls of tools, what tools answer,
    preambles.

    Attributes:
        name: A short name, shown in errors and saved with traces; ``"auto"``, without delimiters,
            for whichever known format a response speaks.
        thinking_open: Text after which the thinking starts; None when there is none, and the
            thinking starts with the response.
        summary_open: Text after which the summary starts; None when there is none, and the
            thinking runs to the end.
        header_open: Texts that open a header inside the response (Harmony's role and channel);
            everything up to and including `header_close` is frame.
        header_close: Text that closes a header.
        call_end: Text of an end token after which the response goes on, where a header follows:
            it calls a tool.
        thinking_cutter: How the thinking is cut into steps.
        summary_cutter: How the summary is cut into steps.
    """

    name: str
    thinking_open: str | None = None
    summary_open: str | None = None
    header_open: tuple[str, ...] = ()
    header_close: str | None = None
    call_end: str | None = None
    thinking_cutter: Cutting = "sentence"
    summary_cutter: Cutting = "paragraph"

    def __post_init__(self) -> None:
        """Check the delimiters.

        Raises:
            ValueError: A delimiter is empty, the two are equal, or a cutter is unknown.
        """
        for label in ("thinking_open", "summary_open", "header_close"):
            if getattr(self, label) == "":
                raise SettingError(f"format {self.name!r}: {label} must be text or None, got ''")
        if self.thinking_open is not None and self.thinking_open == self.summary_open:
            raise SettingError(
                f"format {self.name!r}: thinking_open and summary_open are both "
                f"{self.thinking_open!r}; the two delimiters must differ"
            )
        if self.is_auto and any(getattr(self, name) for name in _DELIMITERS):
            raise SettingError(
                f"format {self.name!r} is decided by the text: expected no delimiters, got "
                f"{[getattr(self, name) for name in _DELIMITERS]}"
            )
        if bool(self.header_open) != (self.header_close is not None):
            raise SettingError(
                f"format {self.name!r}: header_open and header_close go together, got "
                f"{self.header_open!r} and {self.header_close!r}"
            )
        for cutter in (self.thinking_cutter, self.summary_cutter):
            new_cutter(cutter)

    @property
    def is_auto(self) -> bool:
        """Whether chat template, prompt and text decide it."""
        return self.name == AUTO

    def message_kind(self, header: str) -> SegmentName | None:
        """Which segment a message with this header belongs to; None for neither.

        Args:
            header: From its first `header_open` to its `header_close`.
        """
        role = self._name_after(header, self.header_open[0]) if len(self.header_open) > 1 else None
        if role not in (None, "assistant") or re.search(r"(?:^|[\s>])to=\S", header):
            return None
        channel = self._name_after(header, self.header_open[-1])
        if channel is None or channel == self._name_after(self.summary_open, self.header_open[-1]):
            return "summary"
        thinking = self._name_after(self.thinking_open, self.header_open[-1])
        return "thinking" if channel == thinking else None

    def _name_after(self, header: str | None, opening: str) -> str | None:
        """The first word after the last `opening` of a header; None without one."""
        _, found, rest = (header or "").rpartition(opening)
        for marker in (*self.header_open, self.header_close or "", "<|"):
            rest = rest.partition(marker)[0] if marker else rest
        words = rest.split()
        return words[0] if found and words else None

    def describe(self) -> dict[str, Any]:
        """JSON-able description that `from_description` makes the same format from.

        A cutter of a caller's own is described by where it was defined, and cannot be made again.
        """
        spec: dict[str, Any] = {"name": self.name}
        if not self.is_auto and not self._has_delimiters_of(FORMATS.get(self.name)):
            spec |= {name: getattr(self, name) for name in _DELIMITERS}
            spec["header_open"] = list(self.header_open)
        for name in _CUTTERS:
            cutter = getattr(self, name)
            spec[name] = cutter if isinstance(cutter, str) else {"own": _where_defined(cutter)}
        return spec

    @classmethod
    def from_description(cls, spec: Mapping[str, Any]) -> Format:
        """The format that `describe` described.

        Raises:
            ValueError: It had a cutter of a caller's own, or the description is none.
        """
        own = [spec[n]["own"] for n in _CUTTERS if isinstance(spec.get(n), Mapping)]
        if own:
            raise SettingError(
                f"format {spec.get('name')!r} was cut into steps by a caller's own {own[0]}, which "
                "cannot be made again from its name; expected format= with that cutter"
            )
        known = {"name", *_DELIMITERS, *_CUTTERS}
        if not isinstance(spec.get("name"), str) or not set(spec) <= known:
            raise SettingError(f"expected the description of a format, got {spec!r}")
        settings = dict(spec)
        if not set(spec) & set(_DELIMITERS):
            form = AUTO_FORMAT if spec["name"] == AUTO else FORMATS.get(spec["name"])
            if form is None:
                raise SettingError(
                    f"expected one of the formats {sorted(FORMATS)}, or its delimiters, got "
                    f"{spec['name']!r}"
                )
            return replace(form, **settings)
        settings["header_open"] = tuple(settings.get("header_open", ()))
        return cls(**settings)

    def _has_delimiters_of(self, other: Format | None) -> bool:
        return other is not None and all(
            getattr(self, name) == getattr(other, name) for name in _DELIMITERS
        )


_DELIMITERS = ("thinking_open", "summary_open", "header_open", "header_close", "call_end")
_CUTTERS = ("thinking_cutter", "summary_cutter")


def _where_defined(cutter: Any) -> str:
    kind = cutter if hasattr(cutter, "__qualname__") else type(cutter)
    return f"{kind.__module__}.{kind.__qualname__}"


THINK = Format(name="think", thinking_open="<think>", summary_open="</think>")
"""DeepSeek-R1-Distill, QwQ, Qwen3 and the bundled reasoner."""

HARMONY = Format(
    name="harmony",
    thinking_open="<|channel|>analysis<|message|>",
    summary_open="<|channel|>final<|message|>",
    header_open=("<|start|>", "<|channel|>"),
    header_close="<|message|>",
    call_end="<|call|>",
)
"""GPT-OSS."""

MESSAGE_ENDS = ("<|end|>", "<|call|>", "<|return|>")
"""What ends a message in Harmony."""

NEXT_MESSAGE = "<|end|><|start|>assistant"
"""What stands between two messages of the assistant's in Harmony, before the second's channel."""

PLAIN = Format(name="plain")
"""Models without delimiters: the whole response is thinking, there is no summary."""

FORMATS: dict[str, Format] = {form.name: form for form in (THINK, HARMONY, PLAIN)}

AUTO_FORMAT = Format(name=AUTO)
"""Whichever of these the chat template, the prompt and the text speak."""

USER_TURNS: tuple[tuple[str, str], ...] = (
    ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"),
    ("<|User|>", "<|Assistant|>"),
    ("<|im_start|>user\n", "<|im_end|>"),
    ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    ("<|start|>user<|message|>", "<|end|>"),
    ("<start_of_turn>user\n", "<end_of_turn>"),
    ("<|im_start|>user<|im_sep|>", "<|im_end|>"),
    ("<|user|>\n", "<|end|>"),
    ("<|user|>\n", "\n<|assistant|>"),
    ("<|user|>", "<|end|>"),
    ("[INST]", "[/INST]"),
    ("[INST] ", "[/INST]"),
    ("[INST] ", " [/INST]"),
)
"""What stands around the user's words in known chat templates. Of those that fit, the longest
opening counts, and the first closing after it."""


_TOOL_RESPONSE = "<tool_response>"  # Qwen's templates write what tools answer as a user's turn


def named_format(form: str | Format) -> Format:
    """A format by name, or the format itself.

    Raises:
        ValueError: The name is unknown.
    """
    if isinstance(form, Format):
        return form
    if form == AUTO:
        return AUTO_FORMAT
    if form not in FORMATS:
        raise SettingError(
            f"unknown format {form!r}: expected 'auto', one of {sorted(FORMATS)}, or a Format"
        )
    return FORMATS[form]


def question_span(prompt: str, markers: Iterable[tuple[str, str]] = USER_TURNS) -> tuple[int, int]:
    """Character span of the last user turn in a rendered prompt; all of it if none is found."""
    best: tuple[int, int] | None = None
    for opening, closing in markers:
        start = prompt.rfind(opening)
        while start >= 0 and prompt.startswith(_TOOL_RESPONSE, start + len(opening)):
            start = prompt.rfind(opening, 0, start)
        if start < 0:
            continue
        start += len(opening)
        stop = prompt.find(closing, start)
        stop = len(prompt) if stop < 0 else stop
        if best is None or start > best[0] or (start == best[0] and stop < best[1]):
            best = (start, stop)
    return best if best is not None else (0, len(prompt))
