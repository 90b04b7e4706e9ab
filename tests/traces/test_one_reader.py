"""One answer to where thinking starts and ends: from whoever asks, on random texts.

`generate`, trackers, budgets, stop strings, graders and the finished `Trace` read one response;
here each is asked by its own way, on texts with delimiters split over tokens, nested, repeated,
missing, and in the question.
"""

from typing import Any

import pytest
import torch
from helpers import as_ids, byte_tokenizer, encode, plain_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stepflow_tl import Trace, generate
from stepflow_tl.decoding.budget import ForcedRow, Plans, ThinkingBudget
from stepflow_tl.decoding.stopping import StoppedRow
from stepflow_tl.interventions.position import PassPosition
from stepflow_tl.interventions.tracker import Tracker
from stepflow_tl.models.hooked import at_hook_points
from stepflow_tl.models.view import view
from stepflow_tl.tasks.grading import grade_number
from stepflow_tl.traces.formats import AUTO_FORMAT, PLAIN, THINK, Format, named_format
from stepflow_tl.traces.reader import TraceReader, read_response
from stepflow_tl.traces.rows import Row, Rows, publish
from stepflow_tl.traces.tokens import end_token_ids

PIECES = [
    *("<think>", "</think>", "<think>\n", "\n</think>\n\n", "</thi", "nk>", "<", "<thin"),
    *("\n", " ", "\n\n", "Tom has 3 pens. ", "So it is 3.14 in all.\n\n", "1. First", "Good."),
    *(r"\boxed{7}", r"\boxed{12}", "数学 ≈ é。", "The answer is (A).", "It is 5.", "Q:"),
]
HARMONY_PIECES = [
    *PIECES[8:],
    *("<|channel|>analysis<|message|>", "<|channel|>final<|message|>", "<|end|>"),
    *("<|start|>assistant", "<|channel|>commentary to=f json<|message|>", "<|call|>"),
    *(
        "<|start|>f to=assistant<|channel|>commentary<|message|>",
        "<|channel|>final json<|message|>",
    ),
    *("<|channel|>", "<|message|>", "<|start|>"),
]
TEMPLATES = {
    "no template": None,
    "never thinks": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n"
    ),
    "may think": (
        "{# strips </think> #}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    ),
    "opens": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n<think>\n"
    ),
    "closes": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    ),
}


def texts(pieces: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(pieces), min_size=1, max_size=12).map("".join)


def steps(trace: Trace) -> list[tuple[str, str, int]]:
    return [(step.segment, step.text, step.start) for step in trace.steps]


class Scripted:
    """In place of a model's forward pass: logits that say a script, row by row."""

    def __init__(self, scripts: list[list[int]], vocabulary: int, end: int) -> None:
        self.scripts, self.vocabulary, self.end = scripts, vocabulary, end
        self.passes = 0

    def __call__(self, tokens: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, None]:
        said = [
            script[self.passes] if self.passes < len(script) else self.end
            for script in self.scripts
        ]
        self.passes += 1
        return torch.nn.functional.one_hot(torch.tensor(said), self.vocabulary).float(), None


@pytest.fixture(scope="module", params=[True, False], ids=["whole markers", "split markers"])
def model(request: pytest.FixtureRequest) -> Any:
    """A model whose answers are scripted, and whose tokenizer may split delimiters."""
    tokenizer = byte_tokenizer(whole_markers=request.param)
    model = plain_model("qwen2", tokenizer)
    model.tokenizer = tokenizer
    return model


def followed(model: Any, ids: list[int], tracker: Tracker) -> PassPosition:
    """Where a tracker of one's own stands after the tokens."""
    with torch.no_grad(), tracker.watch(), view(model).hooks(tracker.hooks()):
        model(torch.tensor([ids]))
    return tracker.position


