"""From measurements to what is printed: ratios to the baseline, peaks, growth, a straight line."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from saliency_cost.measure import GIB
from saliency_cost.runs import Row
from saliency_cost.workload import Shape

FAR = 32_768
Clock = Literal["cpu_seconds", "seconds"]
"""CPU time of the process, which a busy machine does not lengthen; or wall-clock time."""


def methods_of(rows: Sequence[Row]) -> list[str]:
    """The methods measured, in the order of the rows."""
    return list(dict.fromkeys(row["method"] for row in rows))


def tokens_of(rows: Sequence[Row]) -> list[int]:
    """The lengths measured, shortest first."""
    return sorted({row["tokens"] for row in rows})


def ratios(
    rows: Sequence[Row], method: str, tokens: int, baseline: str, clock: Clock = "cpu_seconds"
) -> list[float]:
    """Seconds of a method over those of the baseline in the same round.

    Of a peer that attributes target tokens one by one: seconds per target token.
    """
    seconds = {
        (row["method"], row["round"]): row[clock] / row.get("targets", 1)
        for row in rows
        if row["pass"] == "time" and row["tokens"] == tokens and "error" not in row
    }
    rounds = sorted(number for name, number in seconds if name == method)
    return [
        seconds[method, number] / seconds[baseline, number]
        for number in rounds
        if (baseline, number) in seconds
    ]


def seconds(
    rows: Sequence[Row], method: str, tokens: int, clock: Clock = "cpu_seconds"
) -> list[float]:
    """Seconds of all rounds of a method; per target token as in `ratios`."""
    return [
        row[clock] / row.get("targets", 1)
        for row in rows
        if (row["method"], row["tokens"], row["pass"]) == (method, tokens, "time")
        and "error" not in row
    ]


def peak(rows: Sequence[Row], method: str, tokens: int) -> float | None:
    """Peak memory above the model in GiB; None where it was not measured."""
    for row in rows:
        if (row["method"], row["tokens"], row["pass"]) == (method, tokens, "memory"):
            return None if "error" in row else float(row["peak_gib"])
    return None


def growth(rows: Sequence[Row], method: str) -> float | None:
    """Factor of the peak per doubling of the trace, between the two longest traces measured."""
    points = [(t, p) for t in tokens_of(rows) if (p := peak(rows, method, t))]
    if len(points) < 2:
        return None
    (short, low), (long, high) = points[-2:]
    return float((high / low) ** (1 / math.log2(long / short)))


def first_error(rows: Sequence[Row], method: str) -> tuple[int, str] | None:
    """The shortest length at which a method failed, and why."""
    failed = [
        (row["tokens"], row["error"]) for row in rows if row["method"] == method and "error" in row
    ]
    return min(failed, default=None)


def tables(rows: Sequence[Row], baseline: str, clock: Clock = "cpu_seconds") -> str:
    """Tables as Markdown: time as a ratio to the baseline, in seconds, and peak memory."""
    name = "CPU time" if clock == "cpu_seconds" else "Wall-clock time"

    def time_cell(method: str, tokens: int) -> str:
        found = ratios(rows, method, tokens, baseline, clock)
        error = _error(rows, method, tokens)
        if not found:
            return error or "not measured"
        ratio = f"{statistics.median(found):.2f} ({min(found):.2f} - {max(found):.2f})"
        return f"{ratio}; {error}" if error else ratio

    def seconds_cell(method: str, tokens: int) -> str:
        found = seconds(rows, method, tokens, clock)
        best = f"{min(found):.2f}" if found else ""
        return best and f"{best} s of {', '.join(f'{s:.2f}' for s in found)}"

    def peak_cell(method: str, tokens: int) -> str:
        found = peak(rows, method, tokens)
        if found is None:
            return _error(rows, method, tokens) or "not measured"
        return f"{found:.3f}"

    grown = {method: growth(rows, method) for method in methods_of(rows)}
    return "\n\n".join(
        [
            f"{name}, as a ratio to {baseline!r} of the same round: median (least - largest)",
            _table(rows, time_cell),
            f"{name}: the best, of all rounds",
            _table(rows, seconds_cell),
            "Peak memory above the loaded model, GiB; its factor at the last doubling",
            _table(rows, peak_cell, last=("per doubling", _factors(grown))),
        ]
    )


def extrapolation(rows: Sequence[Row], shape: Shape, tokens: int = FAR) -> str:
    """Peak = a + b T of each method by least squares, and its value at `tokens`: no measurement."""
    lines = []
    for method in methods_of(rows):
        points = [(t, p) for t in tokens_of(rows) if (p := peak(rows, method, t)) is not None]
        lines.append(f"{method}, peak memory above the loaded model:")
        lines += [f"  measured at {t:>6} tokens: {p:.3f} GiB" for t, p in points]
        if len(points) < 2:
            lines.append("  fewer than two points: no line through them")
            continue
        at, peaks = np.array(points).T
        slope, start = np.polyfit(at, peaks, 1)
        off = np.abs(start + slope * at - peaks).max()
        cache = shape.cache_bytes_per_token / GIB
        lines += [
            f"  fitted: {start:.3f} GiB + {1024 * slope:.4f} GiB per 1,024 tokens "
            f"(largest deviation {off:.3f} GiB); "
            f"keys and values alone are {1024 * cache:.4f} GiB per 1,024 tokens",
            f"  extrapolated to {tokens:,} tokens: {start + slope * tokens:.2f} GiB, "
            f"of which keys and values {tokens * cache:.2f} GiB",
        ]
    return "\n".join(lines)


def _error(rows: Sequence[Row], method: str, tokens: int) -> str | None:
    """Why a method failed at this length, and since which length; None where it did not."""
    for row in rows:
        if (row["method"], row["tokens"]) == (method, tokens) and "error" in row:
            earlier = row.get("failed_at", tokens)
            return f"{row['error']} at {earlier:,}" if earlier != tokens else str(row["error"])
    return None


def _factors(grown: dict[str, float | None]) -> dict[str, str]:
    return {name: "" if factor is None else f"x {factor:.2f}" for name, factor in grown.items()}


def _table(
    rows: Sequence[Row],
    cell: Callable[[str, int], str],
    last: tuple[str, dict[str, str]] | None = None,
) -> str:
    """A row per method, a column per length; `last` is one more column."""
    lengths = tokens_of(rows)
    head = ["", *(f"{tokens:,} tokens" for tokens in lengths), *([last[0]] if last else [])]
    lines = [head, ["---"] * len(head)]
    for method in methods_of(rows):
        more = [last[1][method]] if last else []
        lines.append([_label(rows, method), *(cell(method, t) for t in lengths), *more])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _label(rows: Sequence[Row], method: str) -> str:
    targets = {row["targets"] for row in rows if row["method"] == method and "targets" in row}
    return f"{method} (time per target token, of {max(targets)})" if targets else method
