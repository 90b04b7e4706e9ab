"""Somebody else's step boundaries, and what they say of steps."""

import re
from pathlib import Path
from typing import Any

import pytest
from helpers import encode
from hypothesis import given
from hypothesis import strategies as st

from stepflow_tl.errors import TraceError
from stepflow_tl.traces.cuts import labels_of_steps, tokens_at
from stepflow_tl.traces.trace import Step, Trace

TEXT = "Why?<think>\nTom has 3 pens. He buys 4, so 7!</think>\n\nIt is 7."


def texts(trace: Trace) -> list[str]:
    return [step.text.strip() for step in trace.steps]


def at(*words: str) -> list[int]:
    return [TEXT.index(word) for word in words]


def test_characters_say_where_steps_begin(tokenizer: Any, split_tokenizer: Any) -> None:
    for each in (tokenizer, split_tokenizer):
        trace = Trace.from_text(each, TEXT, cuts=at("Tom", "3", "buys", "so 7", "is 7"))
        assert [text for text in texts(trace) if not text.startswith("so 7")] == [
            *("Why?", "Tom has", "3 pens. He", "buys 4,", "It", "is 7."),
        ]
        assert trace.read_as["thinking_cutter"] == "given"


def test_a_space_before_a_cut_goes_either_way(tokenizer: Any) -> None:
    word, space = TEXT.index("He"), TEXT.index(" He")
    one, other = (Trace.from_text(tokenizer, TEXT, cuts=[place]) for place in (word, space))
    assert one == other


def test_tokens_say_where_steps_begin(tokenizer: Any) -> None:
    ids = encode(tokenizer, TEXT)
    whole = Trace.from_token_ids(tokenizer, ids)
    places = [step.start + 1 for step in whole.steps_in("thinking")]
    trace = Trace.from_token_ids(tokenizer, ids, cuts=places)
    starts = [step.start for step in trace.steps_in("thinking")]
    assert starts == [whole.steps_in("thinking")[0].start, *places]


@given(cuts=st.sets(st.integers(0, len(TEXT) - 1)))
def test_any_cuts_tile(tokenizer: Any, cuts: set[int]) -> None:
    trace = Trace.from_text(tokenizer, TEXT, cuts=sorted(cuts))
    assert trace.segments == Trace.from_text(tokenizer, TEXT).segments
    tiled = [token for step in trace.steps for token in range(step.start, step.stop)]
    assert tiled == sorted(set(tiled))
    assert trace.parts == Trace.from_text(tokenizer, TEXT).parts


def test_labels_are_kept_saved_and_loaded(tokenizer: Any, tmp_path: Path) -> None:
    labels = [{"kind": "problem_setup"}, {"kind": "active_computation", "importance": 0.25}]
    trace = Trace.from_text(tokenizer, TEXT, cuts=at("Tom", "He"), labels=labels)
    assert [step.labels for step in trace.steps_in("thinking")] == labels
    assert trace.steps[0].labels == {}
    trace.save(tmp_path / "trace.safetensors")
    loaded = Trace.load(tmp_path / "trace.safetensors")
    assert loaded == trace
    assert loaded.steps[2].labels == labels[1]
    more = loaded.with_labels({1: {"importance": 0.5}, 3: {"kind": "final_answer_emission"}})
    assert more.steps[1].labels == {"kind": "problem_setup", "importance": 0.5}
    assert more.steps[3].labels == {"kind": "final_answer_emission"}
    assert more != loaded
    table = more.to_dataframe()
    assert table["kind"].tolist()[1:] == [
        *("problem_setup", "active_computation", "final_answer_emission"),
    ]
    assert table["text"].tolist() == [step.text for step in trace.steps]
    with pytest.raises(TraceError, match=r"labels of the steps 0 to 3, got some of \[4\]"):
        loaded.with_labels({4: {}})


def test_labels_may_be_unhashable_and_steps_are_hashable() -> None:
    assert len({Step(0, "thinking", 0, 1, "a", {"of": [1]})}) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cuts": [5, 5]}, "cuts that go up from 0 to below the {size} characters, got [5, 5]"),
        ({"cuts": [9, 4]}, "got [9, 4]"),
        ({"cuts": [-1]}, "got [-1]"),
        ({"cuts": [10_000]}, "got [10000]"),
        ({"cuts": [1, 2], "labels": [{}]}, "labels for 2 cuts, got 1"),
        ({"labels": [{}]}, "expected cuts= beside labels=, got None"),
    ],
)
def test_wrong_cuts_are_explained(tokenizer: Any, settings: dict, message: str) -> None:
    with pytest.raises(TraceError, match=re.escape(message.format(size=len(TEXT)))):
        Trace.from_text(tokenizer, TEXT, **settings)


def test_text_that_its_tokens_do_not_say_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens that say 2; pass cuts of tokens"):
        tokens_at(["ab"], "abc", [1])


def test_where_a_cut_lies_in_a_token() -> None:
    assert tokens_at(["One", " two", ". Th", "ree"], "One two. Three", [0, 3, 4, 9]) == [0, 1, 1, 3]
    assert tokens_at(["a ", " "], "a  ", [1]) == [2]


def test_labels_of_what_goes_on() -> None:
    assert labels_of_steps([-1, 0, -1, 1], [0, 1, 3], [{"a": 1}, {"b": 2}, {"c": 3}]) == {
        0: {"a": 1, "b": 2},
        1: {"c": 3},
    }
    assert labels_of_steps([-1], [0], [{"a": 1}]) == {}
