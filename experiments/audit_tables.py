"""The tables of `audit`: every rule against one truth by layer, RISE, and one line per rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import common
import pandas as pd
from audit_rules import HOPS

from stepflow_tl import StepMap, Trace
from stepflow_tl.analysis.audit import Truth, audit

TRUTHS = ("premise", "earlier step", "knock-out", "labels", "suppression")
MEASURES = ("auroc", "within", "correlation", "recall")


@dataclass(frozen=True)
class Case:
    """One trace with what is known of it.

    Attributes:
        problem: Which problem it answers.
        trace: It.
        truths: What is known, by name.
        maps: Every rule's map of it.
        rise: RISE and MAS of each rule, by what was hidden; None where it was not asked.
        side: "correct" or "wrong", where there are both.
    """

    problem: str
    trace: Trace
    truths: Mapping[str, Truth]
    maps: Mapping[str, StepMap]
    rise: Mapping[str, list[dict[str, Any]]] | None = None
    side: str = ""


def by_layer(cases: Sequence[Case], truth: str, *, resamples: int = 2_000) -> pd.DataFrame:
    """The audit of every rule against one truth; slow rules of fewer traces."""
    of_truth = [case for case in cases if truth in case.truths]
    together: dict[tuple[int, ...], list[str]] = {}
    for rule in dict.fromkeys(rule for case in of_truth for rule in case.maps):
        asked = tuple(n for n, case in enumerate(of_truth) if rule in case.maps)
        together.setdefault(asked, []).append(rule)
    tables = []
    for numbers, rules in sorted(together.items(), key=lambda pair: -len(pair[0])):
        some = [of_truth[n] for n in numbers]
        maps = {rule: [case.maps[rule] for case in some] for rule in rules}
        truths = [case.truths[truth] for case in some]
        problems = [case.problem for case in some]
        tables.append(audit(maps, truths, problems=problems, resamples=resamples))
    table = pd.concat(tables, ignore_index=True)
    return table.drop_duplicates(["rule", "layer"], ignore_index=True)


def rise_table(cases: Sequence[Case], hide: str) -> pd.DataFrame:
    """Mean RISE and MAS of each rule, with intervals from drawing whole problems."""
    rows = [
        {"problem": case.problem, **row}
        for case in cases
        if case.rise is not None
        for row in case.rise.get(hide, ())
    ]
    lines = []
    for rule, mine in pd.DataFrame(rows).groupby("rule", sort=False):
        of_problem = mine.groupby("problem")[["rise", "mas"]].mean()
        line: dict[str, Any] = {"rule": rule, "n": int(of_problem["rise"].notna().sum())}
        for name in ("rise", "mas"):
            line |= common.mean_with_interval(name, of_problem[name].to_numpy())
        lines.append(line)
    return pd.DataFrame(lines)


def tables_of(cases: Sequence[Case]) -> dict[str, pd.DataFrame]:
    """The audit against each truth that is known of any case."""
    known = {name for case in cases for name in case.truths}
    return {truth: by_layer(cases, truth) for truth in TRUTHS if truth in known}


def summary(
    cases: Sequence[Case],
    tables: Mapping[str, pd.DataFrame],
    cost: Mapping[str, Mapping[str, float]],
) -> pd.DataFrame:
    """One line per rule: what its mean over all layers sees, RISE, seconds and memory.

    ``premise_auroc`` and so on are of the mean over all layers' row shares; ``premise_best`` is the
    AUROC within distance of the layer that is best on the other half of the problems, and
    ``premise_layer`` the layer that the first half chooses.
    """
    lines: dict[str, dict[str, Any]] = {}
    for truth, table in tables.items():
        best = _best_layers(cases, truth)
        whole = table[table["layer"].isin(["all", "-"]) | (table["rule"] == HOPS)]
        for _, row in whole.drop_duplicates("rule").iterrows():
            line = lines.setdefault(row["rule"], {"rule": row["rule"]})
            line[f"{truth}_n"] = row["n"]
            for name in MEASURES:
                line |= {f"{truth}_{c}": row[c] for c in (name, f"{name}_low", f"{name}_high")}
            if row["rule"] in best:
                line[f"{truth}_best"], line[f"{truth}_layer"] = best[row["rule"]]
    if any(case.rise is not None for case in cases):
        for _, row in rise_table(cases, "keys").iterrows():
            lines[row["rule"]] |= {"rise_n" if c == "n" else c: row[c] for c in row.index[1:]}
    for rule, line in lines.items():
        line |= cost.get(rule, {})
    return pd.DataFrame(lines.values())


def _best_layers(cases: Sequence[Case], truth: str) -> dict[str, tuple[float, int]]:
    """AUROC within distance at the layer that is best on the other half of the problems."""
    asked = [case for case in cases if truth in case.truths]
    if len({case.problem for case in asked}) < 4:
        return {}
    problems = sorted({case.problem for case in asked})
    first = set(problems[::2])
    halves = [[c for c in asked if (c.problem in first) == side] for side in (True, False)]
    tables = [by_layer(half, truth, resamples=0) for half in halves]  # no intervals are wanted
    found = {}
    for rule in dict.fromkeys(tables[0]["rule"]):
        measures = [
            t[(t["rule"] == rule) & t["layer"].map(lambda x: isinstance(x, int))]
            .set_index("layer")["within"]
            .astype(float)
            for t in tables
        ]
        if all(len(measure) > 1 and measure.notna().any() for measure in measures):
            layers = [int(measure.idxmax()) for measure in measures]
            value = (measures[1][layers[0]] + measures[0][layers[1]]) / 2
            found[str(rule)] = (float(value), layers[0])
    return found