def check(model: Any, ids: list[int], length: int, form: Format | str, trace: Trace) -> None:
    """Everyone else reads the trace's tokens as it was read while decoding."""
    named = named_format(form)
    ends = end_token_ids(model)
    again = Trace.from_token_ids(model, ids, prompt_length=length, format=form, strict=False)
    assert (again.segments, steps(again), again.parts) == (
        *(trace.segments, steps(trace), trace.parts),
    )
    assert (again.closed, again.format_name) == (trace.closed, trace.format_name)

    reader = TraceReader(model.tokenizer, named, prompt_length=length, end_ids=ends)
    stop = StoppedRow(["Q:"], reader)
    forced = ForcedRow(Plans(ThinkingBudget(most=1000), model.tokenizer, ends), reader)
    stopped = expected = False
    half = length + (len(ids) - length) // 2
    for position, token in enumerate(ids):
        if position >= length:
            assert forced.next(token) == token
        reader.push(token)
        stopped = stop.stopped() or stopped
        if position == length - 1:
            expected = reader.thinking or reader.closed
        if position == half:  # a budget sees the thinking of the prefix, as the prefix is read
            prefix = Trace.from_token_ids(
                model, ids[: position + 1], prompt_length=length, format=form, strict=False
            )
            assert not (reader.thinking and prefix.closed)
            assert prefix.segment_of_token.tolist() == (
                trace.segment_of_token[: position + 1].tolist()
            )
            assert prefix.step_of_token.tolist() == trace.step_of_token[: position + 1].tolist()
    if expected:  # else what comes before a thinking shows is an answer, as far as can be known
        assert stopped == (trace.closed and "Q:" in trace.parts.answer)
    elif not trace.parts.expected:
        assert stopped == ("Q:" in trace.parts.thinking)

    here = followed(model, ids, Tracker(view(model), format=form, prompt_length=length))
    ended = next((i for i in range(length, len(ids)) if ids[i] in ends), len(ids))
    assert here.segment[0, :ended].tolist() == trace.segment_of_token[:ended].tolist()
    assert here.step[0].tolist() == trace.step_of_token.tolist()

    grades = [grade_number(one, "7")[:3] for one in (trace.parts, again.parts)]
    assert grades[0] == grades[1]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("form", ["auto", THINK, PLAIN], ids=["auto", "think", "plain"])
@settings(max_examples=12)
@given(question=texts(PIECES), response=texts(PIECES), second=texts(PIECES))
@pytest.mark.slow
def test_everyone_reads_one_response_alike(
    model: Any, template: str, form: Any, question: str, response: str, second: str
) -> None:
    tokenizer = model.tokenizer
    tokenizer.chat_template = TEMPLATES[template]
    scripts = [encode(tokenizer, text) for text in (response, second)]
    decode = Scripted(scripts, len(tokenizer), tokenizer.eos_token_id)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("stepflow_tl.models.base.ModelView.decode", decode)
        patched.setattr("stepflow_tl.models.huggingface.HuggingFaceView.rows_may_move", False)
        traces = generate(
            model,
            [f"Q {question}", "Why?"],
            chat=TEMPLATES[template] is not None,
            format=form,
            max_new_tokens=400,
        )
    for trace, script in zip(traces, scripts, strict=True):
        ids = trace.token_ids.tolist()
        assert ids[trace.prompt_length :] == [*script, tokenizer.eos_token_id]
        check(model, ids, trace.prompt_length, form, trace)


@given(response=texts(HARMONY_PIECES))
def test_messages_with_headers_are_read_alike(golden_model: Any, response: str) -> None:
    model = golden_model("tiny_gpt_oss")
    prompt = encode(model.tokenizer, "<|start|>user<|message|>Why?<|end|><|start|>assistant")
    ids = prompt + encode(model.tokenizer, response)
    reader = TraceReader(
        model.tokenizer, AUTO_FORMAT, prompt_length=len(prompt), end_ids=end_token_ids(model)
    )
    for token in ids:
        reader.push(token)
    trace = Trace.of_reader(ids, reader)
    check(model, ids, len(prompt), "auto", trace)


@given(response=texts([piece for piece in PIECES if "<|" not in piece]))
def test_the_text_is_read_as_its_tokens(
    tokenizer: Any, split_tokenizer: Any, response: str
) -> None:
    """What a grader of bare text reads, where no prompt says more."""
    for each in (tokenizer, split_tokenizer):
        prompt = encode(each, "Why? ")
        trace = Trace.from_token_ids(
            each, prompt + encode(each, response), prompt_length=len(prompt), strict=False
        )
        parts, read = trace.parts, read_response(response)
        assert "".join(parts.answer.split()) == "".join(read.answer.split())
        assert parts.closed == read.closed
        assert "".join(parts.thinking.split()) == "".join(read.thinking.split())


