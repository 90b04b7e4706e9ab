r"""How model families want to be asked: wordings, chat templates and sampling, as data.

Each `Style` names where its words come from. LiveCodeBench's wording is its own (Jain et al. 2024,
``lcb_runner/prompts/code_generation.py``), with the sentence that it sends as a system message put
before the question, as reasoning models want no system message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from stepflow_tl.decoding.settings import PAPER_MAX_NEW_TOKENS
from stepflow_tl.errors import BenchmarkError, SettingError
from stepflow_tl.tasks.base import Item, Task
from stepflow_tl.tasks.records import LETTERS
from stepflow_tl.tasks.sources import Kind
from stepflow_tl.traces.chat import Chat, prompt_text

BOXED = r"Please reason step by step, and put your final answer within \boxed{}."
_BOXED_LETTER = (
    r"Please reason step by step, and put the letter of your final answer within \boxed{}."
)
_QWEN_LETTER = (
    "Please show your choice in the `answer` field with only the choice letter, "
    'e.g., `"answer": "C"`.'
)
_PROGRAM = (
    "You will be given a question (problem specification) and will generate a correct Python "
    "program that matches the specification and passes all tests."
)
_FROM_STDIN = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly "
    "test on the sample inputs). Enclose your code within delimiters as follows. Ensure that when "
    "the python program runs, it reads the inputs, runs the algorithm and writes output to STDOUT."
)
_FROM_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your "
    "code within delimiters."
)


@dataclass(frozen=True, kw_only=True)
class Style:
    r"""How one family of models is asked, and how it is sampled.

    Attributes:
        name: Its name.
        models: A regular expression; found in the last part of a model's name, in small letters.
        model_types: The ``model_type`` of configurations it is for, where the name says nothing.
        chat: System message and options of the chat template; belongs into `Decoding`.
        math: What is added to a question whose answer is a formula or a number.
        choice: What is added to a question with options.
        code: What is said before a programming problem.
        temperature: Recommended.
        top_p: Recommended.
        max_new_tokens: Recommended.
        source: Who recommends it.
    """

    name: str
    models: str | None = None
    model_types: tuple[str, ...] = ()
    chat: Chat = field(default_factory=Chat, hash=False)
    math: str = BOXED
    choice: str = _BOXED_LETTER
    code: str = _PROGRAM
    temperature: float = 0.6
    top_p: float = 0.95
    max_new_tokens: int = PAPER_MAX_NEW_TOKENS
    source: str = ""

    def ask(
        self,
        kind: Kind,
        question: str,
        options: Sequence[str] = (),
        starter: str | None = None,
    ) -> str:
        """The user's message.

        Args:
            kind: How the answer is graded.
            question: The question.
            options: The options of a choice, in the order of their letters.
            starter: Code to begin with.
        """
        if kind == "choice":
            listed = "\n".join(
                f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False)
            )
            return f"{question}\n\n{listed}\n\n{self.choice}"
        if kind == "code":
            wanted = _FROM_STDIN if starter is None else _FROM_STARTER
            return (
                f"{self.code}\n\n### Question:\n{question}\n\n### Format: {wanted}\n```python\n"
                f"{starter or '# YOUR CODE HERE'}\n```\n\n"
                f"### Answer: (use the provided format with backticks)"
            )
        return f"{question}\n{self.math}"

    def describe(self) -> str | dict[str, Any]:
        """Its name where that says it all; else all that it is."""
        if STYLES.get(self.name) == self:
            return self.name
        return asdict(self) | {"model_types": list(self.model_types)}


_GPT_OSS = Style(
    name="gpt-oss",
    models=r"gpt-?oss",
    model_types=("gpt_oss",),
    chat=Chat(options={"reasoning_effort": "medium"}, date="2025-08-05"),
    temperature=1.0,
    top_p=1.0,
    source="sampling: README of github.com/openai/gpt-oss; wording: gpt_oss/evals/aime_eval.py; "
    "effort: medium, as in the paper; today's date, which its template writes: of its release",
)

STYLES: dict[str, Style] = {
    style.name: style
    for style in (
        Style(
            name="r1",
            models=r"deepseek-r1|r1-distill",
            source="card of deepseek-ai/DeepSeek-R1: no system prompt, all instructions in the "
            "user prompt, temperature 0.5-0.7 (0.6), top_p 0.95, up to 32,768 tokens",
        ),
        Style(
            name="qwq",
            models=r"qwq",
            choice=_QWEN_LETTER,
            source="card of Qwen/QwQ-32B, Usage Guidelines",
        ),
        Style(
            name="qwen3-instruct",
            models=r"qwen3.*instruct",
            choice=_QWEN_LETTER,
            temperature=0.7,
            top_p=0.8,
            max_new_tokens=16384,
            source="card of Qwen/Qwen3-4B-Instruct-2507, Best Practices",
        ),
        Style(
            name="qwen3",
            models=r"qwen3",
            model_types=("qwen3", "qwen3_moe"),
            chat=Chat(options={"enable_thinking": True}),
            choice=_QWEN_LETTER,
            max_new_tokens=38912,
            source="card of Qwen/Qwen3-8B, Best Practices: thinking, 38,912 tokens for contests",
        ),
        _GPT_OSS,
        *(
            replace(
                _GPT_OSS,
                name=f"gpt-oss-{effort}",
                models=None,
                model_types=(),
                chat=replace(_GPT_OSS.chat, options={"reasoning_effort": effort}),
            )
            for effort in ("low", "high")
        ),
        Style(
            name="qwen-instruct",
            models=r"qwen(1\.5|2|2\.5).*instruct",
            temperature=0.7,
            top_p=0.8,
            max_new_tokens=8192,
            source="README of github.com/QwenLM/Qwen2.5-Math for the wording; sampling as in the "
            "generation_config.json of Qwen/Qwen2.5-72B-Instruct, which generates up to 8K tokens",
        ),
        Style(
            name="llama-instruct",
            models=r"llama.*instruct",
            chat=Chat(date="2024-07-26"),
            temperature=0.6,
            top_p=0.9,
            max_new_tokens=8192,
            source="sampling: generation_config.json of meta-llama/Llama-3.3-70B-Instruct; wording "
            "as default; today's date, which its template writes: the one it falls back on",
        ),
        Style(name="default", source="wording and sampling as of DeepSeek-R1"),
    )
}
"""Styles by name, the more particular first."""


def style_for(model: str | Path) -> Style:
    """The style of a model, by its name; of a local folder, by its configuration, too.

    Args:
        model: A Hugging Face name, or a local folder.

    Returns:
        The first style whose `models` is found in the name's last part, else the one for the
        configuration's ``model_type``, else the default.
    """
    name = Path(str(model)).name.lower()
    for style in STYLES.values():
        if style.models is not None and re.search(style.models, name):
            return style
    model_type = _model_type(Path(model))
    for style in STYLES.values():
        if model_type in style.model_types:
            return style
    return STYLES["default"]


def as_style(style: str | Style | Mapping[str, Any]) -> Style:
    """A style, its name, or what `Style.describe` returns, as a style.

    Raises:
        BenchmarkError: No style is called so, or its settings are not understood.
    """
    if isinstance(style, Style):
        return style
    if isinstance(style, Mapping):
        settings = dict(style)
        try:
            chat = settings.get("chat", {})
            settings["chat"] = chat if isinstance(chat, Chat) else Chat(**chat)
            settings["model_types"] = tuple(settings.get("model_types", ()))
            return Style(**settings)
        except TypeError as error:
            raise BenchmarkError(
                f"expected the settings of a Style, got {settings}: {error}"
            ) from None
    if style not in STYLES:
        raise BenchmarkError(f"no style {style!r}: expected one of {list(STYLES)}, or a Style")
    return STYLES[style]


def rendered_prompt(
    tokenizer: Any, task: Task, item: Item, *, seed: int = 0, chat: bool | Chat = True
) -> str:
    """The whole prompt of an item, as the model sees it.

    Args:
        tokenizer: The model's.
        task: The task.
        item: One of its items.
        seed: Of the sample.
        chat: How it is put into the chat template.

    Raises:
        GenerationError: The tokenizer has no chat template.
    """
    asked = task.ask(item, seed)
    if not isinstance(asked, str):
        raise SettingError(f"expected a task that asks questions, got {asked!r}")
    return prompt_text(tokenizer, asked, chat=chat)


def _model_type(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = config.get("model_type") if isinstance(config, dict) else None
    return found if isinstance(found, str) else None
