"""Which layers a diagnosis accuses: the window in which a measure stands out most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd

from stepflow_tl.analysis.diagnostics import DECAY, LOCK_IN
from stepflow_tl.errors import SettingError

Against = Literal["reference", "correct", "nothing"]
"""What a layer's measure is compared with: a healthy model's on the same traces, that of the
correct traces (of the wrong ones), or nothing."""

WORSE = {"lock_in": 1, "self_share": 1, "neighbor_share": 1, "summary_on_summary": 1}
"""Measures that a failure raises; it lowers all others."""


@dataclass(frozen=True, kw_only=True)
class AccusedBand:
    """The layers that a diagnosis accuses.

    Attributes:
        layers: Neighboring layers.
        evidence: A row per layer: ``layer, value`` (of the traces that are suspected),
            ``against`` (what it is compared with; NaN for nothing), ``worse``, how much worse the
            one is than the other, and ``accused``.
    """

    layers: tuple[int, ...]
    evidence: pd.DataFrame


def accuse_band(
    diagnoses: Sequence[pd.DataFrame],
    *,
    width: int,
    measure: str = "lock_in",
    against: Against = "nothing",
    reference: Sequence[pd.DataFrame] | None = None,
    correct: Sequence[bool] | None = None,
) -> AccusedBand:
    """The window of neighboring layers in which a measure is worst, on the mean over its layers.

    Args:
        diagnoses: `diagnose` of each trace, all of the same layers.
        width: Number of layers of the window.
        measure: A measure of Shallow Lock-in or Deep Decay.
        against: What is compared with.
        reference: For "reference": `diagnose` of a healthy model's maps of the same traces.
        correct: For "correct": whether each trace is.

    Raises:
        SettingError: A setting is unknown, or what it is compared with is missing.
    """
    if measure not in (*LOCK_IN, *DECAY):
        raise SettingError(f"expected measure in {[*LOCK_IN, *DECAY]}, got {measure!r}")
    if against not in get_args(Against):
        raise SettingError(f"expected against in {list(get_args(Against))}, got {against!r}")
    if not diagnoses or not 1 <= width <= len(diagnoses[0]):
        raise SettingError(
            f"expected at least one diagnosis, and a width within its layers, got {len(diagnoses)} "
            f"and width={width}"
        )
    values = _values(diagnoses, measure)
    suspected, other = values, np.full_like(values[:1], np.nan)
    if against == "reference":
        if not reference:
            raise SettingError("expected reference= for against='reference', got none")
        if [list(one["layer"]) for one in reference] != [list(one["layer"]) for one in diagnoses]:
            raise SettingError(
                f"expected diagnoses of the same {len(diagnoses)} traces and layers by the "
                f"reference, got {len(reference)} of {len(reference[0])} layers"
            )
        other = _values(reference, measure)
    elif against == "correct":
        right = np.asarray([] if correct is None else correct, dtype=bool)
        if len(right) != len(values) or right.all() or not right.any():
            raise SettingError(
                f"expected correct= of {len(values)} traces, both kinds among them, got "
                f"{int(right.sum())} correct of {len(right)}"
            )
        suspected, other = values[~right], values[right]
    mean, base = _mean(suspected), _mean(other)
    difference = mean if against == "nothing" else mean - base
    worse = WORSE.get(measure, -1) * difference
    window = np.convolve(worse, np.ones(width) / width, mode="valid")
    if np.isnan(window).all():
        raise SettingError(f"expected traces in which {measure!r} is defined, got none")
    first = int(np.nanargmax(window))
    layers = diagnoses[0]["layer"].to_numpy()
    accused = np.zeros(len(layers), dtype=bool)
    accused[first : first + width] = True
    evidence = pd.DataFrame(
        {"layer": layers, "value": mean, "against": base, "worse": worse, "accused": accused}
    )
    return AccusedBand(layers=tuple(int(x) for x in layers[accused]), evidence=evidence)


def _values(diagnoses: Sequence[pd.DataFrame], measure: str) -> np.ndarray:
    """The measure [trace, layer]."""
    return np.stack([table[measure].to_numpy(dtype=float) for table in diagnoses])


def _mean(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    count = known.sum(0)
    total = np.where(known, values, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
