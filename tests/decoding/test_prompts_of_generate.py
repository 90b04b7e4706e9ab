"""What `generate` may be asked: questions, conversations, token ids; of any model class."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from helpers import byte_tokenizer, encode, plain_model

from stepflow_tl import OddsEqualBridge, StepFlow, Trace, generate
from stepflow_tl.decoding.settings import Decoding
from stepflow_tl.errors import GenerationError, ModelError, TraceError
from stepflow_tl.traces.chat import Chat

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MESSAGES = [
    {"role": "system", "content": "Count with care."},
    {"role": "user", "content": "Tom has 3 pens. How many?"},
    {"role": "assistant", "content": "Tom has 3 pens."},
    {"role": "user", "content": "He buys 4 more. How many now?"},
]
ASK = {"max_new_tokens": 6}
FLOW = StepFlow(OddsEqualBridge(tau_max=0.9, layers="all"))


@pytest.fixture
def asked(qwen2: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model with a chat template."""
    monkeypatch.setattr(qwen2.tokenizer, "chat_template", CHATML)
    return qwen2


@pytest.fixture(scope="module")
def plain() -> tuple[Any, Any]:
    """A Hugging Face decoder, and a tokenizer beside it."""
    tokenizer = byte_tokenizer(whole_markers=True)
    tokenizer.chat_template = CHATML
    return plain_model("llama", tokenizer), tokenizer


def prompt_of(trace: Trace) -> list[int]:
    return trace.token_ids[: trace.prompt_length].tolist()


def rendered(tokenizer: Any, messages: Any) -> list[int]:
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return encode(tokenizer, text)


def test_a_conversation_gives_one_trace(asked: Any) -> None:
    trace = generate(asked, MESSAGES, **ASK)
    assert prompt_of(trace) == rendered(asked.tokenizer, MESSAGES)
    assert trace.steps[0].text == MESSAGES[-1]["content"]
    assert trace.metadata["question"] == MESSAGES[-1]["content"]
    assert trace.metadata["messages"] == MESSAGES


def test_a_question_is_a_conversation_of_one_turn(asked: Any) -> None:
    question = MESSAGES[1]["content"]
    one, other = generate(asked, question, **ASK), generate(asked, [MESSAGES[1]], **ASK)
    assert one.token_ids.tolist() == other.token_ids.tolist()
    assert "messages" not in one.metadata


def test_prompts_of_every_kind_in_one_call(asked: Any) -> None:
    ids = encode(asked.tokenizer, "Tom has 3 pens.")
    prompts = ["Why?", MESSAGES, ids, torch.tensor(ids), [MESSAGES[1]]]
    traces = generate(asked, prompts, batch_size=2, **ASK)
    for prompt, trace in zip(prompts, traces, strict=True):
        alone = generate(asked, prompt, **ASK)
        assert isinstance(alone, Trace)
        assert alone == trace
    assert prompt_of(traces[2]) == prompt_of(traces[3]) == ids


@pytest.mark.parametrize(
    "make",
    [list, tuple, torch.tensor, np.array, lambda ids: [ids], lambda ids: torch.tensor([ids])],
)
def test_token_ids_are_the_prompt(asked: Any, make: Any) -> None:
    ids = encode(asked.tokenizer, "Tom has 3 pens.")
    made = generate(asked, make(ids), **ASK)
    (trace,) = [made] if isinstance(made, Trace) else made
    assert prompt_of(trace) == ids
    assert trace.metadata["question"] == "Tom has 3 pens."


