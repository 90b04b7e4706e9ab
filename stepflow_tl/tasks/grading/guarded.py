"""Runs one program under its protections, in an interpreter of its own: never imported.

Started by path, with an empty environment. The settings come as JSON on one file descriptor;
the program's standard input is descriptor 0, its output 1. On another descriptor this script
writes "ready" once every protection stands, or what is missing, and then runs nothing.
"""

import sys

del sys.path[0]  # this folder: its modules are not the program's

import builtins  # noqa: E402
import ctypes  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import signal  # noqa: E402
from types import ModuleType  # noqa: E402
from typing import Any  # noqa: E402

_PDEATHSIG, _CAPBSET_DROP, _NO_NEW_PRIVS, _SECCOMP = 1, 24, 38, 22  # prctl
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH = 1
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
_WRITE_FILE, _MAKE_FILE, _TRUNCATE = 1 << 1, 1 << 8, 1 << 14
_ALL_FILE_RIGHTS = ((1, (1 << 13) - 1), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15))
_MEGABYTE = 1 << 20

# Names that a benchmark's programs use without importing them, as LiveCodeBench's runner allows.
_STARRED = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random"),
    *("statistics", "itertools", "functools", "operator", "io", "sys", "json"),
    *("builtins", "typing"),
)

_dumps, _loads = json.dumps, json.loads  # whatever the program makes of the module
_libc = ctypes.CDLL(None, use_errno=True)


class _Missing(Exception):
    """A protection that cannot be had."""


def _check(result: int, what: str) -> int:
    if result < 0:
        raise _Missing(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _limit(settings: dict[str, Any]) -> None:
    seconds, memory = int(settings["seconds"]) + 2, settings["memory_mb"] * _MEGABYTE
    stack = min(128 * _MEGABYTE, memory)
    for which, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, settings["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_STACK, stack),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # too large a file is an error to the program


def _drop_privileges(machine: str) -> None:
    for capability in range(64):
        _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0)  # refused where there is none to drop
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _check(_libc.syscall(_CAPSET[machine], header, (ctypes.c_uint32 * 6)()), "dropping privileges")
    _check(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "giving up new privileges")


def _fence(readable: list[str], folder: str) -> None:
    """Landlock: read the interpreter and its libraries, write in the folder, nothing else."""
    version = _check(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1), "Landlock")
    handled = sum(rights for since, rights in _ALL_FILE_RIGHTS if version >= since)
    attributes = (ctypes.c_uint64 * 3)(handled, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _check(
        _libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0), "Landlock's rules"
    )
    writing = _WRITE_FILE | _MAKE_FILE | _TRUNCATE | _READ_FILE | _READ_FOLDER
    for path, rights in [
        *((path, _READ_FILE | _READ_FOLDER) for path in readable),
        (folder, writing),
    ]:
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        if not os.path.isdir(path):
            rights &= _READ_FILE | _WRITE_FILE
        rule = (rights & handled).to_bytes(8, sys.byteorder) + opened.to_bytes(4, sys.byteorder)
        _check(_libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0), f"Landlock for {path}")
        os.close(opened)
    _check(_libc.syscall(_RESTRICT_SELF, ruleset, 0), "Landlock's fence")
    os.close(ruleset)


def _filter_calls(instructions: bytes) -> None:
    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    program = Program(len(instructions) // 8, instructions)
    _check(_libc.prctl(_SECCOMP, 2, ctypes.byref(program), 0, 0), "seccomp")


def _protect(settings: dict[str, Any]) -> None:
    _check(_libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "dying with the parent")
    if os.getppid() != settings["parent"]:
        raise _Missing("found the parent gone")
    _limit(settings)
    _drop_privileges(settings["machine"])
    _fence(settings["readable"], os.getcwd())
    _filter_calls(bytes.fromhex(settings["filter"]))


def _names(called: bool) -> dict[str, Any]:
    """A fresh module's names, with what LiveCodeBench's runner imports beforehand.

    Args:
        called: Whether a function of it will be called: it is imported then, and its main block
            not run.
    """
    module = ModuleType("program" if called else "__main__")
    if called:
        sys.modules["program"] = module
    names = module.__dict__
    names["__builtins__"] = builtins
    lines = [f"from {module} import *" for module in _STARRED]
    lines += [f"import {module}" for module in _STARRED if module not in ("builtins", "typing")]
    exec("\n".join(lines), names)
    names["exit"] = names["quit"] = sys.exit  # which `site` would have made
    names["__file__"] = "program.py"
    names["open"] = _open
    return names


def _open(file: Any, *arguments: Any, **named: Any) -> Any:
    """As `open`; standard input has a name, too, that the fence would refuse."""
    return open(0 if file == "/dev/stdin" else file, *arguments, **named)


def _call(names: dict[str, Any], given: Any, function: str, text: str) -> Any:
    """Call the program's own function; `given` is what had its name beforehand."""
    if "Solution" in names and hasattr(names["Solution"], function):
        method = getattr(names["Solution"](), function)
    elif names.get(function, given) is given:
        raise NameError(f"no function {function!r} in the program")
    else:
        method = names[function]
    return method(*(_loads(line) for line in text.split("\n") if line.strip()))


def _as_json(value: Any) -> str:
    """A function's result as LiveCodeBench compares it.

    Numbers and arrays of numpy are plain ones, and a tuple is a list, but not within another value.
    """
    _dumps(value, default=_of_numpy)  # what cannot be JSON, or holds itself, ends here
    return _dumps(_plain(value, outermost=True))


def _of_numpy(value: Any) -> Any:
    if type(value).__module__ != "numpy":
        raise TypeError(f"expected what JSON can hold, got {type(value).__name__}")
    return value.tolist()


def _plain(value: Any, *, outermost: bool = False) -> Any:
    if type(value).__module__ == "numpy":
        value = value.tolist()
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
        return items if outermost or isinstance(value, list) else {"tuple": items}
    if not isinstance(value, dict):
        return value
    if all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    return {"dict": [[_plain(key), _plain(item)] for key, item in value.items()]}


def main(given: int, told: int) -> None:
    """Read the settings from one descriptor, tell of protections and results on the other."""
    with os.fdopen(given, "rb") as file:
        settings = json.loads(file.read())
    try:
        _protect(settings)
        names = _names(settings["function"] is not None)
    except (_Missing, OSError, ValueError, MemoryError) as error:
        os.write(told, json.dumps({"missing": str(error) or type(error).__name__}).encode())
        return
    os.write(told, b"ready\n")
    sys.setrecursionlimit(50_000)
    if hasattr(sys, "set_int_max_str_digits"):  # since 3.10.7
        sys.set_int_max_str_digits(0)
    sys.path += settings["packages"]
    sys.argv = ["program.py"]
    function = settings["function"]
    if function is None:
        os.close(told)
    named = names.get(function)
    try:
        exec(compile(settings["source"], "program.py", "exec"), names)
    except SystemExit:
        if function is None or (names.get(function, named) is named and "Solution" not in names):
            return
    if function is None:
        return
    try:
        result = _call(names, named, function, settings["input"])
        with os.fdopen(told, "w") as file:
            file.write(_as_json(result) + "\n")
    except SystemExit:
        pass


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
