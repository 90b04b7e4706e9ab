"""What a tokenizer says: special tokens, tokens that end a response, text of tokens one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

from torch import nn

from stepflow_tl.models.base import ModelView
from stepflow_tl.models.view import view

FRAME = -1
"""Step index of tokens that belong to no step: template, delimiters, end tokens."""

_REMEMBERED = 1 << 16  # texts of a token and the one before it
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


def tokenizer_in(source: Any) -> Any:
    """The tokenizer of a model or its view, or the tokenizer itself where one is given."""
    return getattr(source, "tokenizer", None) or source


def end_token_ids(source: Any, tokenizer: Any | None = None) -> frozenset[int]:
    """Ids that end a response: the tokenizer's end token and the model's generation settings.

    Args:
        source: A model or its view, or a tokenizer alone.
        tokenizer: In place of the model's own.
    """
    ends = {(tokenizer or tokenizer_in(source)).eos_token_id} - {None}
    if isinstance(source, (nn.Module, ModelView)):
        ends |= view(source).end_token_ids
    return frozenset(ends)


class TextStream:
    """Decodes token ids one by one; text once given out never changes.

    A token that ends inside a UTF-8 character gives its text together with the token that
    completes it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._text_of = _memory(tokenizer)
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

    def texts_of(self, token_ids: Sequence[int]) -> list[str]:
        """The text that each token adds."""
        return [self.push(token_id) for token_id in token_ids]

    def _decode(self, ids: list[int]) -> str:
        return self._text_of(tuple(ids)) if ids else ""


_TextOf = Callable[[tuple[int, ...]], str]

_memories: WeakKeyDictionary[Any, tuple[int, _TextOf]] = WeakKeyDictionary()


def _memory(tokenizer: Any) -> _TextOf:
    """What decodes some ids of a tokenizer, and remembers: most tokens come again and again."""
    found, size = _memories.get(tokenizer), len(getattr(tokenizer, "get_vocab", dict)())
    if found is None or found[0] != size:  # tokens were added
        here: Any = ref(tokenizer)  # which is there as long as anybody asks

        @lru_cache(_REMEMBERED)
        def text_of(ids: tuple[int, ...]) -> str:
            text: str = here().decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            return text

        found = _memories[tokenizer] = (size, text_of)
    return found[1]
