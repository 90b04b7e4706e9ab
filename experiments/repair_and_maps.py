"""Beyond the paper: does repair move the maps, and does that predict what becomes right?"""

from collections.abc import Sequence

import common
import numpy as np
import pandas as pd
from scipy.stats import bootstrap, kendalltau
from tqdm import tqdm

from stepflow_tl import StepFlow, diagnose, load_model, step_saliency
from stepflow_tl.plots import figure_repair_effect
from stepflow_tl.sweep import trace_of

MEASURES = ("lock_in", "summary_on_thinking")
BANDS = {"lock_in": "shallow", "summary_on_thinking": "deep"}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment, or go on with it."""
    chosen = common.options("repair_and_maps", __doc__, argv)
    flow = StepFlow.paper()
    rows = common.sweep(chosen, {"StepFlow": flow})
    before, after = (
        rows[rows["setting"] == setting].set_index("problem")
        for setting in ("baseline", "StepFlow")
    )
    after = after.reindex(before.index)
    model = load_model(chosen.model)

    def figures_of(row: pd.Series, repair: StepFlow) -> pd.DataFrame:
        trace = trace_of(model, row)
        with repair.attach(model):
            return diagnose(step_saliency(model, trace, pool="mean"))[["layer", *MEASURES]]

    changes = []
    for problem in tqdm(before.index, unit="problem"):
        plain = figures_of(before.loc[problem], StepFlow())
        for how, row in (("same text", before.loc[problem]), ("own text", after.loc[problem])):
            change = figures_of(row, flow).set_index("layer") - plain.set_index("layer")
            changes.append(change.reset_index().assign(problem=problem, text=how))
    moved = pd.concat(changes, ignore_index=True)
    correctness = after["correct"].astype(int) - before["correct"].astype(int)
    scatter = _per_problem(moved[moved["text"] == "own text"], correctness)
    by_layer = {how: _by_layer(moved[moved["text"] == how]) for how in ("own text", "same text")}
    association = _association(scatter)
    common.publish(
        chosen,
        figure_repair_effect(
            by_layer["own text"],
            scatter,
            association={line["measure"]: line["text"] for line in association},
        ),
        {
            "change by layer, each its own text": by_layer["own text"],
            "change by layer, the baseline's text under StepFlow": by_layer["same text"],
            "does the change predict correctness": pd.DataFrame(association),
        },
        n=len(before),
    )


def _by_layer(moved: pd.DataFrame) -> pd.DataFrame:
    """Mean change over problems with its bootstrap interval."""
    lines = []
    for layer, mine in moved.groupby("layer"):
        for measure in MEASURES:
            values = mine[measure].dropna().to_numpy()
            low, high = _interval(values)
            lines.append(
                {
                    "layer": layer,
                    "measure": measure,
                    "change": values.mean() if len(values) else np.nan,
                    "low": low,
                    "high": high,
                    "n": len(values),
                }
            )
    return pd.DataFrame(lines)


def _interval(values: np.ndarray) -> tuple[float, float]:
    if len(values) < 3 or np.ptp(values) == 0:
        return np.nan, np.nan
    found = bootstrap((values,), np.mean, n_resamples=2000, rng=np.random.default_rng(0))
    return found.confidence_interval.low, found.confidence_interval.high


def _per_problem(moved: pd.DataFrame, correctness: pd.Series) -> pd.DataFrame:
    """Change of each measure over the band it belongs to, beside the change in correctness."""
    quarter = max(1, moved["layer"].nunique() // 4)
    layers = sorted(moved["layer"].unique())
    band = {"shallow": layers[:quarter], "deep": layers[-quarter:]}
    lines = []
    for measure in MEASURES:
        mine = moved[moved["layer"].isin(band[BANDS[measure]])]
        change = mine.groupby("problem")[measure].mean().reindex(correctness.index)
        lines.append(
            pd.DataFrame(
                {
                    "problem": correctness.index,
                    "measure": measure,
                    "change": change.to_numpy(),
                    "correctness_change": correctness.to_numpy(),
                }
            )
        )
    return pd.concat(lines, ignore_index=True).dropna()


def _association(scatter: pd.DataFrame) -> list[dict[str, object]]:
    """Kendall's tau-b between the change of a measure and the change in correctness."""
    lines: list[dict[str, object]] = []
    for measure, mine in scatter.groupby("measure", sort=False):
        found = kendalltau(mine["change"], mine["correctness_change"])
        text = f"Kendall tau = {found.statistic:.2f}, p = {found.pvalue:.2g}, n = {len(mine)}"
        lines.append(
            {
                "measure": measure,
                "band": BANDS[str(measure)],
                "kendall_tau": found.statistic,
                "p_value": found.pvalue,
                "n": len(mine),
                "text": text,
            }
        )
    return lines


if __name__ == "__main__":
    main()
