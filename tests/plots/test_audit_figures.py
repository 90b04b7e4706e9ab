"""Figures of audits, planted failures and the closed loop: drawn, equal, and never markup."""

import pytest
import small_tables as tables
from pictures import is_drawn, texts
from small_tables import HOSTILE

from stepflow_tl import plots

MADE = {
    "figure_audit": lambda: (
        {"reasoner": tables.audited(), "other": tables.audited(("a", "b", "c"))},
    ),
    "figure_planted": tables.planted,
    "figure_closed_loop": tables.closed_loop,
}


@pytest.mark.parametrize("name", MADE)
def test_equal_tables_give_equal_bytes(name, tmp_path) -> None:
    files = []
    for place in "ab":
        figure = getattr(plots, name)(*MADE[name]())
        assert is_drawn(figure)
        files.append(plots.save_figure(figure, tmp_path / place, formats=("png", "pdf")))
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


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
    accused, loops = tables.closed_loop()
    with pytest.raises(ValueError, match="figure_closed_loop expects a row per loop.*empty"):
        plots.figure_closed_loop(accused, loops.iloc[:0])
