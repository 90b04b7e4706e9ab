import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from stepflow_tl.plots.style import literal, percent, signed, wrapped


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
