"""How well scores of pairs of steps order them as a truth does.

One measure for every truth, concordance: of two pairs of one trace of which the truth says that one
matters more, the chance that the scores say so, too; equal scores count half. For a truth of 0 and
1 it is the area under the ROC curve (AUROC). A perfect map scores 1, a random one 0.5. Pairs are
compared within a trace only, whose scores have one scale; traces add their comparisons up.

Within distance only pairs of equal distance (query step minus key step) are compared: what is left
when nearness alone, which predicts most dependencies, can say nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import kendalltau, rankdata

Pairs = Float[np.ndarray, "pair"]


class Comparisons(NamedTuple):
    """Comparisons within one trace.

    Attributes:
        agree: Those in which scores and truth agree; equal scores count half.
        total: Those of which the truth says something.
    """

    agree: float
    total: float


def concordance(scores: Pairs, truth: Pairs) -> Comparisons:
    """Compare all pairs with each other."""
    if len(truth) < 2 or (truth == truth[0]).all():
        return Comparisons(0.0, 0.0)
    high = truth == truth.max()
    if ((truth == truth.max()) | (truth == truth.min())).all():  # 0 and 1: Mann and Whitney's U
        n_high, n_low = int(high.sum()), int((~high).sum())
        agree = float(rankdata(scores)[high].sum()) - n_high * (n_high + 1) / 2
        return Comparisons(agree, float(n_high * n_low))
    count = len(truth) * (len(truth) - 1) / 2
    total = count - _ties(truth)
    if (scores == scores[0]).all():
        return Comparisons(total / 2, total)
    tau = float(kendalltau(scores, truth).statistic)  # tau-b: its numerator is wanted
    surplus = tau * np.sqrt((count - _ties(scores)) * total)
    return Comparisons(float((total + surplus) / 2), float(total))


def within_distance(scores: Pairs, truth: Pairs, distances: Int[np.ndarray, "pair"]) -> Comparisons:
    """Compare pairs of equal distance with each other."""
    if np.isin(truth, (0, 1)).all():
        return _within_at_once(scores, truth, distances)
    parts = [
        concordance(scores[distances == distance], truth[distances == distance])
        for distance in np.unique(distances)
    ]
    return Comparisons(sum(p.agree for p in parts), sum(p.total for p in parts))


def _within_at_once(scores: Pairs, truth: Pairs, distances: Int[np.ndarray, "pair"]) -> Comparisons:
    """The same for a truth of 0 and 1: Mann and Whitney's U of all distances."""
    _, group = np.unique(distances, return_inverse=True)
    ranks = pd.Series(scores).groupby(group).rank().to_numpy()
    n_high = np.bincount(group, weights=truth)
    n_low = np.bincount(group) - n_high
    agree = np.bincount(group, weights=ranks * truth) - n_high * (n_high + 1) / 2
    return Comparisons(float(agree.sum()), float((n_high * n_low).sum()))


def recall_at(scores: Pairs, truth: Pairs, share: float = 0.1) -> float:
    """Of the pairs that matter, the share that is among the highest scores.

    The highest are a tenth of all pairs, rounded up; equal scores at the edge count in proportion.
    Where more pairs matter than fit there, it is the share of those that could: a perfect map has
    1. For a truth that is not of 0 and 1, the pairs that matter are its own highest tenth, but
    none of those that it calls least.
    """
    size = max(1, int(np.ceil(share * len(truth))))
    matters = truth == 1
    if not np.isin(truth, (0, 1)).all():
        matters = (truth >= np.sort(truth)[-size]) & (truth > truth.min())
    if not matters.any():
        return float("nan")
    edge = np.sort(scores)[-size]
    above, at_edge = scores > edge, scores == edge
    part = (size - above.sum()) / at_edge.sum()
    hits = matters[above].sum() + part * matters[at_edge].sum()
    return float(hits / min(size, matters.sum()))


def rank_correlation(scores: Pairs, truth: Pairs) -> float:
    """Spearman's rho; NaN where either is constant."""
    if len(truth) < 3 or np.ptp(scores) == 0 or np.ptp(truth) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(scores), rankdata(truth))[0, 1])


def _ties(values: Pairs) -> float:
    """Number of pairs of equal values."""
    _, counts = np.unique(values, return_counts=True)
    return float((counts * (counts - 1) / 2).sum())
