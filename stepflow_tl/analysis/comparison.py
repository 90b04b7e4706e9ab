"""Every arm of a sweep against its baseline, problem by problem."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_effectsize

from stepflow_tl.analysis.intervals import (
    Bounds,
    bootstrap_accuracy,
    bootstrap_paired_difference,
    proportion,
)
from stepflow_tl.analysis.paired import holm, mcnemar, sign_flip_test
from stepflow_tl.errors import SettingError

ALL = "all"
SAMPLE = "seed"


def compare(
    rows: pd.DataFrame,
    *,
    baseline: Hashable,
    arm: str = "arm",
    problem: str = "problem",
    outcome: str = "correct",
    by: str | None = None,
    seed: int = 0,
    resamples: int = 10_000,
) -> pd.DataFrame:
    """Compare every arm of a sweep with its baseline, over the same problems.

    Problems are the units: answers to one problem are averaged first, differences are taken problem
    by problem, and bootstraps draw whole problems. All intervals are 95%.

    Args:
        rows: A row per answer. Columns: those named below, and ``seed``, which tells an arm's
            answers to one problem apart.
        baseline: The arm that the others are compared with.
        arm: Column of the arms' labels.
        problem: Column of the problems' ids.
        outcome: Column of the outcomes: bool, or 0 and 1.
        by: Column of the problems' groups, such as difficulty: a row for each arm and group, and
            one for each arm over ``"all"`` groups.
        seed: Of the bootstrap.
        resamples: Number of bootstrap samples.

    Returns:
        A row per arm (and group), in the order of their first appearance, with columns

        - the arm and the group, named as in ``rows``;
        - ``n``: problems; ``samples``: the arm's answers per problem (their mean, where it varies);
        - ``accuracy, accuracy_low, accuracy_high`` and ``baseline, baseline_low, baseline_high``:
          mean over problems, with Wilson's interval (1927) where each problem has one answer,
          `bootstrap_accuracy`'s otherwise;
        - ``difference, difference_low, difference_high``: accuracy - baseline, with
          `bootstrap_paired_difference`'s interval;
        - ``fixed``, ``broken``: problems answered right more often, and less often, than by the
          baseline; with one answer each: wrong there and right here, and the reverse;
        - ``p_value``: exact McNemar test (1947) where both arms have one answer per problem, a
          paired permutation test (`sign_flip_test`) otherwise; 1 where no problem differs;
        - ``p_holm``: corrected (Holm 1979) for all rows of this table, "all" rows included;
        - ``effect_size``: Cohen's h (1988), 2 asin sqrt(accuracy) - 2 asin sqrt(baseline);
        - ``test``: ``"McNemar exact"`` or ``"paired sign-flip permutation"``.

    Raises:
        ValueError: There are no rows; a column is missing; a cell is empty or an outcome is neither
            0 nor 1; the baseline is unknown or alone; an answer occurs twice; a problem lies in
            several groups; or the arms answered different problems (nothing is left out silently).
    """
    keys = [arm, problem, SAMPLE] + ([by] if by is not None else [])
    _check(rows, keys, outcome)
    arms = rows[arm].unique().tolist()
    if baseline not in arms or len(arms) < 2:
        raise SettingError(
            f"expected the baseline and another arm in column {arm!r}, got baseline {baseline!r} "
            f"and arms {arms}"
        )
    table = rows[keys].assign(value=rows[outcome].astype(float))
    answers = table.groupby([problem, arm], observed=True, sort=False)["value"]
    means, counts = (wide[arms] for wide in (answers.mean().unstack(), answers.size().unstack()))
    _check_same_problems(means, arms)
    groups: dict[Hashable, pd.Index] = {ALL: means.index}
    if by is not None:
        groups = _groups(table, problem, by) | groups
    compared = {
        group: _compare_group(means.loc[ids], counts.loc[ids], baseline, seed, resamples)
        for group, ids in groups.items()
    }
    records = [
        {arm: name, by or "group": group, **compared[group][name]}
        for name in arms
        if name != baseline
        for group in groups
    ]
    result = pd.DataFrame(records)
    corrected = holm(result["p_value"].to_numpy())
    result.insert(list(result.columns).index("p_value") + 1, "p_holm", corrected)
    return result if by is not None else result.drop(columns="group")


def _check(rows: pd.DataFrame, keys: list[str], outcome: str) -> None:
    columns = [*keys, outcome]
    if missing := [column for column in columns if column not in rows.columns]:
        raise SettingError(f"expected columns {columns}, got none named {missing}")
    if rows.empty:
        raise SettingError("expected a row per answer, got no rows")
    for column in columns:
        if empty := int(rows[column].isna().sum()):
            raise SettingError(f"expected a value in every row, got {empty} empty in {column!r}")
    if strange := [value for value in rows[outcome].unique().tolist() if value not in (0, 1)]:
        raise SettingError(f"expected outcomes 0 and 1 in {outcome!r}, got {strange[:3]}")
    if len(twice := rows[rows.duplicated(keys[:3])]):
        first = dict(zip(keys[:3], twice[keys[:3]].iloc[0].tolist(), strict=True))
        raise SettingError(f"expected each answer once, got {len(twice)} again, the first: {first}")


def _check_same_problems(means: pd.DataFrame, arms: list[Hashable]) -> None:
    lacking = means.isna().sum()
    if lacking.any():
        counts = {name: n for name, n in zip(arms, lacking.tolist(), strict=True) if n}
        raise SettingError(
            f"expected every arm to answer the same {len(means)} problems, got arms that lack some "
            f"(how many): {counts}; compare only the problems that all arms answered"
        )


def _groups(table: pd.DataFrame, problem: str, by: str) -> dict[Hashable, pd.Index]:
    """The problems of each group."""
    of_problem = table[[problem, by]].drop_duplicates().set_index(problem)[by]
    if not of_problem.index.is_unique:
        twice = of_problem.index[of_problem.index.duplicated()].tolist()[0]
        raise SettingError(
            f"expected each problem in one group, got problem {twice!r} in "
            f"{of_problem.loc[twice].tolist()}"
        )
    if ALL in (names := of_problem.unique().tolist()):
        raise SettingError(f"expected groups with names other than {ALL!r}, got {names}")
    return {name: of_problem.index[of_problem == name] for name in names}


def _compare_group(
    means: pd.DataFrame, counts: pd.DataFrame, baseline: Hashable, seed: int, resamples: int
) -> dict[Hashable, dict[str, object]]:
    """The columns of each arm but the baseline, over some problems."""
    accuracy, answers = means.to_numpy(), counts.to_numpy().astype(int)
    names: list[Hashable] = list(means.columns)
    base = names.index(baseline)
    bounds = _accuracy_bounds(accuracy, answers, seed, resamples)
    change = accuracy - accuracy[:, [base]]
    change[np.abs(change) < 1e-12] = 0.0
    per_answer = 1 / answers.mean(0)
    step = np.sqrt((per_answer + per_answer[base]) / 2)
    differences = bootstrap_paired_difference(change, step, seed=seed, resamples=resamples)
    value = bounds[0].clip(0.0, 1.0)
    effect = proportion_effectsize(value, value[base])
    result: dict[Hashable, dict[str, object]] = {}
    for column, name in enumerate(names):
        fixed, broken = int((change[:, column] > 0).sum()), int((change[:, column] < 0).sum())
        both = answers[:, [base, column]]
        if (both == 1).all():
            test, p_value = "McNemar exact", mcnemar(fixed, broken)
        else:
            test = "paired sign-flip permutation"
            p_value = sign_flip_test(
                change[:, column], np.unique(both), seed=seed, resamples=resamples
            )
        result[name] = {
            "n": len(means),
            "samples": float(answers[:, column].mean()),
            **_three("accuracy", bounds[:, column]),
            **_three("baseline", bounds[:, base]),
            **_three("difference", differences[:, column]),
            "fixed": fixed,
            "broken": broken,
            "p_value": p_value,
            "effect_size": float(effect[column]),
            "test": test,
        }
    return result


def _accuracy_bounds(
    accuracy: np.ndarray, answers: np.ndarray, seed: int, resamples: int
) -> Bounds:
    """Wilson's interval for columns of single answers, the bootstrap's for the others."""
    bounds = np.empty((3, accuracy.shape[1]))
    several = (answers > 1).any(0)
    if several.any():
        bounds[:, several] = bootstrap_accuracy(
            accuracy[:, several], seed=seed, resamples=resamples
        )
    for column in np.flatnonzero(~several):
        right = round(float(accuracy[:, column].sum()))
        bounds[:, column] = proportion(right, len(accuracy))
    return bounds


def _three(name: str, bounds: np.ndarray) -> dict[str, float]:
    value, low, high = bounds.tolist()
    return {name: value, f"{name}_low": low, f"{name}_high": high}
