"""Traces: tiling, agreement with the golden steps, odd transcripts, files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import DATA, FULL_STOP, TRANSCRIPT, Golden, as_ids, decode, encode, token_lists
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from stepflow_tl.errors import TraceError
from stepflow_tl.traces.formats import Format
from stepflow_tl.traces.tokens import FRAME
from stepflow_tl.traces.trace import Trace


def texts(trace: Trace, segment: str | None = None) -> list[str]:
    steps = trace.steps if segment is None else trace.steps_in(segment)
    return [step.text.strip() for step in steps]


def check_tiling(trace: Trace) -> None:
    at = 0
    for segment in trace.segments:
        assert segment.start == at <= segment.stop
        at = segment.stop
    assert at == len(trace) == len(trace.token_ids)
    assert [step.index for step in trace.steps] == list(range(len(trace.steps)))
    covered = torch.full((len(trace),), FRAME)
    end = 0
    for step in trace.steps:
        segment = trace.segments[("question", "thinking", "summary").index(step.segment)]
        assert end <= step.start < step.stop
        assert segment.start <= step.start < step.stop <= segment.stop
        assert step.text == trace.text_of(step)
        covered[step.start : step.stop] = step.index
        end = step.stop
    assert torch.equal(covered, trace.step_of_token)
    assert "".join(trace.text_of(segment) for segment in trace.segments) == trace.text


class TestGolden:
    def test_steps_are_the_authors(self, golden: Golden, golden_model: Any) -> None:
        trace = Trace.from_text(
            golden_model("tiny_gpt_oss"), golden.steps["text"], format=FULL_STOP["harmony"]
        )
        whole = [step.text.strip() for step in trace.steps if not step.is_fragment]
        # Theirs takes "He has 7 pens." (14 characters) for a paragraph of the summary.
        short = [step.text.strip() for step in trace.steps_in("summary") if step.is_fragment]
        assert [text for text in golden.steps["steps"] if text not in short] == whole
        assert texts(trace, "question") == [golden.steps["question"]]
        assert texts(trace, "thinking")[:-1] == golden.steps["steps"][1:5]
        assert texts(trace, "summary") == golden.steps["steps"][5:]
        assert texts(trace, "thinking")[-1] == "Good."
        check_tiling(trace)

    def test_step_starts_are_where_the_authors_inject(
        self, golden: Golden, golden_model: Any
    ) -> None:
        facts = golden.facts
        trace = Trace.from_token_ids(
            golden_model("tiny_gpt_oss"),
            facts["prompt_ids"] + facts["response_ids"],
            prompt_length=len(facts["prompt_ids"]),
            format=FULL_STOP["harmony"],
        )
        starts = [step.start for step in trace.steps_in("thinking")[1:]]
        assert starts == [window[1] for window in facts["smi_windows"]]


class TestTiling:
    @given(parts=token_lists())
    def test_any_tokens(self, tokenizer: Any, split_tokenizer: Any, parts: list[int | str]) -> None:
        for one in (tokenizer, split_tokenizer):
            ids = as_ids(one, parts)
            trace = Trace.from_token_ids(one, ids, format="think", strict=False)
            check_tiling(trace)
            assert trace.text.rstrip("\ufffd") == decode(one, ids).rstrip("\ufffd")

    @given(parts=token_lists(), data=st.data())
    def test_a_prefix_of_a_trace_is_the_trace_of_the_prefix(
        self, tokenizer: Any, parts: list[int | str], data: st.DataObject
    ) -> None:
        ids = as_ids(tokenizer, ["<|im_start|>user\nWhy?", *parts])
        prompt = data.draw(st.integers(5, len(ids)))
        size = data.draw(st.integers(prompt, len(ids)))
        whole, prefix = (
            Trace.from_token_ids(tokenizer, i, prompt_length=prompt, format="think", strict=False)
            for i in (ids, ids[:size])
        )
        assert torch.equal(prefix.step_of_token, whole.step_of_token[:size])
        assert torch.equal(prefix.segment_of_token, whole.segment_of_token[:size])

    def test_the_transcript(self, trace: Trace) -> None:
        assert texts(trace) == [
            "Tom has 3 pens. He buys 4 more.",
            "Tom starts with 3 pens.",
            "Then he has 4 more.",
            "The sum is 7 pens.",
            "Good.",
            "Tom has \\boxed{7} pens.",
            "That is the answer.",
        ]
        assert [step.is_fragment for step in trace.steps] == [False] * 4 + [True] + [False] * 2
        assert trace.text == TRANSCRIPT
        assert trace.ended
        assert trace.answer == "7"
        start, stop = trace.answer_span or (0, 0)
        assert "".join(trace.token_texts[start:stop]) == "7"
        check_tiling(trace)

    def test_one_cut_inside_words_and_characters_is_the_same(
        self, tokenizer: Any, split_tokenizer: Any
    ) -> None:
        text = TRANSCRIPT.replace("The sum is", "数学: the sum ≈")
        one, other = (
            Trace.from_text(t, text, format="think") for t in (tokenizer, split_tokenizer)
        )
        assert "数学: the sum ≈ 7 pens." in texts(one)
        # Before the marker is complete, its first pieces are text of the step that they follow.
        assert texts(other)[-3].startswith("Good.</")
        assert [*texts(other)[:-3], "Good.", *texts(other)[-2:]] == texts(one)


class TestFormats:
    def test_a_format_of_ones_own(self, tokenizer: Any) -> None:
        form = Format(
            name="own", thinking_open="[why]", summary_open="[so]", thinking_cutter="line"
        )
        trace = Trace.from_text(tokenizer, "Add. [why] a. b.\nc\n\n[so] It is 3.", format=form)
        assert texts(trace, "thinking") == ["a. b.", "c\n\n[so"]  # "]" completes the delimiter
        assert texts(trace, "summary") == ["It is 3."]
        assert trace.format_name == "own"

    def test_a_cutter_of_ones_own(self, tokenizer: Any) -> None:
        form = Format(
            name="own",
            thinking_open="<think>",
            summary_open="</think>",
            thinking_cutter=lambda step, token: step.endswith("!"),
        )
        trace = Trace.from_text(tokenizer, "Why?<think>It is! So be it! Yes.</think>", format=form)
        assert texts(trace, "thinking") == ["It is!", "So be it!", "Yes."]

    @pytest.mark.parametrize(
        ("cutter", "count"), [("sentence", 3), ("paragraph", 2), ("line", 3), ("none", 1)]
    )
    def test_cutters(self, tokenizer: Any, cutter: Any, count: int) -> None:
        form = Format(name="own", thinking_open="<think>", thinking_cutter=cutter)
        thinking = "First we count 3.14 pens. Then we\nadd them all up.\n\nThat is the sum."
        trace = Trace.from_text(tokenizer, f"Why?<think>{thinking}", format=form)
        assert len(trace.steps_in("thinking")) == count
        assert "".join(step.text for step in trace.steps_in("thinking")) == thinking

    def test_numbers_do_not_cut(self, tokenizer: Any) -> None:
        trace = Trace.from_text(tokenizer, "Why?<think>1. First of all, pi is 3.14 or so.")
        assert texts(trace, "thinking") == ["1. First of all, pi is 3.14 or so."]

    def test_auto_falls_back_to_plain(self, tokenizer: Any) -> None:
        trace = Trace.from_text(tokenizer, "Why? So it is.", prompt="Why?")
        assert trace.format_name == "plain"
        assert texts(trace) == ["Why?", "So it is."]

    def test_a_template_may_open_the_thinking(self, tokenizer: Any) -> None:
        prompt = "<|im_start|>user\nWhy?<|im_end|>\n<think>\n"
        trace = Trace.from_text(tokenizer, prompt + "Because.</think>Yes.", prompt=prompt)
        assert (texts(trace), trace.format_name) == (["Why?", "Because.", "Yes."], "think")

    def test_a_template_may_close_the_thinking(self, tokenizer: Any) -> None:
        prompt = "<|im_start|>user\nWhy?<|im_end|>\n<think>\n\n</think>\n\n"
        trace = Trace.from_text(tokenizer, prompt + "Yes.", prompt=prompt)
        assert (texts(trace), len(trace.thinking)) == (["Why?", "Yes."], 0)

    def test_earlier_turns_may_hold_thinking(self, tokenizer: Any) -> None:
        prompt = (
            "<|im_start|>user\nWhy?<|im_end|>\n<think>Hm.</think>So.<|im_end|>\n"
            "<|im_start|>user\nAnd why is that?<|im_end|>\n<|im_start|>assistant\n"
        )
        trace = Trace.from_text(tokenizer, prompt + "<think>It is.</think>Yes.", prompt=prompt)
        assert texts(trace) == ["And why is that?", "It is.", "Yes."]

    def test_the_prompt_may_speak_of_the_delimiter(self, tokenizer: Any) -> None:
        prompt = "<|im_start|>user\nWhat does <think> do?<|im_end|>\n"
        trace = Trace.from_text(tokenizer, prompt + "<think>It opens.</think>Yes.", prompt=prompt)
        assert texts(trace) == ["What does <think> do?", "It opens.", "Yes."]
        assert trace.prompt_length == len(encode(tokenizer, prompt))


class TestOddTranscripts:
    def test_no_delimiter(self, tokenizer: Any) -> None:
        message = "'auto' expects one of \\['<think>', .* in the text.*pass prompt="
        with pytest.raises(TraceError, match=message):
            Trace.from_text(tokenizer, "Why? So it is.")
        ids = encode(tokenizer, "Why? So it is.")
        with pytest.raises(TraceError, match=r"expects '<think>' before the thinking.*hold none"):
            Trace.from_token_ids(tokenizer, ids)
        with pytest.raises(TraceError, match=r"expects '<think>' before the thinking"):
            Trace.from_token_ids(tokenizer, ids, prompt_length=2, format="think")
        trace = Trace.from_token_ids(tokenizer, ids, strict=False)
        assert (len(trace.question), trace.answer) == (len(ids), None)
        check_tiling(trace)

    @pytest.mark.parametrize("between", ["", "\n", "\n\n\n", " "])
    def test_empty_thinking(self, tokenizer: Any, between: str) -> None:
        trace = Trace.from_text(tokenizer, f"Why?<think>{between}</think>Yes.")
        assert texts(trace) == ["Why?", "Yes."]
        assert trace.steps_in("thinking") == ()
        check_tiling(trace)

    def test_thinking_that_never_closes(self, tokenizer: Any) -> None:
        trace = Trace.from_text(tokenizer, "Why?<think>Because it is so")
        assert (texts(trace), len(trace.summary)) == (["Why?", "Because it is so"], 0)
        assert not trace.ended

    def test_a_second_closing_delimiter_is_text(self, tokenizer: Any) -> None:
        trace = Trace.from_text(tokenizer, "Why?<think>Because.</think>Yes.</think>No.")
        assert texts(trace, "summary") == ["Yes.</think>No."]

    def test_nothing_after_the_delimiter(self, tokenizer: Any) -> None:
        trace = Trace.from_text(tokenizer, "Why?<think>")
        assert texts(trace) == ["Why?"]
        assert (len(trace.thinking), len(trace.summary)) == (0, 0)

    def test_text_after_the_end_token_is_frame(self, tokenizer: Any) -> None:
        trace = Trace.from_text(tokenizer, TRANSCRIPT + "More text. \\boxed{8}")
        assert texts(trace)[-1] == "That is the answer."
        assert trace.ended
        check_tiling(trace)

    def test_a_trace_inside_the_question(self, tokenizer: Any) -> None:
        ids = encode(tokenizer, TRANSCRIPT)
        trace = Trace.from_token_ids(tokenizer, ids, prompt_length=len(ids), strict=False)
        assert (len(trace.question), len(trace.steps)) == (len(ids), 1)
        check_tiling(trace)

    def test_one_token(self, tokenizer: Any) -> None:
        trace = Trace.from_token_ids(tokenizer, [65], prompt_length=1, format="plain")
        assert len(trace) == len(trace.steps) == 1
        check_tiling(trace)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            ([1.5, 2.5], "whole numbers, got \\[1.5, 2.5\\]"),
            ([-1], "token ids from 0, got \\[-1\\]"),
            ([2**70], "token ids of a vocabulary, got"),
            ("abc", "whole numbers, got \\['a', 'b', 'c'\\]"),
            ([[1, 2]], "whole numbers, got \\[\\[1, 2\\]\\]"),
        ],
    )
    def test_what_is_no_token_id(self, tokenizer: Any, ids: Any, message: str) -> None:
        with pytest.raises(TraceError, match=message):
            Trace.from_token_ids(tokenizer, ids)

    @pytest.mark.parametrize("ids", [[], torch.tensor([], dtype=torch.long)])
    def test_no_tokens(self, tokenizer: Any, ids: Any) -> None:
        with pytest.raises(TraceError, match="expected at least one token, got none"):
            Trace.from_token_ids(tokenizer, ids)

    def test_empty_text(self, tokenizer: Any) -> None:
        with pytest.raises(TraceError, match="found none"):
            Trace.from_text(tokenizer, "")
        with pytest.raises(TraceError, match="at least one token"):
            Trace.from_text(tokenizer, "", prompt="")

    @pytest.mark.parametrize("length", [0, -1, 9])
    def test_prompt_length_out_of_range(self, tokenizer: Any, length: int) -> None:
        with pytest.raises(TraceError, match=f"between 1 and the 8 tokens.*got {length}"):
            Trace.from_token_ids(tokenizer, list(range(8)), prompt_length=length)

    @pytest.mark.usefixtures("unchecked")
    def test_a_batch(self, tokenizer: Any) -> None:
        with pytest.raises(TraceError, match=r"one sequence.*got shape \[2, 4\]"):
            Trace.from_token_ids(tokenizer, torch.ones(2, 4, dtype=torch.long))

    def test_text_that_does_not_start_with_the_prompt(self, tokenizer: Any) -> None:
        with pytest.raises(TraceError, match="must start with the prompt 'Who'"):
            Trace.from_text(tokenizer, "Why?", prompt="Who")

    def test_ids_beyond_the_vocabulary(self, tokenizer: Any) -> None:
        ids = [*encode(tokenizer, TRANSCRIPT), len(tokenizer) + 5]
        check_tiling(Trace.from_token_ids(tokenizer, ids))

    def test_tensors_with_and_without_a_batch_axis(self, tokenizer: Any, trace: Trace) -> None:
        for ids in (trace.token_ids, trace.tokens, trace.token_ids.tolist()):
            assert Trace.from_token_ids(tokenizer, ids) == trace

    def test_no_box(self, tokenizer: Any) -> None:
        trace = Trace.from_text(tokenizer, "Why \\boxed{1}?<think>Because.</think>So.")
        assert (trace.answer, trace.answer_span) == (None, None)

    def test_the_answer_is_the_last_closed_box(self, tokenizer: Any) -> None:
        text = "Why?<think>\\boxed{1}</think>So \\boxed{\\frac{7}{8}} or \\boxed{9"
        trace = Trace.from_text(tokenizer, text)
        assert trace.answer == "\\frac{7}{8}"
        start, stop = trace.answer_span or (0, 0)
        assert "\\frac{7}{8}" in "".join(trace.token_texts[start:stop])


class TestFiles:
    def test_round_trip(self, trace: Trace, tmp_path: Path) -> None:
        kept = trace.with_metadata(seed=3, note="≈", nested={"a": [1, None]})
        kept.save(tmp_path / "trace.safetensors")
        loaded = Trace.load(tmp_path / "trace.safetensors")
        assert loaded == kept != trace
        assert loaded.metadata["nested"] == {"a": [1, None]}
        assert torch.equal(loaded.step_of_token, trace.step_of_token)

    def test_a_truncated_file(self, trace: Trace, tmp_path: Path) -> None:
        path = tmp_path / "trace.safetensors"
        trace.save(path)
        whole = path.read_bytes()
        for size in (0, 4, 100, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(TraceError, match=r"not a readable .*Trace file \(truncated\?\)"):
                Trace.load(path)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no stepflow_tl.Trace file at .*none"):
            Trace.load(tmp_path / "none")

    def test_a_foreign_file(self, tmp_path: Path) -> None:
        save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
        with pytest.raises(TraceError, match=r"expected a stepflow_tl.Trace file of version 1"):
            Trace.load(tmp_path / "x.safetensors")
        with pytest.raises(TraceError, match="another kind of safetensors file"):
            Trace.load(DATA / "token_saliency.safetensors")

    def test_its_repr_says_sizes(self, trace: Trace) -> None:
        assert repr(trace) == (
            "Trace(86 tokens: question 28, thinking 34, summary 24; 7 steps; ended=True)"
        )


def test_a_trace_without_a_prompt_is_saved_too(tokenizer: Any, tmp_path: Path) -> None:
    trace = Trace.from_text(tokenizer, "<think>\nSo it is.\n</think>\n\nYes.")
    trace.save(tmp_path / "trace.safetensors")
    assert Trace.load(tmp_path / "trace.safetensors") == trace


@pytest.mark.parametrize(
    "change",
    [
        {"token_ids": [1, 2]},
        {"prompt_length": -1},
        {"prompt_length": 10**6},
        {"steps": [{"index": 0, "segment": "thinking", "start": 0, "stop": 10**6, "text": ""}]},
        {"segments": []},
        {"read_as": {}},
        {"read_as": {"name": "unknown"}},
        {"token_ids": None},
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_description_that_does_not_fit_together_is_refused(trace: Trace, change: Any) -> None:
    with pytest.raises(TraceError):
        Trace.from_dict({**trace.to_dict(), **change})
