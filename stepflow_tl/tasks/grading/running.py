"""Runs a model's program once, in a guarded child process, and takes down what comes out.

What the child may and may not do is in `guarded.py` and `seccomp.py`:

* no process but itself, no other program, no signal to another process, no network; no pair
  of sockets either, and so no asyncio;
* no file but those of the interpreter, its packages and the system's libraries can be opened,
  and only its own folder can be written to, which is deleted afterwards (Landlock); files
  elsewhere cannot be changed, renamed or deleted, but that they exist can be found out;
* no environment, no standing descriptor, no capability, also when run as root;
* limits of time, memory, output and files; it dies with the thread that started it, but a
  parent that is killed leaves the folder behind.

This keeps a model's mistakes and tricks from doing harm. It is no sandbox against a determined
attacker, who may know of a hole in the kernel: for programs that somebody made for you, use a
container or a virtual machine besides.
"""

from __future__ import annotations

import json
import os
import platform
import re
import selectors
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from stepflow_tl.errors import SandboxError, SettingError
from stepflow_tl.tasks.grading.seccomp import system_call_filter

_GUARD = Path(__file__).with_name("guarded.py")
_START_SECONDS = 60.0
_LOOK_SECONDS = 0.05  # between two looks at the size of the folder
_COMPLAINT_BYTES = 65536  # of standard error; of which the last line is shown
_ERROR = re.compile(r"[A-Za-z_][\w.]{0,80}(?:Error|Exception|Interrupt)\b")
_SYSTEM = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/dev/null",
    "/dev/zero",
    "/dev/urandom",
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use.

    It may start no process at all, and write files only in a folder of its own.

    Attributes:
        seconds: Time for one test, from when the interpreter stands; LiveCodeBench's is 6.
        total_seconds: Time for all tests together.
        memory_mb: Address space.
        output_bytes: What it may print in one test.
        file_bytes: What its files may hold together.
    """

    seconds: float = 6.0
    total_seconds: float = 600.0
    memory_mb: int = 2048
    output_bytes: int = 16 << 20
    file_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            ValueError: One is not above zero, or the memory is too little for the interpreter.
        """
        for name in ("seconds", "total_seconds", "output_bytes", "file_bytes"):
            if not getattr(self, name) > 0:
                raise SettingError(f"expected {name} > 0, got {getattr(self, name)}")
        if self.memory_mb < 64:
            raise SettingError(f"expected memory_mb >= 64, got {self.memory_mb}")


@dataclass(frozen=True)
class Ran:
    """What came out of one run.

    Attributes:
        output: What it printed.
        result: What its function returned, as JSON; None without a function or a result.
        error: The kind of its failure; None where it ended well.
        complaint: What is known of the failure.
    """

    output: str
    result: str | None
    error: str | None
    complaint: str


def run_program(source: str, text: str, function: str | None, limits: Limits) -> Ran:
    """Run a program on one input.

    Args:
        source: The program.
        text: Its standard input; the arguments as JSON, one on a line, where it has a function.
        function: The method of its `Solution`, or its function, to call; None for none.
        limits: What it may use.

    Raises:
        RuntimeError: The protections cannot be had on this system; nothing was run.
    """
    settings = {
        **_protections(),
        "source": source,
        "function": function,
        "input": text,
        "seconds": limits.seconds,
        "memory_mb": limits.memory_mb,
        "file_bytes": limits.file_bytes,
        "parent": os.getpid(),
    }
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    environment = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "OPENBLAS_NUM_THREADS": "1", **kept}
    with (
        tempfile.TemporaryDirectory(prefix="stepflow-tl-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as stdin,
    ):
        given.write(json.dumps(settings).encode())
        given.seek(0)
        if function is None:
            stdin.write(text.replace("\r\n", "\n").encode(errors="replace"))
            stdin.seek(0)
        hear, tell = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-s", "-S", "-B", str(_GUARD), str(given.fileno()), str(tell)],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(given.fileno(), tell),
                cwd=folder,
                env=environment,
                start_new_session=True,
            )
        except BaseException:
            os.close(hear)
            raise
        finally:
            os.close(tell)
        with process, os.fdopen(hear, "rb", buffering=0) as heard:
            try:
                return _Watch(process, heard, folder, limits).until_the_end()
            finally:
                process.kill()


