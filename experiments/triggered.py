"""Beyond the paper: does acting only when the flow breaks cost less, and repair as much?

Failures that come and go are planted in the bundled reasoner, in two spells of thinking steps: one
that was learned (`learned_lock_in`) and one that moves attention; one is trained in, and always
there; in one case there is none. Each is repaired by a bridge of its
place that acts always; only where lock-in of the step before is above what nine tenths of a healthy
model's steps stay below; in steps drawn at random, as many; and where the failure is known to be.
Accuracy is of greedy answers. What else a repair changes is read teacher-forced off the healthy
model's right solutions of other problems: the divergence of predictions in steps that no failure
touches, and how near those in the others come to the healthy model's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import common
import numpy as np
import pandas as pd
from audit_rules import single_thread
from learned_lock_in import LearnedLockIn
from parts import Parts
from planted_arms import LOOK_UP, bridge, earlier
from tqdm import tqdm

from stepflow_tl import (
    Grid,
    OddsEqualBridge,
    StepFlow,
    Sweep,
    WordProblems,
    compare,
    generate,
    load_model,
)
from stepflow_tl.analysis.teacher import Base, Teacher
from stepflow_tl.interventions import Intervention
from stepflow_tl.models.layers import LayerSpec
from stepflow_tl.models.locked_in import NAME as LOCKED_IN
from stepflow_tl.models.view import view
from stepflow_tl.monitor import Monitor, When, chance, measure, step
from stepflow_tl.plots import figure_triggered
from stepflow_tl.sweep import trace_of
from stepflow_tl.sweep.grid import to_spec
from stepflow_tl.traces.trace import Trace

SPELLS = (2, 3, 4, 7, 8, 9)
"""Thinking steps in which a failure comes, of about ten."""

PERCENTILE = 90.0
"""Of the healthy model's steps stay below the threshold."""

HELD_OUT_SEED = 72
"""Of problems from which thresholds, rates and side effects are read."""

HARD = 17
"""Operations of problems of which the reasoner, as it is, fails a third."""

SEEDS = 3
"""Draws of steps at random."""

N_SIDE = 40
"""Solutions that are run teacher-forced."""

AS_IT_IS, ALWAYS, TRIGGERED, HOLDING, ORACLE = (
    "as it is",
    "always",
    "triggered",
    "triggered, holding on",
    "where it is planted",
)


@dataclass(frozen=True)
class Case:
    """A failure, the model it is in, and its repair.

    Attributes:
        model: As `load_model` takes it.
        failure: What is planted, in all steps; None for nothing.
        repair: The repair, always on.
        layers: Whose lock-in is watched.
        operations: Of the problems.
    """

    model: str
    failure: Intervention | None
    repair: OddsEqualBridge
    layers: LayerSpec
    operations: int = 8

    @property
    def planted(self) -> tuple[Intervention, ...]:
        """The failure, where it comes and goes."""
        where = step("thinking", number=SPELLS)
        return () if self.failure is None else (replace(self.failure, when=where),)

    def flow(self, when: When | None) -> StepFlow:
        """The failure with its repair, in some steps."""
        return StepFlow(*self.planted, replace(self.repair, when=when))


