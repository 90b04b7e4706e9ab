"""Contrasts of correct and wrong responses: by hand, and by simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import linregress

from stepflow_tl.analysis import contrast, controlled_difference
from stepflow_tl.errors import SettingError


def rows_of(**arms):
    """Pairs (correct, wrong) of each problem, by arm."""
    return pd.DataFrame(
        [
            {"arm": arm, "problem": number, "correct": side == 0, "value": value}
            for arm, pairs in arms.items()
            for number, pair in enumerate(pairs)
            for side, value in enumerate(pair)
        ]
    )


def test_a_contrast_by_hand():
    """Contrasts 2, 1, 4 and 1: no flip of signs but none and all goes as far, 2 of 16."""
    table = contrast(rows_of(a=[(3, 1), (2, 1), (5, 1), (2, 1)], b=[(1, 1)] * 4))
    first, second = table.to_dict("records")
    assert (first["arm"], first["n"]) == ("a", 4)
    assert (first["correct"], first["wrong"], first["contrast"]) == (3.0, 1.0, 2.0)
    assert first["correct_low"] < 3.0 < first["correct_high"]
    assert first["wrong_low"] == first["wrong_high"] == 1.0
    assert 1.0 <= first["contrast_low"] < 2.0 < first["contrast_high"] <= 4.0
    assert first["p_value"] == 2 / 16 and first["p_holm"] == 4 / 16
    assert second["contrast"] == 0.0 and second["p_value"] == second["p_holm"] == 1.0


def test_responses_of_a_problem_are_averaged_first():
    twice = pd.concat([rows_of(a=[(3, 1), (4, 4)]), rows_of(a=[(7, 1)])])
    assert contrast(twice)["correct"].tolist() == [(5 + 4) / 2]


def test_what_is_not_there_is_said():
    rows = rows_of(a=[(3, 1), (2, 1)], b=[(1, 1)] * 2)
    with pytest.raises(SettingError, match=r"expected columns .* got no \['value'\]"):
        contrast(rows.drop(columns="value"))
    with pytest.raises(SettingError, match="got 6 of 8; none of arm 'a', problem 1, correct False"):
        contrast(rows[(rows["problem"] == 0) | rows["correct"]])
    with pytest.raises(SettingError, match="got 7 of 8; none of arm 'b', problem 1, correct False"):
        contrast(rows.iloc[:-1])
    with pytest.raises(SettingError, match="got 0 of 0"):
        contrast(rows.iloc[:0])


def test_a_controlled_difference_by_hand():
    """y = 1 + 2 u - v: two responses of equal length and loss differ by 1."""
    controls = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [-1.0, 3.0], [0.5, 0.5], [1.0, 2.0]])
    found = controlled_difference(1.0 + controls @ [2.0, -1.0], controls)
    assert found.n == 6
    assert found.controlled == pytest.approx((1.0, 1.0, 1.0))
    assert found.difference.value == pytest.approx(1.0 + 2.0 * 3.5 / 6 - 7.5 / 6)


def test_an_intercept_is_scipys():
    generator = np.random.default_rng(0)
    x = generator.normal(0.5, 1.0, size=40)
    y = 0.3 + 0.7 * x + generator.normal(0.0, 0.5, size=40)
    found = controlled_difference(y, x[:, None])
    reference = linregress(x, y)
    assert found.controlled.value == pytest.approx(reference.intercept)
    half = 1.96 * reference.intercept_stderr
    assert found.controlled.high - found.controlled.low == pytest.approx(2 * half, rel=0.2)
    assert found.p_value < 0.05


def test_undefined_ones_are_left_out_and_too_few_say_nothing(unchecked):
    y, x = np.array([1.0, np.nan, 2.0, 0.5]), np.zeros((4, 1))
    found = controlled_difference(y, x)
    assert found.n == 3 and np.isnan(found.controlled.value) and np.isnan(found.p_value)
    with pytest.raises(SettingError, match="expected controls of 4 problems, got those of 3"):
        controlled_difference(y, x[:3])


def test_a_true_null_is_rejected_rarely_and_covered_mostly():
    """What drives the measure is the control, which differs between correct and wrong."""
    generator = np.random.default_rng(0)
    rejected, covered, trials = 0, 0, 300
    for trial in range(trials):
        x = generator.normal(0.5, 1.0, size=(40, 2))
        y = x @ [0.8, -0.4] + generator.standard_t(4, size=40)
        found = controlled_difference(y, x, seed=trial, resamples=400)
        rejected += found.p_value <= 0.05
        covered += found.controlled.low <= 0.0 <= found.controlled.high
    assert rejected / trials < 0.05 + 2 * np.sqrt(0.05 * 0.95 / trials)
    assert covered / trials > 0.90


def test_values_that_are_none_are_refused():
    rows = pd.concat([rows_of(a=[(3, 1), (2, 1)])] * 2)
    for column, hole in (("value", np.nan), ("value", np.inf), ("problem", np.nan)):
        holed = rows.astype({column: float}).reset_index(drop=True)
        holed.loc[0, column] = hole
        with pytest.raises(SettingError, match=f"expected finite values .*'{column}'"):
            contrast(holed)
    with pytest.raises(SettingError, match="expected a column of arms .* got 'contrast'"):
        contrast(rows.rename(columns={"arm": "contrast"}), arm="contrast")


def test_one_problem_has_no_interval():
    row = contrast(rows_of(a=[(3, 1)])).iloc[0]
    assert row["contrast"] == 2.0
    assert row[["contrast_low", "contrast_high"]].isna().all()


def test_a_control_that_never_differs_leaves_the_intercept_open():
    y = np.random.default_rng(0).normal(size=20)
    found = controlled_difference(y, np.ones((20, 1)))
    assert found.n == 20 and np.isnan(found.controlled.value) and np.isnan(found.p_value)
    with pytest.raises(SettingError, match="expected finite differences and controls"):
        controlled_difference(np.append(y[1:], np.inf), np.ones((20, 1)))
