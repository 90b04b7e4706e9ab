"""Mirrors the paper's sensitivity to tau_max and alpha: a heat map with significance marked."""

from collections.abc import Sequence

import common
import pandas as pd

from stepflow_tl import OddsEqualBridge, StepMomentum, grid
from stepflow_tl.plots import figure_strengths
from stepflow_tl.sweep import settings_columns

TAU_MAX = [0.0, 0.05, 0.15, 0.3]
ALPHA = [0.0, 0.06, 0.2, 1.0]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment, or go on with it."""
    chosen = common.options("strengths", __doc__, argv)
    tau_max, alpha = (TAU_MAX[::2], ALPHA[::2]) if chosen.fast else (TAU_MAX, ALPHA)
    rows = common.sweep(
        chosen, grid(OddsEqualBridge, tau_max=tau_max) * grid(StepMomentum, alpha=alpha)
    )
    table = common.over_all(common.compare_by_group(rows))
    strengths = settings_columns(rows).drop_duplicates("arm").set_index("arm")
    for name, column in (("tau_max", "OddsEqualBridge"), ("alpha", "StepMomentum")):
        table[name] = strengths[f"{column}.{name}"].reindex(table["arm"]).fillna(0.0).to_numpy()
    neutral = {
        "arm": "baseline",
        "tau_max": 0.0,
        "alpha": 0.0,
        "accuracy": table["baseline"][0],
        "difference": 0.0,
        "p_value": 1.0,
        "p_holm": 1.0,
    }
    table = pd.concat([pd.DataFrame([neutral]), table], ignore_index=True)
    common.publish(chosen, figure_strengths(table), {"against the baseline": table})


if __name__ == "__main__":
    main()
