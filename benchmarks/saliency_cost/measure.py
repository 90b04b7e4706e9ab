"""Time and peak memory of one call in this process, above what was resident before it.

The kernel keeps the highest resident set of a process (VmHWM) and sets it back on request; where
that is refused, a thread samples the resident set instead.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

GIB = 1024**3
RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment in which glibc hands freed memory back at once: what is resident is alive. It costs
time, so that time and memory are measured in processes of their own."""

_SAMPLE_SECONDS = 0.005


def resident(pid: int | str = "self") -> int:
    """Resident bytes of a process."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def measured(call: Callable[[], object]) -> dict[str, float | str]:
    """Run `call` once; its wall-clock and CPU seconds, and its peak in GiB above the present."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    before, by_kernel = resident(), _reset_peak()
    sampler = None if by_kernel else _Sampler()
    start, start_cpu = time.perf_counter(), time.process_time()
    call()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    peak = _kernel_peak() if sampler is None else sampler.stop()
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_gib": max(0, peak - before) / GIB,
        "resident_before_gib": before / GIB,
        "peak_by": "VmHWM" if by_kernel else f"sampled every {1e3 * _SAMPLE_SECONDS:.0f} ms",
    }


def report(facts: Mapping[str, object], packages: Sequence[str]) -> None:
    """Print one JSON line: a measurement, and the versions of what it ran on."""
    versions = {name: importlib.metadata.version(name) for name in packages}
    print(json.dumps({**facts, "versions": versions}), flush=True)


def _reset_peak() -> bool:
    """Set VmHWM back to what is resident now; False where the kernel refuses."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return _kernel_peak() <= 1.01 * resident()


def _kernel_peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise OSError("no VmHWM in /proc/self/status")


class _Sampler(threading.Thread):
    """Watches this process's resident set until stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._peak, self._stopped = resident(), threading.Event()
        self.start()

    def run(self) -> None:
        while not self._stopped.wait(_SAMPLE_SECONDS):
            self._peak = max(self._peak, resident())

    def stop(self) -> int:
        """The highest resident set seen."""
        self._stopped.set()
        self.join()
        return max(self._peak, resident())
