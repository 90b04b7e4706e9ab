"""Prompts that real models' chat templates rendered, and where their responses are to be cut.

The cuts were written by hand (`tests/data/templates`). Whoever has the tokenizers names their
folders' folder in STEPFLOW_TOKENIZERS for the whole way there and back.
"""

import json
import os
import re
from pathlib import Path

import pytest
from helpers import DATA, byte_tokenizer
from transformers import AddedToken, AutoTokenizer

from stepflow_tl import Trace
from stepflow_tl.traces.chat import Chat, prompt_token_ids

CASES = json.loads((DATA / "templates" / "rendered.json").read_text(encoding="utf-8"))
IDS = [f"{number}-{case['folder']}" for number, case in enumerate(CASES)]
SPECIAL = re.compile(
    r"<\|[\w ]+\|>|<\uff5c[^\uff5c]+\uff5c>|</?(?:bos|eos|start_of_turn|end_of_turn)>"
)
THINKS = ("qwen3", "r1_distill", "r1_distill_first", "deepseek_v3_1", "phi4_reasoning_vision")
WHERE = os.environ.get("STEPFLOW_TOKENIZERS")


def _steps(trace):
    """Segment and text of each step, without a delimiter that its tokenizer has split."""
    texts = (step.text.strip().removesuffix("\n</think") for step in trace.steps)
    return [[step.segment, text] for step, text in zip(trace.steps, texts, strict=True)]


def _check(tokenizer, case):
    whole = case["prompt"] + case["response"]
    trace = Trace.from_text(tokenizer, whole, prompt=case["prompt"])
    assert _steps(trace) == case["steps"]
    assert trace.answer == case["answer"]
    assert trace.parts.answer or trace.unclosed or not trace.parts.expected
    for size in range(trace.prompt_length + 1, len(trace), 7):
        ids = trace.token_ids[:size]
        part = Trace.from_token_ids(tokenizer, ids, prompt_length=trace.prompt_length, strict=False)
        assert part.step_of_token.tolist() == trace.step_of_token[:size].tolist()
    return trace


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_rendered_prompt_and_its_response_are_cut_as_by_hand(case):
    """With a tokenizer that knows the model's markers, and a template that ends as the model's."""
    tokenizer = byte_tokenizer(whole_markers=True)
    texts = f"{case['prompt']} {case['response']}"
    markers = sorted(set(SPECIAL.findall(texts)), key=len, reverse=True)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(text, normalized=False) for text in markers]}
    )
    asked = case["messages"][-1]["content"]
    before, _, after = case["prompt"].rpartition(asked)
    spoken = "{# </think> #}" if case["folder"] in THINKS else ""
    spoken += "{# <|channel|> #}" if case["folder"] == "gptoss" else ""
    tokenizer.chat_template = (
        f"{{{{ {json.dumps(before)} }}}}{{{{ messages[-1].content }}}}{{{{ {json.dumps(after)} }}}}"
        + spoken
    )
    _check(tokenizer, case)


@pytest.mark.skipif(not WHERE, reason="STEPFLOW_TOKENIZERS names no folder of tokenizers' folders")
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_whole_way_with_the_real_tokenizer(case):
    folder = Path(str(WHERE)) / case["folder"]
    if not folder.is_dir():
        pytest.skip(f"no tokenizer in {folder}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = Chat(options=case["options"], date=case.get("date"))
    ids = prompt_token_ids(tokenizer, case["messages"], chat=chat)
    told, meant = ("".join(text.split()) for text in (tokenizer.decode(ids), case["prompt"]))
    assert told == meant  # Phi-4's special tokens swallow the white space around them
    trace = _check(tokenizer, case)
    assert trace.token_ids[: trace.prompt_length].tolist() == ids
