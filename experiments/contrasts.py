"""Beyond the paper: does a repair help correct solutions more than wrong ones of the same problem?

    python tests/real/get.py smollm2
    python experiments/contrasts.py --solutions example_model_solutions.jsonl
    python experiments/contrasts.py --solutions ... --model gemma.gguf --name contrasts_gemma

A fall of the loss on good solutions is no repair if that of wrong ones, in the same style, falls as
much. So a model is run, teacher-forced, on a correct and a wrong solution of each problem, with and
without interventions, and the contrast within problems is tested; first at given strengths, then
with every component at the strength at which it moves predictions as far (`calibrate_divergence` on
problems that are then not reported) as the paper's bridge does. Two controls are no repairs:
attention flattened toward all keys alike (which is a temperature), and momentum against its own
direction. Then the step maps of correct and of wrong solutions, under several rules, with
differences of length and of loss held at zero.

`--solutions` is a file in the layout of GSM8K's example model solutions: one JSON a line with
``question`` and, by the name of a model, ``{"is_correct": ..., "solution": ...}``. Each model has
one solution of a problem; those of a family (a name up to its last ``_``: one generator, whose
samples were or were not chosen by a verifier) share a style, and pairs within a family are taken
first. Calculator annotations ``<<...>>`` are stripped. Solutions whose last line is not ``A: ...``,
of fewer than three lines before it, or of more than 1,000 characters are left out. No text of the
file is written anywhere.

An instruct model marks no thinking. Here a solution's lines are its thinking, a step each, and what
follows ``A:`` on the last one is its summary, and the end token ends it; the question goes through
the chat template, where there is one.

A stopped run goes on where it was; see `experiments/parts.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

import common
import numpy as np
import pandas as pd
from parts import Parts
from tqdm import tqdm

from stepflow_tl import (
    OddsEqualBridge,
    StepFlow,
    StepMomentum,
    Trace,
    diagnose,
    load_model,
    step_saliency,
)
from stepflow_tl.analysis import (
    calibrate_divergence,
    contrast,
    controlled_difference,
    holm,
    token_divergences,
)
from stepflow_tl.errors import InterventionWarning, SettingError
from stepflow_tl.interventions import UniformPriorBridge
from stepflow_tl.plots import figure_contrasts, figure_controlled, save_figure
from stepflow_tl.saliency import Objective, Pool, Rule
from stepflow_tl.tasks.selection import fraction
from stepflow_tl.traces.chat import prompt_text
from stepflow_tl.traces.formats import Format

ROOT = Path(__file__).parents[1]
SMOLLM2 = ROOT / "outputs" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
OWN_SOLUTIONS = ROOT / "tests" / "data" / "solutions.jsonl"
LINES = Format(name="lines", summary_open="\nA:", thinking_cutter="line", summary_cutter="line")
ANNOTATION = re.compile(r"<<[^<>]*>>")
LAST_LINE = re.compile(r"\nA: ?[^\n]*\Z")
LEAST_LINES, MOST_CHARACTERS = 3, 1_000
BANDS = ("shallow", "middle", "deep")
MEASURES = ("lock_in", "question_share", "summary_on_thinking", "half_life")
RULES: dict[str, dict[str, Any]] = {
    "the paper's": {"pool": "mean"},
    "the release's": {"objective": "sequence", "pool": "mean", "diagonal": "full"},
    "the paper's, shares": {},
    "logit, shares": {"objective": "logit"},
    "margin, shares": {"objective": "margin"},
    "attention": {"rule": "attention", "pool": "mean"},
    "attention × value, shares": {"rule": "attention_x_value"},
}
REFERENCE = "OEB 0.15, prompt, shallow"
Make = Callable[[float, str], StepFlow]
COMPONENTS: dict[str, tuple[Make, float]] = {  # and the greatest strength that is tried
    "OEB, prompt": (
        lambda s, band: StepFlow(OddsEqualBridge(tau_max=s, layers=band, keys="prompt")),
        1.0,
    ),
    "OEB, question": (
        lambda s, band: StepFlow(OddsEqualBridge(tau_max=s, layers=band, keys="question")),
        1.0,
    ),
    "SMI": (lambda s, band: StepFlow(StepMomentum(alpha=s, layers=band)), 8.0),
    "control: SMI reversed": (lambda s, band: StepFlow(StepMomentum(alpha=-s, layers=band)), 8.0),
    "control: flattened": (
        lambda s, band: StepFlow(UniformPriorBridge(strength=s, layers=band)),
        20.0,
    ),
}


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    name: str
    model: str
    solutions: Path
    n: int
    held_out: int
    out: Path
    fast: bool

    @property
    def settings(self) -> dict[str, Any]:
        """What is written down beside the results."""
        shown = {name: getattr(self, name) for name in ("n", "held_out", "fast")}
        return shown | {
            "model": Path(self.model).name,
            "solutions": hashlib.sha256(self.solutions.read_bytes()).hexdigest()[:16],
        }


@dataclass(frozen=True)
class Pair:
    """A correct and a wrong solution of a problem.

    Attributes:
        problem: Its line in the file.
        question: What is asked.
        correct: The correct solution.
        wrong: The wrong one.
        sources: Whose they are.
    """

    problem: int
    question: str
    correct: str
    wrong: str
    sources: tuple[str, str]

    @property
    def is_across(self) -> bool:
        """Whether the two are of different families."""
        first, second = (source.rpartition("_")[0] or source for source in self.sources)
        return first != second


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment, or go on with it."""
    chosen = _options(argv)
    pairs = read_pairs(chosen.solutions)
    held_out, shown = pairs[: chosen.held_out], pairs[chosen.held_out :][: chosen.n]
    if len(shown) < chosen.n:
        raise SystemExit(
            f"expected {chosen.n} problems beside {chosen.held_out} held out, got {len(shown)} "
            f"with a correct and a wrong solution in {chosen.solutions.name}"
        )
    model = load_model(chosen.model)
    depends_on = {name: chosen.settings[name] for name in ("solutions", "held_out")}
    parts = Parts(chosen.out / f"{chosen.name}-parts.sqlite", common.made_of(model) | depends_on)
    target, calibrated, out_of_reach = _calibrated(model, held_out, parts, chosen.fast)
    arms = given_arms(chosen.fast) | calibrated
    rules = _accepted(RULES, chosen.fast)
    records = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterventionWarning)  # the divergence says it
        for pair in tqdm(shown, unit="problem"):
            records += [_measured(model, pair, side, arms, rules, parts) for side in (True, False)]
    moved, plain = _arm_table(records, arms), _plain_table(records)
    controlled = _controlled_table(records, rules)
    common.publish(
        chosen,
        figure_contrasts(moved, value="change of the loss (nats a token)"),
        {
            "correct and wrong solutions without intervention": plain,
            "change of the loss by arm": moved,
            "maps of correct minus wrong solutions": controlled,
            "strengths out of reach": pd.DataFrame(out_of_reach, columns=["component", "said"]),
        },
        n=len(shown),
        models={Path(chosen.model).name: common.made_of(model)},
        pairs_across_families=sum(pair.is_across for pair in shown),
        pairs=dict(Counter(" against ".join(pair.sources) for pair in shown).most_common()),
        target_kl=target,
    )
    made_of = {Path(chosen.model).name: common.made_of(model)}
    save_figure(
        figure_controlled(controlled),
        chosen.out / f"{chosen.name}_maps",
        facts=common.facts_of(chosen, n=len(shown), models=made_of),
    )


