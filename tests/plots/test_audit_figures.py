"""Figures of audits, planted failures and the closed loop: drawn, equal, and never markup."""

import pytest
import small_tables as tables
from matplotlib.figure import Figure
from pictures import is_drawn, texts
from small_maps import SENTENCES, step_map
from small_tables import HOSTILE

from stepflow_tl import plots

MADE = {
    "figure_audit": lambda: (
        {"reasoner": tables.audited(), "other": tables.audited(("a", "b", "c"))},
    ),
    "figure_planted": tables.planted,
    "figure_closed_loop": tables.closed_loop,
    "figure_triggered": tables.triggered,
}


def failure(*models: str, **options: str) -> Figure:
    maps = {model: step_map(SENTENCES).normalize("row") for model in models}
    return plots.figure_failure(maps, *tables.failure(models), planted_in=[1, 2], **options)


@pytest.mark.parametrize("name", MADE)
def test_equal_tables_give_equal_bytes(name, tmp_path) -> None:
    files = []
    for place in "ab":
        figure = getattr(plots, name)(*MADE[name]())
        assert is_drawn(figure)
        files.append(plots.save_figure(figure, tmp_path / place, formats=("png", "pdf")))
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_a_failure_on_one_page(tmp_path) -> None:
    files = []
    for place in "ab":
        figure = failure("reasoner", "locked in", verdict="nothing")
        assert is_drawn(figure)
        shown = [text.get_text() for text in texts(figure)]
        assert {"reasoner", "locked in", "nothing planted: nothing", "seen in the maps"} <= {*shown}
        files += plots.save_figure(figure, tmp_path / place)
    assert files[0].read_bytes() == files[1].read_bytes()
    by_layer, accuracy, unplanted = tables.failure()
    with pytest.raises(ValueError, match="figure_failure expects a title and a map at least"):
        plots.figure_failure({}, by_layer, accuracy, unplanted, planted_in=[1])
    with pytest.raises(ValueError, match="figure_failure expects .*; missing: n; got"):
        plots.figure_failure(
            {"a": step_map(SENTENCES)},
            by_layer,
            accuracy.drop(columns="n"),
            unplanted,
            planted_in=[],
        )


def test_labels_are_text_and_never_markup() -> None:
    audit = tables.audited((HOSTILE, "b", "c"))
    doses, layers, repairs, power = tables.planted()
    repairs["repair"] = [HOSTILE, "b", "c"]
    accused, loops = tables.closed_loop()
    loops["model"] = HOSTILE
    for figure in (
        plots.figure_audit({HOSTILE: audit}),
        plots.figure_planted(doses, layers, repairs, power),
        plots.figure_closed_loop(accused, loops),
        plots.figure_triggered(
            *(t[t["case"] == "none"].assign(case=HOSTILE) for t in tables.triggered())
        ),
        failure(HOSTILE, verdict=HOSTILE),
    ):
        figure.draw_without_rendering()
        shown = [text for text in texts(figure) if "cost" in text.get_text()]
        assert shown
        assert not any(text._preprocess_math(text.get_text())[1] for text in shown)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="figure_audit expects at least one table"):
        plots.figure_audit({})
    doses, layers, repairs, power = tables.planted()
    with pytest.raises(ValueError, match="figure_planted expects .*; missing: p_holm; got"):
        plots.figure_planted(doses, layers, repairs.drop(columns="p_holm"), power)
    answers, predictions = tables.triggered()
    with pytest.raises(ValueError, match="figure_triggered expects .*; missing: side_kl; got"):
        plots.figure_triggered(answers, predictions.drop(columns="side_kl"))
    accused, loops = tables.closed_loop()
    with pytest.raises(ValueError, match="figure_closed_loop expects a row per loop.*empty"):
        plots.figure_closed_loop(accused, loops.iloc[:0])
