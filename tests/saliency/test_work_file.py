"""Runs that were stopped: they go on at the chunk where they stopped, and nothing is lost."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import DATA
from torch import Tensor

from stepflow_tl.models.loading import load_model
from stepflow_tl.saliency import WorkFileError, attention, fused, hooked, step_saliency
from stepflow_tl.traces.trace import Trace

TEXT = (
    "Tom has 3 pens.<think>He buys 4 more pens. So he has the sum. It is 7.</think>"
    "The sum is \\boxed{7}.\n\nThat is it."
)
CHUNK = 9


@pytest.fixture(scope="module")
def short(tokenizer: Any) -> Trace:
    return Trace.from_text(tokenizer, TEXT)


class Stop(BaseException):
    pass


def stopped(monkeypatch: pytest.MonkeyPatch, after: int, run: Callable[[], Any]) -> None:
    """Run until this many chunks have begun their loss."""
    for module, name in ((fused, "objective_gradient"), (hooked, "weighted_objective")):
        calls, original = {"left": after}, getattr(module, name)

        def failing(
            *args: Any, original: Any = original, calls: Any = calls, **options: Any
        ) -> Tensor:
            calls["left"] -= 1
            if calls["left"] < 0:
                raise Stop
            return original(*args, **options)

        monkeypatch.setattr(module, name, failing)
    with pytest.raises(Stop):
        run()
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("kind", "backend"),
    [("qwen2", "fused"), ("gpt_oss", "fused"), ("qwen2", "hooks"), ("gpt_oss", "hooks")],
)
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("after", [0, 1, 4])
@pytest.mark.slow
def test_a_stopped_run_goes_on(
    tiny: Callable[..., Any],
    short: Trace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    backend: str,
    per_head: bool,
    after: int,
) -> None:
    model, path = tiny(kind), tmp_path / "map.work"

    def run(**more: Any) -> Any:
        return step_saliency(model, short, backend=backend, chunk=CHUNK, per_head=per_head, **more)

    whole = run()
    stopped(monkeypatch, after, lambda: run(work_file=path))
    done = sqlite3.connect(path).execute("SELECT start FROM chunks ORDER BY start").fetchall()
    assert done == [(CHUNK * i,) for i in range(after)]
    assert torch.equal(run(work_file=path).scores, whole.scores)
    again = run(work_file=path)  # nothing is left to run
    assert torch.equal(again.scores, whole.scores)
    stored = sqlite3.connect(path).execute("SELECT COUNT(*) FROM stored").fetchone()
    assert stored == (0,)


def test_what_is_done_is_not_run_again(
    tiny: Callable[..., Any], short: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = tiny("qwen2"), tmp_path / "map.work"
    options = {"backend": "fused", "chunk": CHUNK, "work_file": path}
    stopped(monkeypatch, 4, lambda: step_saliency(model, short, **options))
    seen: list[int] = []
    attend = attention.attend
    monkeypatch.setattr(
        attention,
        "attend",
        lambda q, k, v, layer: (seen.append(k.shape[1]), attend(q, k, v, layer))[1],
    )
    step_saliency(model, short, **options)
    assert min(seen) == 5 * CHUNK
    seen.clear()
    step_saliency(model, short, **options)
    assert not seen


@pytest.mark.parametrize("backend", ["fused", "hooks"])
def test_one_loss_is_written_layer_by_layer(
    tiny: Callable[..., Any],
    short: Trace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
) -> None:
    model, path = tiny("qwen2"), tmp_path / "map.work"
    written: list[list[int]] = []
    done = sqlite3.connect(path)

    def look(scored: Callable[[int, range], None], layer: int, queries: range) -> None:
        scored(layer, queries)
        rows = done.execute("SELECT layer FROM sums ORDER BY layer").fetchall()
        written.append([row[0] for row in rows])

    from stepflow_tl.saliency import backends

    for name in ("fused_scores", "hooked_scores"):
        original = getattr(backends, name)

        def watched(*args: Any, scored: Any, original: Any = original, **more: Any) -> None:
            original(*args, scored=lambda layer, q: look(scored, layer, q), **more)

        monkeypatch.setattr(backends, name, watched)
    options = {"backend": backend, "objective": "sequence"}
    first = step_saliency(model, short, work_file=path, **options)
    assert written == [[3], [2, 3], [1, 2, 3], [0, 1, 2, 3]]
    assert torch.equal(step_saliency(model, short, work_file=path, **options).scores, first.scores)
    assert torch.equal(first.scores, step_saliency(model, short, **options).scores)


def test_a_file_of_another_run_is_refused(
    tiny: Callable[..., Any], short: Trace, tmp_path: Path
) -> None:
    model, path = tiny("qwen2"), tmp_path / "map.work"
    step_saliency(model, short, work_file=path, chunk=CHUNK)
    with pytest.raises(WorkFileError, match="rule: 'attention_x_gradient' in the file, 'gradient'"):
        step_saliency(model, short, work_file=path, chunk=CHUNK, rule="gradient")
    with pytest.raises(WorkFileError, match="chunk: 9 in the file, 5 now"):
        step_saliency(model, short, work_file=path, chunk=5)
    with pytest.raises(WorkFileError, match="weights"):
        step_saliency(tiny("llama"), short, work_file=path, chunk=CHUNK)
    other = Trace.from_token_ids(model, short.token_ids[:40], strict=False)
    with pytest.raises(WorkFileError, match="trace"):
        step_saliency(model, other, work_file=path, chunk=CHUNK)


def test_no_work_file(tiny: Callable[..., Any], short: Trace, tmp_path: Path) -> None:
    path = tmp_path / "map.work"
    path.write_bytes(b"This is a letter, and no database." * 100)
    with pytest.raises(WorkFileError, match="expected a work file"):
        step_saliency(tiny("qwen2"), short, work_file=path)
    with pytest.raises(WorkFileError, match="expected a place for a work file"):
        step_saliency(tiny("qwen2"), short, work_file=tmp_path / "nowhere" / "map.work")


_RUN = """
import sys
import torch
from stepflow_tl import Trace, load_model, step_saliency
torch.set_num_threads(1)
model = load_model(sys.argv[1])
ids = [i % 50 for i in range(900)]
trace = Trace.from_token_ids(model, ids, prompt_length=40, format="plain", strict=False)
print("ready", flush=True)
step_saliency(model, trace, backend="fused", chunk=10, work_file=sys.argv[2])
"""


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """kill -9 at moments spread over the run; each time it goes on."""
    folder, path = DATA / "tiny_qwen2", tmp_path / "map.work"
    chunks = [0]
    for kill in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", _RUN, str(folder), str(path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            wanted = chunks[-1] + 2 + 3 * kill
            while process.poll() is None and count(path) < wanted:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        chunks.append(count(path))
    assert chunks == sorted(chunks)
    assert 0 < chunks[1] < 90
    model = load_model(folder)
    ids = [i % 50 for i in range(900)]
    trace = Trace.from_token_ids(model, ids, prompt_length=40, format="plain", strict=False)
    options = {"backend": "fused", "chunk": 10}
    resumed = step_saliency(model, trace, work_file=path, **options)
    torch.testing.assert_close(resumed.scores, step_saliency(model, trace, **options).scores)


def count(path: Path) -> int:
    if not path.exists():
        return 0
    try:
        return sqlite3.connect(path).execute("SELECT COUNT(*) FROM chunks").fetchone()[0]
    except sqlite3.OperationalError:  # not made yet, or being made
        return 0
