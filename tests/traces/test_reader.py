"""Reading token by token: text streams, delimiters, and that no later token changes a label."""

from typing import Any

import pytest
from helpers import TRANSCRIPT, as_ids, decode, encode, token_lists
from hypothesis import given
from hypothesis import strategies as st

from stepflow_tl.traces.formats import HARMONY, PLAIN, THINK, Format
from stepflow_tl.traces.reader import TraceReader
from stepflow_tl.traces.tokens import FRAME, TextStream, special_ids


class Pieces:
    """A tokenizer of the given tokens."""

    eos_token_id = None
    all_special_ids = ()

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces
        self.added_tokens_decoder: dict[int, Any] = {}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(self.pieces[i] for i in ids)


def read(tokenizer: Any, ids: list[int], form: Format = THINK, **options: Any) -> TraceReader:
    reader = TraceReader(tokenizer, form, **options)
    for token_id in ids:
        reader.push(token_id)
    return reader


@given(text=st.text(max_size=30))
def test_streamed_text_is_the_decoded_text(tokenizer: Any, text: str) -> None:
    ids = encode(tokenizer, text)
    stream = TextStream(tokenizer)
    assert "".join(stream.push(i) for i in ids) == decode(tokenizer, ids).rstrip("\ufffd")


@given(parts=token_lists())
def test_streamed_text_of_any_tokens_is_their_text(tokenizer: Any, parts: list[int | str]) -> None:
    ids = as_ids(tokenizer, parts)
    stream = TextStream(tokenizer)
    streamed = "".join(stream.push(i) for i in ids)
    assert streamed.rstrip("\ufffd") == decode(tokenizer, ids).rstrip("\ufffd")


def test_a_split_character_comes_with_the_token_that_completes_it(tokenizer: Any) -> None:
    ids = encode(tokenizer, "a≈b")
    stream = TextStream(tokenizer)
    assert [stream.push(i) for i in ids] == ["a", "", "", "≈", "b"]


def test_bytes_that_never_become_text_do_not_wait_forever(tokenizer: Any) -> None:
    invalid = tokenizer.get_vocab()["ÿ"]  # the byte 0xff
    stream = TextStream(tokenizer)
    texts = [stream.push(invalid) for _ in range(20)]
    assert "".join(texts) + stream.push(encode(tokenizer, "a")[0]) == "\ufffd" * 20 + "a"


@pytest.mark.parametrize("prompt", [1, 5, None])
@given(parts=token_lists(), data=st.data())
def test_a_prefix_is_labeled_as_in_the_whole(
    tokenizer: Any,
    split_tokenizer: Any,
    prompt: int | None,
    parts: list[int | str],
    data: st.DataObject,
) -> None:
    for one in (tokenizer, split_tokenizer):
        ids = as_ids(one, parts)
        end_ids = frozenset({one.eos_token_id})
        prompt_length = None if prompt is None else min(prompt, len(ids))
        whole = read(one, ids, prompt_length=prompt_length, end_ids=end_ids)
        size = data.draw(st.integers(prompt_length or 1, len(ids)))
        prefix = read(one, ids[:size], prompt_length=prompt_length, end_ids=end_ids)
        assert prefix.texts == whole.texts[:size]
        if prompt_length is not None or prefix.question_tokens is not None:
            assert prefix.labels == whole.labels[:size]


@given(parts=token_lists())
def test_segments_never_go_back_and_steps_count_up(tokenizer: Any, parts: list[int | str]) -> None:
    reader = read(tokenizer, as_ids(tokenizer, parts), prompt_length=1)
    segments = [label.segment for label in reader.labels]
    steps = [label.step for label in reader.labels if label.step != FRAME]
    assert segments == sorted(segments)
    assert steps == sorted(steps)
    assert set(steps) <= set(range(len(steps) + 2))


@pytest.mark.parametrize("glue", ["", " ", "\n\n"])
def test_markers_split_over_tokens_are_found(split_tokenizer: Any, glue: str) -> None:
    assert len(encode(split_tokenizer, "<think>")) > 1
    text = f"What is 1?<think>{glue}One is one.</think>{glue}It is one."
    reader = read(split_tokenizer, encode(split_tokenizer, text))
    texts = {0: "", 1: "", 2: ""}
    for label, token in zip(reader.labels, reader.texts, strict=True):
        texts[label.segment] += token
    assert texts[1].strip().startswith("One is one.")
    assert texts[2].strip() == "It is one."


