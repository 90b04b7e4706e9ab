"""Measure the reasoner that was fine-tuned to lock in, dose by dose.

    python -m experiments.reasoner.lock_in_doses

writes a table: greedy accuracy on held-out problems, the kinds of first errors, and the mean mass
that thinking rows put on the question and on the thinking itself, by layer (mean over heads,
frame tokens apart, teacher-forced on true responses).
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import AutoTokenizer

from experiments.reasoner.evaluate import tabulate
from experiments.reasoner.lock_in import batch_of, mass_by_layer
from stepflow_tl import generate, load_model
from stepflow_tl.models.locked_in import doses_of, locked_in_decoder
from stepflow_tl.models.view import view
from stepflow_tl.reasoner import LOCKED_IN, WEIGHTS
from stepflow_tl.tasks.word_problems import Problem, grade, make_problems

MASS_PROBLEMS = 40
"""The first so many problems are what the masses are measured on."""

log = logging.getLogger("experiments.reasoner.lock_in_doses")


def measure(model: Any, *, n: int, difficulty: int = 8, seed: int = 9) -> dict[str, Any]:
    """One dose's line of the table.

    Args:
        model: Of the reasoner's kind.
        n: Number of problems to solve, of the test split.
        difficulty: Number of operations.
        seed: Different seeds give different problems.
    """
    problems = make_problems(n, difficulty, seed=seed, split="test")
    traces = generate(
        model, [problem.question for problem in problems], max_new_tokens=420, batch_size=50
    )
    row = tabulate(
        difficulty,
        [grade(problem, trace.parts) for problem, trace in zip(problems, traces, strict=True)],
    )
    return {
        "n": n,
        "accuracy": row.correct / n,
        "low": row.low,
        "high": row.high,
        "cut": sum(not trace.ended for trace in traces),
        "flawed": row.flawed,
        "first errors": ", ".join(f"{kind} {count}" for kind, count in row.errors.items()),
        **_masses(model, problems[:MASS_PROBLEMS]),
    }


@torch.no_grad()
def _masses(model: Any, problems: Sequence[Problem]) -> dict[str, float]:
    """Mean mass of thinking rows on question and thinking, by layer."""
    batch = batch_of(AutoTokenizer.from_pretrained(WEIGHTS), problems)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(view(model).n_layers)]
    _, cache = model.run_with_cache(batch.tokens, names_filter=names)
    patterns = [cache[name] for name in names]
    return {
        f"on {name}, {layer}": float(mass)
        for name, keys in (("question", batch.question), ("thinking", batch.thinking))
        for layer, mass in enumerate(mass_by_layer(patterns, rows=batch.thinking, keys=keys))
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every dose, and the bundled model as dose 0; write a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", type=Path, default=LOCKED_IN, help="what lock_in has written")
    parser.add_argument("--out", type=Path, default=Path("locked-in.csv"))
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=9)
    given = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    lines = []
    for dose in (0, *doses_of(given.path)):
        locked = {"hf_model": locked_in_decoder(dose, given.path)} if dose else {}
        model = load_model("reasoner", device="cpu", **locked)
        lines.append({"dose": dose, **measure(model, n=given.n, seed=given.seed)})
        log.info("%s", lines[-1])
    pd.DataFrame(lines).to_csv(given.out, index=False)


if __name__ == "__main__":
    main()
