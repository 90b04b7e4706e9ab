"""The main job on the bundled reasoner, end to end: solve, look, repair, compare.

Twice: where a failure was trained in, which the maps show and a bridge repairs, and where none was,
which is a null result.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch

from stepflow_tl.analysis import PairedOutcome, compare_paired
from stepflow_tl.analysis.diagnostics import compare_groups
from stepflow_tl.cli.demo_failure import HEALTHY, LAYERS, Failure
from stepflow_tl.cli.demo_story import story
from stepflow_tl.cli.settings import DemoSettings
from stepflow_tl.cli.workers import Workers, diagnosed, mapped_twice, solved, workers
from stepflow_tl.decoding.settings import Decoding
from stepflow_tl.interventions import StepFlow
from stepflow_tl.plots import (
    figure_accuracy,
    figure_failure,
    figure_layer_curves,
    figure_step_flow,
    figure_token_and_step_maps,
    save_figure,
)
from stepflow_tl.saliency import StepMap
from stepflow_tl.tasks import WordProblems
from stepflow_tl.tasks.word_problems import Problem, Verdict, grade
from stepflow_tl.traces.trace import Trace
from stepflow_tl.version import versions


@dataclass(frozen=True)
class Solved:
    """One problem, the set it is from, the model's trace, what became of it, the trace's file."""

    group: str
    problem: Problem
    trace: Trace
    verdict: Verdict
    path: Path | None = None


def run_demo(
    out: str | Path,
    settings: DemoSettings | None = None,
    *,
    progress: bool = False,
    processes: int = 1,
) -> dict[str, Any]:
    """Run the demo and write ``story.html``, ``summary.json``, tables and pictures.

    Args:
        out: Folder to write to; made if missing.
        settings: What to run.
        progress: Show progress bars.
        processes: Number of processes that decode and map; more are started by ``spawn``, so that
            a script needs its ``if __name__ == "__main__"``.

    Returns:
        The summary that was written.
    """
    settings = settings or DemoSettings()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    started, flow = time.perf_counter(), StepFlow.paper()
    problems = _problems(settings)
    most = 2 * (len(problems) + settings.maps_per_outcome)
    most += 2 * settings.per_set + 3 * settings.failure_maps
    with TemporaryDirectory() as traces, workers(processes, most, progress=progress) as at_work:
        before, after = (Path(traces) / name for name in (HEALTHY, "StepFlow"))
        alone = _start(at_work, problems, settings, None, before)
        under = _start(at_work, problems, settings, flow, after)
        first = problems[: settings.per_set]
        failure = Failure(at_work, settings, [problem for _, problem in first], Path(traces))
        alone()
        baseline = _graded(problems, before)
        pairs = matched_pairs(baseline, settings.maps_per_outcome)
        shown = _start_shown(at_work, pairs, folder)
        shares = _start_maps(at_work, pairs)  # while problems are solved under StepFlow
        ledger = json.loads(under().to_json(orient="records"))
        repaired = _graded(problems, after)
        failure.look()
        facts = {
            "experiment": "demo",
            "settings": asdict(settings),
            "n": {"unplanted": len(problems), "planted": settings.per_set},
            "seeds": {"problems": settings.seed},
            "models": failure.weights(),
            "versions": versions(),
        }
        pictures = _draw_maps(shown, folder, facts)  # while the others are mapped
        pictures += _draw_curves(pairs, _in_order(shares), folder, facts)
        found = failure.found()
    table = compare_runs(baseline, repaired)
    table.to_csv(folder / "table.csv", index=False)
    groups = table[table["problems"] != "all"]
    figure = figure_accuracy(groups, names=["baseline", "StepFlow"])
    pictures += save_figure(figure, folder / "accuracy", facts=facts)
    if found.maps:
        figure = figure_failure(
            found.maps,
            found.by_layer,
            found.accuracy,
            groups,
            planted_in=LAYERS,
            verdict=_short_verdict(table.iloc[-1]),
        )
        pictures = save_figure(figure, folder / "failure", facts=facts) + pictures

    verdict = verdict_sentence(baseline, repaired)
    page = story(
        found,
        [failure_sentence(found.summary), f"Nothing planted. {verdict}"],
        {
            name: (trace, StepMap.load(folder / f"step_map_{name}.safetensors"))
            for name, (trace, _) in shown.items()
        },
        {str(name): value for name, value in table.iloc[-1].items()},
    ).write(folder / "story.html")
    summary = {
        "settings": asdict(settings),
        "planted": found.summary,
        "stepflow": [repr(item) for item in flow.interventions],
        "table": json.loads(table.to_json(orient="records")),
        "verdict": verdict,
        "first_errors": {
            "baseline": first_errors(baseline),
            "StepFlow": first_errors(repaired),
        },
        "texts_changed": sum(
            a.trace.response != b.trace.response for a, b in zip(baseline, repaired, strict=True)
        ),
        "mapped_traces_per_outcome": len(pairs),
        "ledger": ledger,
        "page": page.name,
        "pictures": [path.name for path in pictures],
        "versions": versions(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def _problems(settings: DemoSettings) -> list[tuple[str, Problem]]:
    """The problems, with the set that each is from."""
    task = WordProblems(
        n=settings.per_set,
        difficulties=settings.difficulties,
        recall=settings.recall_difficulties,
        seed=settings.seed,
    )
    return [(group, problem) for group, drawn in task.groups.items() for problem in drawn]


def _start(
    at_work: Workers,
    problems: Sequence[tuple[str, Problem]],
    settings: DemoSettings,
    flow: StepFlow | None,
    folder: Path,
) -> Callable[[], pd.DataFrame]:
    """Let the model solve the problems greedily, into a folder of traces."""
    folder.mkdir()
    decoding = Decoding(max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size)
    questions = [problem.question for _, problem in problems]
    return at_work.start(solved, questions, flow, decoding, folder)


def _graded(problems: Sequence[tuple[str, Problem]], folder: Path) -> list[Solved]:
    """What became of each problem, whose trace is saved under its number."""
    found = []
    for number, (group, problem) in enumerate(problems):
        path = folder / f"{number}.safetensors"
        trace = Trace.load(path)
        found.append(Solved(group, problem, trace, grade(problem, trace.response), path))
    return found


def matched_pairs(solved: Sequence[Solved], limit: int) -> list[tuple[Solved, Solved]]:
    """Correct and wrong traces, as many of both from each set in turn; complete traces only.

    A trace is complete where it has at least three thinking steps and a summary.
    """
    complete = [
        s
        for s in solved
        if len(s.trace.steps_in("thinking")) >= 3 and s.trace.steps_in("summary") and s.trace.ended
    ]
    by_set: list[list[tuple[Solved, Solved]]] = []
    for group in dict.fromkeys(s.group for s in complete):
        right, wrong = (
            [s for s in complete if s.group == group and s.verdict.correct == outcome]
            for outcome in (True, False)
        )
        by_set.append(list(zip(right, wrong, strict=False)))
    in_turn = [pair for pairs in zip_longest(*by_set) for pair in pairs if pair is not None]
    return in_turn[:limit]


def compare_runs(baseline: Sequence[Solved], repaired: Sequence[Solved]) -> pd.DataFrame:
    """Accuracy of both runs by set, and over all, with 95% intervals and paired tests."""
    pairs = list(zip(baseline, repaired, strict=True))
    rows = []
    for group in [*dict.fromkeys(s.group for s in baseline), "all"]:
        chosen = [pair for pair in pairs if group in ("all", pair[0].group)]
        outcome = compare_paired(
            [a.verdict.correct for a, _ in chosen], [b.verdict.correct for _, b in chosen]
        )
        rows.append({"problems": group, **_columns(outcome)})
    return pd.DataFrame(rows)


def verdict_sentence(baseline: Sequence[Solved], repaired: Sequence[Solved]) -> str:
    """In one sentence, whether StepFlow helped."""
    outcome = compare_paired(
        [s.verdict.correct for s in baseline], [s.verdict.correct for s in repaired]
    )
    if outcome.p_value < 0.05:
        effect = "helped" if outcome.difference.value > 0 else "hurt"
    else:
        effect = "made no significant difference to"
    return (
        f"StepFlow at the paper's defaults {effect} the bundled reasoner: accuracy "
        f"{outcome.before} -> {outcome.after}, difference {outcome.difference}, n = {outcome.n}, "
        f"{outcome.fixed} fixed, {outcome.broken} broken, exact McNemar p = {outcome.p_value:.3g}."
    )


def failure_sentence(planted: Mapping[str, Any]) -> str:
    """In one sentence, what the failure that was trained in costs, and what repair brings back."""
    shown = {row["model"]: f"{row['accuracy']:.3f}" for row in planted["accuracy"]}
    return (
        f"A reasoner that was fine-tuned to lock in: accuracy {shown['reasoner']} -> "
        f"{shown['locked in']}; with an Odds-Equal Bridge where it was trained in "
        f"{shown['locked in, repaired']}, difference {planted['difference']}, "
        f"n = {planted['accuracy'][0]['n']}, {planted['fixed']} fixed, {planted['broken']} broken, "
        f"exact McNemar p = {planted['p_value']:.3g}."
    )


def _short_verdict(row: pd.Series) -> str:
    """A line of the table, over all problems."""
    return (
        f"{row['baseline']:.3f} to {row['StepFlow']:.3f}\n"
        f"{row['fixed']} fixed, {row['broken']} broken, p = {row['p_value']:.2g}"
    )


def format_table(records: Sequence[Mapping[str, Any]]) -> str:
    """The summary's table, as printed: accuracies with their intervals."""
    table = pd.DataFrame(records)
    shown = table[["problems", "n"]].copy()
    for name in ("baseline", "StepFlow", "difference"):
        columns = table[[name, f"{name}_low", f"{name}_high"]].to_numpy()
        shown[name] = [f"{v:.3f} [{low:.3f}, {high:.3f}]" for v, low, high in columns]
    shown[["fixed", "broken"]] = table[["fixed", "broken"]]
    shown["p"] = [f"{p:.2g}" for p in table["p_value"]]
    return shown.to_string(index=False)


