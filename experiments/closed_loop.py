"""Beyond the paper: does the diagnosis choose the right layers, and does that repair anything?

Lock-in is planted in each window of neighboring layers in turn, and in none. Maps of the model's
own answers accuse a window, in three ways: against the healthy model on the same traces, wrong
traces against correct ones, and by themselves. How often is it the planted one, and how much of it
do they share, beside a window drawn at random? Then the loop is closed where answers are lost:
where lock-in was planted, where it was trained in, and on problems too hard for the model as it is.
The strength is chosen on held-out problems, at the accused layers, at the planted ones, and at the
paper's, and reported on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import common
import numpy as np
import pandas as pd
from audit_rules import single_thread
from parts import Parts
from tqdm import tqdm

from stepflow_tl import StepFlow, WordProblems, diagnose, load_model, step_saliency
from stepflow_tl.analysis.bands import Against, accuse_band
from stepflow_tl.errors import SettingError
from stepflow_tl.interventions import PlantedLockIn
from stepflow_tl.models.locked_in import NAME as LOCKED_IN
from stepflow_tl.plots import figure_closed_loop
from stepflow_tl.sweep import closed_loop, trace_of

WIDTH = 3
DOSES = {(4, 5, 6): 0.4}
"""Dose of a window where it is not 0.9: the look-up layers hardly stand more."""
HELD_OUT_SEED = 72
HARD = 17
"""Operations of problems of which the reasoner, as it is, fails a third."""

WAYS = ("reference", "correct", "nothing")
RULES: dict[str, dict[str, Any]] = {"paper": {"pool": "mean"}, "share": {}}
DRAWS = 200


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment, or go on with it."""
    single_thread()
    chosen = common.options("closed_loop", __doc__, argv, n=100, problems="8", fast="2", fast_n=4)
    model = load_model(chosen.model, device="cpu")
    parts = Parts(chosen.out / "closed_loop-parts.sqlite", common.made_of(model))
    held_out = WordProblems(n=chosen.n, difficulties=chosen.task.difficulties, seed=HELD_OUT_SEED)
    n_layers = int(model.cfg.n_layers)
    windows = [tuple(range(a, a + WIDTH)) for a in range(n_layers - WIDTH + 1)]
    windows = windows[4:5] if chosen.fast else windows
    looks = pd.concat(
        [_looks(chosen, model, parts, held_out, window) for window in windows], ignore_index=True
    )
    accused = _accused(looks, windows, n_layers)
    loops = _loops(chosen, model, held_out, accused)
    common.publish(
        chosen,
        figure_closed_loop(accused, loops),
        {"which layers are accused": accused, "repaired": loops},
        n={"problems held out": chosen.n, "problems reported": chosen.n},
        models={"reasoner": common.made_of(model)},
    )


def planted(window: tuple[int, ...]) -> StepFlow:
    """Lock-in in a window of layers; in none where it is empty."""
    dose = DOSES.get(window, 0.9)
    return StepFlow(PlantedLockIn(strength=dose, layers=window)) if window else StepFlow()


def _looks(
    chosen: common.Options,
    model: Any,
    parts: Parts,
    held_out: WordProblems,
    window: tuple[int, ...],
) -> pd.DataFrame:
    """Lock-in of each answer by layer and rule, with the failure and without."""
    flow = planted(window)
    rows = common.sweep_of(chosen, held_out, {"planted": flow})
    rows = rows[rows["arm"] == "planted"]
    tables = []
    for _, row in tqdm(rows.iterrows(), total=len(rows), desc=str(window)):
        trace = trace_of(model, row)

        def look(attached: StepFlow, trace: Any = trace) -> dict[str, list[float]]:
            found = {}
            for rule, settings in RULES.items():
                with attached.attach(model):
                    made = step_saliency(model, trace, **settings)
                found[rule] = diagnose(made)["lock_in"].tolist()
            return found

        for which, attached in (("planted", flow), ("healthy", StepFlow())):
            name = f"{window}/{which}/{row['problem']}"
            found = parts.json(name, lambda attached=attached: look(attached))
            for rule, values in found.items():
                tables.append(
                    pd.DataFrame({"layer": range(len(values)), "lock_in": values}).assign(
                        window=str(window),
                        which=which,
                        rule=rule,
                        problem=row["problem"],
                        correct=bool(row["correct"]),
                    )
                )
    return pd.concat(tables, ignore_index=True)