@pytest.mark.parametrize("form", ["auto", "think"])
def test_stop_strings_count_where_the_answer_is(qwen2: Any, form: str) -> None:
    """The stop string that ends a response lies in the answer that is graded."""
    tokenizer = qwen2.tokenizer
    response = "<think>\nQ: one.\n\nQ: two.</think>\n\n Q: three. Q: four."
    decode = Scripted([encode(tokenizer, response)], len(tokenizer), tokenizer.eos_token_id)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("stepflow_tl.models.base.ModelView.decode", decode)
        patched.setattr("stepflow_tl.models.huggingface.HuggingFaceView.rows_may_move", False)
        trace = generate(qwen2, "Why?", chat=False, format=form, stop="Q:", max_new_tokens=100)
    assert trace.parts.answer == "Q:"
    assert (trace.ended, trace.closed) == (False, True)


class TestRows:
    """What is announced, and what is not."""

    def rows(self, qwen2: Any, *questions: str) -> Rows:
        prompts = [encode(qwen2.tokenizer, question) for question in questions]
        return Rows.of_prompts(qwen2.tokenizer, prompts, THINK)

    def run(self, qwen2: Any, rows: Rows, ids: list[list[int]]) -> Tracker:
        tracker = Tracker(view(qwen2))
        with (
            torch.no_grad(),
            publish(qwen2, rows),
            tracker.watch(),
            qwen2.hooks(fwd_hooks=at_hook_points(tracker.hooks())),
        ):
            qwen2(torch.tensor(ids), return_type="logits")
        return tracker

    def test_rows_may_be_left_out_and_exchanged_where_it_is_announced(self, qwen2: Any) -> None:
        rows = self.rows(qwen2, "Why?<think>", "How is it?<think>", "When?<think>")
        columns = rows.padded(0)
        rows.select([2, 0])
        tracker = self.run(qwen2, rows, [columns[2], columns[0]])
        assert Rows(tracker.rows).padded(0) == [columns[2], columns[0]]
        assert tracker.position.segment.shape[0] == 2

    @pytest.mark.parametrize("order", [[1, 0], [0], [0, 0]])
    def test_an_unannounced_change_is_refused(self, qwen2: Any, order: list[int]) -> None:
        rows = self.rows(qwen2, "Why is it?<think>", "How?<think>")
        columns = rows.padded(0)
        with pytest.raises(RuntimeError, match="Rows.select"):
            self.run(qwen2, rows, [columns[i] for i in order])

    @pytest.mark.parametrize("order", [[0, 0], [2], [-1]])
    def test_what_cannot_be_announced(self, qwen2: Any, order: list[int]) -> None:
        with pytest.raises(RuntimeError, match="rows 0 to 1, each once, got"):
            self.rows(qwen2, "Why?", "How?").select(order)

    def test_pushes_are_of_all_rows(self, qwen2: Any) -> None:
        with pytest.raises(RuntimeError, match="a batch of 2 rows, got 1"):
            self.rows(qwen2, "Why?", "How?").push([[1]])

    def test_a_finished_row_is_read_no_more(self, qwen2: Any) -> None:
        rows = self.rows(qwen2, "Why?<think>")
        read = len(rows[0].reader.texts)
        rows[0].finish()
        rows.push([[65, 66]])
        assert len(rows[0].reader.texts) == read
        assert rows[0].segments[-2:] == [-1, -1]
        assert rows[0].ended

    def test_rows_of_another_model_are_not_taken(self, qwen2: Any, gpt_oss: Any) -> None:
        rows = self.rows(qwen2, "Why?<think>")
        tracker = Tracker(view(gpt_oss))
        ids = torch.tensor([[1, 2, 3]])
        with (
            torch.no_grad(),
            publish(qwen2, rows),
            tracker.watch(),
            gpt_oss.hooks(fwd_hooks=at_hook_points(tracker.hooks())),
        ):
            gpt_oss(ids, return_type="logits")
        assert tracker.rows[0].token_ids == [1, 2, 3]

    def test_labels_of_a_known_trace_have_no_reader(self, qwen2: Any, trace: Trace) -> None:
        tracker = Tracker(view(qwen2), trace=trace)
        with torch.no_grad():
            qwen2.run_with_hooks(trace.tokens, fwd_hooks=at_hook_points(tracker.hooks()))
        row: Row = tracker.rows[0]
        with pytest.raises(TypeError, match="expected a row that is being read"):
            _ = row.reader


