"""Measurements, each in a fresh process under limits, the methods rotated over rounds."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from saliency_cost.measure import GIB, RETURN_FREED, resident

Row = dict[str, Any]
"""A measurement: method, tokens, round, pass ("memory" or "time"); seconds and peak_gib, or error.
"""

_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Limits:
    """What one process may take, loading and warming up included.

    Attributes:
        seconds: Wall-clock time.
        gib: Resident memory, the model included.
    """

    seconds: float
    gib: float


def fresh_process(command: Sequence[str], limits: Limits, environment: Mapping[str, str]) -> Row:
    """Run a command that prints one JSON line last; that line, or ``{"error": why}``."""
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command, stdout=out, stderr=err, env={**os.environ, **environment}
        )
        try:
            over = _watch(process, limits)
        finally:
            process.kill()
            process.wait()
        out.seek(0), err.seek(0)
        if over is not None:
            return {"error": over}
        if process.returncode == -9:
            return {"error": "out of memory"}
        if process.returncode != 0:
            last = (err.read().strip().splitlines() or [f"exit {process.returncode}"])[-1]
            return {"error": f"failed: {last[:200]}"}
        row: Row = json.loads(out.read().strip().splitlines()[-1])
        return row


def _watch(process: subprocess.Popen[Any], limits: Limits) -> str | None:
    """Wait for a process; which limit it went over, None where it ended by itself."""
    start = time.monotonic()
    while process.poll() is None:
        if time.monotonic() - start > limits.seconds:
            return f"> {limits.seconds:g} s"
        try:
            if resident(process.pid) > limits.gib * GIB:
                return f"> {limits.gib:g} GB"
        except (OSError, IndexError):  # it has just ended
            pass
        time.sleep(_LOOK_SECONDS)
    return None


def passes(methods: Sequence[str], rounds: int) -> Iterator[tuple[str, int, str]]:
    """Method, round and pass of each measurement: one for memory, then rotated ones for time."""
    for method in methods:
        yield method, 0, "memory"
    for number in range(1, rounds + 1):
        first = (number - 1) % len(methods)
        for method in (*methods[first:], *methods[:first]):
            yield method, number, "time"


def run_all(
    measure: Callable[[str, int, Mapping[str, str]], Row],
    methods: Sequence[str],
    tokens: Sequence[int],
    rounds: int,
    rows: list[Row],
    save: Callable[[], None],
) -> None:
    """Append every measurement that `rows` lacks, saving after each.

    A method that failed at some length is not tried again there, nor at greater lengths: those
    rows repeat its error and say at which length it came.
    """
    done = {(row["method"], row["tokens"], row["round"]) for row in rows}
    for length in sorted(tokens):
        for method, number, kind in passes(methods, rounds):
            if (method, length, number) in done:
                continue
            about = {"method": method, "tokens": length, "round": number, "pass": kind}
            failed = [row for row in rows if row["method"] == method and "error" in row]
            first = min(failed, key=lambda row: row["tokens"], default=None)
            if first is not None and first["tokens"] <= length:
                failed_at = first.get("failed_at", first["tokens"])
                row = {**about, "error": first["error"], "failed_at": failed_at}
            else:
                row = about | measure(method, length, RETURN_FREED if kind == "memory" else {})
                print(_line(row), flush=True)
            rows.append(row)
            save()


def _line(row: Row) -> str:
    at = f"{row['tokens']:>6} tokens, {row['pass']:<6} {row['round']}: {row['method']:<24}"
    if "error" in row:
        return f"{at} {row['error']}"
    return f"{at} {row['seconds']:8.2f} s {row['peak_gib']:8.3f} GiB"


def load_rows(path: Path, settings: Mapping[str, Any]) -> list[Row]:
    """Measurements of an earlier run with the same settings, to go on with; none without a file.

    What went over a limit stands; what failed for another reason is tried again.

    Raises:
        ValueError: The file was made with other settings.
    """
    if not path.exists():
        return []
    saved = json.loads(path.read_text())
    if saved["settings"] != settings:
        raise ValueError(
            f"{path} was made with settings {saved['settings']}, got {dict(settings)}; "
            "name another --out"
        )
    return [row for row in saved["measurements"] if not row.get("error", "").startswith("failed")]
