"""The prompt that asks a question or goes on with a conversation, in a chat template's words."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Number
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError
from torch import Tensor

from stepflow_tl.errors import GenerationError
from stepflow_tl.traces.formats import NEXT_MESSAGE, THINK, Format

Message: TypeAlias = Mapping[str, Any]
"""One turn of a conversation: ``{"role": "user", "content": "..."}``, as chat templates take it."""


@dataclass(frozen=True, kw_only=True)
class Chat:
    """How a question is put into the tokenizer's chat template.

    Attributes:
        system: The system message; None for none (the template may bring one of its own).
        options: What else the template takes, such as ``{"reasoning_effort": "medium"}`` (GPT-OSS)
            or ``{"enable_thinking": True}`` (Qwen3).
        date: The day, as ``"2025-08-05"``, that a template takes for today if it writes one
            (GPT-OSS, Llama 3), so that a prompt is the same tomorrow; None for the day it is.
    """

    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None

    def __post_init__(self) -> None:
        """Check the date.

        Raises:
            GenerationError: It is none.
        """
        if isinstance(self.date, datetime.date):  # as YAML reads it
            object.__setattr__(self, "date", f"{self.date:%Y-%m-%d}")
        if self.date is not None:
            try:
                datetime.date.fromisoformat(self.date)
            except (TypeError, ValueError):
                raise GenerationError(
                    f"expected a date such as '2025-08-05', got {self.date!r}"
                ) from None

    def dated(self, template: str) -> str:
        """A chat template that takes `date` for today.

        Templates write the date with a function, ``strftime_now``, which transformers brings and
        which can be no variable, as it lets no function in; so a macro of that name goes first.
        """
        if self.date is None:
            return template
        today = datetime.date.fromisoformat(self.date)
        said = {"%-d": str(today.day), "%-m": str(today.month), "%e": f"{today.day:2}"}
        said |= {f"%{letter}": today.strftime(f"%{letter}") for letter in "aAbBcdHIjmMpSUwWxXyYZ"}
        replaced = "".join(
            f"|replace({json.dumps(code)}, {json.dumps(text)})" for code, text in said.items()
        )
        macro = f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}"
        return f"{macro}\n{template}"

    def messages(self, asked: str | Sequence[Message]) -> list[Message]:
        """The conversation so far.

        Raises:
            GenerationError: It has a system message, and `system` is another.
        """
        turns: list[Message] = (
            [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
        )
        if self.system is None:
            return turns
        if turns[0].get("role") == "system":
            raise GenerationError(
                f"expected one system message, got {self.system!r} beside the conversation's own"
            )
        return [{"role": "system", "content": self.system}, *turns]


@dataclass(frozen=True)
class Begun:
    """A response that was begun, and that the model is to go on with, token for token.

    Attributes:
        token_ids: Prompt and response so far.
        prompt_length: How many of them are the prompt's.
        question: What is asked; None for the text of the prompt's question.

    Raises:
        GenerationError: The prompt is empty, or longer than all tokens.
    """

    token_ids: tuple[int, ...]
    prompt_length: int
    question: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.prompt_length <= len(self.token_ids):
            raise GenerationError(
                f"expected a prompt of 1 to {len(self.token_ids)} tokens, as many as were given, "
                f"got prompt_length={self.prompt_length}"
            )


Prompt: TypeAlias = (
    str | Sequence[Message] | Sequence[int] | Tensor | npt.NDArray[np.integer] | Begun
)
"""What a model is asked: a question, a conversation, token ids [pos], or to go on."""


@dataclass(frozen=True)
class Asked:
    """A prompt in token ids.

    Attributes:
        token_ids: The prompt, and what of the response is given.
        question: What is asked: the last user turn; None for token ids.
        messages: The conversation; None for a question and for token ids.
        given: Number of tokens of the response that are given.
    """

    token_ids: list[int]
    question: str | None = None
    messages: tuple[Message, ...] | None = None
    given: int = 0

    @property
    def prompt_length(self) -> int:
        """Number of tokens before the response."""
        return len(self.token_ids) - self.given

    @property
    def seed_text(self) -> str:
        """What its random numbers depend on: a question alone, else the token ids."""
        if self.question is not None and self.messages is None and not self.given:
            return self.question
        return "ids:" + ",".join(map(str, self.token_ids))


def is_one_prompt(asked: Any) -> bool:
    """Whether this is one prompt, not a sequence of several."""
    if isinstance(asked, (str, Begun)):
        return True
    if hasattr(asked, "ndim"):
        return bool(asked.ndim < 2)
    return isinstance(asked, Sequence) and bool(asked) and isinstance(asked[0], (Mapping, Number))


def as_prompt(tokenizer: Any, asked: Prompt, *, chat: bool | Chat = True) -> Asked:
    """A prompt in token ids.

    Args:
        tokenizer: The model's tokenizer.
        asked: A question, a conversation that the model is to go on with, token ids, or a response
            that was begun.
        chat: How a question or a conversation is rendered; see `prompt_token_ids`.

    Raises:
        GenerationError: It is none of these, or empty, or there is no chat template.
    """
    if isinstance(asked, str):
        return Asked(prompt_token_ids(tokenizer, asked, chat=chat), asked)
    if isinstance(asked, Begun):
        ids = check_token_ids(asked.token_ids, len(tokenizer), GenerationError)
        return Asked(ids, asked.question, given=len(ids) - asked.prompt_length)
    if hasattr(asked, "tolist"):  # a tensor, an array
        asked = asked.tolist()
    if not isinstance(asked, Sequence) or not asked or isinstance(asked, bytes):
        raise GenerationError(
            f"expected a question, messages such as {{'role': 'user', 'content': 'Why?'}}, or "
            f"token ids, got {asked!r}"
        )
    if not isinstance(asked[0], (Mapping, str)):
        return Asked(check_token_ids(asked, len(tokenizer), GenerationError))
    turns = check_messages(asked)
    if turns[-1]["role"] == "assistant":
        raise GenerationError(
            "expected a conversation that the model is to go on with, got one whose last message "
            "is the assistant's; Trace.from_chat reads it"
        )
    if chat is False:
        raise GenerationError(
            "expected a chat template for a conversation, got chat=False; pass its token ids"
        )
    questions = [turn["content"] for turn in turns if turn["role"] == "user"]
    if not questions:
        raise GenerationError(
            "expected a conversation with a user's turn, got the roles "
            f"{[turn['role'] for turn in turns]}"
        )
    question = questions[-1] if isinstance(questions[-1], str) else str(questions[-1])
    return Asked(prompt_token_ids(tokenizer, turns, chat=chat), question, turns)


def check_messages(asked: Any) -> tuple[Message, ...]:
    """The messages of a conversation.

    Raises:
        GenerationError: There is none, or one lacks its role or content.
    """
    turns = tuple(asked)
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise GenerationError(
                f"expected message {number} to be such as {{'role': 'user', 'content': 'Why?'}}, "
                f"got {turn!r}"
            )
        if not isinstance(turn.get("role"), str):
            raise GenerationError(f"expected message {number} to have a 'role', got {dict(turn)!r}")
        says = any(turn.get(key) is not None for key in ("content", "tool_calls", *_REASONING))
        if not says:
            raise GenerationError(
                f"expected message {number}, the {turn['role']}'s, to have 'content', got "
                f"{dict(turn)!r}"
            )
    if not turns:
        raise GenerationError("expected at least one message, got none")
    return turns


_REASONING = ("reasoning_content", "reasoning", "thinking")


def spoken_text(message: Message, prompt: str, form: Format) -> str:
    """What an assistant's message is as the model wrote it after its prompt.

    A reasoning that no content follows was cut: it is not closed.

    Args:
        message: The message.
        prompt: The prompt, rendered.
        form: The format that the response is expected in.

    Raises:
        GenerationError: Its content or reasoning is no text.
    """
    content = message.get("content") or ""
    reasoning = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    if not isinstance(content, str) or not isinstance(reasoning, (str, type(None))):
        raise GenerationError(f"expected a message whose content is text, got {dict(message)!r}")
    if form.header_open:
        return _in_messages(reasoning, content, form)
    if reasoning is None:
        return content
    form = form if form.summary_open else THINK
    end, opening = prompt.rstrip(), form.thinking_open or ""
    if not reasoning.strip() and end.endswith(form.summary_open or ""):
        return content
    start = "" if not opening or end.endswith(opening) else f"{opening}\n"
    if reasoning.strip() and not content:
        return start + reasoning.lstrip("\n")
    thought, answer = reasoning.strip("\n"), content.lstrip("\n")
    return f"{start}{thought}\n{form.summary_open}\n\n{answer}"


def _in_messages(reasoning: str | None, content: str, form: Format) -> str:
    """The same where headers open messages; content that has headers of its own stays as it is."""
    parts = [f"{form.thinking_open}{reasoning}"] if reasoning else []
    if content:
        has_header = content.lstrip().startswith(form.header_open)
        parts.append(content if has_header else f"{form.summary_open}{content}")
    return NEXT_MESSAGE.join(parts)


def check_token_ids(ids: Sequence[Any], size: int | None, error: type[ValueError]) -> list[int]:
    """Token ids as whole numbers.

    Args:
        ids: The ids.
        size: Size of the vocabulary; None where it is not known.
        error: What to raise.

    Raises:
        ValueError: As `error`: one is no whole number, or none of the vocabulary's.
    """
    wrong = [i for i in ids if not isinstance(i, Integral) or isinstance(i, bool)]
    if wrong:
        raise error(f"expected token ids, which are whole numbers, got {wrong[:5]!r}")
    outside = [i for i in ids if i < 0 or (size is not None and i >= size)]
    if outside:
        last = "" if size is None else f" to {size - 1}, the vocabulary's last"
        raise error(f"expected token ids from 0{last}, got {outside[:5]!r}")
    return [int(i) for i in ids]


def encoded(tokenizer: Any, text: str, error: type[ValueError], **options: Any) -> list[int]:
    """Token ids of a text.

    Raises:
        ValueError: As `error`: it is no text, or holds a lone surrogate, which is no character.
    """
    if not isinstance(text, str):
        raise error(f"expected a text, got {text!r}")
    lone = next((char for char in text if "\ud800" <= char <= "\udfff"), None)
    if lone is not None:
        raise error(f"expected a text of characters, got the lone surrogate {lone!r} in it")
    return list(tokenizer(text, **options)["input_ids"])


def prompt_token_ids(
    tokenizer: Any, question: str | Sequence[Message], *, chat: bool | Chat = True
) -> list[int]:
    """Token ids of the prompt that asks a question.

    Args:
        tokenizer: The model's tokenizer.
        question: What the user asks, or the conversation so far.
        chat: Render it with the tokenizer's chat template, ready for the response, and how; False
            to take the question itself as the prompt, which may be rendered already: a start token
            that it begins with is not doubled.

    Raises:
        GenerationError: The question is empty, or there is no chat template.
    """
    text = prompt_text(tokenizer, question, chat=chat)
    start = getattr(tokenizer, "bos_token", None)
    bare = chat is False and not (start and text.startswith(start))
    return encoded(tokenizer, text, GenerationError, add_special_tokens=bare)


def prompt_text(
    tokenizer: Any, question: str | Sequence[Message], *, chat: bool | Chat = True
) -> str:
    """The prompt that asks a question, as text; see `prompt_token_ids`.

    Raises:
        GenerationError: The question is empty, or there is no chat template, or it refuses.
    """
    if isinstance(question, str) and not question.strip():
        raise GenerationError(f"expected a question with some text, got {question!r}")
    if chat is False:
        return str(question)
    if not getattr(tokenizer, "chat_template", None):
        raise GenerationError(
            "the tokenizer has no chat template to ask the question with; set "
            "tokenizer.chat_template, or pass chat=False (--no-chat) to use the question itself as "
            "the prompt"
        )
    asked = chat if isinstance(chat, Chat) else Chat()
    try:
        return str(
            tokenizer.apply_chat_template(
                asked.messages(question),
                chat_template=asked.date and asked.dated(tokenizer.get_chat_template()),
                add_generation_prompt=True,
                tokenize=False,
                **asked.options,
            )
        )
    except TemplateError as error:
        raise GenerationError(
            f"the tokenizer's chat template could not be filled in ({error}): expected a template "
            f"that takes {asked!r}"
        ) from error
