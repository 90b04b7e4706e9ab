"""Mirrors the paper's per-layer curves: lock-in, decay and block measures, correct vs wrong.

Equally many correct and wrong traces from each group of problems; the null hypothesis is that
within a group the labels could be exchanged.
"""

from collections.abc import Sequence

import common
import pandas as pd
from tqdm import tqdm

from stepflow_tl import StepFlow, compare_groups, diagnose, load_model, step_saliency
from stepflow_tl.plots import figure_layer_curves
from stepflow_tl.sweep import trace_of


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment, or go on with it."""
    chosen = common.options("failure_curves", __doc__, argv)
    rows = _matched(common.sweep(chosen, {"baseline": StepFlow()}))
    model = load_model(chosen.model)
    table = compare_groups(
        [
            diagnose(step_saliency(model, trace_of(model, row), pool="mean"))
            for _, row in tqdm(rows.iterrows(), total=len(rows), unit="map")
        ],
        correct=rows["correct"].tolist(),
        problems=rows["problem"].tolist(),
        strata=rows["group"].tolist(),
    )
    common.publish(
        chosen,
        figure_layer_curves(table, n_layers=model.cfg.n_layers),
        {"correct and wrong traces": table},
        traces_per_group=rows.groupby(["group", "correct"]).size().unstack().to_dict("index"),
    )


def _matched(rows: pd.DataFrame) -> pd.DataFrame:
    """As many correct as wrong complete traces from each group."""
    complete = rows[rows["ended"] & (rows["steps"] >= 3)]
    parts = []
    for _, group in complete.groupby("group", sort=False):
        right, wrong = group[group["correct"]], group[~group["correct"]]
        size = min(len(right), len(wrong))
        parts += [right.head(size), wrong.head(size)]
    matched = pd.concat(parts)
    if matched.empty:
        raise SystemExit("no group holds both a correct and a wrong complete trace: nothing to map")
    return matched


if __name__ == "__main__":
    main()
