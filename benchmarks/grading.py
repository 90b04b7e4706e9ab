"""Speed of the grader of mathematics, against math-verify alone, and what both make of the cases.

    python benchmarks/grading.py [--rounds 3] [--workers 2]

Items are the mathematical cases of the tests: recorded ones, and those made to break the graders.
Both are timed in the same run, one after the other in each round, in `--workers` processes; the
best round counts. math-verify alone is how this package graded before: the box's text and the
gold, compared in its process.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from stepflow_tl.analysis import proportion
from stepflow_tl.tasks.grading import grade_math
from stepflow_tl.tasks.grading.math_process import SHARED
from stepflow_tl.tasks.grading.mathematics import gold_of
from stepflow_tl.tasks.grading.reading import boxed, parts_of
from stepflow_tl.tasks.tables import rows_of_file

DATA = Path(__file__).parent.parent / "tests" / "data"
Item = tuple[str, str, bool]


def items() -> list[Item]:
    """Response, gold, and whether it is right."""
    files = ("grading.jsonl", "grading_adversarial.jsonl.gz")
    rows = [row for name in files for _, row in rows_of_file(DATA / name)]
    return [(r["response"], r["gold"], r["expected"]) for r in rows if r["kind"] == "math"]


def ours(item: Item) -> bool:
    """The package's verdict."""
    return grade_math(item[0], item[1], seconds=2.0).correct


def math_verify_alone(item: Item) -> bool:
    """math-verify's, on the last box."""
    box = boxed(parts_of(item[0]))
    return isinstance(box, str) and bool(
        SHARED.compare([(gold_of(item[1]), box)], 2.0).get("same", False)
    )


def main() -> None:
    """Print items per second, and wrong verdicts of both kinds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    given = items()
    best: dict[str, float] = {}
    verdicts: dict[str, list[bool]] = {}
    with ProcessPoolExecutor(args.workers) as pool:
        for grader in (ours, math_verify_alone):  # start the processes
            list(pool.map(grader, given[: 4 * args.workers]))
        for _ in range(args.rounds):
            for grader in (math_verify_alone, ours):
                start = time.perf_counter()
                verdicts[grader.__name__] = list(pool.map(grader, given, chunksize=8))
                seconds = time.perf_counter() - start
                best[grader.__name__] = min(best.get(grader.__name__, seconds), seconds)
    right = [expected for _, _, expected in given]
    print(
        f"{len(given)} items, {sum(right)} of them right; {args.workers} processes on "
        f"{os.cpu_count()} cores; the best of {args.rounds} rounds"
    )
    for name, seconds in best.items():
        pairs = list(zip(verdicts[name], right, strict=True))
        accepts = sum(said and not is_right for said, is_right in pairs)
        refusals = sum(is_right and not said for said, is_right in pairs)
        print(
            f"{name}: {len(given) / seconds:.0f} items/s; accepted wrongly {accepts} of "
            f"{len(right) - sum(right)} {proportion(accepts, len(right) - sum(right))}; refused "
            f"wrongly {refusals} of {sum(right)} {proportion(refusals, sum(right))}"
        )
    ratio = best["math_verify_alone"] / best["ours"]
    print(f"ours in items per second, against math-verify alone: {ratio:.1f} times")


if __name__ == "__main__":
    main()