def first_errors(solved: Sequence[Solved]) -> dict[str, int]:
    """How often each kind of error came first in a wrong trace."""
    kinds = Counter(str(s.verdict.first_error) for s in solved if not s.verdict.correct)
    return dict(kinds.most_common())


def _columns(outcome: PairedOutcome) -> dict[str, float | int]:
    columns: dict[str, float | int] = {"n": outcome.n}
    for name, estimate in (
        ("baseline", outcome.before),
        ("StepFlow", outcome.after),
        ("difference", outcome.difference),
    ):
        columns[name] = estimate.value
        columns[f"{name}_low"], columns[f"{name}_high"] = estimate.low, estimate.high
    return columns | {
        "fixed": outcome.fixed,
        "broken": outcome.broken,
        "p_value": outcome.p_value,
    }


def _start_maps(
    at_work: Workers, pairs: Sequence[tuple[Solved, Solved]]
) -> list[Callable[[], list[pd.DataFrame]]]:
    """Let the pairs' traces be mapped, in shares."""
    paths = [one.path for pair in pairs for one in pair]
    size = max(1, -(-len(paths) // (4 * at_work.processes)))
    shares = [paths[first : first + size] for first in range(0, len(paths), size)]
    return [at_work.start(diagnosed, share) for share in shares]


def _in_order(shares: Sequence[Callable[[], list[pd.DataFrame]]]) -> list[pd.DataFrame]:
    """What the shares give, one after the other."""
    return [found for share in shares for found in share()]


def _start_shown(
    at_work: Workers, pairs: Sequence[tuple[Solved, Solved]], folder: Path
) -> dict[str, tuple[Trace, Callable[[], np.ndarray]]]:
    """Let the first pair be mapped into files; their traces, and what waits for token maps."""
    if not pairs:
        return {}
    shown = {}
    for name, one in zip(("correct", "wrong"), pairs[0], strict=True):
        one.trace.save(folder / f"trace_{name}.safetensors")
        step_map = folder / f"step_map_{name}.safetensors"
        shown[name] = (one.trace, at_work.start(mapped_twice, one.path, step_map))
    return shown


def _draw_maps(
    shown: Mapping[str, tuple[Trace, Callable[[], np.ndarray]]],
    folder: Path,
    facts: Mapping[str, Any],
) -> list[Path]:
    """Token and step maps of one pair; nothing where no pair was found."""
    if not shown:
        return []
    drawn = {}
    for name, (trace, tokens) in shown.items():
        token_map = torch.from_numpy(tokens())
        made = StepMap.load(folder / f"step_map_{name}.safetensors")
        drawn[f"{name} trace"] = (token_map, trace, made)
    pictures = save_figure(
        figure_token_and_step_maps(drawn), folder / "token_and_step_maps", facts=facts
    )
    flow = figure_step_flow({name: made for name, (_, _, made) in drawn.items()})
    return pictures + save_figure(flow, folder / "step_flow", facts=facts)


def _draw_curves(
    pairs: Sequence[tuple[Solved, Solved]],
    diagnostics: Sequence[pd.DataFrame],
    folder: Path,
    facts: Mapping[str, Any],
) -> list[Path]:
    """The failure measures of all pairs, by layer; nothing where no pair was found."""
    if not pairs:
        return []
    everyone = [one for pair in pairs for one in pair]
    comparison = compare_groups(
        diagnostics,
        correct=[one.verdict.correct for one in everyone],
        problems=[s.problem.question for s in everyone],
        strata=[s.group for s in everyone],
    )
    comparison.to_csv(folder / "failure_curves.csv", index=False)
    figure = figure_layer_curves(comparison, n_layers=len(diagnostics[0]))
    return save_figure(figure, folder / "failure_curves", facts=facts)
