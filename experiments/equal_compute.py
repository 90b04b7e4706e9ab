"""Mirrors the paper's comparison at equal compute: StepFlow, longer thinking, self-consistency."""

from collections.abc import Sequence

import common
import pandas as pd

from stepflow_tl import SelfConsistency, StepFlow
from stepflow_tl.analysis import proportion
from stepflow_tl.plots import figure_compute
from stepflow_tl.tasks import BudgetForcing, Plain

TEMPERATURE = 0.7  # of the votes; everything else is greedy
LONGER = {"thinking prolonged to 450": BudgetForcing(least=450, wait=" So")}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment, or go on with it."""
    chosen = common.options("equal_compute", __doc__, argv)
    votes = {
        f"self-consistency, k = {k}": SelfConsistency(k=k, temperature=TEMPERATURE)
        for k in ((2,) if chosen.fast else (1, 2, 4, 8))
    }
    alone = {"plain": Plain(), **LONGER, **votes}
    names = {strategy.label: name for name, strategy in alone.items()}
    parts = [common.sweep(chosen, {"baseline": StepFlow()}, strategy=list(alone.values()))]
    both = [alone["plain"], alone["self-consistency, k = 2"]]
    repaired = common.sweep(chosen, {"StepFlow": StepFlow.paper()}, strategy=both)
    parts.append(repaired[repaired["setting"] == "StepFlow"])
    rows = pd.concat(parts, ignore_index=True)
    rows["arm"] = [
        _arm(names[strategy], setting)
        for strategy, setting in zip(rows["strategy"], rows["setting"], strict=True)
    ]
    table = common.over_all(common.compare_by_group(rows))
    common.publish(
        chosen, figure_compute(costs(rows)), {"cost": costs(rows), "against the baseline": table}
    )


def _arm(strategy: str, setting: str) -> str:
    """The strategy's name and the setting's; plain ones go without saying."""
    named = [name for name in (strategy, setting) if name not in ("plain", "baseline")]
    return " + ".join(named) or "baseline"


def costs(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each arm, and its forward passes relative to the baseline's."""
    base = rows.loc[rows["arm"] == "baseline", "forward_passes"].mean()
    lines = []
    for arm, mine in rows.groupby("arm", sort=False):
        accuracy, low, high = proportion(int(mine["correct"].sum()), len(mine))
        lines.append(
            {
                "arm": arm,
                "family": "StepFlow" if "StepFlow" in str(arm) else str(arm).partition(", k")[0],
                "compute": mine["forward_passes"].mean() / base,
                "accuracy": accuracy,
                "accuracy_low": low,
                "accuracy_high": high,
                "n": len(mine),
                "tied": mine["tied"].mean(),
            }
        )
    return pd.DataFrame(lines)


if __name__ == "__main__":
    main()
