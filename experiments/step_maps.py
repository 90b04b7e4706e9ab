"""Mirrors the paper's Figures 1 and 2: token beside step map; shallow and deep maps with arcs."""

from collections.abc import Sequence
from dataclasses import replace

import common
import pandas as pd

from stepflow_tl import StepFlow, diagnose, load_model, step_saliency, token_saliency
from stepflow_tl.plots import figure_step_flow, figure_token_and_step_maps
from stepflow_tl.sweep import trace_of


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment, or go on with it."""
    chosen = common.options("step_maps", __doc__, argv)
    rows = common.sweep(chosen, {"baseline": StepFlow()})
    model = load_model(chosen.model)
    pair = {f"{kind} trace": row for kind, row in _pair(rows).items()}
    traces = {kind: trace_of(model, row) for kind, row in pair.items()}
    maps = {kind: step_saliency(model, trace, pool="mean") for kind, trace in traces.items()}
    tokens = {kind: token_saliency(model, trace).mean(0) for kind, trace in traces.items()}
    facts = pd.DataFrame(
        [
            {"trace": kind} | row[["problem", "group", "correct", "error", "error_step"]].to_dict()
            for kind, row in pair.items()
        ]
    )
    measures = pd.concat(
        [diagnose(one).assign(trace=kind) for kind, one in maps.items()], ignore_index=True
    )
    common.publish(
        replace(chosen, name="token_and_step_maps"),
        figure_token_and_step_maps(
            {kind: (tokens[kind], traces[kind], maps[kind]) for kind in traces}
        ),
        {"traces": facts},
    )
    common.publish(
        replace(chosen, name="step_flow"),
        figure_step_flow(maps),
        {"traces": facts, "failure measures": measures},
    )


def _pair(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """The first correct and the first wrong complete trace of the first group that has both."""
    complete = rows[rows["ended"] & (rows["steps"] >= 3)]
    for _, group in complete.groupby("group", sort=False):
        if group["correct"].nunique() == 2:
            right = group["correct"].to_numpy()
            return {"correct": group[right].iloc[0], "wrong": group[~right].iloc[0]}
    return {"first": rows.iloc[0], "last": rows.iloc[-1]}


if __name__ == "__main__":
    main()
