"""Whether diagnostics see a planted failure: by dose, rule and layer; slopes, and power."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from parts import Parts
from planted_arms import (
    DECAY,
    FORGETTING,
    LOCK_IN,
    LOOK_UP,
    bridge,
    decay,
    forgetting,
    lock_in,
    momentum,
)
from scipy.stats import ttest_ind
from tqdm import tqdm

from stepflow_tl import StepFlow, StepMap, Trace, diagnose, token_saliency
from stepflow_tl.analysis.diagnostics import LOCK_IN as LOCK_IN_MEASURES
from stepflow_tl.saliency import StepPooler
from stepflow_tl.sweep import trace_of

SEEN: dict[str, dict[float, StepFlow]] = {
    "lock-in": {d: StepFlow(lock_in(d)) for d in (0.2, LOCK_IN, 0.6)},
    "forgetting": {d: StepFlow(forgetting(d)) for d in (0.4, FORGETTING, 1.0)},
    "decay": {d: StepFlow(decay(d)) for d in (0.3, DECAY, 0.9)},
}
"""Failures in the model while the unplanted model's own solutions are run again."""

REPAIRED = {
    "lock-in + OEB 0.15 there": StepFlow(lock_in(), bridge(0.15)),
    "lock-in + OEB 0.3 there": StepFlow(lock_in(), bridge(0.3)),
    "forgetting + SMI 0.3 everywhere": StepFlow(forgetting(), momentum(0.3)),
    "decay + OEB 0.15 everywhere": StepFlow(decay(), bridge(0.15, "all")),
}
"""The same under a repair: does it bring the maps back, too?"""

EXPECTED = {
    "lock-in": {"lock_in": 1, "question_share": -1},
    "forgetting": {"neighbor_share": -1},
    "decay": {"summary_on_thinking": -1},
}
"""The measures that are named after each failure, and which way it moves them."""

PLACE = {"lock-in": LOOK_UP}
"""Layers that a failure was planted in; the others in all."""

DOSE = {"lock-in": LOCK_IN, "forgetting": FORGETTING, "decay": DECAY}
SIZES = (20, 50, 100)

_MEASURES = (*LOCK_IN_MEASURES, "summary_on_thinking")
_POOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "paper": ("attention_x_gradient", {"pool": "mean"}),
    "share": ("attention_x_gradient", {"pool": "share"}),
    "attention": ("attention", {"pool": "mean"}),
    "attention, share": ("attention", {"pool": "share"}),
}


def looks(model: Any, solved: pd.DataFrame, parts: Parts, *, fast: bool) -> pd.DataFrame:
    """Every diagnostic of every solution under every dose; a row per trace, rule, layer, dose."""
    settings = {("none", 0.0): StepFlow()} | {
        (failure, dose): flow for failure, doses in SEEN.items() for dose, flow in doses.items()
    }
    settings |= {(name, np.nan): flow for name, flow in REPAIRED.items()}
    if fast:
        settings = dict(list(settings.items())[:3])
    tables = []
    for _, row in tqdm(solved.iterrows(), total=len(solved), unit="trace"):
        trace = trace_of(model, row)
        for (failure, dose), flow in settings.items():
            name = f"{row['problem']}/{flow!r}"
            found = parts.json(name, lambda flow=flow, trace=trace: _look(model, trace, flow))
            tables.append(
                pd.DataFrame(found).assign(problem=row["problem"], failure=failure, dose=dose)
            )
    return pd.concat(tables, ignore_index=True)


def _look(model: Any, trace: Trace, flow: StepFlow) -> list[dict[str, Any]]:
    with flow.attach(model):
        tokens = {
            rule: token_saliency(model, trace, rule=rule)  # type: ignore[arg-type]
            for rule in dict.fromkeys(rule for rule, _ in _POOLS.values())
        }
    rows = []
    for name, (rule, pooling) in _POOLS.items():
        pooler = StepPooler(trace.step_of_token, len(trace.steps), **pooling)
        scores = pooler(tokens[rule])
        made = StepMap(
            scores=scores,
            layers=tuple(range(len(scores))),
            n_layers=len(scores),
            steps=trace.steps,
            settings={},
        )
        table = diagnose(made)[["layer", *_MEASURES]].assign(rule=name)
        rows += table.astype(object).where(table.notna(), None).to_dict("records")
    return rows


