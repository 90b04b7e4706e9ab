"""Do measures differ between two kinds of traces? Label permutations within strata."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from stepflow_tl.analysis.paired import holm
from stepflow_tl.errors import SettingError


class LabelTest(NamedTuple):
    """Permutation tests of a difference between two kinds of traces, per column.

    Attributes:
        difference: First kind minus second kind within strata.
        p_value: Two-sided permutation p-value.
        p_holm: The same, Holm-corrected within the column's family.
        p_max: Permutation p-value of the largest |t| in the column's family (Westfall and Young
            1993): corrected for the family, too, and less strict where its columns go together.
    """

    difference: Float[np.ndarray, "column"]
    p_value: Float[np.ndarray, "column"]
    p_holm: Float[np.ndarray, "column"]
    p_max: Float[np.ndarray, "column"]


def permute_labels(
    in_first: Bool[np.ndarray, "row"],
    clusters: Int[np.ndarray, "row"],
    cells: Int[np.ndarray, "row"],
    *,
    seed: int = 0,
    resamples: int = 2_000,
) -> Bool[np.ndarray, "draw row"]:
    """Labels exchanged among the traces of a cell, problem by problem.

    The labels of a problem's traces stay together: problems exchange their sets of labels, and each
    set is then shuffled within its problem. Where every problem has one trace, this is the plain
    permutation within the cell.

    Args:
        in_first: The labels.
        clusters: The problem of each trace.
        cells: What may be exchanged; all problems of a cell have equally many traces.
        seed: Of the permutations.
        resamples: Number of permutations.
    """
    generator = np.random.default_rng(seed)
    drawn = np.empty((resamples, len(in_first)), dtype=bool)
    for cell in np.unique(cells):
        rows = np.flatnonzero(cells == cell)
        rows = rows[np.argsort(clusters[rows], kind="stable")]
        problems = len(np.unique(clusters[rows]))
        order = generator.permuted(np.tile(np.arange(problems), (resamples, 1)), axis=1)
        sets = in_first[rows].reshape(problems, -1)[order]  # [draw, problem, trace]
        drawn[:, rows] = generator.permuted(sets, axis=2).reshape(resamples, -1)
    return drawn


def label_permutation_test(
    values: Float[np.ndarray, "row column"],
    in_first: Bool[np.ndarray, "row"],
    clusters: Int[np.ndarray, "row"],
    strata: Int[np.ndarray, "row"],
    families: Int[np.ndarray, "column"],
    *,
    seed: int = 0,
    resamples: int = 2_000,
) -> LabelTest:
    """Test each column for a difference between two kinds of traces of the same stratum.

    With values v and labels y (1 or 0), the statistic is T = sum y (v - mean of v in the cell): the
    differences within cells, weighted by n1 n0 / (n1 + n0) as in the test of Cochran, Mantel and
    Haenszel. A cell holds the problems of one stratum that have equally many traces; see
    `permute_labels` for what is exchanged. The null is that labels say nothing about values
    within a cell.

    Args:
        values: One row per trace, one column per figure; NaN where a figure is undefined.
        in_first: Whether a trace is of the first kind.
        clusters: The problem of each trace.
        strata: The stratum of each trace, such as its problem's difficulty.
        families: Columns of one family are corrected together.
        seed: Of the permutations.
        resamples: Number of permutations.

    Returns:
        NaN where no stratum has values of both kinds.

    Raises:
        ValueError: A problem lies in several strata.
    """
    strata_of_problem = np.unique(np.stack([clusters, strata]), axis=1)
    if strata_of_problem.shape[1] > len(np.unique(clusters)):
        raise SettingError("expected each problem in one stratum, got a problem in several")
    _, cluster, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    cells = np.unique(np.stack([strata, sizes[cluster]]), axis=1, return_inverse=True)[1].ravel()
    labels = permute_labels(in_first, clusters, cells, seed=seed, resamples=resamples)
    labels = np.concatenate([in_first[None], labels]).astype(float)

    known = (~np.isnan(values)).astype(float)
    member = (cells == np.unique(cells)[:, None]).astype(float)  # [cell, row]
    size = np.maximum(member @ known, 1.0)
    filled = np.where(known, values, 0.0)
    centred = (filled - member.T @ (member @ filled / size)) * known
    statistic = labels @ centred  # [1 + resamples, column]
    first = member @ (known * in_first[:, None])
    weight = (first * (1 - first / size)).sum(0)  # of cells: n1 n0 / (n1 + n0)
    undefined = weight <= 0.0

    spread = np.sqrt((statistic**2).mean(0))  # the observed labels are one of the permutations
    moves = spread > 1e-12 * (np.abs(filled).sum(0) + 1e-300)
    scores = np.abs(statistic) / np.where(moves, spread, np.inf)
    scores[:, undefined] = 0.0
    p_value, p_max, p_holm = (np.full(values.shape[1], np.nan) for _ in range(3))
    for family in np.unique(families):
        columns = np.flatnonzero((families == family) & ~undefined)
        if columns.size:
            observed, null = scores[0, columns] - 1e-9, scores[1:, columns]
            p_value[columns] = (1 + (null >= observed).sum(0)) / (1 + resamples)
            largest = null.max(1, keepdims=True)
            p_max[columns] = (1 + (largest >= observed).sum(0)) / (1 + resamples)
            p_holm[columns] = holm(p_value[columns])
    difference = np.where(undefined, np.nan, statistic[0] / np.where(undefined, 1.0, weight))
    return LabelTest(difference, p_value, p_holm, p_max)
