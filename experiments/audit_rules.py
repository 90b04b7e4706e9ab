"""The rules that `audit` compares, what each makes of a trace, and what it costs."""

import gc
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import audit_flashtrace
import torch
from audit_flashtrace import NAME as FLASHTRACE
from parts import Parts
from torch import Tensor

from stepflow_tl import StepMap, Trace, step_saliency
from stepflow_tl.analysis.audit import (
    KnockOut,
    Truth,
    hops_of,
    knock_out,
    knock_out_truth,
    perturbation,
)
from stepflow_tl.analysis.audit.hiding import Hide

RULES: dict[str, dict[str, Any]] = {
    "paper": {"pool": "mean"},
    "release": {"objective": "sequence", "pool": "mean", "diagonal": "full"},
    "share": {},
    "share, frame out": {"frame_keys": "out"},
    "logit": {"objective": "logit", "pool": "mean"},
    "logit, share": {"objective": "logit"},
    "margin, share": {"objective": "margin"},
    "value": {"rule": "attention_x_value"},
    "attention": {"rule": "attention", "pool": "mean"},
    "attention, share": {"rule": "attention"},
    "rollout": {"rule": "rollout"},
    "Jacobian": {"rule": "jacobian"},
}
"""Keywords of `step_saliency`."""

HOPS = "hops (share)"
"""Rows of "share" followed through the steps between: no rule of its own."""

SLOW = ("Jacobian",)
"""Rules of one backward pass for each step: asked of fewer traces."""

FEW = ("paper", "release", "share", "logit, share", "value", "attention, share", "rollout")
"""What a pretrained model is asked, whose passes take a second each."""

HIDES: tuple[Hide, ...] = ("keys", "tokens")
"""RISE hides keys; tokens in their place are the control that leaves the distribution."""


def maps_of(
    model: Any, trace: Trace, parts: Parts, name: str, *, asked: Collection[str]
) -> dict[str, StepMap]:
    """The map of a trace by every rule that is asked, computed or read, and its hops."""
    rules = {rule: settings for rule, settings in RULES.items() if rule in asked}
    made: dict[str, StepMap] = {}

    def scores(rule: str) -> Mapping[str, Tensor]:
        return {"scores": step_saliency(model, trace, **rules[rule]).scores}

    for rule in rules:
        found = parts.tensors(f"{name}/{rule}", lambda rule=rule: scores(rule))["scores"]
        made[rule] = _map(found, trace, rule)
    return made | {HOPS: hops_of(made["share"])}


def flashtrace_of(model: Any, trace: Trace, parts: Parts, name: str) -> dict[str, StepMap]:
    """FlashTrace's map of a trace, where it is installed and reads the same tokens."""
    if not audit_flashtrace.installed():
        return {}

    def scores() -> Mapping[str, Tensor]:
        found = audit_flashtrace.flashtrace_scores(model, trace)
        return {} if found is None else {"scores": found}

    found = parts.tensors(f"{name}/{FLASHTRACE}", scores).get("scores")
    return {} if found is None else {FLASHTRACE: _map(found, trace, FLASHTRACE)}


def _map(scores: Tensor, trace: Trace, rule: str) -> StepMap:
    return StepMap(
        scores=scores,
        layers=tuple(range(len(scores))),
        n_layers=len(scores),
        steps=trace.steps,
        settings={"rule": rule},
    )


def hidden_steps(model: Any, trace: Trace, parts: Parts, name: str, **settings: Any) -> Truth:
    """What hiding each step does to later ones, computed or read."""
    found = parts.tensors(
        f"{name}/knock-out", lambda: {"kl": knock_out(model, trace, **settings).kl}
    )["kl"]
    nothing = torch.full((len(found),), torch.nan)
    return knock_out_truth(KnockOut(kl=found, answer=nothing, steps=trace.steps, settings={}))


def rise_of(
    model: Any,
    trace: Trace,
    maps: Mapping[str, StepMap],
    parts: Parts,
    name: str,
    *,
    hides: Sequence[Hide] = HIDES,
    **settings: Any,
) -> dict[str, list[dict[str, Any]]]:
    """RISE and MAS of every map, and of maps that know nothing, by what is hidden."""
    both = {**maps, **_baselines(maps)}
    suffix = "" if tuple(hides) == HIDES else f", {', '.join(hides)}"
    rows: dict[str, list[dict[str, Any]]] = parts.json(
        f"{name}/perturbation of {len(both)}{suffix}",
        lambda: {
            hide: perturbation(model, trace, both, hide=hide, **settings).to_dict("records")
            for hide in hides
        },
    )
    return rows


def _baselines(maps: Mapping[str, StepMap]) -> dict[str, StepMap]:
    """Maps that know nothing: the nearer the more, and random scores."""
    like = next(iter(maps.values()))
    count = len(like.steps)
    steps = torch.arange(count)
    near = 1.0 / (1 + steps[:, None] - steps).clamp_min(1)
    noise = torch.rand(count, count, generator=torch.Generator().manual_seed(count))
    scores = {"distance alone": near, "random": noise}
    return {
        name: replace(like, scores=values.tril()[None], layers=(0,), n_layers=1, settings={})
        for name, values in scores.items()
    }


def cost_of(
    model: Any,
    trace: Trace,
    parts: Parts,
    name: str,
    *,
    asked: Collection[str] = (*RULES, FLASHTRACE),
) -> dict[str, dict[str, float]]:
    """Seconds of CPU time (least of three) and peak memory in MiB of each rule, on one trace."""

    def measure() -> dict[str, dict[str, float]]:
        return {
            rule: _cost(lambda settings=settings: step_saliency(model, trace, **settings))
            for rule, settings in RULES.items()
            if rule in asked
        }

    found: dict[str, dict[str, float]] = parts.json(f"{name}/cost", measure)
    if FLASHTRACE in asked and audit_flashtrace.installed():
        found[FLASHTRACE] = parts.json(
            f"{name}/{FLASHTRACE}/cost",
            lambda: _cost(lambda: audit_flashtrace.flashtrace_scores(model, trace)),
        )
    return found | {HOPS: found["share"]}


def _cost(call: Callable[[], object]) -> dict[str, float]:
    call()
    seconds = []
    for _ in range(3):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    call()
    return {"seconds": min(seconds), "mib": max(0.0, _status("VmHWM") - before)}


def _status(name: str) -> float:
    """MiB that the kernel says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def single_thread() -> None:
    """One thread, so that numbers do not depend on the cores."""
    torch.set_num_threads(1)