def read_pairs(path: Path) -> list[Pair]:
    """A pair of each problem that has one: first those within a family, in an order by hashes."""
    pairs = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            row = json.loads(line)
            usable: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
            for source, said in row.items():
                if isinstance(said, Mapping):
                    text = ANNOTATION.sub("", said["solution"]).strip()
                    if is_usable(text):
                        usable[bool(said["is_correct"])].append((source, text))
            found = [
                Pair(number, row["question"], right, wrong, (first, second))
                for (first, right), (second, wrong) in product(usable[True], usable[False])
            ]
            pairs += sorted(found, key=_order)[:1]
    return sorted(pairs, key=_order)


def is_usable(text: str) -> bool:
    """Whether a solution ends in its answer, after some lines, and is not too long."""
    lines = [line for line in text.splitlines() if line.strip()]
    ends = LAST_LINE.search(text) is not None
    return ends and len(lines) > LEAST_LINES and len(text) <= MOST_CHARACTERS


def _order(pair: Pair) -> tuple[bool, float]:
    return pair.is_across, fraction("contrasts", pair.question, *pair.sources)


def trace_of(model: Any, question: str, solution: str) -> Trace:
    """The solution as the model's response."""
    tokenizer = model.tokenizer
    if tokenizer.chat_template:
        prompt = prompt_text(tokenizer, question)
    else:
        prompt = f"{tokenizer.bos_token or ''}Question: {question}\nAnswer:\n"
    end = tokenizer.eos_token or ""  # or nothing would follow, and score, an answer's last token
    return Trace.from_text(model, prompt + solution + end, prompt=prompt, format=LINES)


