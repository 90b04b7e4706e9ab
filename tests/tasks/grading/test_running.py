"""What a program under guard can not do, and that nothing of it is left."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stepflow_tl.tasks.grading import CodeTests, Limits, grade_code, running
from stepflow_tl.tasks.grading.running import Ran, run_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs run on Linux only")

PATIENT = Limits(seconds=60.0)


def run(source: str, text: str = "", function: str | None = None, limits: Limits = PATIENT) -> Ran:
    return run_program(source, text, function, limits)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every folder and every process is gone afterwards."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert list(tmp_path.iterdir()) == []
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    for child in children.read_text().split() if children.exists() else ():
        assert b"guarded.py" not in Path(f"/proc/{child}/cmdline").read_bytes()


PERMITTED = "PermissionError: [Errno 1] Operation not permitted"
DENIED = "PermissionError: [Errno 13] Permission denied"


@pytest.mark.parametrize(
    "source",
    [
        "import os; os.fork()",
        "import os\nwhile True: os.fork()",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.execv('/bin/true', ['true'])",
        "import multiprocessing as m; p = m.Process(target=print); p.start()",
        "import os; os.kill(os.getppid(), 9)",
        "import os; os.killpg(0, 9)",
        "import signal; signal.raise_signal(9)",
        "import fcntl, os; fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
        "import resource, os; resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
        "import socket; socket.socket()",
        "import socket; socket.socketpair()",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import os; os.chmod('.', 0o777)",
        "import os; os.utime('.')",
        "import os; os.setxattr('.', 'user.a', b'b')",
        "import os; os.memfd_create('a')",
        "import os; os.open('.', os.O_TMPFILE | os.O_RDWR)",
        "import os; os.truncate('/etc/passwd', 0)",
        "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "import os; os.sched_setaffinity(os.getppid(), {0})",
        "import os; os.mkfifo('a')",
        "import os; os.chroot('.')",
    ],
)
def test_calls_that_are_refused(source: str) -> None:
    ran = run(source)
    assert ran.error == "runtime_error", ran
    assert PERMITTED in ran.complaint or DENIED in ran.complaint or "OSError" in ran.complaint, ran


def test_no_shell() -> None:
    assert "here" not in run("import os; os.system('echo here')").output


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/proc/self/environ",
        "/proc/{parent}/mem",
        "/proc/{parent}/environ",
        "{home}/a",
        "{outside}/a",
        "{outside}",
        "/dev/tty",
    ],
)
def test_files_that_cannot_be_read(path: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "a").write_text("secret")
    name = path.format(parent=os.getpid(), home=Path.home(), outside=outside)
    assert run(
        f"import os; os.listdir({name!r}) if os.path.isdir({name!r}) else open({name!r})"
    ).error


@pytest.mark.parametrize(
    "change",
    [
        "open(f, 'w')",
        "open(f, 'a')",
        "os.open(f, os.O_RDONLY | os.O_TRUNC)",
        "os.remove(f)",
        "os.rename(f, f + 'b')",
        "os.rename(f, 'b')",
        "os.link(f, 'b')",
        "os.symlink(f, f + 'b')",
        "os.mkdir(f + 'b')",
        "open(f + 'b', 'w')",
        "os.rmdir(os.path.dirname(f))",
        "os.chmod(f, 0)",
        "os.utime(f)",
        "__import__('shutil').rmtree(os.path.dirname(f))",
    ],
)
def test_nothing_outside_is_changed(change: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    file = outside / "a"
    file.write_text("secret")
    before = file.stat()
    ran = run(f"import os; f = {str(file)!r}; {change}")
    assert ran.error == "runtime_error", ran
    after = file.stat()
    assert [p.name for p in outside.iterdir()] == ["a"] and file.read_text() == "secret"
    assert (after.st_mode, after.st_mtime_ns, after.st_nlink) == (
        before.st_mode,
        before.st_mtime_ns,
        before.st_nlink,
    )


def test_no_environment_and_no_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with tempfile.TemporaryFile() as kept:
        os.set_inheritable(kept.fileno(), True)
        source = f"""
import os
assert 'HF_TOKEN' not in os.environ, os.environ
for fd in range(3, 64):
    try:
        os.fstat(fd)
    except OSError:
        continue
    raise SystemError(fd)
try:
    os.fstat({kept.fileno()})
except OSError:
    print('closed')
"""
        ran = run(source)
    assert ran.error is None and ran.output == "closed\n", ran


def test_no_privileges() -> None:
    source = """