def test_parts_of_special_tokens_are_frame(tokenizer: Any) -> None:
    ids = as_ids(tokenizer, ["Why?<think>", "It is.", "</think>", "Yes.", "<|im_end|>"])
    trace = Trace.from_token_ids(tokenizer, ids, prompt_length=3, strict=False)
    assert "<|" not in trace.parts.thinking + trace.parts.answer


HARMONY_PROMPT = "<|start|>user<|message|>Why?<|end|>"


@pytest.mark.parametrize("form", ["auto", "harmony"])
@pytest.mark.parametrize(
    ("prompt", "response", "thinking", "answer"),
    [
        (
            "<|start|>assistant<|channel|>analysis<|message|>The thing",
            " is 1.<|end|><|start|>assistant<|channel|>final<|message|>It is 2.<|return|>",
            *("is 1.", "It is 2."),
        ),
        ("<|start|>assistant<|channel|>final<|message|>The answer", " is 2.", "", "is 2."),
        ("<|start|>assistant<|channel|>", "final<|message|>Yes.", "", "Yes."),
        ("<|start|>", "assistant<|channel|>final<|message|>Yes.", "", "Yes."),
        ("<|start|>assistant to=f<|channel|>commentary<|message|>", '{"x": 9}', "", ""),
        ("<|start|>assistant", " to=f<|channel|>commentary json<|message|>{}<|call|>", "", ""),
        ("<|start|>assistant", "Yes, it is.", "Yes, it is.", ""),
        ("<|start|>assistant", "to<|return|>", "to", ""),
    ],
)
def test_what_a_prompt_has_begun_is_gone_on_with(
    golden_model: Any, prompt: str, response: str, thinking: str, answer: str, form: str
) -> None:
    tokenizer = golden_model("tiny_gpt_oss").tokenizer
    asked, said = (encode(tokenizer, text) for text in (HARMONY_PROMPT + prompt, response))
    trace = Trace.from_token_ids(
        tokenizer, asked + said, prompt_length=len(asked), format=form, strict=False
    )
    assert (trace.parts.thinking, trace.parts.answer) == (thinking, answer)
    assert trace.format_name == "harmony"


@pytest.mark.parametrize(
    ("response", "thinking", "answer"),
    [
        ("<think>```python\nprint(1)\n```</think>\nDone.", "```python\nprint(1)\n```", "Done."),
        ("<t<|im_end|>", "<t", ""),
        ("< 5</think>B", "< 5", "B"),
        ("<\n\\boxed{4}", "<\n\\boxed{4}", ""),
        ("<think>x</think>a <|b|> c", "x", "a <|b|> c"),
    ],
)
def test_no_text_of_a_response_is_lost_and_no_delimiter_kept(
    tokenizer: Any, split_tokenizer: Any, response: str, thinking: str, answer: str
) -> None:
    for each in (tokenizer, split_tokenizer):
        prompt = encode(each, "Why? ")
        trace = Trace.from_token_ids(
            each, prompt + encode(each, response), prompt_length=len(prompt), strict=False
        )
        for parts in (trace.parts, read_response(response)):
            assert (parts.thinking, parts.answer) == (thinking, answer)


def test_the_answers_tokens_are_those_of_the_answer(tokenizer: Any) -> None:
    text = r"Why?<think>\boxed{5}</think>\boxed{5}"
    trace = Trace.from_text(tokenizer, text)
    assert trace.answer_span is not None
    assert trace.answer_span[0] >= trace.summary.start


def test_what_tools_answer_is_no_question(tokenizer: Any) -> None:
    text = (
        "<|im_start|>user\nHow warm?<|im_end|>\n<|im_start|>assistant\n<tool_call>w<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n20\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>Hm.</think>20."
    )
    assert Trace.from_text(tokenizer, text).steps[0].text == "How warm?"