def given_arms(fast: bool) -> dict[str, StepFlow]:
    """The arms at given strengths."""
    taus, alphas, bands = (0.05, 0.15, 0.4), (0.06, 0.3, 1.0), BANDS
    if fast:
        taus, alphas, bands = taus[1:2], alphas[1:2], BANDS[:1]
    arms = {
        f"OEB {tau:g}, {keys}, {band}": StepFlow(
            OddsEqualBridge(tau_max=tau, keys=keys, layers=band)
        )
        for keys in ("prompt", "question")
        for band in bands
        for tau in taus
    }
    arms |= {
        f"SMI {alpha:g}, {band}": StepFlow(StepMomentum(alpha=alpha, layers=band))
        for band in bands
        for alpha in alphas
    }
    arms |= {
        f"control: flattened 0.1, {band}": StepFlow(UniformPriorBridge(strength=0.1, layers=band))
        for band in bands
    }
    return arms | {"both (the paper's)": StepFlow.paper()}


def _calibrated(
    model: Any, held_out: Sequence[Pair], parts: Parts, fast: bool
) -> tuple[float, dict[str, StepFlow], list[tuple[str, str]]]:
    """The reference's divergence, every component at it, and those that do not reach it."""
    traces = [
        trace_of(model, pair.question, text)
        for pair in held_out
        for text in (pair.correct, pair.wrong)
    ]
    flow = given_arms(fast=True)[REFERENCE]

    def reference() -> float:
        found = [token_divergences(model, trace, {0: flow})[0].kl for trace in traces]
        return float(np.concatenate(found).mean())

    def strength(make: Callable[[float], StepFlow], high: float) -> dict[str, Any]:
        try:
            found = calibrate_divergence(model, traces, make, target_kl=target, high=high)
        except SettingError as error:
            return {"said": str(error)}
        return {"strength": found.strength}

    target = parts.json("target", reference)
    arms, missing = {}, []
    for component, (make, high) in list(COMPONENTS.items())[:: 2 if fast else 1]:
        for band in BANDS[:1] if fast else BANDS:
            one = parts.json(
                f"strength of {component}, {band}",
                lambda make=make, band=band, high=high: strength(lambda s: make(s, band), high),
            )
            if "said" in one:
                missing.append((f"{component}, {band}", one["said"]))
            else:
                label = f"{component}, {band}, at equal divergence ({one['strength']:.3g})"
                arms[label] = make(one["strength"], band)
    return target, arms, missing


def _accepted(rules: Mapping[str, dict[str, Any]], fast: bool) -> dict[str, dict[str, Any]]:
    """The rules whose settings `step_saliency` knows."""
    known = {"rule": get_args(Rule), "objective": get_args(Objective), "pool": get_args(Pool)}
    found = {
        name: settings
        for name, settings in rules.items()
        if all(settings[key] in known[key] for key in known.keys() & settings)
    }
    return dict(list(found.items())[:: 3 if fast else 1])


def _measured(
    model: Any,
    pair: Pair,
    is_correct: bool,
    arms: Mapping[str, StepFlow],
    rules: Mapping[str, dict[str, Any]],
    parts: Parts,
) -> dict[str, Any]:
    """What is measured of one solution, computed or looked up."""
    trace = trace_of(model, pair.question, pair.correct if is_correct else pair.wrong)

    def moved() -> dict[str, Any]:
        found = token_divergences(model, trace, arms)
        nll = next(iter(found.values())).nll
        return {
            "tokens": len(nll),
            "nll": float(nll.mean()),
            "change": {name: float(one.nll_change.mean()) for name, one in found.items()},
            "kl": {name: one.mean_kl for name, one in found.items()},
        }

    def mapped(settings: Mapping[str, Any]) -> dict[str, float]:
        maps = step_saliency(model, trace, **settings)
        table = diagnose(maps).set_index("layer")
        return {
            f"{measure} {band}": float(table.loc[list(maps.select(band).layers), measure].mean())
            for measure in MEASURES
            for band in BANDS
        }

    at = f"{pair.problem} {pair.sources[not is_correct]}"
    digest = hashlib.sha256(repr(sorted(arms.items())).encode()).hexdigest()[:16]
    maps = {
        name: parts.json(f"maps of {at}, {settings}", lambda settings=settings: mapped(settings))
        for name, settings in rules.items()
    }
    record = {"problem": pair.problem, "correct": is_correct, "maps": maps}
    return record | parts.json(f"moved {at}, {digest}", moved)


