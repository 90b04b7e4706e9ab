"""Which segment a step lies in: told by color, lightness, marker and word."""

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from small_maps import SENTENCES, map_of_length, step_map, steps_of

from stepflow_tl.plots import SEGMENT_COLORS, SEGMENT_MARKERS, plot_step_flow, plot_step_map
from stepflow_tl.plots.segments import STRIP_WIDTH, segment_legend, segments_of_steps
from stepflow_tl.traces.formats import SEGMENTS
from stepflow_tl.traces.trace import Segment

SIGHT = {  # linear RGB as others see it: Machado, Oliveira and Fernandes (2009), severity 1
    "trichromat": np.eye(3),
    "protanope": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranope": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanope": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lightness(color, sight):
    """CIE L* of a color, which is also what gray print keeps of it."""
    channels = np.array(to_rgb(color))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(sight) @ linear, 0, 1)
    return 116 * np.cbrt(seen @ [0.2126, 0.7152, 0.0722]) - 16


@pytest.mark.parametrize("sight", SIGHT)
def test_segments_differ_in_lightness_to_every_eye(sight):
    values = sorted(lightness(color, SIGHT[sight]) for color in SEGMENT_COLORS.values())
    assert np.diff(values).min() > 14
    assert values[-1] < 85  # and from the paper


def test_segments_have_names_colors_and_markers_of_their_own():
    assert tuple(SEGMENT_COLORS) == tuple(SEGMENT_MARKERS) == tuple(SEGMENTS)
    assert len(set(SEGMENT_MARKERS.values())) == 3


def test_steps_of_one_segment_are_one_span():
    spans = segments_of_steps(steps_of(SENTENCES, summary=2))
    assert spans == [
        Segment("question", 0, 1),
        Segment("thinking", 1, 3),
        Segment("summary", 3, 5),
    ]
    assert segments_of_steps([]) == []


def legend_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize("draw", [plot_step_map, plot_step_flow])
def test_a_legend_names_the_segments_that_are_drawn(draw):
    assert legend_of(draw(step_map(SENTENCES))) == ["question", "thinking", "summary"]
    assert legend_of(draw(step_map(SENTENCES, summary=0))) == ["question", "thinking"]
    assert draw(step_map(SENTENCES), legend=False).get_legend() is None


def test_the_legend_shows_the_marker_of_each_segment():
    _, ax = plt.subplots()
    segment_legend(ax, steps_of(SENTENCES))
    shown = [(line.get_color(), line.get_marker()) for line in ax.get_legend().legend_handles]
    assert shown == list(zip(SEGMENT_COLORS.values(), SEGMENT_MARKERS.values(), strict=True))


def strips(ax, along):
    """The strips along an axis."""
    wide = [line for line in ax.get_children() if isinstance(line, Line2D)]
    wide = [line for line in wide if line.get_linewidth() == STRIP_WIDTH]
    return [line for line in wide if np.ptp(line.get_xydata()[:, "xy".index(along)])]


@pytest.mark.parametrize(("draw", "along"), [(plot_step_map, "xy"), (plot_step_flow, "x")])
def test_a_strip_along_each_axis_covers_the_steps_of_its_segment(draw, along):
    ax = draw(step_map(SENTENCES, summary=2))
    for i, axis in enumerate("xy"):
        spans = [(s.get_color(), *s.get_xydata()[:, i]) for s in strips(ax, axis)]
        ends = [(-0.5, 0.5), (0.5, 2.5), (2.5, 4.5)] if axis in along else []
        colors = list(SEGMENT_COLORS.values())[: len(ends)]
        assert spans == [(color, *end) for color, end in zip(colors, ends, strict=True)]


@pytest.mark.parametrize("draw", [plot_step_map, plot_step_flow])
def test_a_segments_name_stands_in_its_strip_where_it_fits(draw):
    few = [text.get_text() for text in draw(step_map(SENTENCES)).texts]
    assert set(few) == {"question", "thinking", "summary"}
    many = [text.get_text() for text in draw(map_of_length(300)).texts]
    assert "thinking" in many and "question" not in many


@pytest.mark.parametrize("draw", [plot_step_map, plot_step_flow])
@pytest.mark.parametrize("count", [5, 12, 23, 60])
def test_a_name_in_a_strip_stays_inside_it(draw, count):
    ax = draw(map_of_length(count))
    ax.figure.draw_without_rendering()
    for text in ax.texts:
        along = "y" if text.get_rotation() else "x"
        color = SEGMENT_COLORS[text.get_text()]
        (strip,) = (one for one in strips(ax, along) if one.get_color() == color)
        ends = strip.get_transform().transform(strip.get_xydata())
        wide = STRIP_WIDTH / 2 * ax.figure.dpi / 72
        across = [wide, 0] if along == "y" else [0, wide]
        name = text.get_window_extent()
        assert (name.min >= ends.min(0) - across).all() and (name.max <= ends.max(0) + across).all()
