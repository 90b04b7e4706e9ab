"""Calibration: the strengths of StepFlow, chosen on problems that are then not reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stepflow_tl.analysis import compare
from stepflow_tl.errors import SettingError
from stepflow_tl.interventions import OddsEqualBridge, StepFlow, StepMomentum
from stepflow_tl.sweep.executors import Executor
from stepflow_tl.sweep.grid import BASELINE, grid, settings_columns
from stepflow_tl.sweep.store import Store
from stepflow_tl.sweep.sweep import Sweep
from stepflow_tl.tasks import Task

TAU_MAX = (0.05, 0.15, 0.3)
ALPHA = (0.03, 0.06, 0.2)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Which strengths were chosen, and what else was tried.

    Attributes:
        tau_max: Of the Odds-Equal Bridge.
        alpha: Of Step Momentum Injection.
        tried: A row per setting, the best first: ``tau_max``, ``alpha``, and the columns of
            `compare`. The best of many looks better than it is: report it on other problems.
    """

    tau_max: float
    alpha: float
    tried: pd.DataFrame

    @property
    def flow(self) -> StepFlow:
        """StepFlow with these strengths, on the paper's layers."""
        return StepFlow(OddsEqualBridge(tau_max=self.tau_max), StepMomentum(alpha=self.alpha))

    @property
    def beats_the_baseline(self) -> bool:
        """Whether the chosen setting was more accurate than plain decoding, by any margin."""
        return bool(self.tried["difference"].iloc[0] > 0)


def calibrate(
    problems: Task,
    store: str | Path | Store,
    *,
    tau_max: Sequence[float] = TAU_MAX,
    alpha: Sequence[float] = ALPHA,
    executor: Executor | None = None,
    progress: bool = False,
    mix: bool = False,
    **settings: Any,
) -> Calibration:
    """Choose tau_max and alpha: every pair is swept, and the most accurate is taken.

    Among equally accurate ones that nearest to the paper's (0.15 and 0.06, Table 8) is taken,
    by the sum of both relative distances; so a model that nothing changes keeps the paper's.

    Args:
        problems: Held-out problems: none that results are reported on, such as
            ``Benchmark(name="aime24", part="calibration")``.
        store: Where the sweep's rows are kept; a stopped calibration goes on from there.
        tau_max: Values of the bridge's strength; 0 is without it.
        alpha: Values of the momentum's strength; 0 is without it.
        executor: Where to decode; None for this process.
        progress: Show a progress bar.
        mix: Accept a store with rows of something else.
        **settings: Of the `Sweep`: ``model``, ``decoding``, ``seeds``, ``dtype``, ``load``.

    Raises:
        ValueError: A strength is out of range, or no pair of them intervenes.
        StoreError: The store holds results of something else.
    """
    if not any(tau_max) and not any(alpha):
        raise SettingError(
            f"expected a tau_max or alpha above 0 to choose from, got {tau_max} and {alpha}"
        )
    pairs = grid(OddsEqualBridge, tau_max=list(tau_max)) * grid(StepMomentum, alpha=list(alpha))
    rows = Sweep(problems, pairs, **settings).run(
        store, executor=executor, progress=progress, mix=mix
    )
    tried = ranked(compare(rows, baseline=BASELINE), strengths(rows))
    best = tried.iloc[0]
    return Calibration(tau_max=float(best["tau_max"]), alpha=float(best["alpha"]), tried=tried)


def strengths(rows: pd.DataFrame) -> pd.DataFrame:
    """``tau_max`` and ``alpha`` of every arm of a sweep, by its label; 0 where there is none."""
    settings = settings_columns(rows).drop_duplicates("arm").set_index("arm")
    columns = {"tau_max": "OddsEqualBridge.tau_max", "alpha": "StepMomentum.alpha"}
    return pd.DataFrame(
        {
            name: settings.get(column, pd.Series(0.0, index=settings.index)).fillna(0.0)
            for name, column in columns.items()
        }
    )


def ranked(table: pd.DataFrame, strengths: pd.DataFrame) -> pd.DataFrame:
    """A comparison with its strengths, the most accurate first, then the nearest to the paper's."""
    table = table.join(strengths, on="arm")
    paper = {"tau_max": OddsEqualBridge().tau_max, "alpha": StepMomentum().alpha}
    distance = sum(np.abs(table[name] / value - 1.0) for name, value in paper.items())
    order = np.lexsort((distance, -table["accuracy"].round(9)))
    columns = ["tau_max", "alpha", *(c for c in table.columns if c not in paper)]
    return table.iloc[order][columns].reset_index(drop=True)
