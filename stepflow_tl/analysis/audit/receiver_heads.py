"""Receiver heads: heads in which many later steps look at the same few earlier ones.

thought-anchors' measure (2506.19143, ``receiver_head_funcs.py``), on row shares in place of mean
attention where the maps are made so::

    c[h, j] = mean_{i >= j + proximity} M[h, i, j]                       column score of step j
    k[h] = mean over traces of the kurtosis (Fisher's, biased) of c[h, :]

A head of high kurtosis has a few steps that it returns to; the mean of the column scores over the
best heads is each step's receiver score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import kurtosis

from stepflow_tl.errors import SettingError, StepMapError
from stepflow_tl.saliency.maps import StepMap

LEAST_STEPS = 16
PROXIMITY = 4


def column_scores(
    step_map: StepMap, *, proximity: int = PROXIMITY
) -> Float[np.ndarray, "layer head step"]:
    """How much later steps look at each step, head by head; NaN for the last few steps.

    Args:
        step_map: A map with ``per_head=True``.
        proximity: How far a later step must be, in steps.

    Raises:
        StepMapError: The map's heads were averaged, or it has fewer than 16 steps.
        SettingError: `proximity` is below 1.
    """
    if proximity < 1:
        raise SettingError(f"expected proximity >= 1, a number of steps, got {proximity!r}")
    if not step_map.per_head:
        raise StepMapError("expected a map with its heads apart (per_head=True), got their mean")
    count = len(step_map.steps)
    if count < LEAST_STEPS:
        raise StepMapError(
            f"expected a trace of {LEAST_STEPS} steps or more, in which a kurtosis of columns says "
            f"something, got {count}"
        )
    scores = step_map.scores.double().numpy()
    far = np.arange(count)[:, None] >= np.arange(count) + proximity
    number = far.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(number > 0, (scores * far).sum(-2) / number, np.nan)


def receiver_heads(
    maps: Sequence[StepMap] | StepMap, *, proximity: int = PROXIMITY
) -> pd.DataFrame:
    """Heads by how few steps they return to, the most selective first.

    Args:
        maps: Maps with heads apart, such as ``step_saliency(model, trace, rule="attention",
            per_head=True)``, of one or more traces of one model.
        proximity: How far a later step must be to count.

    Returns:
        ``layer, head, kurtosis`` (mean over traces), ``low`` and ``high`` (the smallest and largest
        of a trace), ``n`` (traces in which it is defined).

    Raises:
        StepMapError: A map has no heads, too few steps, or other layers than the first.
        SettingError: `proximity` is below 1.
    """
    given = [maps] if isinstance(maps, StepMap) else list(maps)
    if not given:
        raise StepMapError("expected at least one map, got none")
    if any(one.layers != given[0].layers for one in given):
        raise StepMapError("expected maps of the same layers, got different ones")
    found = np.stack(
        [
            kurtosis(column_scores(one, proximity=proximity), axis=-1, nan_policy="omit")
            for one in given
        ]
    )
    rows = [
        {
            "layer": layer,
            "head": head,
            "kurtosis": float(np.nanmean(mine)) if known.any() else np.nan,
            "low": float(np.nanmin(mine)) if known.any() else np.nan,
            "high": float(np.nanmax(mine)) if known.any() else np.nan,
            "n": int(known.sum()),
        }
        for at, layer in enumerate(given[0].layers)
        for head in range(found.shape[2])
        for mine in [np.asarray(found[:, at, head], dtype=float)]
        for known in [~np.isnan(mine)]
    ]
    table = pd.DataFrame(rows)
    return table.sort_values("kurtosis", ascending=False, kind="stable").reset_index(drop=True)


def receiver_scores(
    step_map: StepMap, heads: pd.DataFrame, *, top: int = 20, proximity: int = PROXIMITY
) -> pd.Series:
    """Each step's score as a receiver: the mean of its column scores over the best heads.

    Args:
        step_map: A map with its heads apart.
        heads: What `receiver_heads` gave, of other traces if their choice is not to flatter.
        top: Number of heads.
        proximity: As there.

    Raises:
        SettingError: There is no head to average over, or `proximity` is below 1.
        StepMapError: A layer of a head is not in the map.
    """
    if top < 1 or heads.empty:
        raise SettingError(f"expected top >= 1 of some heads, got top={top} of {len(heads)}")
    missing = sorted(set(heads.head(top)["layer"]) - set(step_map.layers))
    if missing:
        raise StepMapError(
            f"expected a map with the heads' layers {missing}, got layers {list(step_map.layers)}"
        )
    columns = column_scores(step_map, proximity=proximity)
    best = heads.head(top)
    chosen = [
        columns[step_map.layers.index(layer), head]
        for layer, head in zip(best["layer"].tolist(), best["head"].tolist(), strict=True)
    ]
    return pd.Series(np.mean(chosen, axis=0), name="receiver_score")
