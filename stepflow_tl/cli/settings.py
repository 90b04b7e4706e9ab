"""What the demo runs; its help reads the defaults here, and so nothing heavy stands beside them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What the demo runs.

    Attributes:
        per_set: Problems in each set.
        difficulties: A set for each of these numbers of operations. The first is of those that the
            reasoner solves: a model that was fine-tuned to lock in tries them too, and its repair.
            Where the reasoner fails at the others, it mostly forgets or misreads a premise.
        recall_difficulties: The same, of problems that add the count of just any earlier person;
            where the reasoner fails here, it mostly carries a wrong value.
        maps_per_outcome: At most this many correct, and as many wrong, traces are mapped, equally
            many of both from each set, so that difficulty does not decide.
        failure_maps: At most this many right solutions of the first set are mapped in all three.
        failure_tokens: Where those two cut a response to the first set; true ones are shorter.
        max_new_tokens: Where any other response is cut.
        batch_size: Problems decoded at a time.
        seed: Of the problems.
    """

    per_set: int = 50
    difficulties: tuple[int, ...] = (8, 18)
    recall_difficulties: tuple[int, ...] = (6,)
    maps_per_outcome: int = 30
    failure_maps: int = 6
    failure_tokens: int = 300
    max_new_tokens: int = 700
    batch_size: int = 100
    seed: int = 2026
