"""The part of `audit` that is about a pretrained model and other people's traces."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import pandas as pd
from audit_rules import FEW, HIDES, RULES, cost_of, hidden_steps, maps_of, rise_of
from audit_tables import Case, rise_table, summary, tables_of
from contrasts import OWN_SOLUTIONS, read_pairs
from contrasts import trace_of as solution_trace
from parts import Parts
from tqdm import tqdm

from stepflow_tl import Trace, load_model
from stepflow_tl.analysis.audit import impact_truth, labeled_dependencies
from stepflow_tl.integrations.transcripts import traces_of

CONTROLS_ON = 10
"""Problems of which every rule, and the control of RISE, is asked."""

LONGEST = 3_300
"""Tokens of the longest trace of others that is mapped: rollout keeps all layers' patterns."""


@dataclass
class Found:
    """What was found.

    Attributes:
        summaries: One line per rule, for each set of traces.
        details: Other tables.
        n: Number of traces of each set.
        models: What their results depend on.
    """

    summaries: dict[str, pd.DataFrame] = field(default_factory=dict)
    details: dict[str, pd.DataFrame] = field(default_factory=dict)
    n: dict[str, int] = field(default_factory=dict)
    models: dict[str, Any] = field(default_factory=dict)

    def take(self, name: str, cases: list[Case], cost: dict[str, dict[str, float]]) -> None:
        """Add the tables of a set of traces."""
        if not cases:
            return
        tables = tables_of(cases)
        self.summaries[name] = summary(cases, tables, cost)
        self.n[name] = len(cases)
        for truth, table in tables.items():
            self.details[f"{name}, {truth}, by layer"] = table
        if any(case.rise is not None for case in cases):
            for hide in HIDES:
                self.details[f"{name}, RISE and MAS ({hide} hidden)"] = rise_table(cases, hide)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this part."""
    parser.add_argument("--real", help="a pretrained model: a .gguf file, a name, or a folder")
    parser.add_argument("--solutions", type=Path, help="GSM8K's example solutions, or such a file")
    parser.add_argument("--traces", type=Path, help="labeled traces in thought-anchors' layout")
    parser.add_argument("--real-n", type=int, default=50, help="problems of --solutions (50)")


def run(chosen: common.Options) -> Found:
    """Audit the pretrained model, if there is one; in the fast setting, the reasoner in its place.

    Raises:
        SystemExit: There is a model, and nothing to run it on.
    """
    given, found = chosen.given, Found()
    solutions = OWN_SOLUTIONS if chosen.fast else given.solutions
    if given.real is None and not chosen.fast:
        return found
    if solutions is None and given.traces is None:
        raise SystemExit("expected --solutions or --traces beside --real, got neither")
    model = load_model(given.real or chosen.model, device="cpu")
    made_of = common.made_of(model)
    parts = Parts(chosen.out / "audit-parts.sqlite", made_of)
    name = "own file" if chosen.fast else made_of["model"]
    if solutions is not None:
        few = 1 if chosen.fast else given.real_n
        cases = list(_solved(model, solutions, few, parts))
        cost = cost_of(model, cases[0].trace, parts, f"solutions/{cases[0].problem}", asked=RULES)
        found.take(name, cases, cost)
        for side in ("correct", "wrong"):
            mine = [case for case in cases if case.side == side]
            found.details[f"{name}, {side} solutions"] = summary(mine, tables_of(mine), {})
    if given.traces is not None:
        labeled = list(_labeled(model, given.traces, parts))
        found.take(f"{name} on other people's traces", labeled, {})
    found.models[name] = made_of
    return found


def _solved(model: Any, path: Path, count: int, parts: Parts) -> Iterator[Case]:
    """A correct and a wrong solution of each problem, as the model's response."""
    pairs = read_pairs(path)[:count]
    if len(pairs) < count:
        raise SystemExit(f"expected {count} problems with both kinds, got {len(pairs)}")
    for number, pair in enumerate(tqdm(pairs, unit="problem")):
        for side, text in (("correct", pair.correct), ("wrong", pair.wrong)):
            trace = solution_trace(model, pair.question, text)
            last = trace.steps_in("summary")[-1]
            answer, name = (last.start, last.stop), f"solutions/{pair.problem}/{side}"
            whole = number < CONTROLS_ON
            maps = maps_of(model, trace, parts, name, asked=RULES if whole else FEW)
            truths = {"knock-out": hidden_steps(model, trace, parts, name, answer=answer)}
            few = {rule: made for rule, made in maps.items() if rule in FEW}
            hides = HIDES if whole else HIDES[:1]
            rise = rise_of(model, trace, few, parts, name, hides=hides, answer=answer)
            yield Case(str(pair.problem), trace, truths, maps, rise, side)


def _labeled(model: Any, folder: Path, parts: Parts) -> Iterable[Case]:
    """Traces of others that are short enough, with what their labels say."""
    for number, trace in enumerate(_short(model, folder)):
        name = f"labeled/{number}/{len(trace)}"
        truths = {"labels": labeled_dependencies(trace)}
        impacts = trace.metadata.get("thought_anchors", {}).get("files", {})
        if rows := impacts.get("step_importance_supp.json"):
            truths["suppression"] = impact_truth(trace, rows, "suppression")
        maps = maps_of(model, trace, parts, name, asked=FEW)
        yield Case(str(number), trace, truths, maps)


def _short(model: Any, folder: Path) -> Iterator[Trace]:
    for _, trace in traces_of(model, folder):
        if trace is None or len(trace) > LONGEST:
            continue
        if any("depends_on" in step.labels for step in trace.steps):
            yield trace
