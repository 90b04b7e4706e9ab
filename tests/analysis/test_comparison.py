"""A sweep's table: columns by hand, refusals, and error rates by simulation."""

import numpy as np
import pandas as pd
import pytest

from stepflow_tl import compare
from stepflow_tl.analysis import compare_paired, holm

COLUMNS = [
    "arm",
    "n",
    "samples",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "baseline",
    "baseline_low",
    "baseline_high",
    "difference",
    "difference_low",
    "difference_high",
    "fixed",
    "broken",
    "p_value",
    "p_holm",
    "effect_size",
    "test",
]


def sweep(outcomes: dict[str, np.ndarray]) -> pd.DataFrame:
    """Rows of outcomes [problem, sample] per arm; problems belong to two groups."""
    return pd.DataFrame(
        {"arm": name, "problem": p, "seed": s, "correct": bool(value), "group": "ab"[p % 2]}
        for name, table in outcomes.items()
        for p, answers in enumerate(table)
        for s, value in enumerate(answers)
    )


@pytest.fixture
def single() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    return sweep({name: generator.integers(2, size=(30, 1)) for name in ("base", "x", "y")})


def test_one_answer_each_is_mcnemars_case(single):
    table = compare(single, baseline="base")
    assert list(table.columns) == COLUMNS
    assert table["arm"].tolist() == ["x", "y"]
    before, after = (
        single.loc[single["arm"] == name, "correct"].tolist() for name in ("base", "x")
    )
    expected, row = compare_paired(before, after), table.iloc[0]
    assert (row["n"], row["samples"], row["test"]) == (30, 1.0, "McNemar exact")
    assert row[["fixed", "broken", "p_value"]].tolist() == [
        expected.fixed,
        expected.broken,
        expected.p_value,
    ]
    for column, estimate in (
        ("accuracy", expected.after),
        ("baseline", expected.before),
        ("difference", expected.difference),
    ):
        assert row[[column, f"{column}_low", f"{column}_high"]].tolist() == pytest.approx(estimate)
    assert table["p_holm"].to_numpy() == pytest.approx(holm(table["p_value"].to_numpy()))
    assert row["effect_size"] == pytest.approx(
        2 * np.arcsin(np.sqrt(expected.after.value)) - 2 * np.arcsin(np.sqrt(expected.before.value))
    )


def test_several_answers_are_averaged_by_problem():
    base = np.array([[1, 1], [0, 0], [1, 0], [0, 0]])
    arm = np.array([[1, 1], [1, 0], [1, 1], [0, 0]])
    row = compare(sweep({"base": base, "arm": arm}), baseline="base").iloc[0]
    assert row["test"] == "paired sign-flip permutation"
    assert row[["n", "samples", "fixed", "broken"]].tolist() == [4, 2.0, 2, 0]
    assert row[["accuracy", "baseline", "difference"]].tolist() == [0.625, 0.375, 0.25]
    assert row["p_value"] == pytest.approx(0.5)  # two of the four flips of +0.5, +0.5
    assert row["accuracy_low"] < 0.625 < row["accuracy_high"]


def test_arms_may_differ_in_their_number_of_answers():
    generator = np.random.default_rng(0)
    rows = sweep(
        {"base": generator.integers(2, size=(9, 1)), "arm": generator.integers(2, size=(9, 4))}
    )
    row = compare(rows.drop(index=rows.index[-1]), baseline="base").iloc[0]
    assert row["samples"] == pytest.approx(35 / 9)
    assert row["test"] == "paired sign-flip permutation"


def test_groups_come_before_all(single):
    table = compare(single, baseline="base", by="group")
    assert list(table.columns) == [COLUMNS[0], "group", *COLUMNS[1:]]
    assert table["group"].tolist() == ["a", "b", "all"] * 2
    assert table["n"].tolist() == [15, 15, 30] * 2
    whole = compare(single, baseline="base")
    same = [c for c in COLUMNS if c != "p_holm"]
    everyone = table.loc[table["group"] == "all", same].reset_index(drop=True)
    pd.testing.assert_frame_equal(everyone, whole[same])
    assert table["p_holm"].to_numpy() == pytest.approx(holm(table["p_value"].to_numpy()))


def test_the_order_of_rows_and_the_names_of_columns_do_not_matter(single):
    names = {"arm": "tau", "problem": "id", "correct": "right"}
    within = [
        single[single["arm"] == name].sample(frac=1, random_state=0) for name in ["base", "x", "y"]
    ]
    other = pd.concat(within).rename(columns=names).astype({"right": int})
    table = compare(other, baseline="base", arm="tau", problem="id", outcome="right")
    pd.testing.assert_frame_equal(
        table.rename(columns={"tau": "arm"}), compare(single, baseline="base")
    )


def test_equal_arms_differ_by_nothing():
    answers = np.random.default_rng(0).integers(2, size=(30, 3))
    row = compare(sweep({"base": answers, "arm": answers}), baseline="base").iloc[0]
    assert row[["difference", "p_value", "p_holm", "effect_size"]].tolist() == [0.0, 1.0, 1.0, 0.0]
    assert row["difference_low"] < 0.0 < row["difference_high"]


def test_what_cannot_be_compared_is_refused(single):
    def refused(rows: pd.DataFrame, text: str, baseline: str = "base", by: str | None = None):
        with pytest.raises(ValueError, match=text):
            compare(rows, baseline=baseline, by=by)

    refused(single.drop(columns="seed"), r"got none named \['seed'\]")
    refused(single.iloc[:0], "got no rows")
    refused(single.assign(correct=np.nan), "got 90 empty in 'correct'")
    refused(single.assign(correct=0.5), r"expected outcomes 0 and 1 in 'correct', got \[0.5\]")
    refused(single, r"got baseline 'none' and arms \['base', 'x', 'y'\]", "none")
    refused(single[single["arm"] == "base"], r"got baseline 'base' and arms \['base'\]")
    refused(pd.concat([single, single.iloc[:2]]), "got 2 again, the first: {'arm': 'base'")
    refused(single.drop(index=single.index[[-1, -2, 3]]), r"30 .* \{'base': 1, 'y': 2\}")
    refused(single.assign(group=single["arm"]), "in one group, got problem 0 in", by="group")
    refused(single.assign(group="all"), "other than 'all'", by="group")


@pytest.mark.usefixtures("many_tables")
def test_holm_keeps_the_familys_error_rate():
    """Four arms that do nothing, two answers each: how often is any found to differ?"""
    generator = np.random.default_rng(0)
    any_single = any_holm = 0
    for _ in range(200):
        chances = generator.beta(1, 1, size=(40, 1))
        answers = generator.random((5, 40, 2)) < chances
        rows = sweep({str(i): table for i, table in enumerate(answers)})
        table = compare(rows, baseline="0", resamples=50)
        any_single += bool((table["p_value"] <= 0.05).any())
        any_holm += bool((table["p_holm"] <= 0.05).any())
    assert any_holm / 200 < 0.05 + 0.03
    assert any_single / 200 > 0.08  # what the correction is for
