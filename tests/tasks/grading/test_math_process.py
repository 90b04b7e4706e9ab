"""The process that compares answers: reused, replaced, ended."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from stepflow_tl.tasks.grading import grade_math, math_process
from stepflow_tl.tasks.grading.math_process import ANTLR, SHARED, MathProcess

INTEGRAL = r"\boxed{\int_0^1 5\,dx}"  # which only math-verify reads
HARD = ("9^{9^{9^9}}", "5")


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_for_the_end(pid: int) -> None:
    while is_alive(pid):
        time.sleep(0.02)


def test_one_process_serves_many_calls_and_is_replaced_when_it_dies() -> None:
    process = MathProcess()
    try:
        assert process.pid is None
        assert process.compare([("5", "5.0")], 10.0)["same"]
        first = process.pid
        assert first is not None
        assert not process.compare([("5", "6")], 10.0)["same"]
        assert process.pid == first
        os.kill(first, signal.SIGKILL)
        assert process.compare([("5", "5.0")], 10.0)["same"]
        second = process.pid
        assert second is not None and second != first
        assert process.compare([HARD], 0.5) == {"error": "timeout"}
        wait_for_the_end(second)
        assert process.pid is None
    finally:
        process.close()


def test_a_process_that_dies_while_it_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    process = MathProcess()
    send, killed = process._send, []

    def send_and_kill(message: dict[str, Any]) -> None:
        send(message)
        if "pairs" in message:
            assert process.pid is not None
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(process, "_send", send_and_kill)
            assert process.compare([HARD], 30.0) == {"error": "crashed"}
        assert len(set(killed)) == 2  # it was tried twice
        assert process.compare([("5", "5")], 10.0)["same"]
    finally:
        process.close()


def test_threads_take_turns() -> None:
    pairs = [(str(i % 7), str(i % 5)) for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda pair: SHARED.compare([pair], 30.0)["same"], pairs))
    assert replies == [a == b for a, b in pairs]


def test_a_forked_process_starts_its_own() -> None:
    assert grade_math(INTEGRAL, "5").correct
    here = SHARED.pid
    code = f"""
import os
from stepflow_tl.tasks.grading import grade_math
from stepflow_tl.tasks.grading.math_process import SHARED
assert grade_math({INTEGRAL!r}, "5").correct
mine = SHARED.pid
child = os.fork()
if child == 0:
    assert SHARED.pid is None
    good = grade_math({INTEGRAL!r}, "5").correct and SHARED.pid != mine
    SHARED.close()
    os._exit(0 if good else 1)
assert os.waitpid(child, 0)[1] == 0
assert grade_math({INTEGRAL!r}, "5").correct and SHARED.pid == mine != {here}
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=300)
    assert grade_math(INTEGRAL, "5").correct and SHARED.pid == here


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
@pytest.mark.slow
def test_it_ends_with_a_parent_that_is_killed(busy: bool) -> None:
    last = "print(SHARED.pid, flush=True); time.sleep(600)"
    if busy:
        last = f"print(SHARED.pid, flush=True); SHARED.compare([{HARD!r}], 1.0)"
    code = (
        "import time; from stepflow_tl.tasks.grading.math_process import SHARED; "
        f"SHARED.compare([('5', '5')], 30.0); {last}"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        if busy:
            time.sleep(0.3)
        parent.kill()
    wait_for_the_end(child)


def test_it_ends_with_an_interpreter_that_ends() -> None:
    code = (
        "from stepflow_tl.tasks.grading.math_process import SHARED; "
        "SHARED.compare([('5', '5')], 30.0); print(SHARED.pid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert not is_alive(int(done.stdout)) and done.stderr == ""


def test_an_interrupt_leaves_no_late_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    process = MathProcess()
    try:
        process.compare([("5", "5")], 10.0)
        with monkeypatch.context() as patch:

            def interrupted(seconds: float) -> None:
                raise KeyboardInterrupt

            patch.setattr(process, "_receive", interrupted)
            with pytest.raises(KeyboardInterrupt):
                process.compare([("1", "2")], 10.0)
        assert process.compare([("5", "5")], 10.0)["same"]
    finally:
        process.close()


def test_the_parent_loads_no_sympy_for_it() -> None:
    code = "import sys, stepflow_tl.tasks.grading as g; print('math_verify' in sys.modules)"
    code += "; print(g.grade_math(r'\\boxed{5.0}', '5').correct, 'math_verify' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.split("\n")[:2] == ["False", "True False"]


def dist(folder: Path, name: str, number: str) -> None:
    info = folder / f"{name}-{number}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")


def test_another_antlr_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dist(tmp_path, "antlr4_python3_runtime", "4.11.0")
    monkeypatch.syspath_prepend(tmp_path)
    process = MathProcess()
    with pytest.raises(ImportError) as caught:
        process.compare([("5", "5")], 10.0)
    assert str(caught.value) == (
        "expected antlr4-python3-runtime 4.13.2, found 4.11.0, which reads some answers "
        "otherwise: install it by pip install 'stepflow-tl[eval]'"
    )
    assert caught.value.name == "antlr4" and process.pid is None


def test_math_verify_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('no math_verify here')")
    monkeypatch.syspath_prepend(tmp_path)
    process = MathProcess()
    with pytest.raises(ImportError, match=r"needs math-verify \(no math_verify here\)") as caught:
        process.compare([("5", "5")], 10.0)
    assert "pip install 'stepflow-tl[eval]'" in str(caught.value)
    assert caught.value.name == "math_verify" and process.pid is None


@pytest.mark.parametrize(
    ("installed", "says"),
    [
        ({"math-verify": "0.9.0", "antlr4-python3-runtime": "4.11.0"}, "4.13.2, found 4.11.0"),
        ({"math-verify": "0.9.0"}, "antlr4-python3-runtime"),
        ({"antlr4-python3-runtime": ANTLR}, "needs math-verify"),
    ],
)
def test_no_verdict_depends_on_what_is_installed(monkeypatch, installed, says) -> None:
    """Also one that needs no math-verify is refused where it would be given otherwise."""

    def version_of(name: str) -> str:
        if name not in installed:
            raise math_process.PackageNotFoundError(name)
        return str(installed[name])

    math_process.check_installed.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(math_process, "version", version_of)
        with pytest.raises(ImportError, match=says):
            grade_math(r"\boxed{x+1}", "1+x")
    assert grade_math(r"\boxed{x+1}", "1+x").correct


def test_it_may_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_process, "_START_SECONDS", 0.0)
    process = MathProcess()
    with pytest.raises(RuntimeError, match="could not start the process that compares answers"):
        process.compare([("5", "5")], 10.0)
    assert process.pid is None


def test_the_installed_antlr_is_the_one() -> None:
    assert version("antlr4-python3-runtime") == ANTLR
