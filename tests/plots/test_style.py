from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.text import Text

from stepflow_tl.errors import SettingError
from stepflow_tl.plots import read_facts, save_figure
from stepflow_tl.plots.style import literal, percent, signed, wrapped
from stepflow_tl.version import __version__


@given(st.text())
def test_literal_text_is_never_mathtext(text):
    shown = Text(0, 0, literal(text))
    drawn, is_math = shown._preprocess_math(shown.get_text())
    assert not is_math
    assert drawn.count("$") == text.count("$")
    assert drawn.isprintable()


@given(st.text(), st.integers(4, 40), st.integers(1, 4))
def test_wrapped_text_keeps_its_width_and_lines(text, width, lines):
    rows = wrapped(text, width, lines=lines).split("\n")
    assert len(rows) <= lines
    assert all(len(row.replace(r"\$", "$")) <= width for row in rows)


def test_a_flow_breaks_before_its_plus():
    flow = "OddsEqualBridge(tau_max=0.05) + StepMomentum(alpha=0.06)"
    assert wrapped(flow) == "OddsEqualBridge(tau_max=0.05)\n+ StepMomentum(alpha=0.06)"
    assert wrapped("a + b") == "a + b"


@pytest.mark.parametrize(
    ("points", "text"), [(2.04, "+2.0"), (-1.26, "−1.3"), (-0.01, "0.0"), (float("nan"), "–")]
)
def test_differences_carry_their_sign(points, text):
    assert signed(points) == text


def test_percent():
    assert (percent(0.7321), percent(float("nan"))) == ("73.2", "–")


FACTS = {"settings": {"tau_max": 0.15, "text": "a) \\ (b\n\u4e2d $x$"}, "n": 60, "models": None}


def picture(path: Path, facts: dict | None) -> list[Path]:
    figure, ax = plt.subplots()
    ax.plot([1, 2], [3, 4])
    return save_figure(figure, path, formats=("png", "pdf", "svg"), facts=facts)


def test_a_picture_says_what_it_was_made_of(tmp_path) -> None:
    files = picture(tmp_path / "one", FACTS)
    assert [read_facts(file) for file in files[:2]] == [FACTS, FACTS]
    for file in files:
        data = file.read_bytes()
        assert f"stepflow_tl {__version__}".encode() in data
        assert b"CreationDate" not in data and b"<dc:date>" not in data
    again = picture(tmp_path / "two", dict(reversed(FACTS.items())))
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    other = picture(tmp_path / "three", FACTS | {"n": 61})
    assert all(a.read_bytes() != b.read_bytes() for a, b in zip(files, other, strict=True))


def test_a_picture_without_facts(tmp_path) -> None:
    files = picture(tmp_path / "one", None)
    assert [read_facts(file) for file in files[:2]] == [{}, {}]
    with pytest.raises(SettingError, match="expected a .png or .pdf file, got 'one.svg'"):
        read_facts(files[2])
