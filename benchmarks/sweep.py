"""How many times faster a sweep decodes at batch 32 than at batch size 1, on the same problems.

    python benchmarks/sweep.py

The two batch sizes take turns, so that drift of the machine cancels; the answers are compared, too.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from stepflow_tl import Decoding, Grid, StepFlow, Sweep, WordProblems, load_model

ROUNDS = 3
SIZES = (1, 32)
SETTINGS = {"baseline": StepFlow(), "StepFlow": StepFlow.paper()}


def main() -> None:
    """Measure and print problems per second, and the ratio."""
    model = load_model("reasoner")
    sweep = Sweep(
        WordProblems(n=32, difficulties=(6,), seed=5),
        Grid.of({"baseline": StepFlow()}),
        model=model,
        decoding=Decoding(max_new_tokens=250),
    )
    print(f"{torch.get_num_threads()} threads, {len(sweep)} problems of 6 operations")
    for name, flow in SETTINGS.items():
        seconds: dict[int, list[float]] = {size: [] for size in SIZES}
        answers: dict[int, list[str]] = {}
        for _ in range(ROUNDS):
            for size in SIZES:
                seconds[size].append(_run(sweep, name, flow, size, answers))
        ratios = sorted(slow / fast for slow, fast in zip(*seconds.values(), strict=True))
        rates = [len(sweep) / statistics.median(seconds[size]) for size in SIZES]
        print(
            f"{name}: {rates[0]:.2f} problems/s at batch 1, {rates[1]:.2f} at batch 32: "
            f"{statistics.median(ratios):.1f}x (min {ratios[0]:.1f}, max {ratios[-1]:.1f} of "
            f"{ROUNDS} rounds); equal answers: {answers[1] == answers[32]}"
        )


def _run(
    sweep: Sweep, name: str, flow: StepFlow, size: int, answers: dict[int, list[str]]
) -> float:
    """Seconds that one arm takes at one batch size."""
    described = replace(
        sweep,
        grid=Grid.of({name: flow}),
        decoding=replace(sweep.decoding, batch_size=size),
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = described.run(Path(folder) / "sweep.sqlite")
    mine = rows[rows["setting"] == name]
    answers[size] = mine["response"].tolist()
    return float(mine["seconds"].sum())


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"in {time.perf_counter() - started:.0f} s")
