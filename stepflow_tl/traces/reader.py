"""Reading a response token by token: text, segment and step of each token, decided causally.

This is the one place that knows where thinking starts and ends, what the answer is, and where a
step begins. The reader sees tokens in order and labels each from what it has seen so far.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from stepflow_tl.errors import SettingError
from stepflow_tl.traces.answers import ResponseParts
from stepflow_tl.traces.cutters import new_cutter
from stepflow_tl.traces.formats import (
    AUTO_FORMAT,
    HARMONY,
    MESSAGE_ENDS,
    PLAIN,
    SEGMENTS,
    THINK,
    Format,
    question_span,
)
from stepflow_tl.traces.parts import response_parts
from stepflow_tl.traces.templates import expected_format
from stepflow_tl.traces.tokens import FRAME, TextStream, TokenLabel, special_ids

_LONGEST_HEADER = 256  # characters; a longer one is none
_HARMONY_TEXTS = (*HARMONY.header_open, "<|constrain|>", "<|message|>", *MESSAGE_ENDS)
_HEADED = re.compile(r"(?:<\|channel\|>|<\|start\|>|to=\S+\s*<\|channel\|>)")
_ENDS = (
    *("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
    *("<|end_of_sentence|>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    *("<|end|>", "</s>", "<eos>", "<end_of_turn>"),
)
"""End tokens of known models, as text at the end of a response."""


class TraceReader:
    """Labels the tokens of one response one by one with segment and step, from what came before.

    Whoever drives the model owns one per row and pushes each token once; hooks, thinking budgets,
    stop strings, graders and the finished `Trace` ask it, so that they cannot disagree.

    Args:
        tokenizer: The model's tokenizer; None where texts are read with `read`.
        form: Delimiters and cutters; of `AUTO_FORMAT` the delimiters are those that chat template,
            prompt and text speak.
        prompt_length: Number of prompt tokens, all of them question; None when unknown: then the
            question lasts until the thinking opens.
        end_ids: Ids that end a response; they and all that follows are frame.
        cuts: Positions of tokens that begin a step, in place of the format's cutters.

    Attributes:
        labels: Label of each token read. The question is found when its prompt is complete: until
            then the prompt's tokens are labeled frame.
        texts: Text of each token read.
        question_tokens: Half-open token span of the question, once the prompt is complete.
        prompt_length: Number of prompt tokens; None while it is unknown.
        ended: True once an end token was read in the response.
        delimited: Whether a delimiter was read, at the end of the prompt or in the response.
        answer_text: What the last token added to the answer.

    Raises:
        ValueError: The format has no opening delimiter and `prompt_length` is None.
    """

    def __init__(
        self,
        tokenizer: Any | None,
        form: Format,
        *,
        prompt_length: int | None = None,
        end_ids: frozenset[int] = frozenset(),
        cuts: frozenset[int] | None = None,
    ) -> None:
        if prompt_length is None and not form.is_auto and form.thinking_open is None:
            raise SettingError(
                f"format {form.name!r} has no opening delimiter, so the end of the prompt cannot "
                "be seen in the text: expected prompt_length, got None"
            )
        self.labels: list[TokenLabel] = []
        self.texts: list[str] = []
        self.question_tokens: tuple[int, int] | None = None
        self.prompt_length = prompt_length
        self.ended = False
        self.delimited = False
        self.answer_text = ""
        self._tokenizer = tokenizer
        self._stream = None if tokenizer is None else TextStream(tokenizer)
        self._special = frozenset() if tokenizer is None else special_ids(tokenizer)
        self._end_ids = end_ids
        self._cuts = cuts
        self._asked = form
        self._cutters = {1: new_cutter(form.thinking_cutter), 2: new_cutter(form.summary_cutter)}
        self._adopt(THINK if form.is_auto else form)
        self._thinks = form.summary_open is not None
        self._prompt_special: list[bool] = []
        self._tail = ""  # text in which a delimiter may still complete
        self._segment = 0
        self._next_segment: int | None = None  # its delimiter was read, its text has not begun
        self._lead: str | None = None  # start of a response that may yet prove a delimiter
        self._header: str | None = None  # the header that is being read
        self._called = False  # the end token read last calls a tool
        self._muted = False  # in a message that is neither thinking nor answer
        self._step = 0  # the question is step 0
        self._in_step = False
        if prompt_length == 0:
            self._close_prompt()

    @property
    def form(self) -> Format:
        """The format; of ``"auto"`` the one found so far: `PLAIN` without sign of another."""
        if self._seems_think and not (self._thinks or self.delimited):
            return self._cut_as_asked(PLAIN)
        return self._form

    @property
    def is_auto(self) -> bool:
        """Whether text decides the format."""
        return self._asked.is_auto

    @property
    def has_cuts(self) -> bool:
        """Whether steps begin where they were said to, not where cutters say."""
        return self._cuts is not None

    @property
    def closed(self) -> bool:
        """Whether the thinking has ended: what follows is answer."""
        return self._segment == 2 or self._next_segment == 2

    @property
    def thinking(self) -> bool:
        """Whether what the model writes next belongs to the thinking, as far as can be known.

        Of a response that has not opened it, this is what template and prompt let expect.
        """
        if self.closed or self._muted or self._header is not None:
            return False
        return self._expected

    @property
    def response_length(self) -> int:
        """Number of tokens after the prompt; 0 while its length is unknown."""
        return 0 if self.prompt_length is None else max(0, len(self.texts) - self.prompt_length)

    @property
    def parts(self) -> ResponseParts:
        """Thinking and answer so far."""
        return response_parts(
            self.texts,
            self.labels,
            self.form,
            prompt_length=self.prompt_length or 0,
            closed=self.closed,
        )

    @property
    def _expected(self) -> bool:
        """Whether an answer is told from a thinking before it."""
        return self._form.summary_open is not None and (self._thinks or self.delimited)

    def push(self, token_id: int) -> TokenLabel:
        """Read one token and label it."""
        assert self._stream is not None, "expected a tokenizer, got a reader of texts"
        text = self._stream.push(token_id)
        return self.read(text, special=token_id in self._special, ends=token_id in self._end_ids)

    def read(self, text: str, *, special: bool = False, ends: bool = False) -> TokenLabel:
        """Read one token by its text and label it.

        Args:
            text: What it adds to the text.
            special: Whether it is a special token: frame, whatever it says.
            ends: Whether it ends the response.
        """
        self.texts.append(text)
        self._tail = (self._tail + text)[-self._reach - len(text) :]
        self.answer_text = ""
        if self._segment == 0:
            self._prompt_special.append(special)
        if self.prompt_length is not None and len(self.texts) <= self.prompt_length:
            self.labels.append(TokenLabel(0, FRAME))
            if len(self.texts) == self.prompt_length:
                self._close_prompt()
        else:
            self.labels.append(self._read_response(text, special, ends))
        return self.labels[-1]

    @property
    def waits(self) -> bool:
        """Whether the prompt's length is unknown, and nothing has opened the thinking yet."""
        return self.prompt_length is None and self._segment == 0 and self._next_segment is None

    def end_prompt(self) -> None:
        """Say that the prompt, whose length was unknown, ends here."""
        self.prompt_length = len(self.texts)
        self._close_prompt()

    @property
    def _seems_think(self) -> bool:
        """Whether text decides the format, and nothing has shown another than `THINK`."""
        return self.is_auto and self._form.name == THINK.name

    def _cut_as_asked(self, form: Format) -> Format:
        cutters = (self._asked.thinking_cutter, self._asked.summary_cutter)
        return replace(form, thinking_cutter=cutters[0], summary_cutter=cutters[1])

    def _adopt(self, form: Format) -> None:
        self._form = form = self._cut_as_asked(form)
        markers = (form.thinking_open, form.summary_open, form.header_close, *form.header_open)
        self._markers = tuple(marker for marker in markers if marker)
        self._openers = form.header_open or tuple(m for m in (form.thinking_open,) if m)
        if self._seems_think:  # a first header shows the other one
            self._openers += HARMONY.header_open
        self._reach = max((len(marker) for marker in (*self._markers, *self._openers)), default=0)

    def _close_prompt(self) -> None:
        """Find the question, and whether the prompt has opened (or closed) the thinking."""
        prompt = "".join(self.texts)
        if self.is_auto:
            expected = expected_format(self._tokenizer, prompt) if prompt else PLAIN
            self._adopt(THINK if expected is PLAIN else expected)
            self._thinks = expected is not PLAIN
        self._mark_question()
        form, tail = self._form, self._after_question(prompt)
        self._header, self._tail = None, ""
        if form.header_open:
            self._continue_header(prompt)
            return
        places = {self._last(tail, prompt, form.thinking_open): 1}
        places[self._last(tail, prompt, form.summary_open)] = 2
        last = max(place for place in (-1, *places))
        if last >= 0:
            self._next_segment, self.delimited = places[last], True
        elif form.thinking_open is None:
            self._next_segment = 1
        if self._next_segment is None or (self.closed and form.thinking_open is not None):
            self._lead = ""

    def _continue_header(self, prompt: str) -> None:
        """Go on from the message, or in the header, that the prompt ends with."""
        form = self._form
        opening = form.header_open[0]
        _, found, rest = prompt.rpartition(opening)
        header, closing, _ = rest.partition(form.header_close or "")
        if closing:
            kind = form.message_kind(f"{found}{header}{closing}")
            self._next_segment = None if kind is None else SEGMENTS.index(kind)
            self._muted, self.delimited = kind is None, kind is not None
            if kind is None:
                self._segment = 1
        elif found and header.strip() != "assistant":
            self._header = f"{found}{header}"
        else:
            self._lead = ""

    def _last(self, tail: str, prompt: str, marker: str | None) -> int:
        """Where a delimiter stands last in what the template wrote for the response; -1 for none.

        Of a prompt in which that cannot be told from the question, only its end counts.
        """
        if marker is None:
            return -1
        if tail:
            return tail.rfind(marker)
        return 0 if prompt.rstrip().endswith(marker) else -1

    def _after_question(self, prompt: str) -> str:
        """What follows the last user turn and the last special token that is no delimiter."""
        after = prompt[question_span(prompt)[1] :]
        known, tail = bool(after), ""
        told = list(zip(self.texts, self._prompt_special, strict=True))[1:]  # no start token tells
        for text, special in reversed(told):
            if special and not any(text in marker for marker in self._markers):
                known = True
                break
            tail = text + tail
        return min(tail, after or tail, key=len) if known else ""

    def _mark_question(self) -> None:
        """Label the tokens of the last user turn as step 0."""
        prompt = "".join(self.texts[: len(self._prompt_special)])
        end = len(prompt)
        for marker in (self._form.summary_open, self._form.thinking_open):
            at = prompt.rfind(marker, 0, end) if marker else -1
            after = prompt[at + len(marker or "") : end]
            if at >= 0 and (self.prompt_length is None or not after.strip()):
                end = at  # the delimiter is no part of the question; one that it speaks of is
        start, stop = question_span(prompt[:end])
        inside, at = [], 0
        for i, special in enumerate(self._prompt_special[: len(self.labels)]):
            text = self.texts[i]
            if at < stop and at + len(text) > start and text.strip() and not special:
                inside.append(i)
            at += len(text)
        if inside:
            self.question_tokens = (inside[0], inside[-1] + 1)
            for i in range(*self.question_tokens):
                self.labels[i] = TokenLabel(0, 0)

    def _read_response(self, text: str, special: bool, ends: bool) -> TokenLabel:
        self._read_end(text, ends)
        said = text if self._lead is None or self.ended else self._read_lead(text)
        was_closed = self.closed
        delimiter = not self.ended and self._read_delimiter(said)
        self._note_answer(said, delimiter, was_closed)
        if self.ended or delimiter or special or self._lead is not None:
            self._in_step = False
        elif self._next_segment is not None and not self._muted:
            if text.strip() and not (self._next_segment == 1 and self._may_open()):
                self._segment, self._next_segment, self._in_step = self._next_segment, None, False
                return TokenLabel(self._segment, self._step_of(text))
        elif self._segment > 0 and not self._muted:
            return TokenLabel(self._segment, self._step_of(text))
        return TokenLabel(self._segment, FRAME)

    def _read_end(self, text: str, ends: bool) -> None:
        past_prompt = self.prompt_length is not None or self._segment > 0
        if ends and past_prompt and not self.ended:
            self.ended, self._called = True, text == self._form.call_end
        elif self._called and any(self._completed(h, text) for h in self._form.header_open):
            self.ended = self._called = False

    def _read_lead(self, text: str) -> str:
        """Decide whether a response opens with a delimiter; what it has added once that is known.

        A response that does not is thinking from its first token.
        """
        lead = ((self._lead or "") + text).lstrip()
        header = self._form.header_open and f"{self._form.header_open[0]}assistant"
        openers = (*self._openers, *(("to=",) if header else ()))
        if any(opener.startswith(lead) and opener != lead for opener in openers):
            self._lead = lead
            return text
        self._lead = None
        opener = next((opener for opener in openers if lead.startswith(opener)), None)
        if opener is None:
            self._next_segment = self._next_segment or 1
            return lead
        self._next_segment = None  # a thinking that the prompt had closed is opened again
        if self.is_auto and opener in HARMONY.header_open:
            self._adopt(HARMONY)
            self._thinks, self._tail = True, lead
        elif opener == "to=":
            self._header = f"{header} "
        return lead

    def _read_delimiter(self, text: str) -> bool:
        """Advance the state if this token completes a delimiter; True while in a header, too."""
        if self._lead is not None:
            return False
        form = self._form
        if (
            self._seems_think
            and self.waits
            and any(self._completed(h, text) for h in HARMONY.header_open)
        ):
            self._adopt(HARMONY)  # of a transcript whose prompt is not known
            form, self._thinks = self._form, True
        if form.header_open:
            return self._read_header(text)
        if self.closed:
            return False  # further delimiters are ordinary text
        found = False
        while not self.closed and (delimiter := self._first_completed(text)):
            at, marker, segment = delimiter
            self._enter_after(segment)
            self._tail, found = self._tail[at + len(marker) :], True
        return found

    def _first_completed(self, text: str) -> tuple[int, str, int] | None:
        """The first delimiter that the last text completes: its place, itself, what follows it."""
        markers = ((self._form.thinking_open, 1), (self._form.summary_open, 2))
        found = [
            (self._tail.rfind(marker), marker, segment)
            for marker, segment in markers
            if marker is not None and self._completed(marker, text)
        ]
        return min(found, default=None)

    def _read_header(self, text: str) -> bool:
        """The same where headers open messages."""
        form = self._form
        if self._header is None:
            opened = [h for h in form.header_open if self._completed(h, text)]
            if not opened:
                return False
            self._header = self._tail[min(self._tail.rfind(h) for h in opened) :]
        else:
            self._header += text
        if self._completed(form.header_close, text):
            kind, self._header, self._tail = form.message_kind(self._header), None, ""
            if kind is not None:
                self._enter_after(SEGMENTS.index(kind))
            elif self.prompt_length is not None or self._segment > 0:
                self._segment = max(self._segment, 1)  # a message of the response, but no question
            self._muted = kind is None or (kind == "thinking" and self.closed)
        elif len(self._header) > _LONGEST_HEADER:
            self._header = None
            return False
        return True

    def _enter_after(self, segment: int) -> None:
        """A delimiter before this segment was read: its next text begins it."""
        if self._segment == 0 and self.prompt_length is None and self._next_segment is None:
            self._mark_question()
        if segment > max(self._segment, self._next_segment or 0):
            self._next_segment = segment
        self.delimited = True

    def _note_answer(self, text: str, delimiter: bool, was_closed: bool) -> None:
        """Note what this token adds to the answer."""
        if self._lead is not None or self._muted or self._header is not None:
            return
        if not self.closed:
            self.answer_text = "" if self._expected else text
        elif was_closed and not delimiter:
            self.answer_text = text
        elif delimiter:  # what follows it in the same token
            marker = self._form.header_close or self._form.summary_open or ""
            self.answer_text = text[text.rfind(marker) + len(marker) :] if marker in text else ""

    def _completed(self, marker: str | None, text: str) -> bool:
        """True if the text added last ends, or goes past, an occurrence of the marker."""
        if not marker or not text:
            return False
        return marker in self._tail[-(len(marker) + len(text) - 1) :]

    def _step_of(self, text: str) -> int:
        """Step of an ordinary token of thinking or summary."""
        cutter = self._cutters[self._segment]
        if not self._in_step:
            if not text.strip():
                return FRAME  # white space between a delimiter and the text
            self._in_step = True
            self._step += 1
            cutter.open(text)
        elif self._cuts is not None:
            self._step += len(self.texts) - 1 in self._cuts
        elif cutter.push(text, may_cut=not self._may_open()):
            self._step += 1
        return self._step

    def _may_open(self) -> bool:
        """True where the text ends in the beginning of a delimiter: no step should start there."""
        return any(
            self._tail.endswith(marker[:size])
            for marker in self._markers
            for size in range(1, len(marker))
        )


def without_ends(text: str) -> str:
    """A response's text without the end tokens of known models that it ends with."""
    kept = at = len(text)
    while at:
        end = next((end for end in _ENDS if text.endswith(end, 0, at)), None)
        if end is not None:
            kept = at = at - len(end)
        elif text[at - 1].isspace():
            at -= 1
        else:
            break
    return text[:kept]


def read_response(text: str, form: Format = AUTO_FORMAT) -> ResponseParts:
    """Thinking and answer of a response's text, as the reader of its tokens finds them.

    Args:
        text: Whatever a model wrote after its prompt.
        form: Its format.
    """
    text = without_ends(text)
    if form.is_auto and _HEADED.match(text.lstrip()):
        form = HARMONY
    whole = replace(form, thinking_cutter="none", summary_cutter="none")
    reader = TraceReader(None, whole, prompt_length=0)
    markers = {m for f in (reader.form, THINK) for m in (f.thinking_open, f.summary_open) if m}
    specials = _HARMONY_TEXTS if form.header_open else ()
    written = "|".join(map(re.escape, (*specials, *sorted(markers, key=len, reverse=True))))
    for piece in re.split(f"({written})", text):
        if piece:
            reader.read(piece, special=piece in specials)
    return reader.parts
