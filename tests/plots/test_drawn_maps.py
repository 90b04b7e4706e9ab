import pytest
from pictures import is_drawn, texts

from stepflow_tl import compare_groups, diagnose, step_saliency, token_saliency
from stepflow_tl.plots import (
    figure_layer_curves,
    figure_step_flow,
    figure_token_and_step_maps,
    plot_step_flow,
    plot_step_map,
    plot_token_map,
    save_figure,
)

PRICED = "costs $5 and $6 \\frac{"


@pytest.fixture
def step_map(qwen2, trace):
    return step_saliency(qwen2, trace)


def test_a_step_map_hides_what_lies_above_the_diagonal(step_map):
    ax = step_map.band("shallow").plot(title="shallow")
    (image,) = ax.images
    drawn = image.get_array()
    assert drawn.mask[0, 1] and not drawn.mask[1, 0]
    assert (ax.get_title(), ax.get_xlabel()) == ("shallow", "key step (source)")
    assert is_drawn(ax.get_figure())


def test_a_shared_scale_is_kept(step_map):
    assert plot_step_map(step_map, vmax=0.5).images[0].norm.vmax == 0.5


def test_arcs_run_from_sources_to_readers(step_map):
    strong = plot_step_flow(step_map, strongest=1, least_share=0.0)
    assert len(strong.patches) == len(step_map.steps) - 1
    assert len(plot_step_flow(step_map, least_share=1.1).patches) == 0


def test_a_token_map_marks_segments(qwen2, trace):
    scores = token_saliency(qwen2, trace).mean(0)
    assert is_drawn(plot_token_map(scores, trace).get_figure())


@pytest.mark.slow
def test_the_papers_figures(qwen2, trace, step_map):
    tokens = token_saliency(qwen2, trace).mean(0)
    example = {"correct": (tokens, trace, step_map), "wrong": (tokens, trace, step_map)}
    assert is_drawn(figure_token_and_step_maps(example))
    assert is_drawn(figure_step_flow({"correct": step_map}))
    tables = [diagnose(step_map)] * 4
    comparison = compare_groups(tables, correct=[True, False] * 2, problems=[0, 0, 1, 1])
    curves = figure_layer_curves(comparison, n_layers=4)
    assert is_drawn(curves)
    (key,) = curves.legends
    lines = [(line.get_marker(), line.get_linestyle()) for line in key.legend_handles]
    assert lines == [("o", "-"), ("s", "--")]  # not by color alone


@pytest.mark.parametrize("form", ["png", "pdf", "svg"])
def test_equal_data_gives_equal_bytes(step_map, tmp_path, form):
    files = [
        save_figure(figure_step_flow({"x": step_map}), tmp_path / name, formats=[form])[0]
        for name in ("a", "b")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_trace_of_one_step_can_be_drawn(qwen2, tokenizer):
    from stepflow_tl import Trace

    ids = tokenizer("Tom has 3 pens.")["input_ids"]
    trace = Trace.from_token_ids(tokenizer, ids, prompt_length=len(ids), format="plain")
    assert len(trace.steps) == 1
    assert is_drawn(figure_step_flow({"one": step_saliency(qwen2, trace)}))


def written(figure):
    """What stands in a figure, as a reader sees it."""
    drawn = [text._preprocess_math(text.get_text()) for text in texts(figure)]
    assert not any(is_math for _, is_math in drawn)
    return [line for text, _ in drawn for line in text.split("\n")]


@pytest.mark.parametrize("title", [PRICED, f"step 3:\n{PRICED}", "a $x$ b", "$\\alpha"])
def test_a_steps_text_is_drawn_as_it_stands(qwen2, trace, step_map, title):
    scores = token_saliency(qwen2, trace).mean(0)
    for ax in (
        step_map.plot(title=title),
        plot_token_map(scores, trace, title=title),
        plot_step_flow(step_map, title=title),
    ):
        assert is_drawn(ax.get_figure())
        assert set(title.split("\n")) <= set(written(ax.get_figure()))


def test_names_of_examples_are_drawn_as_they_stand(qwen2, trace, step_map):
    scores = token_saliency(qwen2, trace).mean(0)
    lines = written(figure_token_and_step_maps({PRICED: (scores, trace, step_map)}))
    assert {f"{PRICED}: tokens", f"{PRICED}: steps"} <= set(lines)
    lines = written(figure_step_flow({PRICED: step_map}))
    assert any(line.startswith(f"{PRICED}, shallow layers") for line in lines)
