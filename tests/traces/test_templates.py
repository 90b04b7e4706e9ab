"""What a chat template and a rendered prompt let expect; the vocabulary says nothing."""

from typing import Any

import pytest
import torch
from helpers import byte_tokenizer, cached, encode

from stepflow_tl import OddsEqualBridge, StepFlow
from stepflow_tl.interventions import InterventionWarning
from stepflow_tl.traces.formats import AUTO_FORMAT, HARMONY, PLAIN, THINK, Format
from stepflow_tl.traces.reader import TraceReader
from stepflow_tl.traces.templates import expected_format, template_of

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ASKS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PROMPT = "<|im_start|>user\nIs <think> a tag?<|im_end|>\n<|im_start|>assistant\n"


def speaks(template: str | None, *, whole: bool = True) -> Any:
    tokenizer = byte_tokenizer(whole_markers=whole)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "ending", "form"),
    [
        (None, "", PLAIN),
        (TURNS + ASKS, "<|im_end|>\n<|im_start|>assistant", PLAIN),
        ("{# </think> #}" + TURNS + ASKS, "<|im_end|>\n<|im_start|>assistant", THINK),
        (TURNS + ASKS + "<think>\n", "<|im_end|>\n<|im_start|>assistant", THINK),
        (TURNS + ASKS + "<think>\n\n</think>\n\n", "<|im_end|>\n<|im_start|>assistant", THINK),
        ("[INST] {{ messages[-1].content }} [/INST]", " [/INST]", PLAIN),
        ("{{ messages[-1].content }}<|start|>assistant", "<|start|>assistant", HARMONY),
        ("{{ messages[-1].content }}{# <|channel|> #}", "", HARMONY),
        ("{{ raise_exception('no') }}<think>", "", THINK),
        ("{{ nothing.here.at.all }}", "", PLAIN),
        ("{% if %}", "", PLAIN),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_what_a_template_says(template: Any, ending: str, form: Format, whole: bool) -> None:
    found = template_of(speaks(template, whole=whole))
    assert (found.ending, found.form) == (ending, form)


def test_a_template_that_is_exchanged_is_read_again() -> None:
    tokenizer = speaks(TURNS + ASKS)
    assert template_of(tokenizer).form is PLAIN
    tokenizer.chat_template = "{# <think> #}" + TURNS + ASKS
    assert template_of(tokenizer).form is THINK


@pytest.mark.parametrize(
    ("template", "prompt", "form"),
    [
        ("{# <think> #}" + TURNS + ASKS, PROMPT, THINK),
        ("{# <think> #}" + TURNS + ASKS, "Q: 3 + 4?\nA:", PLAIN),  # not rendered by it
        (TURNS + ASKS, PROMPT, PLAIN),
        (TURNS + ASKS, PROMPT + "<think>\n", THINK),
        (TURNS + ASKS, PROMPT + "<think>\n\n</think>\n\n", THINK),
        (None, "<|start|>user<|message|>Why?<|end|><|start|>assistant", HARMONY),
        (None, "Why?<|start|>assistant<|channel|>analysis<|message|>", HARMONY),
        (None, "Why? <think> is a tag", PLAIN),
        (None, "", PLAIN),
    ],
)
def test_what_a_prompt_lets_expect(template: Any, prompt: str, form: Format) -> None:
    assert expected_format(speaks(template), prompt) is form


@pytest.mark.parametrize(
    ("prompt", "closed", "thinking", "delimited"),
    [
        (PROMPT, False, False, False),
        (PROMPT + "<think>\n", False, True, True),
        (PROMPT + "<think>\nOkay, so", False, True, True),  # begun in the prompt
        (PROMPT + "<think>\n\n</think>\n\n", True, False, True),
        (PROMPT + "<think>\nHm.\n</think>\n\nThe answer", True, False, True),
        ("<|endoftext|>Is <think> a tag, or <|im", False, False, False),
        ("<|endoftext|>Is <think> a tag?", False, False, False),
        ("Is it <think>", False, True, True),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_where_a_prompt_leaves_the_thinking(
    prompt: str, closed: bool, thinking: bool, delimited: bool, whole: bool
) -> None:
    tokenizer = speaks(TURNS + ASKS, whole=whole)
    ids = encode(tokenizer, prompt)
    reader = TraceReader(tokenizer, AUTO_FORMAT, prompt_length=len(ids))
    for token in ids:
        reader.push(token)
    assert (reader.closed, reader.thinking, reader.delimited) == (closed, thinking, delimited)


def test_a_strangers_prompt_ends_where_the_template_ends(qwen2: Any, monkeypatch: Any) -> None:
    """The model never opens its thinking: the response is read all the same."""
    flow = StepFlow(OddsEqualBridge(tau_max=0.9, layers="all"))
    response = "Tom has 3 pens. Then he has 4 more. So it is 7.<|im_end|>"

    def acted() -> int:
        prompt = encode(qwen2.tokenizer, PROMPT.replace("<think>", "it"))
        tokens = torch.tensor([prompt + encode(qwen2.tokenizer, response)])
        with flow.attach(qwen2) as run:
            cached(qwen2, tokens, [len(prompt)])
        return run.actions

    with pytest.warns(InterventionWarning, match="never fired"):
        assert acted() == 0
    monkeypatch.setattr(qwen2.tokenizer, "chat_template", TURNS + ASKS)
    assert acted() > 0