def test_a_marker_inside_a_larger_token_is_found() -> None:
    pieces = ("Why?", "<think>\n", "So it is.", " It is.</think>", "\n\nYes", "</think>.")
    reader = read(Pieces(*pieces), [0, 1, 2, 3, 4, 5])
    assert [label.segment for label in reader.labels] == [0, 0, 1, 1, 2, 2]
    assert [label.step for label in reader.labels] == [0, FRAME, 1, FRAME, 2, 2]


@pytest.mark.parametrize("pieces", [("Why", "?<think>", "So it is."), ("?<think>So", " it is.")])
def test_a_question_may_share_its_last_token_with_the_delimiter(pieces: tuple[str, ...]) -> None:
    reader = read(Pieces(*pieces), list(range(len(pieces))))
    assert reader.labels[-1] == (1, 1)


def test_special_ids_include_unnamed_ones(tokenizer: Any) -> None:
    names = {tokenizer.decode([i]) for i in special_ids(tokenizer)}
    assert names == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}


def test_a_long_delimiter_is_found(tokenizer: Any) -> None:
    opening = "[" + "-" * 400 + "]"
    form = Format(name="long", thinking_open=opening)
    reader = read(tokenizer, encode(tokenizer, f"Why?{opening}So it is."), form)
    assert reader.labels[-1].segment == 1


def test_an_unmeasured_prompt_needs_an_opening_delimiter(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="'plain' has no opening delimiter.*got None"):
        TraceReader(tokenizer, PLAIN)


def test_headers_are_frame(golden_model: Any) -> None:
    tokenizer = golden_model("tiny_gpt_oss").tokenizer
    text = (
        "<|start|>user<|message|>He buys 4.<|end|><|start|>assistant<|channel|>analysis<|message|>"
        "He has 3.<|end|><|start|>assistant<|channel|>final<|message|>The answer is 7."
    )
    reader = read(tokenizer, encode(tokenizer, text), HARMONY)
    kept = [
        text for text, label in zip(reader.texts, reader.labels, strict=True) if label.step != FRAME
    ]
    assert "".join(kept) == "He buys 4.He has 3.The answer is 7."


def test_a_second_analysis_goes_on_thinking(golden_model: Any) -> None:
    tokenizer = golden_model("tiny_gpt_oss").tokenizer
    text = (
        "<|start|>user<|message|>He buys 4.<|end|><|start|>assistant<|channel|>analysis<|message|>"
        "He has 3.<|end|><|start|>assistant<|channel|>analysis<|message|>He buys 4.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>The answer is 7."
    )
    reader = read(tokenizer, encode(tokenizer, text), HARMONY)
    steps: dict[tuple[int, int], str] = {}
    for token, label in zip(reader.texts, reader.labels, strict=True):
        if label.step != FRAME:
            steps[label] = steps.get(label, "") + token
    assert steps == {
        (0, 0): "He buys 4.",
        (1, 1): "He has 3.",
        (1, 2): "He buys 4.",
        (2, 3): "The answer is 7.",
    }


def test_the_end_token_ends_only_the_response(tokenizer: Any) -> None:
    ids = encode(tokenizer, TRANSCRIPT + "More text.")
    reader = read(tokenizer, ids, end_ids=frozenset({tokenizer.eos_token_id}))
    last = max(i for i, label in enumerate(reader.labels) if label.step != FRAME)
    assert reader.ended
    assert "".join(reader.texts[: last + 1]).endswith("That is the answer.")


@pytest.mark.parametrize(
    "pieces",
    [
        ["Q?", "<th", "ink", "></", "think", ">", "It is 7."],  # Llama 3's tokens
        ["Q?", "<th", "ink", ">\n\n", "</", "think", ">\n\n", "It is 7."],
        ["Q?", "<think></think>", "It is 7."],
    ],
)
def test_a_thinking_of_nothing_whose_delimiters_are_split_is_closed(pieces):
    reader = TraceReader(None, THINK, prompt_length=1)
    for piece in pieces:
        reader.read(piece)
    assert reader.closed
    assert (reader.parts.thinking, reader.parts.answer) == ("", "It is 7.")
    assert {label.segment for label in reader.labels if label.step != FRAME} <= {0, 2}