class _Watch:
    """Reads what a child writes until it ends or goes beyond a limit."""

    def __init__(
        self, process: subprocess.Popen[bytes], heard: Any, folder: str, limits: Limits
    ) -> None:
        self.process, self.heard, self.folder, self.limits = process, heard, folder, limits
        self.read = {process.stdout: bytearray(), process.stderr: bytearray(), heard: bytearray()}
        self.deadline = time.monotonic() + _START_SECONDS
        self.running = False

    def until_the_end(self) -> Ran:
        error = self._watch()
        if error is not None:
            self.process.kill()
        status = self.process.wait()
        first, _, result = bytes(self.read[self.heard]).partition(b"\n")
        if first != b"ready":
            raise SandboxError(_cannot(first, status, error))
        complaint = _last_error(self.read[self.process.stderr])
        if error is None and status != 0:
            error, complaint = _why(status, complaint)
        output = bytes(self.read[self.process.stdout]).decode(errors="replace")
        return Ran(output, result.decode(errors="replace").strip() or None, error, complaint)

    def _watch(self) -> str | None:
        """Read on; the kind of limit that was passed, or None at the end."""
        with selectors.DefaultSelector() as selector:
            for pipe in self.read:
                selector.register(pipe, selectors.EVENT_READ)
            while selector.get_map():
                if time.monotonic() > self.deadline:
                    return "timeout"
                for key, _ in selector.select(_LOOK_SECONDS):
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif not self._keep(key.fileobj, data):
                        return "output_limit"
                if _size(self.folder) > self.limits.file_bytes:
                    return "file_limit"
        try:
            self.process.wait(max(0.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return "timeout"
        return "file_limit" if _size(self.folder) > self.limits.file_bytes else None

    def _keep(self, pipe: Any, data: bytes) -> bool:
        """Keep what was read; False where it is more than may be."""
        kept = self.read[pipe]
        kept += data
        if pipe is self.process.stderr:
            del kept[:-_COMPLAINT_BYTES]
            return True
        if not self.running and pipe is self.heard and b"\n" in data:
            self.running = True
            self.deadline = time.monotonic() + self.limits.seconds
        return len(kept) <= self.limits.output_bytes


@lru_cache(maxsize=1)
def _protections() -> dict[str, Any]:
    machine = platform.machine()
    filter_ = system_call_filter(machine) if sys.platform == "linux" else None
    if filter_ is None:
        raise SandboxError(
            f"running a model's program needs Linux on x86_64 or aarch64, found {sys.platform} on "
            f"{machine}; nothing was run"
        )
    paths = sysconfig.get_paths()
    packages = list(dict.fromkeys(paths[name] for name in ("purelib", "platlib")))
    own = [*packages, paths["stdlib"], paths["platstdlib"], os.path.join(sys.base_prefix, "lib")]
    linked = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    readable = [path for path in dict.fromkeys([*own, *_SYSTEM, *linked]) if os.path.isabs(path)]
    return {"machine": machine, "filter": filter_.hex(), "readable": readable, "packages": packages}


def _size(folder: str) -> int:
    with os.scandir(folder) as entries:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)


def _cannot(first: bytes, status: int, error: str | None) -> str:
    try:
        missing = json.loads(first)["missing"]
    except (ValueError, KeyError, TypeError):
        missing = error or f"the child process ended with status {status} before it was guarded"
    return (
        "running a model's program needs a Linux kernel with seccomp and Landlock (5.13 or newer, "
        f"with landlock among its security modules), found: {missing}; nothing was run"
    )


def _why(status: int, complaint: str) -> tuple[str, str]:
    if complaint.startswith("MemoryError"):
        return "out_of_memory", complaint
    if status == -signal.SIGXCPU:
        return "timeout", complaint
    if status < 0:
        return "runtime_error", f"it was ended by {signal.Signals(-status).name}"
    return "runtime_error", complaint or f"it ended with status {status}"


def _last_error(text: bytearray) -> str:
    lines = bytes(text).decode(errors="replace").strip().splitlines()
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines or [""])[-1]
