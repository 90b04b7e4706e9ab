"""Boxes, and what of a response is graded."""

import pytest

from stepflow_tl.traces.answers import ResponseParts, last_boxed
from stepflow_tl.traces.formats import AUTO_FORMAT, HARMONY, PLAIN, THINK, Format
from stepflow_tl.traces.reader import read_response

BOX = r"So \boxed{a}."


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{7}", "7"),
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{a{b}c} {d}", "a{b}c"),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"{ \boxed{4}", "4"),
        (r"} \boxed{5} }", "5"),
        (r"\boxed{}", ""),
        (r"\boxed{6", None),
        ("no box {7}", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, content: str | None) -> None:
    span = last_boxed(text)
    assert (None if span is None else text[slice(*span)]) == content


@pytest.mark.parametrize(
    ("text", "form", "thinking", "answer", "closed"),
    [
        ("<think>\nIt is.\n</think>\n\nYes.<|im_end|>", AUTO_FORMAT, "It is.", "Yes.", True),
        ("It is.\n</think>\n\nYes.", AUTO_FORMAT, "It is.", "Yes.", True),
        ("<think>It is.", AUTO_FORMAT, "It is.", "", False),
        ("It is.", AUTO_FORMAT, "It is.", "", False),
        ("It is.", PLAIN, "It is.", "", False),
        ("a</think>b</think>c", AUTO_FORMAT, "a", "b</think>c", True),
        ("<think>a<think>b</think>c", AUTO_FORMAT, "a\nb", "c", True),
        ("<think></think>\n\nYes.", AUTO_FORMAT, "", "Yes.", True),
        ("<think>It is.</think>\n", AUTO_FORMAT, "It is.", "", True),
        ("", AUTO_FORMAT, "", "", False),
        ("  <thin", AUTO_FORMAT, "<thin", "", False),
        ("<thing> is", AUTO_FORMAT, "<thing> is", "", False),
        ("[a]b", Format(name="own", thinking_open="[", summary_open="]"), "a", "b", True),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary "
            "to=functions.f<|message|>{}<|call|><|start|>functions.f to=assistant<|channel|>"
            "commentary<|message|>7<|end|><|start|>assistant<|channel|>analysis<|message|>So."
            "<|end|><|start|>assistant<|channel|>final json<|message|>{7}<|return|>",
            AUTO_FORMAT,
            "Hm.\nSo.",
            "{7}",
            True,
        ),
        ("<|channel|>final<|message|>Yes.", HARMONY, "", "Yes.", True),
    ],
)
def test_parts_of_a_text(text, form, thinking, answer, closed):
    parts = read_response(text, form)
    assert (parts.thinking, parts.answer, parts.closed) == (thinking, answer, closed)


def test_delimiters_in_ordinary_text_are_kept():
    """Text in which no delimiter completes is all there."""
    assert read_response("</thin k> <|x", THINK).thinking == "</thin k> <|x"


@pytest.mark.parametrize(
    ("parts", "graded", "of"),
    [
        (ResponseParts(thinking="a", answer="b", closed=True), "b", " of the answer"),
        (ResponseParts(thinking="", answer="b", closed=True), "b", ""),
        (ResponseParts(thinking=BOX, answer="It is 7.", closed=True), "It is 7.", " of the answer"),
        (
            ResponseParts(thinking=BOX, answer="So it is.", closed=True),
            BOX,
            " of the thinking, which no answer follows,",
        ),
        (
            ResponseParts(thinking="a", answer=" ", closed=True),
            "a",
            " of the thinking, which no answer follows,",
        ),
        (
            ResponseParts(thinking="a", answer="", closed=False),
            "a",
            " of a response whose thinking never closed",
        ),
        (ResponseParts(thinking="a", answer="", closed=False, expected=False), "a", ""),
    ],
)
def test_what_is_graded(parts, graded, of):
    assert (parts.graded, parts.of_graded) == (graded, of)
    assert parts.said == (parts.answer if parts.closed else parts.thinking)


@pytest.mark.parametrize(
    "unit", [" ", "<", "</s>", "<|im_end|>", "<think>", "</think>", "<|end|>", "<|channel|>", "to="]
)
@pytest.mark.slow
def test_long_hostile_text_is_read(unit):
    """Text of any kind is read in one go; untrusted, it may be made to take long."""
    parts = read_response(unit * (300_000 // len(unit)))
    assert len(parts.thinking) + len(parts.answer) <= 300_000


def test_end_tokens_are_no_text():
    assert read_response("Yes. </s> \n<|im_end|>\n").thinking == "Yes."
    assert read_response("Yes</s> no").thinking == "Yes</s> no"
