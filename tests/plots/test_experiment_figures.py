"""What holds for every figure of an experiment."""

import numpy as np
import pandas as pd
import pytest
import small_tables as tables
from matplotlib import pyplot as plt
from matplotlib.collections import PathCollection
from pictures import is_drawn, texts
from small_tables import HOSTILE

from stepflow_tl import plots

FIGURES = {
    "figure_arms": (tables.comparison, "arm"),
    "figure_strategies": (tables.strategies, "strategy"),
    "figure_layer_ablation": (tables.layer_ablation, "component"),
    "figure_strengths": (tables.strengths, None),
    "figure_compute": (tables.compute, "arm"),
    "figure_difficulty_gain": (tables.difficulty, "group"),
    "figure_error_kinds": (tables.error_kinds, "kind"),
    "figure_contrasts": (tables.contrasts, "arm"),
    "figure_controlled": (tables.controlled, "rule"),
}
each_figure = pytest.mark.parametrize("name", FIGURES)


def draw(name, table=None):
    return getattr(plots, name)(FIGURES[name][0]() if table is None else table)


@each_figure
def test_equal_tables_give_equal_bytes(name, tmp_path):
    first, second = (
        plots.save_figure(draw(name), tmp_path / file, formats=("png", "pdf")) for file in "ab"
    )
    assert plt.imread(first[0])[..., :3].std() > 0.02
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@each_figure
def test_one_row_is_enough(name):
    table = FIGURES[name][0]()
    if name == "figure_arms":
        table = table[table["group"] == "all"]
    draw(name, table.iloc[:1]).draw_without_rendering()


@each_figure
def test_an_unknown_interval_draws_no_bar(name):
    table = FIGURES[name][0]()
    for column in table.columns:
        if column.endswith(("_low", "_high")):
            table[column] = np.nan
    draw(name, table).draw_without_rendering()


@each_figure
def test_an_empty_table_and_a_missing_column_are_named(name):
    table = FIGURES[name][0]()
    with pytest.raises(ValueError, match=f"{name} expects a row per .*; got an empty table"):
        draw(name, table.iloc[:0])
    lacking = next(c for c in ("difference", "accuracy", "corrected", "contrast") if c in table)
    with pytest.raises(ValueError, match=f"{name} expects .*; missing: {lacking}; got "):
        draw(name, table.drop(columns=lacking))


@pytest.mark.parametrize("name", [name for name, (_, label) in FIGURES.items() if label])
def test_labels_are_text_and_never_markup(name):
    make, label = FIGURES[name]
    table = make().drop(columns="group" if label != "group" else [], errors="ignore").iloc[:1]
    figure = draw(name, table.assign(**{label: HOSTILE}))
    shown = next(text for text in texts(figure) if "frac" in text.get_text())
    drawn, is_math = shown._preprocess_math(shown.get_text())
    assert not is_math and drawn.startswith("$")


def test_published_numbers_stand_apart():
    figure = plots.figure_arms(tables.comparison(), published=tables.published(), title="a $x$ b")
    ours, paper = figure.axes
    assert (
        paper.get_title(loc="left") == plots.PUBLISHED_NOTE and "not ours" in plots.PUBLISHED_NOTE
    )
    assert is_drawn(figure) and len(ours.get_yticks()) == 2
    with pytest.raises(ValueError, match="a row per published number"):
        plots.figure_arms(tables.comparison(), published=pd.DataFrame())


def test_titles_are_text_and_never_markup():
    given = {"title": "costs $5\nand $6 \\frac{", "published_as": "$\\alpha$, not ours"}
    figure = plots.figure_arms(tables.comparison(), published=tables.published(), **given)
    drawn = [text._preprocess_math(text.get_text()) for text in texts(figure)]
    assert {(title, False) for title in given.values()} <= set(drawn)


def test_arms_are_those_of_all_groups_filled_where_significant():
    figure = plots.figure_arms(tables.comparison())
    shown = [text.get_text() for text in texts(figure)]
    assert {"+3.6", "+5.0", "70.0 → 75.0", "100"} <= set(shown)
    with pytest.raises(ValueError, match="arm of group all"):
        plots.figure_arms(tables.comparison(groups=("easy",)))
    table = tables.comparison(groups=("all",)).assign(p_holm=[0.01, 0.5])
    (points,) = (
        c for c in plots.figure_arms(table).axes[0].collections if isinstance(c, PathCollection)
    )
    filled, hollow = points.get_facecolors()[:, :3]
    assert (hollow == 1).all() and not (filled == 1).all()


def test_strengths_say_what_is_significant_baseline_and_the_papers():
    figure = plots.figure_strengths(tables.strengths())
    ax = figure.axes[0]
    assert {"baseline\n73.2", "−4.0 •", "+5.0∗", "+2.0", "–"} <= {t.get_text() for t in ax.texts}
    low, high = ax.images[0].get_clim()
    assert low == -high == pytest.approx(-5.0)
    assert "outlined" in ax.get_title(loc="left")
    without = tables.strengths().query("tau_max != 0.15")
    assert "outlined" not in plots.figure_strengths(without).axes[0].get_title(loc="left")
    with pytest.raises(ValueError, match="tau_max=0.3, alpha=0.06 again"):
        plots.figure_strengths(pd.concat([tables.strengths(), tables.strengths()[-1:]]))


def test_compute_labels_do_not_cover_one_another():
    figure = plots.figure_compute(tables.compute())
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].texts]
    assert len(boxes) == 5
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    with pytest.raises(ValueError, match="compute above 0, got 0"):
        plots.figure_compute(tables.compute().assign(compute=0.0))


def test_only_known_kinds_of_place_and_one_arm():
    with pytest.raises(ValueError, match="expected kinds band and layer, got head"):
        plots.figure_layer_ablation(tables.layer_ablation().assign(kind="head"))
    with pytest.raises(ValueError, match="expects one arm, got OEB only, SMI only"):
        plots.figure_difficulty_gain(tables.comparison())


def test_the_effect_of_repair_on_maps_and_answers(tmp_path):
    def figure():
        return plots.figure_repair_effect(
            tables.layer_changes(), tables.problem_changes(), association={"lock_in": "ρ = $0$"}
        )

    assert is_drawn(figure()) and len(figure().axes) == 4
    assert "broken\nn = 1" in [text.get_text() for text in texts(figure())]
    files = [plots.save_figure(figure(), tmp_path / name)[0] for name in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()
    one = plots.figure_repair_effect(tables.layer_changes()[:1], tables.problem_changes()[:1])
    assert is_drawn(one)
    with pytest.raises(ValueError, match="figure_repair_effect expects a row per measure and prob"):
        plots.figure_repair_effect(tables.layer_changes(), pd.DataFrame())
    with pytest.raises(ValueError, match=r"-1, 0 and 1, got \[2\]"):
        plots.figure_repair_effect(
            tables.layer_changes(), tables.problem_changes().assign(correctness_change=2)
        )
