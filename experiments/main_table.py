"""Mirrors the paper's main table: strategy x difficulty, with and without StepFlow.

The paper's own numbers, of other models on other benchmarks, are written beside ours and marked.
"""

from collections.abc import Sequence

import common
import pandas as pd
import published

from stepflow_tl import SelfConsistency, StepFlow
from stepflow_tl.plots import figure_strategies
from stepflow_tl.tasks import BudgetForcing, ChainOfThought, Plain

NAMES = {
    "plain": Plain(),
    "chain-of-thought prompt": ChainOfThought(),
    "self-consistency, k = 4": SelfConsistency(k=4, temperature=0.7),
    "thinking prolonged to 450": BudgetForcing(least=450, wait=" So"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment, or go on with it."""
    chosen = common.options("main_table", __doc__, argv)
    rows = common.sweep(chosen, {"StepFlow": StepFlow.paper()}, strategy=list(NAMES.values()))
    tables = []
    for name, strategy in NAMES.items():
        mine = rows[rows["strategy"] == strategy.label].assign(arm=lambda x: x["setting"])
        tables.append(common.compare_by_group(mine).assign(strategy=name))
    table = common.holm_over(tables)
    alone = table.drop(columns=["accuracy", "accuracy_low", "accuracy_high"]).rename(
        columns=lambda name: name.replace("baseline", "accuracy")
    )
    both = pd.concat([alone.assign(stepflow=False), table.assign(stepflow=True)])
    costs = (
        rows.groupby(["strategy", "setting"], sort=False)[["tokens", "forward_passes"]]
        .mean()
        .reset_index()
    )
    common.publish(
        chosen,
        figure_strategies(both),
        {
            "with and without StepFlow": table,
            "mean cost per problem": costs,
            published.THEIRS: published.MAIN,
        },
    )


if __name__ == "__main__":
    main()