import ctypes
header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None).capget(header, data) == 0
print(sum(data))
"""
    assert run(source).output == "0\n"


def test_a_file_that_is_too_large() -> None:
    limits = Limits(seconds=60.0, file_bytes=1000)
    assert (
        "File too large"
        in run("with open('a', 'w') as f: f.write('x' * 2000)", limits=limits).complaint
    )
    many = "i = 0\nwhile True:\n    open(str(i), 'w').write('x' * 900)\n    i += 1"
    assert run(many, limits=limits).error == "file_limit"
    late = "for i in range(3): open(str(i), 'w').write('x' * 900)"
    assert run(late, limits=limits).error == "file_limit"
    grade = grade_code(f"```python\n{many}\n```", CodeTests(("",), ("",)), limits=limits)
    assert grade.reason == "test 1 of 1: its files hold more than 1000 bytes"


@pytest.mark.parametrize(
    "source",
    [
        "while True: print('x' * 1000)",
        "import os\nwhile True: os.write(1, b'x' * 1000)",
        "while True:\n    try:\n        print('x' * 9)\n    except BaseException: pass",
    ],
)
def test_a_program_that_prints_for_ever(source: str) -> None:
    limits = Limits(seconds=60.0, output_bytes=100_000)
    assert run(source, limits=limits).error == "output_limit"


def test_complaints_for_ever_are_cut() -> None:
    ran = run("import sys\nwhile True: sys.stderr.write('x' * 1000)", limits=Limits(seconds=1.0))
    assert ran.error == "timeout" and len(ran.complaint) <= 65536


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time; time.sleep(600)",
        "import os; os.close(1); os.close(2)\nimport time; time.sleep(600)",
        "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()",
        "import signal\nfor s in (1, 2, 15, 24): signal.signal(s, 1)\nwhile True: pass",
        "while True:\n    try:\n        9 ** 9 ** 9\n    except BaseException: pass",
        "while True:\n    try:\n        raise SystemExit\n    except SystemExit: pass",
    ],
)
@pytest.mark.slow
def test_a_program_that_never_ends(source: str) -> None:
    assert run(source, limits=Limits(seconds=0.7)).error == "timeout"


@pytest.mark.parametrize(
    "source",
    [
        "x = [0] * 10**9",
        "x = []\nwhile True: x.append(bytes(10**7))",
        "import mmap; mmap.mmap(-1, 10**9)",
    ],
)
def test_a_program_that_eats_memory(source: str) -> None:
    ran = run(source, limits=Limits(seconds=60.0, memory_mb=256))
    assert ran.error in ("out_of_memory", "runtime_error"), ran
    assert "MemoryError" in ran.complaint or "Cannot allocate memory" in ran.complaint


def test_threads_run_programs_side_by_side() -> None:
    with ThreadPoolExecutor(8) as pool:
        rans = list(pool.map(lambda i: run("print(input())", str(i)), range(16)))
    assert [ran.output for ran in rans] == [f"{i}\n" for i in range(16)]


def test_a_program_dies_with_a_parent_that_is_killed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("elsewhere")
    code = (
        "from stepflow_tl.tasks.grading.running import Limits, run_program; "
        "run_program('import time; time.sleep(600)', '', None, Limits(seconds=600.0))"
    )
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        while not list(folder.glob("stepflow-tl-*")) or not children.read_text().split():
            time.sleep(0.02)
        time.sleep(0.5)
        child = int(children.read_text().split()[0])
        parent.kill()
    while Path(f"/proc/{child}").exists() and " Z " not in Path(f"/proc/{child}/stat").read_text():
        time.sleep(0.02)


def test_an_interrupt_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: str) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "_size", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("import time; time.sleep(600)")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"filter": "00" * 8}, "found: seccomp: Invalid argument; nothing was run"),
        ({"filter": ""}, "found: seccomp: Invalid argument; nothing was run"),
        ({"machine": "vax"}, "before it was guarded; nothing was run"),
    ],
)
def test_without_protection_nothing_runs(
    change: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    protections = {**running._protections(), **change}
    monkeypatch.setattr(running, "_protections", lambda: protections)
    with pytest.raises(RuntimeError) as caught:
        run("open('a', 'w')")
    assert "a Linux kernel with seccomp and Landlock (5.13 or newer" in str(caught.value)
    assert str(caught.value).endswith(says), caught.value


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    running._protections.cache_clear()
    monkeypatch.setattr(running.platform, "machine", lambda: "riscv64")
    with pytest.raises(
        RuntimeError, match="needs Linux on x86_64 or aarch64, found linux on riscv64"
    ):
        run("print(1)")
    running._protections.cache_clear()


def test_limits_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="expected seconds > 0, got 0"):
        Limits(seconds=0.0)
    with pytest.raises(ValueError, match="expected memory_mb >= 64, got 1"):
        Limits(memory_mb=1)


def test_a_huge_input_arrives_whole() -> None:
    assert run("print(len(input()))", "x" * 5_000_000).output == "5000000\n"


def test_it_works_in_a_thread_that_is_not_the_main_one() -> None:
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(run("print(1)").output))
    thread.start()
    thread.join()
    assert said == ["1\n"]
