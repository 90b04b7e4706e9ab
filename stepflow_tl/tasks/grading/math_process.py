"""The child process in which mathematical answers are compared, kept between calls.

What sympy makes of a model's answer can take for ever, or all memory, and math-verify's own
time limit is a signal that needs the main thread. So it all happens in a process of its own,
which this side kills when the time is up. Threads take turns; a forked process starts its own.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ANTLR = "4.13.2"
"""The version of antlr4-python3-runtime that reads LaTeX; another reads some answers otherwise."""

_WORKER = Path(__file__).with_name("math_worker.py")
_MEMORY_MB = 2048
_START_SECONDS = 120.0  # importing sympy from a slow disk
_GRACE_SECONDS = 2.0  # the child's own limit comes this much later than the parent's
_INSTALL = "install it by pip install 'stepflow-tl[eval]'"


class MathProcess:
    """A child process that compares answers, started at the first call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._forgotten: list[subprocess.Popen[bytes]] = []

    @property
    def pid(self) -> int | None:
        """The child's process id; None where there is none."""
        return None if self._process is None else self._process.pid

    def compare(self, pairs: list[tuple[str, str]], seconds: float) -> dict[str, Any]:
        """Whether any of the pairs (gold, answer) agrees.

        Returns:
            "same" and "understood" (whether gold and answer of the first pair are mathematics),
            or "error": "timeout", "crashed", "out_of_memory" or "not_understood".

        Raises:
            ImportError: math-verify is not installed, or antlr's runtime is of another version.
        """
        with self._lock:
            reply = self._ask(pairs, seconds)
            if reply.get("error") == "crashed":  # maybe killed by somebody, before or meanwhile
                reply = self._ask(pairs, seconds)
            return reply

    def _ask(self, pairs: list[tuple[str, str]], seconds: float) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._start()
        try:
            self._send({"pairs": pairs, "seconds": seconds + _GRACE_SECONDS})
            reply = self._receive(seconds)
        except BaseException:  # an interrupt too: a late reply must not meet a new question
            self._end()
            raise
        if "error" in reply and reply["error"] != "not_understood":
            self._end()
        return reply

    def close(self) -> None:
        """End the child process; another call starts a new one."""
        with self._lock:
            self._end()

    def abandon(self) -> None:
        """End the child process without waiting for the turn of another thread."""
        process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def _start(self) -> None:
        kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-S", "-B", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", **kept},
            start_new_session=True,  # an interrupt at the keyboard is the parent's to handle
        )
        try:
            self._send({"path": sys.path, "memory_mb": _MEMORY_MB, "antlr": ANTLR})
            started = self._receive(_START_SECONDS)
        except BaseException:
            self._end()
            raise
        if "ready" not in started:
            self._end()
            raise _not_started(started)

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        text = memoryview((json.dumps(message) + "\n").encode())
        with contextlib.suppress(BrokenPipeError):  # it has died; reading finds that out
            while text:
                text = text[self._process.stdin.write(text) :]

    def _receive(self, seconds: float) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    return {"error": "timeout"}
                data = os.read(self._process.stdout.fileno(), 65536)
                if not data:
                    return {"error": "crashed"}
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._close_pipes(self._process)
        self._process, self._unread = None, b""

    def _forget(self) -> None:
        """After a fork: the child process belongs to the parent, and so does its lock."""
        self._lock = threading.Lock()
        if self._process is not None:
            self._close_pipes(self._process)
            self._process.returncode = 0  # never ours to wait for
            self._forgotten.append(self._process)
        self._process, self._unread = None, b""

    @staticmethod
    def _close_pipes(process: subprocess.Popen[bytes]) -> None:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


@lru_cache(maxsize=1)
def check_installed() -> None:
    """Refuse an environment whose math-verify would grade otherwise, before it is needed.

    So no verdict depends on what is installed: all are given, or none.

    Raises:
        ImportError: math-verify is not installed, or antlr's runtime is of another version.
    """
    try:
        version("math-verify")
        found = version("antlr4-python3-runtime")
    except PackageNotFoundError as missing:
        raise _not_started({"missing": str(missing)}) from None
    if found != ANTLR:
        raise _not_started({"antlr": found})


def _not_started(started: dict[str, Any]) -> Exception:
    if "antlr" in started:
        return ImportError(
            f"expected antlr4-python3-runtime {ANTLR}, found {started['antlr']}, which reads "
            f"some answers otherwise: {_INSTALL}",
            name="antlr4",
        )
    if "missing" in started:
        return ImportError(
            f"grading mathematics needs math-verify ({started['missing']}): {_INSTALL}",
            name="math_verify",
        )
    return RuntimeError(
        f"could not start the process that compares answers: {started.get('error')} within "
        f"{_START_SECONDS:.0f} s"
    )


SHARED = MathProcess()
"""The process that all graders of this interpreter share."""

atexit.register(SHARED.abandon)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=SHARED._forget)
