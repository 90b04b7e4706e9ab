"""Mirrors the paper's ablation of components: none, OEB, SMI, both; and each digest variant."""

from collections.abc import Sequence

import common
import published

from stepflow_tl import (
    GradientMomentum,
    OddsEqualBridge,
    StepFlow,
    StepMomentum,
    UniformPriorBridge,
)
from stepflow_tl.plots import figure_arms

COMPONENTS = {
    "OEB": StepFlow(OddsEqualBridge()),
    "SMI": StepFlow(StepMomentum()),
    "OEB + SMI (paper)": StepFlow.paper(),
    "authors' release": StepFlow.release(),
    "uniform prior": StepFlow(UniformPriorBridge()),
    "gradient momentum": StepFlow(GradientMomentum()),
    "digest (both variants)": StepFlow.digest(),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment, or go on with it."""
    chosen = common.options("component_ablation", __doc__, argv)
    rows = common.sweep(chosen, COMPONENTS)
    table = common.compare_by_group(rows)
    costs = rows.groupby("arm", sort=False)[["tokens", "forward_passes", "fired"]].mean()
    common.publish(
        chosen,
        figure_arms(
            common.over_all(table),
            published=published.component_gains(),
        ),
        {
            "against the baseline": table,
            "mean cost per problem": costs.reset_index(),
            published.THEIRS: published.COMPONENTS,
        },
    )


if __name__ == "__main__":
    main()
