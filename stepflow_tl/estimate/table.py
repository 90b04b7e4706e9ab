"""Estimates as a table for people, with what in them is assumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from stepflow_tl.estimate.architecture import Architecture
from stepflow_tl.estimate.cost import MEASURED, PAPER_COMPUTE, USABLE, Estimate


def table(estimates: Sequence[Estimate]) -> str:
    """A column per estimate, in Markdown."""
    rows: list[tuple[str, Callable[[Estimate], str]]] = [
        ("parameters", lambda e: _billions(e.architecture)),
        ("weights", lambda e: f"{e.weights:.1f} GiB ({e.run.dtype})"),
        ("cache of a token", lambda e: f"{e.cache_per_token:.0f} KiB"),
        ("cache of a response, at most", lambda e: f"{e.cache:.2f} GiB"),
        ("GPUs", lambda e: f"{e.run.gpus} x {e.gpu.memory:g} GB"),
        ("responses decoded together", lambda e: f"{e.run.batch_size}"),
        ("responses, both arms", lambda e: f"{2 * e.run.responses:,}"),
        (f"tokens, {_bound(estimates)}", lambda e: f"{e.tokens / 1e6:.1f} million"),
        (f"GPU hours, plain, {_least(estimates)}", lambda e: _hours(e.plain_hours)),
        (f"GPU hours, StepFlow, {_least(estimates)}", lambda e: _hours(e.stepflow_hours)),
        (
            "memory of one map, above the weights, about",
            lambda e: f"{e.map_memory:.1f} GiB ({e.map_tokens:,} tokens)",
        ),
        ("GPU time of one map, at least", lambda e: f"{e.map_seconds:.0f} s"),
    ]
    lines = [["", *(e.architecture.name for e in estimates)], ["---"] * (len(estimates) + 1)]
    lines += [[name, *(show(e) for e in estimates)] for name, show in rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def notes(estimates: Sequence[Estimate]) -> list[str]:
    """What is assumed, and what was measured where."""
    run = estimates[0].run
    said = [
        f"Assumed: prompts of {run.prompt_tokens} tokens, {USABLE:.0%} of the memory usable, "
        "all responses that fit decoded together without waiting for the longest.",
        f"Responses of {run.mean_tokens:,} tokens: "
        + (
            "the decoding limit, which most do not reach (--tokens for a mean length)."
            if run.tokens is None
            else f"as given; memory is for the limit of {run.max_new_tokens:,}."
        ),
        "GPU hours: from the tokens per second given."
        if run.tokens_per_second is not None
        else "GPU hours are the least that the data sheet's bandwidth and TFLOPS allow; real ones "
        "are more, often several times (--tokens-per-second for a measured speed).",
        f"StepFlow's {MEASURED['stepflow_decoding']:.2f} of plain decoding and a map's "
        f"{MEASURED['saliency_time']:.2f} of a forward and backward pass were measured on a CPU, "
        f"not on a GPU; the paper reports about {PAPER_COMPUTE} for its own code.",
    ]
    if any((e.run.gpus or 1) > 1 for e in estimates):
        said.append("GPUs that share a model work one after another, and all are counted.")
    if any(e.architecture.experts for e in estimates):
        said.append("Assumed: tokens choose experts evenly.")
    if any(e.run.dtype in ("int8", "int4") for e in estimates):
        said.append("Quantized weights: without scales and unquantized parts, so at least.")
    return said


def record(estimate: Estimate) -> dict[str, Any]:
    """An estimate as JSON has it."""
    architecture = estimate.architecture
    return asdict(estimate) | {
        "architecture": asdict(architecture)
        | {"active": architecture.active, "layers": len(architecture.windows)}
    }


def _billions(architecture: Architecture) -> str:
    total = f"{architecture.parameters / 1e9:.2f} B"
    if not architecture.experts:
        return total
    return f"{total}, {architecture.active / 1e9:.2f} B a token"


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 0.1 else f"{hours:.2g}"


def _bound(estimates: Sequence[Estimate]) -> str:
    return "at most" if estimates[0].run.tokens is None else "by the mean given"


def _least(estimates: Sequence[Estimate]) -> str:
    return "at least" if estimates[0].run.tokens_per_second is None else "at the speed given"
