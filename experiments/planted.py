"""Beyond the paper: failures planted in the model, seen by which diagnostic, repaired by what?

Lock-in, decay, forgetting and noise of known place and dose are planted in the bundled reasoner
(`planted_arms`), alone and under every repair, greedily, on the same problems. Then the unplanted
model's own solutions are run again with the failure in it, and each diagnostic is asked, by each
rule and layer, whether it sees the dose. What a bridge brings back of a planted shift is an
undoing, which is not repairing; beside it stand noise, which no shift of mass inverts, and a
reasoner that was fine-tuned to lock in (`reasoner/lock_in`), whose failure is in its weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import common
import pandas as pd
from audit_rules import single_thread
from parts import Parts
from planted_arms import DOSES, PLACES, REPAIRS, arms, planted_arm
from planted_seen import looks, power, seen_table, slopes

from stepflow_tl import Grid, StepFlow, Sweep, compare, load_model
from stepflow_tl.analysis import proportion
from stepflow_tl.models.locked_in import doses_of, locked_in_decoder
from stepflow_tl.plots import figure_planted

TUNED_REPAIRS = (
    "OEB 0.05 there",
    "OEB 0.15 there",
    "OEB 0.3 there",
    "SMI 0.3 there",
    "both (paper)",
)
"""Repairs that are tried on the fine-tuned reasoner."""

N_SEEN = 100
"""Problems whose solutions are run again with the failure in the model."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment, or go on with it."""
    single_thread()
    chosen = common.options("planted", __doc__, argv, n=200, problems="8", fast="2", fast_n=5)
    every = arms()
    if chosen.fast:
        every = {name: every[name] for name in _few(every)}
    rows = common.sweep(chosen, every)
    model = load_model(chosen.model, device="cpu")
    parts = Parts(chosen.out / "planted-parts.sqlite", common.made_of(model))
    solved = rows[(rows["arm"] == "baseline") & rows["correct"]].head(6 if chosen.fast else N_SEEN)
    looked = looks(model, solved, parts, fast=chosen.fast)
    tables = {
        "by dose": _accuracies(rows, _dose_arms(), ["failure", "dose"]),
        "by layers": _accuracies(rows, _place_arms(), ["failure", "layers"]),
        "repairs": _repairs(rows),
        "fine-tuned to lock in": _tuned(chosen),
        "seen, by dose": seen_table(looked),
        "seen, slope by layer": slopes(looked),
        "power": power(looked),
    }
    tuned = tables["fine-tuned to lock in"]
    named = [f"fine-tuned to lock in, {dose} steps" for dose in tuned["dose"]]
    repairs = pd.concat([tables["repairs"], tuned.assign(failure=named)], ignore_index=True)
    common.publish(
        chosen,
        figure_planted(tables["by dose"], tables["by layers"], repairs, tables["power"]),
        tables,
        n={"answers": int(rows["problem"].nunique()), "traces run again": len(solved)},
        models={"reasoner": common.made_of(model)},
    )


def _few(every: Iterable[str]) -> list[str]:
    """For tests: a dose, a place, and one failure with one repair."""
    place = next(name for name in every if "layers" in name)
    repair = f"lock-in + {next(iter(REPAIRS['lock-in'][1]))}"
    return [next(iter(every)), place, planted_arm("lock-in"), repair]


def _dose_arms() -> Iterable[tuple[str, tuple[Any, ...]]]:
    for failure, doses in DOSES.items():
        yield "baseline", (failure, 0.0)
        for dose in doses:
            yield f"{failure}, d = {dose:g}", (failure, dose)


def _place_arms() -> Iterable[tuple[str, tuple[Any, ...]]]:
    for failure, places in PLACES.items():
        for layers in places:
            yield f"{failure}, layers {layers}", (failure, layers)
    yield "lock-in, d = 0.9, layers 4-6", ("lock-in, d = 0.9", "4-6")


def _accuracies(
    rows: pd.DataFrame, wanted: Iterable[tuple[str, tuple[Any, ...]]], names: Sequence[str]
) -> pd.DataFrame:
    """Accuracy of some arms with Wilson's interval, and what else became of the answers."""
    lines = []
    for arm, labels in wanted:
        mine = rows[rows["arm"] == arm]
        if mine.empty:
            continue
        value, low, high = proportion(int(mine["correct"].sum()), len(mine))
        lines.append(
            {
                **dict(zip(names, labels, strict=True)),
                "n": len(mine),
                "accuracy": value,
                "accuracy_low": low,
                "accuracy_high": high,
                "cut": float((~mine["ended"].astype(bool)).mean()),
                "first error": ", ".join(
                    f"{kind} {count}" for kind, count in mine["error"].value_counts()[:3].items()
                ),
            }
        )
    return pd.DataFrame(lines)


def _repairs(rows: pd.DataFrame) -> pd.DataFrame:
    """Every repair against its failure alone, the same problems; Holm over the whole table."""
    tables = []
    for failure, (_, repairs) in REPAIRS.items():
        planted = planted_arm(failure)
        names = [f"{failure} + {name}" for name in repairs]
        mine = rows[rows["arm"].isin([planted, *names])]
        if mine["arm"].nunique() < 2:
            continue
        table = compare(mine, baseline=planted)
        table["arm"] = table["arm"].str.removeprefix(f"{failure} + ")
        tables.append(table.rename(columns={"arm": "repair"}).assign(failure=failure))
    table = common.holm_over(tables)
    return table[["failure", *(column for column in table.columns if column != "failure")]]


def _tuned(chosen: common.Options) -> pd.DataFrame:
    """The reasoner fine-tuned to lock in, by dose and under repairs, against itself alone."""
    repairs = {"baseline": StepFlow()} | {
        name: StepFlow(*items)
        for name, items in REPAIRS["lock-in"][1].items()
        if name in TUNED_REPAIRS
    }
    tables = []
    for dose in doses_of()[: 1 if chosen.fast else None]:
        asked = dict(list(repairs.items())[:2]) if chosen.fast else repairs
        described = Sweep(
            chosen.task,
            Grid.of(asked),
            model=load_model(hf_model=locked_in_decoder(dose), device="cpu"),
            decoding=chosen.decoding,
        )
        store = chosen.out / f"locked-in-{dose}-{chosen.task.digest}.sqlite"
        rows = described.run(store, progress=True)
        tables.append(compare(rows, baseline="baseline").assign(dose=dose))
    return common.holm_over(tables).rename(columns={"arm": "repair"})


if __name__ == "__main__":
    main()
