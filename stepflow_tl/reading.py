"""Reading a trace token by token: text, segment and step of each token, decided causally.

The reader sees tokens in order and labels each from what it has seen so far. It serves both
sides: `Trace` reads a finished transcript with it, and the tracker reads along while decoding,
so the two cannot disagree.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from stepflow_tl.formats import Cutter, Format, question_span, resolve_cutter
from stepflow_tl.huggingface import huggingface_model

FRAME = -1
"""Step index of tokens that belong to no step: template, delimiters, end tokens."""

_MAX_PENDING = 8  # tokens that may wait for the rest of a UTF-8 character


class TokenLabel(NamedTuple):
    """Where one token belongs.

    Attributes:
        segment: 0 question, 1 thinking, 2 summary.
        step: Index of the step in its trace, or `FRAME`.
    """

    segment: int
    step: int


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of the tokenizer's special tokens, the unnamed ones (Harmony's markers) included."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(tokenizer.all_special_ids) | added


def end_token_ids(model: Any, tokenizer: Any | None = None) -> frozenset[int]:
    """Ids that end a response: the tokenizer's end token and the model's generation settings.

    Args:
        model: Any model, or a tokenizer alone.
        tokenizer: In place of the model's own.
    """
    tokenizer = tokenizer or getattr(model, "tokenizer", None) or model
    ids = {tokenizer.eos_token_id}
    settings = getattr(huggingface_model(model), "generation_config", None)
    configured = getattr(settings, "eos_token_id", None)
    ids.update(configured if isinstance(configured, list) else [configured])
    return frozenset(i for i in ids if i is not None)


class TextStream:
    """Decodes token ids one by one; text once given out never changes.

    A token that ends inside a UTF-8 character gives its text together with the token that
    completes it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []  # last tokens given out: decoders treat a first token apart
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that this token adds; empty while a character is incomplete."""
        self._pending.append(token_id)
        text = self._decode(self._context + self._pending)
        incomplete = text.endswith("\ufffd")
        if incomplete and len(self._pending) < _MAX_PENDING:
            return ""
        new = text[len(self._decode(self._context)) :]
        self._context = [] if incomplete else self._pending
        self._pending = []
        return new

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text


class TraceReader:
    """Labels tokens one by one with segment and step.

    Args:
        tokenizer: The model's tokenizer.
        form: Delimiters and cutters.
        prompt_length: Number of prompt tokens, all of them question; None when unknown: then the
            question lasts until the thinking opens.
        end_ids: Ids that end a response; they and all that follows are frame.

    Attributes:
        labels: Label of each token read. The question is found when its prompt is complete: until
            then the prompt's tokens are labelled frame.
        texts: Text of each token read.
        question_tokens: Half-open token span of the question, once the prompt is complete.
        ended: True once an end token was read in the response.

    Raises:
        ValueError: The format has no opening delimiter and `prompt_length` is None.
    """

    def __init__(
        self,
        tokenizer: Any,
        form: Format,
        *,
        prompt_length: int | None = None,
        end_ids: frozenset[int] = frozenset(),
    ) -> None:
        if prompt_length is None and form.thinking_open is None:
            raise ValueError(
                f"format {form.name!r} has no opening delimiter, so the end of the prompt cannot "
                "be seen in the text: expected prompt_length, got None"
            )
        self.labels: list[TokenLabel] = []
        self.texts: list[str] = []
        self.question_tokens: tuple[int, int] | None = None
        self.ended = False
        self._form = form
        self._cutters: dict[int, Cutter] = {
            1: resolve_cutter(form.thinking_cutter),
            2: resolve_cutter(form.summary_cutter),
        }
        self._stream = TextStream(tokenizer)
        self._special = special_ids(tokenizer)
        self._end_ids = end_ids
        self._prompt_length = prompt_length
        self._prompt_special: list[bool] = []
        self._tail = ""  # text in which a delimiter may still complete
        markers = (form.thinking_open, form.summary_open, form.header_close, *form.header_open)
        self._markers = tuple(marker for marker in markers if marker)
        self._reach = max(map(len, self._markers), default=0)
        self._segment = 0
        self._next_segment: int | None = None  # its delimiter was read, its text has not begun
        self._in_header = False
        self._step = 0  # the question is step 0
        self._open_step: str | None = None

    def push(self, token_id: int) -> TokenLabel:
        """Read one token and label it."""
        text = self._stream.push(token_id)
        self.texts.append(text)
        self._tail = (self._tail + text)[-self._reach - len(text) :]
        if self._segment == 0:
            self._prompt_special.append(token_id in self._special)
        if self._prompt_length is not None and len(self.texts) <= self._prompt_length:
            self.labels.append(TokenLabel(0, FRAME))
            if len(self.texts) == self._prompt_length:
                self._close_prompt()
        else:
            self.labels.append(self._read_response(token_id, text))
        return self.labels[-1]

    def _close_prompt(self) -> None:
        """Find the question, and whether the template has opened (or closed) the thinking."""
        form, prompt = self._form, "".join(self.texts).rstrip()
        if form.thinking_open is None:
            self._segment = 1
        elif prompt.endswith(form.thinking_open):
            self._next_segment = 1
        elif form.summary_open is not None and prompt.endswith(form.summary_open):
            self._next_segment = 2
        self._mark_question()
        self._tail = ""

    def _mark_question(self) -> None:
        """Label the tokens of the last user turn as step 0."""
        prompt = "".join(self.texts[: len(self._prompt_special)])
        end = len(prompt)
        for marker in (self._form.summary_open, self._form.thinking_open):
            at = prompt.rfind(marker, 0, end) if marker else -1
            after = prompt[at + len(marker or "") : end]
            if at >= 0 and (self._prompt_length is None or not after.strip()):
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

    def _read_response(self, token_id: int, text: str) -> TokenLabel:
        self.ended = self.ended or (token_id in self._end_ids and self._past_prompt())
        if self.ended or self._read_delimiter(text) or token_id in self._special:
            self._open_step = None
        elif text.strip() and self._next_segment is not None:
            self._enter(self._next_segment)
            return TokenLabel(self._segment, self._step_of(text))
        elif self._segment > 0 and self._next_segment is None:
            return TokenLabel(self._segment, self._step_of(text))
        return TokenLabel(self._segment, FRAME)

    def _past_prompt(self) -> bool:
        """True where an end token ends the response, not a turn of an unmeasured prompt."""
        return self._prompt_length is not None or self._segment > 0

    def _read_delimiter(self, text: str) -> bool:
        """Advance the state if this token completes a delimiter; True while in a header, too."""
        form = self._form
        opens = self._segment < 2 and self._completed(form.thinking_open, text)
        closes = self._segment < 2 and not opens and self._completed(form.summary_open, text)
        if opens or closes:
            if self._segment == 0 and self._prompt_length is None and self._next_segment is None:
                self._mark_question()
            self._next_segment = 2 if closes else 1 if self._segment == 0 else None
        elif self._in_header or any(self._completed(h, text) for h in form.header_open):
            self._in_header = not self._completed(form.header_close, text)
            return True
        else:
            return False
        self._in_header = False
        self._tail = ""
        return True

    def _completed(self, marker: str | None, text: str) -> bool:
        """True if the text added last ends, or goes past, an occurrence of the marker."""
        if not marker or not text:
            return False
        return marker in self._tail[-(len(marker) + len(text) - 1) :]

    def _enter(self, segment: int) -> None:
        self._segment, self._next_segment = segment, None
        self._open_step = None

    def _step_of(self, text: str) -> int:
        """Step of an ordinary token of thinking or summary."""
        if self._open_step is None:
            if not text.strip():
                return FRAME  # white space between a delimiter and the text
            self._open_step = text
            self._step += 1
        elif self._cutters[self._segment](self._open_step, text) and not self._may_open():
            self._open_step = text
            self._step += 1
        else:
            step, self._open_step = self._open_step, ""
            step += text  # in place while nothing else holds it: no copy of a long step per token
            self._open_step = step
        return self._step

    def _may_open(self) -> bool:
        """True where the text ends in the beginning of a delimiter: no step should start there."""
        return any(
            self._tail.endswith(marker[:size])
            for marker in self._markers
            for size in range(1, len(marker))
        )
