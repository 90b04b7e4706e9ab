"""Which layers a diagnosis accuses, by hand."""

import pandas as pd
import pytest

from stepflow_tl.analysis.bands import accuse_band
from stepflow_tl.errors import SettingError

HEALTHY = [0.9, 0.8, 0.2, 0.3, 0.2]
SICK = [0.9, 0.8, 0.5, 0.5, 0.2]


def diagnosis(values: list[float], measure: str = "lock_in") -> pd.DataFrame:
    return pd.DataFrame({"layer": range(len(values)), measure: values})


def test_by_itself_the_highest_window_is_accused() -> None:
    band = accuse_band([diagnosis(SICK)], width=2)
    assert band.layers == (0, 1)
    assert band.evidence["accused"].tolist() == [True, True, False, False, False]


def test_against_a_healthy_model_the_change_is() -> None:
    band = accuse_band(
        [diagnosis(SICK)], width=2, against="reference", reference=[diagnosis(HEALTHY)]
    )
    assert band.layers == (2, 3)
    assert band.evidence["worse"].tolist() == pytest.approx([0.0, 0.0, 0.3, 0.2, 0.0])


def test_wrong_traces_against_correct_ones() -> None:
    tables = [diagnosis(SICK), diagnosis(HEALTHY), diagnosis(HEALTHY)]
    band = accuse_band(tables, width=2, against="correct", correct=[False, True, True])
    assert band.layers == (2, 3)


def test_a_share_that_a_failure_lowers() -> None:
    tables = [diagnosis([0.5, 0.1, 0.6], "question_share")]
    assert accuse_band(tables, width=1, measure="question_share").layers == (1,)


def test_layers_where_it_is_undefined_are_no_window() -> None:
    nan = float("nan")
    assert accuse_band([diagnosis([nan, 0.2, 0.3, nan, 0.9])], width=2).layers == (1, 2)
    with pytest.raises(SettingError, match="expected traces in which 'lock_in' is defined"):
        accuse_band([diagnosis([nan, nan])], width=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"measure": "mood"}, "expected measure in .* got 'mood'"),
        ({"against": "time"}, "expected against in .* got 'time'"),
        ({"width": 9}, "a width within its layers, got 1 and width=9"),
        ({"against": "reference"}, "expected reference= for against='reference', got none"),
        (
            {"against": "reference", "reference": [diagnosis(SICK)] * 2},
            "expected diagnoses of the same 1 traces and layers .* got 2",
        ),
        ({"against": "correct", "correct": [True]}, "both kinds among them, got 1 correct of 1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit(settings, message) -> None:
    with pytest.raises(SettingError, match=message):
        accuse_band([diagnosis(SICK)], **({"width": 2} | settings))