def _accused(
    looks: pd.DataFrame, windows: Sequence[tuple[int, ...]], n_layers: int
) -> pd.DataFrame:
    """Which window is accused, how often over draws of problems, and how much of it is right."""
    lines = []
    for window in windows:
        for rule in RULES:
            mine = looks[(looks["window"] == str(window)) & (looks["rule"] == rule)]
            wide = {
                which: part.pivot_table(
                    index="problem", columns="layer", values="lock_in", sort=False
                )
                for which, part in mine.groupby("which")
            }
            kept = wide["planted"].dropna().index
            right = mine.drop_duplicates("problem").set_index("problem")["correct"].loc[kept]
            for way in WAYS:
                found = _drawn(wide, kept, right.to_numpy(dtype=bool), way)
                if found is None:
                    continue
                overlaps = np.array([len(set(window) & set(f)) / WIDTH for f in found])
                lines.append(
                    {
                        "planted": _name(window),
                        "rule": rule,
                        "against": way,
                        "accused": _name(found[0]),
                        "overlap": float(overlaps[0]),
                        "exact": float(np.mean([f == window for f in found[1:]])),
                        "overlap_mean": float(overlaps[1:].mean()),
                        "overlap_low": float(np.quantile(overlaps[1:], 0.025)),
                        "overlap_high": float(np.quantile(overlaps[1:], 0.975)),
                        "random": _by_chance(window, n_layers),
                        "n": len(kept),
                    }
                )
    return pd.DataFrame(lines)


def _drawn(
    wide: dict[str, pd.DataFrame], kept: pd.Index, right: np.ndarray, way: str
) -> list[tuple[int, ...]] | None:
    """The accused window of all problems, and of draws of them; None where it cannot be said."""
    generator, found = np.random.default_rng(0), []
    planted_values = wide["planted"].loc[kept]
    healthy = wide["healthy"].reindex(kept)
    for draw in range(DRAWS + 1):
        at = np.arange(len(kept)) if draw == 0 else generator.integers(len(kept), size=len(kept))
        tables = [_table(planted_values.iloc[i]) for i in at]
        try:
            band = accuse_band(
                tables,
                width=WIDTH,
                against=way,  # type: ignore[arg-type]
                reference=[_table(healthy.iloc[i]) for i in at] if way == "reference" else None,
                correct=right[at].tolist() if way == "correct" else None,
            )
        except SettingError:  # all correct, or none
            if draw == 0:
                return None
            continue
        found.append(band.layers)
    return found


def _table(values: pd.Series) -> pd.DataFrame:
    return pd.DataFrame({"layer": values.index.to_numpy(), "lock_in": values.to_numpy()})


def _by_chance(window: tuple[int, ...], n_layers: int) -> float:
    """Mean overlap of a window drawn at random with the planted one."""
    every = [set(range(a, a + WIDTH)) for a in range(n_layers - WIDTH + 1)]
    return float(np.mean([len(one & set(window)) / WIDTH for one in every]))


def _loops(
    chosen: common.Options, model: Any, held_out: WordProblems, accused: pd.DataFrame
) -> pd.DataFrame:
    """The closed loop where answers are lost: planted, trained in, and on hard problems."""
    window = (4, 5, 6)
    lines = []
    for name, case in _cases(chosen, model, held_out, window).items():
        for choice, layers in (("accused", None), ("planted", window), ("paper's", (0, 1))):
            found = closed_loop(
                case.tuning,
                case.reporting,
                chosen.out / case.folder,
                model=case.model,
                base=case.base,
                reference=model if case.against == "reference" else None,
                against=case.against,
                layers=layers,
                width=WIDTH,
                maps=3 if chosen.fast else 60,
                decoding=chosen.decoding_of(case.reporting),
                progress=True,
            )
            best = found.tried.iloc[0]
            line = {
                "model": name,
                "layers": choice
                if choice != "planted" or case.against == "reference"
                else "look-up",
                "which": _name(found.band.layers if layers is None else layers),
                "chosen": best["arm"] if found.outcome is not None else "nothing",
                "held_out_before": best["baseline"],
                "held_out_after": best["accuracy"],
            }
            if found.outcome is not None:
                row = found.outcome.iloc[0]
                line |= {c: row[c] for c in row.index if c not in ("arm", "test", "samples")}
            lines.append(line)
    return pd.DataFrame(lines)


@dataclass(frozen=True)
class _Case:
    """A model that fails, and problems of which it fails some."""

    model: Any
    base: StepFlow
    against: Against
    tuning: WordProblems
    reporting: WordProblems
    folder: str = "closed_loop"


def _cases(
    chosen: common.Options, model: Any, held_out: WordProblems, window: tuple[int, ...]
) -> dict[str, _Case]:
    """Lock-in that was planted, and trained in; and the reasoner on problems too hard for it."""
    plant = planted(window)
    cases = {"lock-in planted in 4-6": _Case(model, plant, "reference", held_out, chosen.task)}
    if chosen.fast:
        return cases
    tuned = load_model(LOCKED_IN, device="cpu")
    cases["fine-tuned to lock in"] = _Case(
        tuned, StepFlow(), "reference", held_out, chosen.task, "closed_loop_tuned"
    )
    hard = [
        WordProblems(n=chosen.n, difficulties=(HARD,), seed=seed)
        for seed in (HELD_OUT_SEED, common.SEED)
    ]
    cases[f"unplanted, {HARD} operations"] = _Case(model, StepFlow(), "correct", *hard)
    return cases


def _name(layers: tuple[int, ...]) -> str:
    return f"{layers[0]}-{layers[-1]}"


if __name__ == "__main__":
    main()
