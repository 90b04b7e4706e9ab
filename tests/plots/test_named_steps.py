"""Maps and arcs name their steps by words, without a crowd, on as many scales as there are."""

from dataclasses import replace

import pytest
from matplotlib import pyplot as plt
from pictures import color_bars, crowded, is_drawn, step_names, texts
from small_maps import CHINESE, HOSTILE, SENTENCES, map_of_length, step_map

from stepflow_tl import step_saliency, token_saliency
from stepflow_tl.plots import (
    figure_step_flow,
    figure_step_maps,
    figure_token_and_step_maps,
    plot_step_flow,
    plot_step_map,
    plot_token_map,
    save_figure,
)

DRAWN = {
    "step map": lambda one: plot_step_map(one, title="a map").figure,
    "arcs": lambda one: plot_step_flow(one, title="arcs").figure,
    "step flow": lambda one: figure_step_flow({"one": one}),
    "step maps": lambda one: figure_step_maps({"before": one, "after": one}),
}
TRACES = {
    "5 steps": map_of_length(5),
    "23 steps": map_of_length(23),
    "60 steps": map_of_length(60),
    "300 steps": map_of_length(300),
    "hostile": step_map(HOSTILE),
    "Chinese": step_map(CHINESE * 5),
}
each_figure = pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
no_font = pytest.mark.filterwarnings("ignore:no installed font", "ignore:Glyph")


@no_font
@each_figure
@pytest.mark.parametrize("one", TRACES.values(), ids=TRACES)
@pytest.mark.slow
def test_names_neither_overlap_nor_leave_the_figure(draw, one):
    assert crowded(draw(one)) == []


@pytest.mark.parametrize("count", [5, 23, 60])
@pytest.mark.parametrize("inches", [(11.5, 4.6), (14.5, 4.2), (4.0, 3.4)])
def test_nor_do_they_in_axes_of_ones_own(count, inches):
    columns = max(1, int(inches[0] / 4.5))
    figure, axes = plt.subplots(1, columns, figsize=inches, layout="constrained", squeeze=False)
    for ax in axes.flat:
        plot_step_map(map_of_length(count), ax=ax, title="a map")
    assert crowded(figure) == []


@pytest.mark.parametrize("along", ["x", "y"])
def test_a_map_names_its_steps_by_number_and_words(along):
    names = step_names(plot_step_map(step_map(SENTENCES)), along)
    assert names[0].startswith("0 · Tom starts with")
    assert names[2:5:2] == ["2 · Wait, is that right?", "4 · So it is 3 + 4 = 7."]


def test_arcs_name_their_steps_by_number_and_words():
    names = step_names(plot_step_flow(step_map(SENTENCES)), "x")
    assert names[1] == "1 · Then he buys four more, so that the sum is seven."


def test_many_steps_are_named_sparsely_in_words_and_it_is_said():
    ax = plot_step_map(map_of_length(300))
    for along, label in (("x", ax.get_xlabel()), ("y", ax.get_ylabel())):
        names = step_names(ax, along)
        assert 10 <= len(names) < 40
        assert all(name.split(" · ")[1][:3] in " ".join(SENTENCES) for name in names)
        assert names[-1].startswith("299 · ") and any(name.startswith("270 · ") for name in names)
        assert label.endswith(f"{len(names)} of 300 named")
    assert "named" not in plot_step_map(map_of_length(5)).get_xlabel()


def test_a_steps_kind_stands_before_its_words():
    one = step_map(SENTENCES)
    planned = replace(one, steps=tuple(replace(s, labels={"kind": "plan"}) for s in one.steps))
    assert step_names(plot_step_map(planned), "y")[1].startswith("1 plan · Then he")


@no_font
def test_hostile_words_are_drawn_as_they_stand():
    shown = texts(plot_step_map(step_map(HOSTILE)).figure)
    drawn = [text._preprocess_math(text.get_text()) for text in shown]
    assert not any(is_math for _, is_math in drawn)
    assert any(text.startswith("0 · $\\frac{x}$ costs $5") for text, _ in drawn)


def test_a_token_map_names_steps_at_their_tokens(qwen2, trace):
    ax = plot_token_map(token_saliency(qwen2, trace).mean(0), trace)
    for along, ticks in (("x", ax.get_xticks()), ("y", ax.get_yticks())):
        for name, tick in zip(step_names(ax, along), ticks, strict=True):
            step = trace.steps[int(name.split(" · ")[0])]
            assert step.start <= tick < step.stop
            assert name.split(" · ")[1][:3] in step.text
    assert ax.get_xlabel().startswith(f"key token (of {len(trace)}), by step")
    assert crowded(ax.figure) == []


def test_maps_on_one_scale_share_one_color_bar():
    one = step_map(SENTENCES)
    shares = one.normalize("row")
    assert color_bars(figure_step_flow({"a": one, "b": one})) == ["share of the reader's saliency"]
    figure = figure_step_maps({"a": shares, "b": shares, "c": shares, "d": shares})
    assert color_bars(figure) == ["share of the reader's saliency"]
    scales = {(ax.images[0].norm.vmin, ax.images[0].norm.vmax) for ax in figure.axes if ax.images}
    assert len(scales) == 1
    assert color_bars(figure_step_maps({"a": one})) == ["saliency"]


def test_maps_on_several_scales_have_a_color_bar_each_which_says_so(qwen2, trace):
    one = step_map(SENTENCES)
    figure = figure_step_maps({"raw": one, "shares": one.normalize("row")})
    assert color_bars(figure) == [
        "saliency, on a scale of its own",
        "share of the reader's saliency, on a scale of its own",
    ]
    assert crowded(figure) == [] and is_drawn(figure)
    tokens = token_saliency(qwen2, trace).mean(0)
    example = (tokens, trace, step_saliency(qwen2, trace))
    figure = figure_token_and_step_maps({"correct": example, "wrong": example})
    assert color_bars(figure) == [
        "token maps: share of the reader's saliency",
        "step maps: share of the reader's saliency",
    ]
    assert crowded(figure) == []


def test_steps_that_maps_share_are_named_once():
    one, other = step_map(SENTENCES), step_map(SENTENCES[::-1])
    maps = figure_step_maps({"a": one, "b": one, "c": other}).axes[:3]
    assert [len(step_names(ax, "y")) for ax in maps] == [5, 0, 5]
    assert [len(step_names(ax, "x")) for ax in maps] == [5, 5, 5]
    assert crowded(maps[0].figure) == []
    left, right = figure_step_flow({"a": one}).axes[:2]
    assert [len(step_names(ax, "y")) for ax in (left, right)] == [5, 0]


def test_no_map_is_no_figure():
    with pytest.raises(ValueError, match="expects a title and a map at least, got none"):
        figure_step_maps({})


@no_font
@pytest.mark.parametrize("form", ["png", "pdf", "svg"])
@pytest.mark.slow
def test_equal_maps_give_equal_bytes(form, tmp_path):
    for draw in DRAWN.values():
        files = [
            save_figure(draw(TRACES["hostile"]), tmp_path / name, formats=[form])[0]
            for name in "ab"
        ]
        assert files[0].read_bytes() == files[1].read_bytes()