def _arm_table(records: Sequence[Mapping[str, Any]], arms: Mapping[str, StepFlow]) -> pd.DataFrame:
    """The contrast of each arm, and how far it moves predictions, in nats a token."""
    rows = pd.DataFrame(
        [
            {"arm": arm, "value": record["change"][arm], "kl": record["kl"][arm]} | _labels(record)
            for record in records
            for arm in arms
        ]
    )
    table = contrast(rows)
    kl = rows.groupby(["arm", "correct"])["kl"].mean().unstack().loc[table["arm"]]
    return table.assign(kl_correct=kl[True].to_numpy(), kl_wrong=kl[False].to_numpy())


def _plain_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Loss and length of the solutions."""
    rows = [
        {"arm": name, "value": float(record[key])} | _labels(record)
        for record in records
        for name, key in (("loss (nats a token)", "nll"), ("tokens", "tokens"))
    ]
    return contrast(pd.DataFrame(rows))


def _labels(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"problem": record["problem"], "correct": record["correct"]}


def _controlled_table(
    records: Sequence[Mapping[str, Any]], rules: Mapping[str, dict[str, Any]]
) -> pd.DataFrame:
    """Measures of the maps, correct minus wrong, Holm-corrected rule by rule."""
    right, wrong = ([r for r in records if r["correct"] is side] for side in (True, False))
    controls = np.array(
        [
            [np.log(a["tokens"] / b["tokens"]), a["nll"] - b["nll"]]
            for a, b in zip(right, wrong, strict=True)
        ]
    )
    lines = []
    for rule, measure, band in product(rules, MEASURES, BANDS):
        name = f"{measure} {band}"
        pairs = zip(right, wrong, strict=True)
        values = np.array([a["maps"][rule][name] - b["maps"][rule][name] for a, b in pairs])
        found = controlled_difference(values, controls)
        line: dict[str, Any] = {"rule": rule, "measure": measure, "band": band, "n": found.n}
        for kind, bounds in (("difference", found.difference), ("controlled", found.controlled)):
            line |= dict(zip((kind, f"{kind}_low", f"{kind}_high"), bounds, strict=True))
        lines.append(line | {"p_value": found.p_value})
    table = pd.DataFrame(lines)
    table["p_holm"] = table.groupby("rule")["p_value"].transform(lambda p: holm(p.to_numpy()))
    return table


def _options(argv: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", help="a .gguf file, a name, a folder (default: SmolLM2)")
    parser.add_argument("--solutions", type=Path, help="solutions of several models, labelled")
    parser.add_argument("--n", type=int, help="problems (default: 60)")
    parser.add_argument("--held-out", type=int, help="problems to calibrate on (default: 4)")
    parser.add_argument("--name", default="contrasts", help="of the files that are written")
    parser.add_argument("--out", type=Path, default=Path("outputs/experiments"))
    parser.add_argument("--fast", action="store_true", help="a few seconds' worth: not a result")
    given = parser.parse_args(argv)
    model = given.model or ("reasoner" if given.fast else str(SMOLLM2))
    solutions = given.solutions or (OWN_SOLUTIONS if given.fast else None)
    if solutions is None or not solutions.is_file():
        parser.error(f"expected --solutions FILE, got {solutions}")
    if given.model is None and not given.fast and not SMOLLM2.is_file():
        parser.error(f"expected --model, or {SMOLLM2.name} from: python tests/real/get.py smollm2")
    return Options(
        name=given.name,
        model=model,
        solutions=solutions,
        n=given.n or (5 if given.fast else 60),
        held_out=given.held_out or (1 if given.fast else 4),
        out=given.out,
        fast=given.fast,
    )


if __name__ == "__main__":
    main()
