"""Mirrors the paper's gain by difficulty: from problems never failed to problems hardly solved."""

from collections.abc import Sequence

import common
import published

from stepflow_tl import StepFlow
from stepflow_tl.plots import figure_difficulty_gain


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment, or go on with it."""
    chosen = common.options(
        "difficulty_gain", __doc__, argv, n=60, problems="8 12 14 15 16 17 18 19 20"
    )
    table = common.compare_by_group(common.sweep(chosen, {"StepFlow": StepFlow.paper()}))
    common.publish(
        chosen,
        figure_difficulty_gain(table[table["group"] != "all"]),
        {"against the baseline": table, published.THEIRS: published.GAIN_BY_DIFFICULTY},
    )


if __name__ == "__main__":
    main()