CASES = {
    "learned lock-in, in spells": Case(
        "reasoner", LearnedLockIn(strength=1.75), bridge(0.3), LOOK_UP
    ),
    "lock-in on the steps before, in spells": Case(
        "reasoner", earlier(0.9), bridge(0.15, "all"), "all"
    ),
    "fine-tuned to lock in": Case(LOCKED_IN, None, bridge(0.3), LOOK_UP),
    "none planted": Case("reasoner", None, bridge(0.3), LOOK_UP, HARD),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment, or go on with it."""
    single_thread()
    chosen = common.options("triggered", __doc__, argv, n=150, problems="8", fast="2", fast_n=4)
    healthy = load_model(chosen.model, device="cpu")
    parts = Parts(chosen.out / "triggered-parts.sqlite", common.made_of(healthy))
    answers, sides = [], []
    for name, case in list(CASES.items())[: 1 if chosen.fast else None]:
        model = healthy if case.model == chosen.model else load_model(case.model, device="cpu")
        tried = _Tried(chosen, name, case, model, healthy, parts)
        answers.append(tried.answers().assign(case=name))
        sides.append(tried.side_effects().assign(case=name))
    tables = {
        "answers": common.holm_over(answers),
        "predictions": pd.concat(sides, ignore_index=True),
    }
    common.publish(
        chosen,
        figure_triggered(tables["answers"], tables["predictions"]),
        tables,
        n={"answers": chosen.n, "solutions": 2 if chosen.fast else N_SIDE},
        models={"reasoner": common.made_of(healthy)},
    )


class _Tried:
    """One case under its arms."""

    def __init__(
        self,
        chosen: common.Options,
        name: str,
        case: Case,
        model: Any,
        healthy: Any,
        parts: Parts,
    ) -> None:
        self._chosen, self._name, self._case = chosen, name, case
        self._model, self._healthy, self._parts = model, healthy, parts
        operations = chosen.task.difficulties if chosen.fast else (case.operations,)
        self._task, self._held_out = (
            WordProblems(n=chosen.n, difficulties=operations, seed=seed)
            for seed in (common.SEED, HELD_OUT_SEED)
        )
        self._decoding = chosen.decoding_of(self._task)
        self._arms = dict(self._all_arms())

    def answers(self) -> pd.DataFrame:
        """Accuracy of every arm, against the failure alone, acting always, and when triggered."""
        flows = {name: flow for name, flow in self._arms.items() if flow.interventions}
        rows = Sweep(self._task, Grid.of(flows), model=self._model, decoding=self._decoding).run(
            self._store(self._task), progress=True
        )
        alone = AS_IT_IS if AS_IT_IS in flows else "baseline"
        rows = rows[rows["arm"].isin({alone, *flows})]
        table = compare(rows, baseline=alone)
        acting = rows[rows["arm"] != alone]
        for name, other in (("always", ALWAYS), ("triggered", TRIGGERED)):
            against = compare(acting, baseline=other).set_index("arm")
            for column in ("difference", "difference_low", "difference_high", "p_value"):
                table[f"{name}_{column}"] = table["arm"].map(against[column])
        return table

    def side_effects(self) -> pd.DataFrame:
        """What every arm does to predictions, teacher-forced on the healthy model's solutions."""
        rows = Sweep(
            self._held_out,
            Grid.of({"baseline": StepFlow()}),
            model=self._healthy,
            decoding=self._decoding,
        ).run(self._store(self._held_out, "healthy"), progress=True)
        rows = rows[rows["correct"]].head(2 if self._chosen.fast else N_SIDE)
        made_of = json.dumps({name: to_spec(flow) for name, flow in self._arms.items()})
        found = [
            self._parts.json(
                f"{self._name}/predictions/{made_of}/{row['problem']}",
                lambda row=row: self._looked(trace_of(self._healthy, row)),
            )
            for _, row in tqdm(rows.iterrows(), total=len(rows), desc=self._name)
        ]
        lines = []
        for arm in self._arms:
            line: dict[str, Any] = {"arm": arm, "n": len(found)}
            for column in ("touched", "side_kl", "healthy_kl"):
                values = np.array([one[arm].get(column, np.nan) for one in found], dtype=float)
                line |= common.mean_with_interval(column, values)
            lines.append(line)
        return pd.DataFrame(lines)

    def _all_arms(self) -> Iterator[tuple[str, StepFlow]]:
        """Every arm by its name."""
        case = self._case
        yield AS_IT_IS, StepFlow(*case.planted)
        yield ALWAYS, case.flow(None)
        watched, threshold = measure("lock_in", layers=case.layers), self._threshold
        for hold, name in enumerate((TRIGGERED, HOLDING)):
            yield name, case.flow(watched.above(threshold, hold=hold))
        rate = self._rate(case.flow(watched.above(threshold)))
        for seed in range(SEEDS):
            yield f"at random, as often ({seed})", case.flow(chance(max(rate, 1e-3), seed))
        if case.failure is not None:
            yield ORACLE, case.flow(step("thinking", number=SPELLS))

    @property
    def _threshold(self) -> float:
        """What so many steps of a healthy model stay below."""

        def read() -> float:
            monitor = Monitor(measures="lock_in", layers=self._case.layers)
            with monitor.attach(self._healthy) as seen:
                self._solve(self._healthy)
            watched = measure("lock_in", layers=self._case.layers)
            return watched.above_percentile(PERCENTILE, of=seen).threshold

        name = f"threshold/{self._case.layers}/{PERCENTILE}/{self._held_out.digest}"
        return float(self._parts.json(name, read))

    def _rate(self, triggered: StepFlow) -> float:
        """How often a trigger opens, with the failure in the model."""

        def read() -> float:
            with triggered.attach(self._model) as run:
                self._solve(self._model)
            table = run.decisions.table()
            mine = table[table["intervention"] == self._case.repair.name]
            return float(mine["open"].mean())

        made_of = json.dumps(to_spec(triggered))
        return float(self._parts.json(f"{self._name}/rate/{made_of}/{self._held_out.digest}", read))

    def _solve(self, model: Any) -> list[Trace]:
        questions = [self._held_out.ask(item, 0) for item in self._held_out.items]
        found: list[Trace] = generate(model, questions, self._decoding)
        return found

    def _looked(self, trace: Trace) -> dict[str, dict[str, float]]:
        """Of every arm: tokens touched, divergence from the failure alone, and from health."""
        teacher = Teacher(view(self._model), chunk=256)
        with StepFlow(*self._case.planted).attach(self._model):
            alone = teacher.base(trace)
        health = Teacher(view(self._healthy), chunk=256).base(trace)
        steps = trace.step_of_token[alone.tokens.start :].numpy()
        thinking = [s.index for s in trace.steps_in("thinking")]
        failing = {thinking[n] for n in SPELLS if n < len(thinking)}
        if self._case.model == LOCKED_IN:
            failing = {s.index for s in trace.steps}
        elif self._case.failure is None:
            failing = set()
        touched_by = {
            "side_kl": (steps >= 0) & ~np.isin(steps, list(failing)),
            "healthy_kl": (steps >= 0) & np.isin(steps, list(failing)),
        }
        bases = {"side_kl": alone, "healthy_kl": health}
        return {
            arm: {
                "touched": _share_touched(flow, self._model, trace, steps, self._case.repair.name),
                **_divergences(teacher, trace, flow, bases, touched_by),
            }
            for arm, flow in self._arms.items()
        }

    def _store(self, task: WordProblems, what: str | None = None) -> Any:
        name = what or "".join(c if c.isalnum() else "-" for c in self._name)
        return self._chosen.out / f"triggered-{name}-{task.digest}.sqlite"


def _share_touched(
    flow: StepFlow, model: Any, trace: Trace, steps: np.ndarray, repair: str
) -> float:
    """Share of a response's tokens in steps where the repair acts."""
    acting = [item for item in flow.interventions if item.name == repair]
    if not acting:
        return 0.0
    if acting[0].when is None:
        return float((steps >= 0).mean())
    opened = [
        one.step for one in flow.decide(model, trace) if one.is_open and one.intervention == repair
    ]
    return float(np.isin(steps, opened).mean())


def _divergences(
    teacher: Teacher,
    trace: Trace,
    flow: StepFlow,
    bases: Mapping[str, Base],
    tokens: Mapping[str, np.ndarray],
) -> dict[str, float]:
    """Mean KL of the predictions of some tokens from each base's; of none, nothing."""
    return {
        name: float(teacher.moved(trace, flow, base).kl.numpy()[tokens[name]].mean())
        for name, base in bases.items()
        if tokens[name].any()
    }


if __name__ == "__main__":
    main()
