"""Delimiters, cutters by name and user turns, on plain text."""

import json
import re
from dataclasses import replace

import pytest
from helpers import cut as cut_tokens

from stepflow_tl.traces.cutters import CUTTERS, new_cutter
from stepflow_tl.traces.formats import (
    AUTO_FORMAT,
    FORMATS,
    HARMONY,
    THINK,
    USER_TURNS,
    Format,
    named_format,
    question_span,
)
from stepflow_tl.traces.fragments import is_fragment


def cut(text: str, cutter: str, pattern: str = r" ?[^\s]+|\s+") -> list[str]:
    """Cut text whose tokens are words with the space before them."""
    return cut_tokens(re.findall(pattern, text), cutter)


@pytest.mark.parametrize("pattern", [r"\s?\S+|\s", r".|\n", r"\s+|\S{1,3}", r"\W*\w+\W*"])
def test_every_cutter_keeps_all_text(pattern: str) -> None:
    text = "Tom has 3 pens.  He buys 4.\n\nSo he has many pens now.\nGood. \n \nThe end is here."
    for cutter in CUTTERS:
        assert "".join(cut(text, cutter, pattern)) == text


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("Tom has three pens. He buys four.", ["Tom has three pens.", " He buys four."]),
        ("The value is 3.14 in all of this. So.", ["The value is 3.14 in all of this.", " So."]),
        ("1. First we count the pens. Done", ["1. First we count the pens.", " Done"]),
        ("Good. Fine. Now count the pens. So", ["Good. Fine. Now count the pens.", " So"]),
        ("12345678901234567890. Then count. So", ["12345678901234567890. Then count.", " So"]),
        ("It is done here.\n\nSo be it.", ["It is done here.\n\n", "So be it."]),
        ("Is it done here? It is! And so on", ["Is it done here? It is! And so on"]),
        ("This has no stop\n\nand goes on", ["This has no stop\n\nand goes on"]),
    ],
)
def test_full_stops(text: str, steps: list[str]) -> None:
    assert cut(text, "full_stop") == steps


@pytest.mark.parametrize(
    ("cutter", "steps"),
    [
        ("sentence", ["One two three four.", " Five\nsix seven eight.\n\n", "Nine."]),
        ("full_stop", ["One two three four.", " Five\nsix seven eight.\n\n", "Nine."]),
        ("anchors", ["One two three four.", " Five\nsix seven eight.\n\n", "Nine."]),
        ("paragraph", ["One two three four. Five\nsix seven eight.\n\n", "Nine."]),
        ("line", ["One two three four. Five\n", "six seven eight.\n\n", "Nine."]),
        ("none", ["One two three four. Five\nsix seven eight.\n\nNine."]),
    ],
)
def test_cutters_differ_as_named(cutter: str, steps: list[str]) -> None:
    text = "One two three four. Five\nsix seven eight.\n\nNine."
    assert cut(text, cutter) == steps


def test_a_blank_line_may_hold_blanks() -> None:
    assert cut("One.\n \t\nTwo.", "paragraph", r"\s+|\S+") == ["One.\n \t\n", "Two."]


def test_a_leading_space_may_complete_a_blank_line_of_the_token_itself() -> None:
    for cutter, step, cuts in (
        ("paragraph", "One.\n", True),
        ("line", "One.", True),
        ("paragraph", "One.", False),
    ):
        decide = new_cutter(cutter)
        decide.open(step)
        assert decide.push("\nTwo") == cuts


@pytest.mark.parametrize("cutter", ["line", "paragraph"])
def test_the_break_that_opened_a_step_does_not_cut_it_again(cutter: str) -> None:
    assert cut("One two\n\nthree four", cutter, r"\s*\S+") == ["One two", "\n\nthree four"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("Good.", True), ("a" * 9, True), ("a" * 10, False), ("1" * 20 + ".", True), ("", True)),
        *(("\u597d\u7684\u3002", True), ("\u597d\u7684\u597d\u597d\u3002", False)),
    ],
)
def test_fragments(text: str, expected: bool) -> None:
    assert is_fragment(text) is expected
    assert is_fragment(f"  {text}\n") is expected


@pytest.mark.parametrize(("opening", "closing"), USER_TURNS)
def test_the_question_is_the_last_user_turn(opening: str, closing: str) -> None:
    prompt = f"system {opening}old{closing} reply {opening}What is 1?{closing} go"
    assert prompt[slice(*question_span(prompt))] == "What is 1?"