def seen_table(looked: pd.DataFrame) -> pd.DataFrame:
    """Mean of each failure's own measures by dose, rule and layer, and under repairs."""
    lines = []
    for failure, measures in EXPECTED.items():
        names = [failure, *(name for name in REPAIRED if name.startswith(f"{failure} +"))]
        mine = looked[looked["failure"].isin(["none", *names])]
        grouped = mine.groupby(["failure", "dose", "rule", "layer"], dropna=False, sort=False)
        for measure in measures:
            means = grouped[measure].agg(["mean", "sem", "count"]).reset_index()
            lines.append(means.assign(measure=measure, of=failure))
    table = pd.concat(lines, ignore_index=True)
    return table.rename(columns={"mean": "value", "sem": "standard_error", "count": "n"})


def slopes(looked: pd.DataFrame) -> pd.DataFrame:
    """Change of each measure per unit of dose, trace by trace; mean with its interval.

    ``right`` says whether the interval lies on the side where the failure is, ``wrong`` on the
    other.
    """
    lines = []
    for failure, rule, layer, measure, values, doses in _by_dose(looked):
        centered = doses - doses.mean()
        slope = values @ centered / (centered @ centered)
        low, high = _interval(slope)
        sign = EXPECTED[failure][measure]
        lines.append(
            {
                "failure": failure,
                "measure": measure,
                "rule": rule,
                "layer": layer,
                "planted": layer in PLACE.get(failure, (layer,)),
                "slope": float(slope.mean()),
                "slope_low": low,
                "slope_high": high,
                "right": bool(low * sign > 0 and high * sign > 0),
                "wrong": bool(low * sign < 0 and high * sign < 0),
                "n": len(slope),
            }
        )
    return pd.DataFrame(lines)


def power(looked: pd.DataFrame, draws: int = 500) -> pd.DataFrame:
    """Chance that n planted and n other unplanted traces differ, the right way, at 5%.

    Traces of the dose that repairs are tried at, and unplanted ones, each drawn with replacement
    from those of all problems, so that nothing but the failure makes them differ; Welch's t-test,
    two-sided.
    """
    lines, generator = [], np.random.default_rng(0)
    for failure, rule, layer, measure, values, doses in _by_dose(looked):
        column = int(np.flatnonzero(doses == DOSE[failure])[0]) if DOSE[failure] in doses else -1
        plain, planted = values[:, 0], values[:, column]
        for size in SIZES:
            a = generator.choice(plain, (draws, size))
            b = generator.choice(planted, (draws, size))
            found = ttest_ind(b, a, axis=1, equal_var=False)
            right = np.sign(b.mean(1) - a.mean(1)) == EXPECTED[failure][measure]
            lines.append(
                {
                    "failure": failure,
                    "measure": measure,
                    "rule": rule,
                    "layer": layer,
                    "planted": layer in PLACE.get(failure, (layer,)),
                    "n": size,
                    "power": float(((found.pvalue < 0.05) & right).mean()),
                    "wrong_way": float(((found.pvalue < 0.05) & ~right).mean()),
                }
            )
    return pd.DataFrame(lines)


def _by_dose(looked: pd.DataFrame) -> Any:
    """Values [trace, dose] of each failure's measures, by rule and layer; dose 0 first."""
    plain = looked[looked["failure"] == "none"]
    for failure, measures in EXPECTED.items():
        mine = looked[looked["failure"] == failure]
        if mine.empty:
            continue
        both = pd.concat([plain, mine])
        for (rule, layer), part in both.groupby(["rule", "layer"], sort=False):
            for measure in measures:
                wide = part.pivot_table(index="problem", columns="dose", values=measure, sort=False)
                wide = wide[sorted(wide.columns)].dropna()
                if len(wide) > 3:
                    values, doses = wide.to_numpy(dtype=float), np.array(wide.columns, dtype=float)
                    yield failure, rule, layer, measure, values, doses


def _interval(values: np.ndarray) -> tuple[float, float]:
    drawn = np.random.default_rng(0).choice(values, (2000, len(values))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)
