"""Correct against wrong responses to the same problems, in real-valued measures.

What moves correct and wrong responses alike is style or calibration; only their difference, within
a problem, speaks of what is right. Problems are the units throughout.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from stepflow_tl.analysis.intervals import Estimate, clustered_difference
from stepflow_tl.analysis.paired import holm, sign_flip_mean_test
from stepflow_tl.errors import SettingError

_COLUMNS = ("n", "correct", "wrong", "contrast", "p_value", "p_holm")


def contrast(
    rows: pd.DataFrame,
    *,
    arm: str = "arm",
    problem: str = "problem",
    correct: str = "correct",
    value: str = "value",
    seed: int = 0,
    resamples: int = 10_000,
) -> pd.DataFrame:
    """A measure of correct and of wrong responses, and their difference within problems.

    Args:
        rows: A row per response and arm; several correct, or wrong, responses to a problem are
            averaged first.
        arm: Column of the arms' labels.
        problem: Column of the problems' ids.
        correct: Column that says whether the response is correct.
        value: Column of the measure, such as a change of the negative log-likelihood.
        seed: Of bootstrap and sign flips.
        resamples: Number of bootstrap samples; ten times as many flips are drawn.

    Returns:
        A row per arm in order of first appearance: the arm; ``n`` problems; ``correct``, ``wrong``
        and ``contrast`` (correct minus wrong) with ``_low`` and ``_high``, percentile intervals
        (95%) of a bootstrap that draws whole problems (NaN for one); ``p_value``, by
        `sign_flip_mean_test` over problems; ``p_holm``, corrected over this table (Holm 1979).

    Raises:
        SettingError: A column is missing, a value too, or a problem lacks a correct or a wrong
            response in some arm.
    """
    if missing := [name for name in (arm, problem, correct, value) if name not in rows.columns]:
        raise SettingError(f"expected columns {[arm, problem, correct, value]}, got no {missing}")
    if arm in _COLUMNS:
        raise SettingError(f"expected a column of arms that the table does not need, got {arm!r}")
    lacks = rows[[arm, problem, correct, value]].isna().any()
    if lacks.any() or not np.isfinite(rows[value].to_numpy(dtype=float)).all():
        raise SettingError(
            "expected finite values of all responses, got NaN or infinity in "
            f"{list(lacks.index[lacks]) or value!r}"
        )
    arms = rows[arm].unique().tolist()
    wide = rows.groupby([problem, correct, arm])[value].mean().unstack(arm)[arms]
    wide = wide.reindex(pd.MultiIndex.from_product([wide.index.unique(0), [True, False]]))
    if wide.empty or wide.isna().any(axis=None):
        lacking = [(name, *at) for name in arms for at in wide.index[wide[name].isna()]]
        raise SettingError(
            "expected a correct and a wrong response to each problem in each arm, got "
            f"{wide.size - len(lacking)} of {wide.size}"
            + "".join(
                f"; none of arm {a!r}, problem {p!r}, {correct} {c}" for a, p, c in lacking[:1]
            )
        )
    first, second = (wide.xs(side, level=1).to_numpy(dtype=float) for side in (True, False))
    count = len(first)
    values, problems = np.concatenate([first, second]), np.tile(np.arange(count), 2)
    bounds = clustered_difference(
        values, np.arange(2 * count) < count, problems, seed=seed, resamples=resamples
    )
    result = pd.DataFrame({arm: arms, "n": count})
    for name, (estimate, low, high) in zip(("correct", "wrong", "contrast"), bounds, strict=True):
        if count < 2:  # one problem drawn again and again says nothing of others
            low, high = np.full((2, len(arms)), np.nan)
        result[name], result[f"{name}_low"], result[f"{name}_high"] = estimate, low, high
    p_values = [
        sign_flip_mean_test(column, seed=seed, resamples=10 * resamples)
        for column in (first - second).T
    ]
    return result.assign(p_value=p_values, p_holm=holm(np.array(p_values)))


class ControlledDifference(NamedTuple):
    """A difference within problems, as it is, and with other differences held at zero.

    Attributes:
        n: Number of problems.
        difference: Its mean.
        controlled: The intercept of its least-squares line in the controls' differences: the
            difference of two responses that do not differ in these.
        p_value: Of the intercept.
    """

    n: int
    difference: Estimate
    controlled: Estimate
    p_value: float


def controlled_difference(
    differences: Float[np.ndarray, "problem"],
    controls: Float[np.ndarray, "problem control"],
    *,
    seed: int = 0,
    resamples: int = 10_000,
) -> ControlledDifference:
    """A measure's difference within problems, controlled for the differences of other measures.

    With y the difference of a problem's two responses and X those of the controls (logarithm of
    the length, mean loss), y = a + X b by least squares. Intervals (95%) are percentiles of a
    bootstrap over problems. The p-value of a is that of sign flips of the residuals of the line
    without it (Freedman and Lane 1983; Winkler et al. 2014)::

        e = y - X (X'X)^-1 X'y,    a = sum_i w_i y_i = sum_i w_i e_i

    with w the row of the pseudo-inverse of [1, X] that gives a: it annuls X, so that flipping
    residuals is flipping the terms w_i e_i.

    Args:
        differences: One per problem; NaN where it is undefined, which leaves the problem out.
        controls: Columns of controls.
        seed: Of bootstrap and flips.
        resamples: Number of bootstrap samples; ten times as many flips are drawn.

    Returns:
        NaN where there are not at least two problems more than coefficients, or a control is the
        same for all problems, or a mixture of others.

    Raises:
        SettingError: The two are of different numbers of problems, or a number is infinite.
    """
    if len(differences) != len(controls):
        raise SettingError(
            f"expected controls of {len(differences)} problems, got those of {len(controls)}"
        )
    if np.isinf(differences).any() or np.isinf(controls).any():
        raise SettingError("expected finite differences and controls, got infinite ones")
    known = ~np.isnan(differences) & ~np.isnan(controls).any(1)
    y, x = differences[known], controls[known]
    count, unknown = len(y), Estimate(np.nan, np.nan, np.nan)
    design = np.column_stack([np.ones(count), x])
    if count < x.shape[1] + 3 or np.linalg.matrix_rank(design) < design.shape[1]:
        return ControlledDifference(count, unknown, unknown, np.nan)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)
    weight = np.linalg.pinv(design)[0]
    residuals = y - x @ (np.linalg.pinv(x) @ y)
    return ControlledDifference(
        count,
        _estimate(float(y.mean()), drawn @ y / count),
        _estimate(float(weight @ y), _intercepts(design, y, drawn)),
        sign_flip_mean_test(weight * residuals, seed=seed, resamples=10 * resamples),
    )


def _intercepts(
    design: Float[np.ndarray, "problem coefficient"],
    y: Float[np.ndarray, "problem"],
    drawn: Float[np.ndarray, "draw problem"],
) -> Float[np.ndarray, "draw"]:
    """Intercept of each bootstrap sample; NaN where its problems leave it open."""
    products = np.einsum("ni,nj->nij", design, design).reshape(len(y), -1)
    size = design.shape[1]
    squares = (drawn @ products).reshape(-1, size, size)
    moments = drawn @ (design * y[:, None])
    found = (np.linalg.pinv(squares, hermitian=True) @ moments[..., None])[:, 0, 0]
    return np.where(np.linalg.matrix_rank(squares, hermitian=True) == size, found, np.nan)


def _estimate(value: float, drawn: Float[np.ndarray, "draw"]) -> Estimate:
    low, high = np.nanquantile(drawn, [0.025, 0.975]).tolist()
    return Estimate(value, low, high)
