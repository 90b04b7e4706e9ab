"""Stop strings end an answer, and mean nothing in thinking."""

import pytest

from stepflow_tl import generate
from stepflow_tl.decoding.stopping import StoppedRow, stop_strings
from stepflow_tl.models.loading import load_model
from stepflow_tl.tasks.word_problems import make_problem
from stepflow_tl.traces.chat import prompt_token_ids
from stepflow_tl.traces.formats import AUTO_FORMAT, HARMONY, PLAIN, THINK, Format
from stepflow_tl.traces.reader import TraceReader


def stops_after(tokenizer, form: Format, prompt: str, response: str, *texts: str) -> str | None:
    """What was written when it stopped; None if it never did."""
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    reader = TraceReader(tokenizer, form, prompt_length=len(asked))
    for token_id in asked:
        reader.push(token_id)
    row = StoppedRow(texts, reader)
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    for length, token_id in enumerate(ids, 1):
        reader.push(token_id)
        if row.stopped():
            return tokenizer.decode(ids[:length])
    return None


@pytest.mark.parametrize(
    ("form", "prompt", "response", "written"),
    [
        (PLAIN, "Why?", "One. Two. Q: Three", "One. Two. Q:"),
        (PLAIN, "Q: Why?", "One. Two.", None),
        (THINK, "Why?<think>", "Q: hm.</think>So. Q: Next", "Q: hm.</think>So. Q:"),
        (THINK, "Why?<think>\n", "Q: never closed, Q: ever", None),
        (THINK, "Why?", "<think>Q: hm.</think>So.", None),
        (
            THINK,
            "Why?",
            "Thinking at once. Q: hm.</think>So. Q: N",
            "Thinking at once. Q: hm.</think>So. Q:",
        ),
        (AUTO_FORMAT, "Why?", "No thinking. Q: Next", "No thinking. Q:"),
        (AUTO_FORMAT, "Why?", "<think>Q: hm.</think>So. Q: Next", "<think>Q: hm.</think>So. Q:"),
        (AUTO_FORMAT, "Why?<think>\n\n</think>\n\n", "So. Q: Next", "So. Q:"),
        (AUTO_FORMAT, "Why?<think>", "hm. Q: </think>\nQ: Next", "hm. Q: </think>\nQ:"),
        (AUTO_FORMAT, "Why?", "<thin Q: Next", "<thin Q:"),
        (THINK, "Why?<think></think>", "So. Q: Next", "So. Q:"),
        (THINK, "Why?<think>", "a</think>b<think>Q: c", "a</think>b<think>Q:"),
        (
            HARMONY,
            "Why?",
            "<|channel|>analysis<|message|>Q: hm.<|channel|>final<|message|>So. Q: Next",
            "<|channel|>analysis<|message|>Q: hm.<|channel|>final<|message|>So. Q:",
        ),
    ],
)
def test_where_a_response_stops(tokenizer, split_tokenizer, form, prompt, response, written):
    for each in (tokenizer, split_tokenizer):
        assert stops_after(each, form, prompt, response, "Q:", "never comes") == written


@pytest.mark.parametrize("gap", ["\n\n", "\n\n\n\n", " \n\n", ""])
def test_white_space_before_the_answer_is_none(tokenizer, split_tokenizer, gap):
    thinking = f"<think>One.\n\nTwo.</think>{gap}"
    for each in (tokenizer, split_tokenizer):
        written = stops_after(each, AUTO_FORMAT, "Why?", f"{thinking}It is 7.\n\nQ: Next", "\n\n")
        assert written == f"{thinking}It is 7.\n\n"


def test_one_text_is_one_stop_string_and_an_empty_one_is_refused(unchecked):
    assert stop_strings("\n\n") == ("\n\n",)
    with pytest.raises(ValueError, match=r"stop strings with some text, got \['a', ''\]"):
        stop_strings(["a", ""])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_generation_stops(batch_size):
    model = load_model("reasoner")
    questions = [make_problem(seed, 2).question for seed in range(3)]
    whole = generate(model, questions, max_new_tokens=200)
    cut = generate(model, questions, max_new_tokens=200, stop=["\\boxed{"], batch_size=batch_size)
    for all_of_it, part in zip(whole, cut, strict=True):
        assert part.response.endswith("\\boxed{")
        assert all_of_it.response.startswith(part.response)
        assert all_of_it.ended and not part.ended
    unchanged = generate(model, questions, max_new_tokens=200, stop=[" has "])
    assert [t.response.partition("</think>")[0] for t in unchanged] == [
        t.response.partition("</think>")[0] for t in whole
    ]


def test_a_rendered_prompt_has_one_start_token():
    tokenizer = load_model("reasoner").tokenizer
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why?"}], add_generation_prompt=True, tokenize=False
    )
    assert text.startswith(tokenizer.bos_token)
    assert prompt_token_ids(tokenizer, text, chat=False) == prompt_token_ids(tokenizer, "Why?")
