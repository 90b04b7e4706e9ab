"""Beyond the paper: which maps see what the model uses? Every rule against every truth at hand.

    python experiments/audit.py                              # the bundled reasoner, 200 problems
    python experiments/audit.py --real MODEL --solutions FILE --traces FOLDER

The reasoner's problems say which premise and which earlier step each step uses; hiding a step says
what it does to later ones, and to the answer. With `--real` (a .gguf file or a name) and
`--solutions`, a file in the layout of GSM8K's own example solutions, steps are hidden in a
pretrained model's view of correct and wrong solutions, whose text is written nowhere; with
`--traces`, a folder in thought-anchors' layout, its maps of other people's traces are held against
their labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import audit_real
import common
from audit_rules import (
    HIDES,
    RULES,
    SLOW,
    cost_of,
    flashtrace_of,
    hidden_steps,
    maps_of,
    rise_of,
    single_thread,
)
from audit_tables import Case, rise_table, summary, tables_of
from parts import Parts
from tqdm import tqdm

from stepflow_tl import StepFlow, load_model
from stepflow_tl.analysis.audit import dependencies, with_premises
from stepflow_tl.plots import figure_audit
from stepflow_tl.sweep import trace_of
from stepflow_tl.tasks.word_problems import grade

PROBLEMS = "6 8 11 14"
CAUSAL = 10
"""Of each group, the problems whose steps are hidden, and of which slow rules are asked."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment, or go on with it."""
    single_thread()
    chosen = common.options(
        "audit",
        __doc__,
        argv,
        n=50,
        problems=PROBLEMS,
        fast="2 3",
        fast_n=2,
        more=audit_real.add_arguments,
    )
    model = load_model(chosen.model, device="cpu")
    made_of = common.made_of(model)
    parts = Parts(chosen.out / "audit-parts.sqlite", made_of)
    cases = list(_cases(chosen, model, parts))
    cost = cost_of(model, cases[0].trace, parts, f"reasoner/{cases[0].problem}")
    tables = tables_of(cases)
    summaries = {"reasoner": summary(cases, tables, cost)}
    details = {f"reasoner, {truth}, by layer": table for truth, table in tables.items()}
    for hide in HIDES:
        details[f"reasoner, RISE and MAS ({hide} hidden)"] = rise_table(cases, hide)
    others = audit_real.run(chosen)
    summaries |= others.summaries
    common.publish(
        chosen,
        figure_audit(summaries),
        summaries | details | others.details,
        n={"reasoner": len(cases), **others.n},
        models={"reasoner": made_of, **others.models},
    )


def _cases(chosen: common.Options, model: Any, parts: Parts) -> Iterable[Case]:
    """The model's own solutions of its problems, each premise a step."""
    rows = common.sweep(chosen, {"baseline": StepFlow()}).drop_duplicates("problem")
    task, seen = chosen.task, dict.fromkeys(rows["group"], 0)
    items = {item.key: item for item in task.items}
    for _, row in tqdm(rows.iterrows(), total=len(rows), unit="trace"):
        problem = task.problem(items[row["problem"]])
        trace = with_premises(trace_of(model, row), problem)
        truths: Mapping[str, Any] = dependencies(trace, problem, grade(problem, row["response"]))
        if not any(bool(truth.known.any()) for truth in truths.values()):
            continue  # wrong from the first step on
        seen[row["group"]] += 1
        causal = seen[row["group"]] <= (1 if chosen.fast else CAUSAL)
        name = f"reasoner/{row['problem']}"
        asked = [rule for rule in RULES if causal or rule not in SLOW]
        maps, rise = maps_of(model, trace, parts, name, asked=asked), None
        if causal:
            maps |= flashtrace_of(model, trace, parts, name)
            truths = {**truths, "knock-out": hidden_steps(model, trace, parts, name)}
        if causal and trace.answer_span is not None:
            rise = rise_of(model, trace, maps, parts, name)
        yield Case(row["problem"], trace, truths, maps, rise)


if __name__ == "__main__":
    main()
