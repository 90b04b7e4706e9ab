"""Mirrors the paper's kinds of corrected error; the world knows which step went wrong first."""

from collections.abc import Sequence

import common
import pandas as pd
import published

from stepflow_tl import StepFlow
from stepflow_tl.plots import figure_error_kinds


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment, or go on with it."""
    chosen = common.options("error_kinds", __doc__, argv)
    rows = common.sweep(chosen, {"StepFlow": StepFlow.paper()})
    before, after = (
        rows[rows["setting"] == setting].set_index("problem")
        for setting in ("baseline", "StepFlow")
    )
    after = after.reindex(before.index)
    table = pd.DataFrame(
        {
            "corrected": before.loc[~before["correct"] & after["correct"], "error"].value_counts(),
            "introduced": after.loc[before["correct"] & ~after["correct"], "error"].value_counts(),
            "baseline_errors": before.loc[~before["correct"], "error"].value_counts(),
        }
    )
    table = table.fillna(0).astype(int).sort_values("baseline_errors", ascending=False)
    table = table.rename_axis("kind").reset_index()
    common.publish(
        chosen,
        figure_error_kinds(table),
        {
            "first errors of wrong answers": table,
            published.THEIRS: published.CORRECTED_ERRORS,
        },
        n=len(before),
        moved=_moves(before, after),
    )


def _moves(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, int]:
    """Of the problems wrong both times: does the first error come later, earlier, or as before?"""
    wrong = ~before["correct"] & ~after["correct"]
    moved = (after["error_step"] - before["error_step"])[wrong]
    return {
        "wrong_both_times": int(wrong.sum()),
        "first_error_later": int((moved > 0).sum()),
        "first_error_earlier": int((moved < 0).sum()),
        "first_error_at_the_same_step": int((moved == 0).sum()),
    }


if __name__ == "__main__":
    main()
