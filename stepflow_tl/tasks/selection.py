"""Which records of a benchmark are taken: by hashes of their questions, whatever their order."""

from __future__ import annotations

import hashlib
import heapq
import warnings
from collections.abc import Iterable, Iterator
from typing import Literal

from stepflow_tl.errors import BenchmarkError
from stepflow_tl.tasks.records import Record

Part = Literal["all", "calibration", "test"]


def chosen(
    records: Iterable[Record], part: Part, held_out: float, n: int | None
) -> Iterable[Record]:
    """The records of a part, or `n` of them, in their order.

    Args:
        records: All records.
        part: "calibration" for the held-out share, "test" for the others, "all" for both.
        held_out: The share that is held out.
        n: How many; None for all.
    """
    within = (
        record
        for record in records
        if part == "all"
        or (fraction("part", record.item.key) < held_out) == (part == "calibration")
    )
    if n is None:
        return within
    lowest = heapq.nsmallest(n, within, key=lambda record: fraction("n", record.item.key))
    return sorted(lowest, key=lambda record: record.row)


def fraction(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def different(records: Iterable[Record]) -> Iterator[Record]:
    """The records without those that came before.

    Raises:
        BenchmarkError: One comes again with another answer.
    """
    seen: dict[str, tuple[int, int]] = {}
    again = []
    for record in records:
        right = hash((record.gold, record.tests))
        first, same = seen.setdefault(record.item.key, (record.row, right))
        if first == record.row:
            yield record
        elif same != right:
            raise BenchmarkError(
                f"expected different questions, but rows {first} and {record.row} ask the same and "
                f"have different answers"
            )
        else:
            again.append(record.row)
    if again:
        warnings.warn(
            f"{len(again)} rows ask what an earlier one asked, and are left out; the first is row "
            f"{again[0]}",
            UserWarning,
            stacklevel=2,
        )