@pytest.mark.parametrize(
    "prompt",
    [
        "<s>[INST] Why?[/INST]",
        "<s>[INST] Why? [/INST]",
        "<s>[INST]Why?[/INST]",
        "<|user|>\nWhy?<|end|>\n<|assistant|>\n",
        "<|user|>Why?<|end|><|assistant|>",
        "<|endoftext|><|user|>\nWhy?\n<|assistant|>\n",
        "<|im_start|>user<|im_sep|>Why?<|im_end|><|im_start|>assistant<|im_sep|>",
    ],
)
def test_space_of_the_template_is_no_part_of_the_question(prompt: str) -> None:
    assert prompt[slice(*question_span(prompt))] == "Why?"


def test_the_question_of_an_unknown_template_is_the_whole_prompt() -> None:
    assert question_span("What is 1?") == (0, 10)
    assert question_span("") == (0, 0)


def test_an_unclosed_user_turn_runs_to_the_end() -> None:
    prompt = "<|im_start|>user\nWhat is 1?"
    assert prompt[slice(*question_span(prompt))] == "What is 1?"


def test_formats_resolve_by_name_and_as_themselves() -> None:
    own = Format(name="own", thinking_open="[", summary_open="]")
    assert named_format(own) is own
    assert all(named_format(name) is form for name, form in FORMATS.items())
    assert named_format("auto") is AUTO_FORMAT


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown format 'thought': expected 'auto', one of \["):
        named_format("thought")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"thinking_open": ""}, "'f': thinking_open must be text or None, got ''"),
        ({"summary_open": ""}, "summary_open must be text or None"),
        ({"thinking_open": "|", "summary_open": "|"}, "both '|'; the two delimiters must differ"),
        ({"name": "auto", "thinking_open": "<"}, "'auto' is decided by the text: expected no"),
        ({"header_open": ("<",)}, "header_open and header_close go together"),
        ({"header_close": ">"}, "header_open and header_close go together"),
        ({"thinking_cutter": "word"}, r"unknown cutter 'word': expected one of ['sentence'"),
        ({"summary_cutter": "word"}, "unknown cutter 'word'"),
    ],
)
def test_bad_formats_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Format(**{"name": "f"} | settings)


def test_a_format_is_frozen_and_keyword_only() -> None:
    with pytest.raises(AttributeError):
        THINK.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        Format("f")  # type: ignore[call-arg]


def three_words(step: str, token: str) -> bool:
    return step.count(" ") >= 3


OWN = Format(name="own", thinking_open="[", summary_open="]", header_open=("<",), header_close=">")


@pytest.mark.parametrize(
    "form", [*FORMATS.values(), AUTO_FORMAT, OWN, replace(THINK, thinking_cutter="line")]
)
def test_a_format_is_made_again_from_its_description(form: Format) -> None:
    described = json.loads(json.dumps(form.describe()))
    assert Format.from_description(described) == form


def test_a_callers_own_cutter_cannot_be_made_again_and_is_named() -> None:
    described = replace(THINK, summary_cutter=three_words).describe()
    with pytest.raises(
        ValueError, match=r"'think' was cut .* own test_formats\.three_words.*format="
    ):
        Format.from_description(described)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "unheard of"}, "expected one of the formats .* got 'unheard of'"),
        ({}, "expected the description of a format, got {}"),
        ({"name": "think", "cutter": "line"}, "expected the description of a format"),
    ],
)
def test_other_descriptions_are_refused(spec: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Format.from_description(spec)


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("<|channel|>analysis<|message|>", "thinking"),
        ("<|start|>assistant<|channel|>analysis<|message|>", "thinking"),
        ("<|channel|>final<|message|>", "summary"),
        ("<|channel|>final <|constrain|>json<|message|>", "summary"),
        ("<|channel|>final<|constrain|>json<|message|>", "summary"),
        ("<|channel|>final json<|message|>", "summary"),
        ("<|start|>assistant<|message|>", "summary"),
        ("<|channel|>commentary<|message|>", None),
        ("<|channel|>finally<|message|>", None),
        ("<|channel|>analysis to=python code<|message|>", None),
        ("<|channel|>commentary to=functions.add <|constrain|>json<|message|>", None),
        ("<|start|>assistant to=functions.add<|channel|>commentary<|message|>", None),
        ("<|start|>functions.add to=assistant<|channel|>commentary<|message|>", None),
        ("<|start|>python<|channel|>analysis<|message|>", None),
        ("<|start|>user<|message|>", None),
    ],
)
def test_a_header_says_what_its_message_is(header: str, kind: str | None) -> None:
    assert HARMONY.message_kind(header) == kind