def test_seeds_of_questions_stay_and_others_hash_their_ids(asked: Any) -> None:
    sample = {**ASK, "temperature": 1.0, "seed": 3}
    ids = rendered(asked.tokenizer, [MESSAGES[1]])
    drawn = [generate(asked, p, **sample) for p in (ids, torch.tensor(ids), [MESSAGES[1]])]
    assert len({tuple(trace.token_ids.tolist()) for trace in drawn}) == 1
    question = generate(asked, MESSAGES[1]["content"], **sample)
    assert question.token_ids.tolist() != drawn[0].token_ids.tolist()
    seeded = Decoding(temperature=1.0, seed=3).generator("Tom has 3 pens.", 0)
    assert seeded.initial_seed() == 4493844234975589252  # as every version has seeded it


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([{"role": "user"}], "message 0, the user's, to have 'content', got {'role': 'user'}"),
        ([{"content": "Why?"}], "message 0 to have a 'role'"),
        ([MESSAGES[0], "Why?"], "message 1 to be such as {'role': 'user'"),
        (MESSAGES[:3], "last message is the assistant's; Trace.from_chat reads it"),
        ([[]], "expected a question, messages such as .* got \\[\\]"),
        ([[10_000]], "token ids from 0 to .* got \\[10000\\]"),
        ([[-1]], "token ids from 0"),
        ([3.5], r"token ids, which are whole numbers, got \[3.5\]"),
        ([True], r"token ids, which are whole numbers, got \[True\]"),
        (torch.tensor([1.0, 2.5]), r"whole numbers, got \[1.0, 2.5\]"),
        (None, "a prompt, or a sequence of several, got None"),
        ([None], "a question, messages such as .* got None"),
        ("\ud800 x?", "characters, got the lone surrogate '.ud800'"),
        ([{"role": "tool", "content": "7"}], r"with a user's turn, got the roles \['tool'\]"),
    ],
)
def test_wrong_prompts_are_explained(asked: Any, prompt: Any, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        generate(asked, prompt, **ASK)


def test_a_conversation_needs_a_template(qwen2: Any) -> None:
    with pytest.raises(GenerationError, match="no chat template"):
        generate(qwen2, MESSAGES, **ASK)
    with pytest.raises(GenerationError, match="template for a conversation, got chat=False"):
        generate(qwen2, MESSAGES, chat=False, **ASK)


def test_one_system_message(asked: Any) -> None:
    chat = Chat(system="Be brief.")
    trace = generate(asked, MESSAGES[1:], chat=chat, **ASK)
    wanted = [{"role": "system", "content": "Be brief."}, *MESSAGES[1:]]
    assert prompt_of(trace) == rendered(asked.tokenizer, wanted)
    with pytest.raises(GenerationError, match="one system message, got 'Be brief.' beside"):
        generate(asked, MESSAGES, chat=chat, **ASK)


def test_a_plain_model_is_asked_like_the_others(plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    questions = ["Why?", MESSAGES, encode(tokenizer, "Tom has 3 pens. He buys 4.")]
    together = generate(model, questions, tokenizer=tokenizer, **ASK)
    for trace, question in zip(together, questions, strict=True):
        assert trace == generate(model, question, tokenizer=tokenizer, **ASK)
        ids = prompt_of(trace)
        own = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            **ASK,
        )
        assert trace.token_ids.tolist() == own[0].tolist()


def test_a_plain_model_needs_a_tokenizer_given_or_its_own(plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    with pytest.raises(ModelError, match="no tokenizer: set model.tokenizer.* pass tokenizer="):
        generate(model, [1, 2, 3], **ASK)
    carried = copy.deepcopy(model)
    carried.tokenizer = tokenizer
    ids = encode(tokenizer, "Tom has 3 pens.")
    assert generate(carried, ids, **ASK) == generate(model, ids, tokenizer=tokenizer, **ASK)
    with FLOW.attach(carried) as run:
        generate(carried, MESSAGES, max_new_tokens=24)
    assert run.actions > 0


def test_stepflow_acts_alike_on_a_plain_model_and_its_bridge(
    plain: tuple[Any, Any], tmp_path: Any
) -> None:
    from stepflow_tl import load_model

    model, tokenizer = plain
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    bridge = load_model(tmp_path)
    ask = {"max_new_tokens": 24, "batch_size": 2}
    questions = [MESSAGES, "Why?", "Tom has 3 pens and 4 more."]
    with FLOW.attach(bridge) as one:
        bridged = generate(bridge, questions, **ask)
    with FLOW.attach(model, tokenizer=tokenizer) as other:
        plainly = generate(model, questions, tokenizer=tokenizer, **ask)
    assert [t.token_ids.tolist() for t in bridged] == [t.token_ids.tolist() for t in plainly]
    assert one.actions == other.actions > 0


class TestFromChat:
    """Transcripts of conversations."""

    THINKS = CHATML.replace("assistant\n{%", "assistant\n<think>\n{%")

    def tokenizer(self, template: str = CHATML) -> Any:
        tokenizer = byte_tokenizer(whole_markers=True)
        tokenizer.chat_template = "{# </think> #}" + template
        return tokenizer

    @pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
    @pytest.mark.parametrize("template", [CHATML, THINKS])
    def test_thinking_stands_between_the_delimiters(self, key: str, template: str) -> None:
        tokenizer = self.tokenizer(template)
        said = {"role": "assistant", key: "It was 3, so 7.\n", "content": "\n\nTom has 7 pens."}
        trace = Trace.from_chat(tokenizer, [*MESSAGES, said])
        assert prompt_of(trace) == rendered(tokenizer, MESSAGES)
        opening = "" if template == self.THINKS else "<think>\n"
        assert trace.response == f"{opening}It was 3, so 7.\n</think>\n\nTom has 7 pens."
        assert [step.text.strip() for step in trace.steps] == [
            MESSAGES[-1]["content"],
            "It was 3, so 7.",
            "Tom has 7 pens.",
        ]
        assert trace.metadata["messages"] == MESSAGES

    def test_content_is_appended_as_it_is(self) -> None:
        text = "<think>\nHm.\n</think>\n\nYes."
        trace = Trace.from_chat(
            self.tokenizer(), [*MESSAGES, {"role": "assistant", "content": text}]
        )
        assert trace.response == text
        assert (trace.parts.thinking, trace.parts.answer) == ("Hm.", "Yes.")

    def test_a_template_that_strips_thinking_strips_none_of_it(self) -> None:
        strips = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")
        text = "<think>\nHm.\n</think>\n\nYes."
        trace = Trace.from_chat(
            self.tokenizer(strips), [*MESSAGES, {"role": "assistant", "content": text}]
        )
        assert trace.response == text

    def test_a_message_may_have_reasoning_alone(self) -> None:
        said = {"role": "assistant", "content": None, "reasoning": "Hm. So it is."}
        trace = Trace.from_chat(self.tokenizer(), [*MESSAGES, said])
        assert (trace.parts.thinking, trace.parts.answer) == ("Hm. So it is.", "")

    def test_an_empty_reasoning_closes_what_the_template_opened(self) -> None:
        said = {"role": "assistant", "reasoning_content": "", "content": "Yes."}
        trace = Trace.from_chat(self.tokenizer(self.THINKS), [*MESSAGES, said])
        assert (trace.parts.thinking, trace.parts.answer) == ("", "Yes.")

    @pytest.mark.parametrize(
        ("said", "thinking", "answer"),
        [
            ({"thinking": "So 7.", "content": "It is 7."}, "So 7.", "It is 7."),
            ({"content": "It is 7."}, "", "It is 7."),
            ({"content": "<|channel|>analysis<|message|>So 7."}, "So 7.", ""),
        ],
    )
    def test_harmony(self, golden_model: Any, said: Any, thinking: str, answer: str) -> None:
        tokenizer = copy.deepcopy(golden_model("tiny_gpt_oss").tokenizer)
        tokenizer.chat_template = (
            "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>"
            "{% endfor %}<|start|>assistant"
        )
        trace = Trace.from_chat(tokenizer, [*MESSAGES, {"role": "assistant", **said}])
        assert (trace.parts.thinking, trace.parts.answer) == (thinking, answer)
        assert trace.format_name == "harmony"

    @pytest.mark.parametrize("turns", [MESSAGES, MESSAGES[2:3], [MESSAGES[1]]])
    def test_the_last_message_is_the_assistants(self, turns: Any) -> None:
        with pytest.raises(TraceError, match="last message is the assistant's.*got the roles"):
            Trace.from_chat(self.tokenizer(), turns)

    def test_what_is_no_text_is_refused(self) -> None:
        turns = [*MESSAGES, {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}]
        with pytest.raises(GenerationError, match="whose content is text, got"):
            Trace.from_chat(self.tokenizer(), turns)
        with pytest.raises(TraceError, match="an answer with some text"):
            Trace.from_chat(self.tokenizer(), [*MESSAGES, {"role": "assistant", "content": ""}])
