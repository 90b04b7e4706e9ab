"""What the demo runs; its help reads the defaults here, and so nothing heavy stands beside them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What the demo runs.

    Attributes:
        per_set: Problems in each set.
        difficulties: A set for each of these numbers of operations. Where the reasoner fails here,
            it mostly forgets or misreads a premise.
        recall_difficulties: The same, of problems that add the count of just any earlier person;
            where the reasoner fails here, it mostly carries a wrong value.
        maps_per_outcome: At most this many correct, and as many wrong, traces are mapped, equally
            many of both from each set, so that difficulty does not decide.
        failure_problems: Problems for the reasoner that was fine-tuned to lock in, and its repair.
        failure_difficulty: Their number of operations; the reasoner itself solves them all.
        failure_tokens: Where a response to them is cut; true ones are shorter.
        failure_maps: At most this many of its right solutions are mapped in all three models.
        max_new_tokens: Where a response is cut.
        batch_size: Problems decoded at a time.
        seed: Of the problems.
    """

    per_set: int = 50
    difficulties: tuple[int, ...] = (8, 16, 17, 18)
    recall_difficulties: tuple[int, ...] = (6,)
    maps_per_outcome: int = 30
    failure_problems: int = 50
    failure_difficulty: int = 8
    failure_tokens: int = 300
    failure_maps: int = 6
    max_new_tokens: int = 700
    batch_size: int = 100
    seed: int = 2026
