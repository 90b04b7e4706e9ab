"""Steps named by their words: cut readably, whatever the words are."""

import re
import warnings
from itertools import pairwise

import matplotlib as mpl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from small_maps import CHINESE, HOSTILE, SENTENCES, step, steps_of

from stepflow_tl.plots import labels
from stepflow_tl.plots.labels import step_label, steps_with_room, text_width
from stepflow_tl.plots.style import STYLE, drawable


def test_a_label_is_the_number_and_the_words():
    assert step_label(step(" Then he buys\n4 more. "), 200.0) == "3 · Then he buys 4 more."
    assert step_label(step("Let me see.", kind="plan"), 200.0) == "3 plan · Let me see."
    assert step_label(step(" \n"), 200.0) == "3"


@pytest.mark.parametrize("text", SENTENCES)
@pytest.mark.parametrize("length", [60.0, 90.0, 140.0])
@pytest.mark.parametrize("lines", [1, 2, 3])
def test_a_label_is_cut_at_a_word(text, length, lines):
    rows = step_label(step(text), length, lines=lines).split("\n")
    assert len(rows) <= lines and all(text_width(row) <= length for row in rows)
    shown = " ".join(rows).removeprefix("3 · ")
    if shown != text.strip():
        assert shown.endswith("…")
        assert re.match(re.escape(shown[:-1]) + r"\W", text.strip())


def test_what_has_no_words_to_cut_at_is_cut_all_the_same():
    label = step_label(step("https://example.org/" + "a" * 300), 100.0)
    assert re.fullmatch(r"3 · https://example\.org/a*…", label)
    assert 80 < text_width(label) <= 100
    kind = step_label(step("Is it so?", kind="uncertainty_management"), 110.0, lines=2)
    assert kind == "3 uncertainty_management\nIs it so?"


@given(st.text(), st.floats(40, 150), st.integers(1, 4))
def test_any_text_stays_within_its_room(text, length, lines):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no installed font")
        label = step_label(step(text, kind=text[:3]), length, lines=lines)
    drawn, is_math = Text(0, 0, label)._preprocess_math(label)
    assert not is_math
    rows = drawn.split("\n")
    assert len(rows) <= lines
    assert all(row.isprintable() and text_width(row) <= length for row in rows)


@pytest.mark.filterwarnings("ignore:no installed font")
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_no_taller_than_its_lines(text):
    with mpl.rc_context(STYLE):
        figure = mpl.figure.Figure()
        label = step_label(step(text), 100.0)
        shown = figure.text(0, 0, label, fontproperties=labels._FONT)
        assert shown.get_window_extent().height * 72 / figure.dpi <= labels.LABEL_PITCH


@pytest.fixture
def with_all_letters(monkeypatch):
    """As if a font with Chinese letters were installed."""
    monkeypatch.setattr(labels, "drawable", lambda text: text)


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("text", CHINESE, ids=range(len(CHINESE)))
def test_chinese_may_be_cut_between_any_two_letters_but_not_before_punctuation(
    with_all_letters, text
):
    for length in range(50, 150, 7):
        rows = step_label(step(text), float(length), lines=2).split("\n")
        assert all(text_width(row) <= length for row in rows)
        if len(rows) == 2:
            assert rows[1][0] not in "，。？" and text_width(rows[0]) > length - 30


def test_letters_that_no_font_has_are_replaced_and_named_once():
    unknown = "\U000e0100\ue123 \ue124 word"
    with pytest.warns(UserWarning, match=r"no installed font has some letters .* Noto Sans CJK"):
        label = step_label(step(unknown), 200.0)
    assert label.endswith("� word")
    assert drawable("Tom = é") == "Tom = é"


def test_a_text_of_any_length_is_cut_at_once():
    assert step_label(step("\n" * 10**6 + "word " * 10**6), 60.0).startswith("3 · word")


def places(count):
    return [float(i) for i in range(count)]


def gaps(chosen):
    return [b - a for a, b in pairwise(chosen)]


@pytest.mark.parametrize("count", [1, 2, 5, 60, 300])
@pytest.mark.parametrize("gap", [0.3, 1.0, 1.7, 8.0])
def test_steps_that_have_room(count, gap):
    steps = steps_of(["x"] * count, summary=count // 10)
    chosen = steps_with_room(steps, places(count), gap)
    assert chosen[0] == 0 and all(distance >= gap for distance in gaps(chosen))
    assert set(chosen) == set(range(count)) or gap > 1
    starts = [i for i in range(1, count) if steps[i].segment != steps[i - 1].segment]
    assert all(min(abs(i - other) for other in chosen) < gap for i in starts)
    assert max(gaps(chosen), default=0) <= 5 * max(1, gap)


def test_no_steps_have_no_labels():
    assert steps_with_room([], [], 1.0) == []


def test_the_first_steps_of_segments_and_the_last_step_come_first():
    chosen = steps_with_room(steps_of(["x"] * 60, summary=7), places(60), 2.0)
    assert {0, 53, 59} <= set(chosen) and 52 not in chosen
