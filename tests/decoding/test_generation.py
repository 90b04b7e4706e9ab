import copy

import pytest
import torch

from stepflow_tl import Format, OddsEqualBridge, StepFlow, StepMomentum, Trace, generate
from stepflow_tl.decoding.settings import Decoding
from stepflow_tl.errors import GenerationError
from stepflow_tl.traces.chat import Chat, prompt_token_ids

QUESTIONS = ["Tom has 3 pens.", "He buys 4 more pens than that. What is the answer?", "And then?"]
EVERY_FEW = Format(name="every few", thinking_cutter=lambda step, token: len(step) > 8)
ASK = {"max_new_tokens": 24, "chat": False, "format": EVERY_FEW}
FLOW = StepFlow(OddsEqualBridge(tau_max=0.5, layers="all"), StepMomentum(alpha=1.0, layers="all"))


def responses(traces: list[Trace]) -> list[list[int]]:
    return [trace.token_ids[trace.prompt_length :].tolist() for trace in traces]


def uncached(model, trace: Trace) -> list[int]:
    """Greedy decoding of the trace's prompt without a cache, one row, plain calls."""
    ids = trace.token_ids[: trace.prompt_length].tolist()
    with torch.no_grad():
        for _ in range(len(trace) - trace.prompt_length):
            ids.append(int(model(torch.tensor([ids]), return_type="logits")[0, -1].argmax()))
    return ids[trace.prompt_length :]


def test_greedy_equals_decoding_without_a_cache(model):
    traces = generate(model, QUESTIONS, **ASK)
    assert responses(traces) == [uncached(model, trace) for trace in traces]


@pytest.mark.parametrize("flow", [StepFlow(), FLOW], ids=["plain", "stepflow"])
def test_batch_size_does_not_matter(model, flow):
    with flow.attach(model):
        together = generate(model, QUESTIONS, batch_size=3, **ASK)
        alone = generate(model, QUESTIONS, batch_size=1, **ASK)
    assert together == alone


def test_stepflow_acts_in_generation(qwen2):
    plain = responses(generate(qwen2, QUESTIONS, **ASK))
    with FLOW.attach(qwen2) as run:
        repaired = responses(generate(qwen2, QUESTIONS, **ASK))
    assert repaired != plain
    assert run.ledger.total("OddsEqualBridge", "rows_changed") > 0
    assert responses(generate(qwen2, QUESTIONS, **ASK)) == plain


def test_a_seed_gives_the_same_traces_in_any_batch(qwen2):
    sample = {**ASK, "temperature": 1.0, "top_p": 0.9, "samples": 3}
    first = generate(qwen2, QUESTIONS, seed=1, batch_size=2, **sample)
    assert first == generate(qwen2, QUESTIONS, seed=1, batch_size=9, **sample)
    assert responses(first) != responses(generate(qwen2, QUESTIONS, seed=2, **sample))
    assert len({tuple(r) for r in responses(first[:3])}) == 3
    assert [t.metadata["sample"] for t in first] == [0, 1, 2] * 3
    assert [t.metadata["question"] for t in first[::3]] == QUESTIONS


def test_top_p_keeps_the_smallest_sufficient_set():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(200, 1)
    generators = [torch.Generator().manual_seed(i) for i in range(200)]
    drawn = Decoding(temperature=1.0, top_p=0.7).choose(logits, generators)
    assert set(drawn.tolist()) == {0, 1}
    generators = [torch.Generator().manual_seed(i) for i in range(200)]
    drawn = Decoding(temperature=1.0, top_p=1.0).choose(logits, generators)
    share = (drawn == 0).float().mean()
    assert 0.35 < share < 0.65


def test_the_end_token_ends_a_trace_and_the_limit_says_so(qwen2, monkeypatch):
    endless = generate(qwen2, QUESTIONS[0], **ASK)
    assert not endless.ended
    assert len(endless) - endless.prompt_length == ASK["max_new_tokens"]
    third = int(endless.token_ids[endless.prompt_length + 2])
    monkeypatch.setattr("stepflow_tl.decoding.batch.end_token_ids", lambda *_: frozenset({third}))
    cut = generate(qwen2, QUESTIONS[0], **ASK)
    assert cut.ended
    assert len(cut) - cut.prompt_length <= 3
    assert int(cut.token_ids[-1]) == third


def test_one_question_gives_one_trace_and_a_list_a_list(qwen2):
    assert isinstance(generate(qwen2, QUESTIONS[0], **ASK), Trace)
    assert isinstance(generate(qwen2, QUESTIONS[:1], **ASK), list)
    assert isinstance(generate(qwen2, QUESTIONS[0], samples=1, **ASK), list)


def test_a_chat_template_is_used_and_its_lack_explained(tokenizer, monkeypatch):
    with pytest.raises(GenerationError, match="no chat template.*chat=False"):
        prompt_token_ids(tokenizer, "Why?")
    monkeypatch.setattr(
        tokenizer, "chat_template", "<|im_start|>user\n{{ messages[0].content }}<|im_end|>"
    )
    text = tokenizer.decode(prompt_token_ids(tokenizer, "Why?"))
    assert text == "<|im_start|>user\nWhy?<|im_end|>"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"questions": []}, "at least one question"),
        ({"questions": ["Why?", " "]}, "question with some text, got ' '"),
        ({"max_new_tokens": 0}, "max_new_tokens >= 1, got 0"),
        ({"batch_size": 0}, "batch_size >= 1, got 0"),
        ({"samples": 0}, "samples >= 1, got 0"),
        ({"temperature": -1.0}, "temperature >= 0, got -1"),
        ({"top_p": 0.0}, r"top_p in \(0, 1\], got 0"),
    ],
)
def test_bad_settings_are_explained(qwen2, settings, message):
    with pytest.raises(GenerationError, match=message):
        generate(qwen2, **{"questions": "Why?", **ASK, **settings})


def test_a_chat_has_a_system_message_and_options_of_the_template(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
        "effort: {{ effort }}\n{% if add_generation_prompt %}<think>\n{% endif %}"
    )
    chat = Chat(system="Be brief.", options={"effort": "high"})
    text = tokenizer.decode(prompt_token_ids(tokenizer, "Why?", chat=chat))
    assert text == "system: Be brief.\nuser: Why?\neffort: high\n<think>\n"
    plain = tokenizer.decode(prompt_token_ids(tokenizer, "Why?"))
    assert plain == "user: Why?\neffort: \n<think>\n"
