"""A sweep that is killed, again and again, ends with the rows of one that was not."""

import multiprocessing
import os
import random
import signal
import sqlite3
import time

import pytest
import torch
from small import assert_same_rows

from stepflow_tl.interventions import OddsEqualBridge
from stepflow_tl.sweep import Store, StoreError, Sweep, grid
from stepflow_tl.tasks import WordProblems
from stepflow_tl.tasks.strategies import Decoding

FORK = multiprocessing.get_context("fork")
KILLS = 20


@pytest.fixture(scope="module")
def sweep(tiny_model):
    """48 cells in 24 batches."""
    return Sweep(
        WordProblems(n=8, difficulties=(1, 2)),
        grid(OddsEqualBridge, tau_max=[0.0, 0.9, 1.0], layers="all"),
        model=tiny_model,
        decoding=Decoding(max_new_tokens=4, chat=False, format="plain", batch_size=2),
    )


@pytest.fixture(scope="module")
def uninterrupted(sweep, tmp_path_factory):
    """Its rows, and the seconds that a batch took."""
    started = time.perf_counter()
    rows = sweep.run(tmp_path_factory.mktemp("whole") / "store.sqlite")
    return rows, (time.perf_counter() - started) / (len(rows) / 2)


def _run(sweep: Sweep, path: object) -> None:
    torch.set_num_threads(1)
    sweep.run(path)


def _stored(path: object) -> int:
    """Rows so far; 0 where there is no store yet."""
    try:
        return int(Store(path).counts()["done"].sum())
    except (FileNotFoundError, StoreError):
        return 0


def _killed_after(child: multiprocessing.Process, path: object, rows: int, pause: float) -> bool:
    """Kill the child a moment after the store holds so many rows; False where it was finished."""
    child.start()
    while _stored(path) < rows and child.is_alive():
        time.sleep(0.003)
    child.join(timeout=pause)
    if child.is_alive():
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed(sweep, uninterrupted, tmp_path):
    """Twenty kills: each up to four batches on, at a random moment of the next two batches.

    Where a store was completed between two kills, the next kills hit a new one.
    """
    rows, per_batch = uninterrupted
    chance = random.Random(2026)
    left: list[list[int]] = [[]]  # for each store, how many rows each kill left
    while sum(map(len, left)) < KILLS:
        path = tmp_path / f"{len(left)}.sqlite"
        before = _stored(path)
        child = FORK.Process(target=_run, args=(sweep, path))
        due = before + 2 * chance.randint(0, 4)
        if _killed_after(child, path, due, chance.uniform(0.0, 2 * per_batch)):
            left[-1].append(_stored(path))
            assert before <= left[-1][-1] <= len(rows)
        if _stored(path) == len(rows):
            left.append([])
    assert not [count for counts in left for count in counts if count % 2], "a batch in part"
    for number in range(1, len(left) + 1):
        path = tmp_path / f"{number}.sqlite"
        assert_same_rows(sweep.run(path), rows)
        assert sorted(Store(path).to_dataframe()["hash"]) == sorted(rows["hash"])
    midway = {(i, count) for i, counts in enumerate(left) for count in counts if 0 < count < 48}
    assert len(midway) >= KILLS // 3, f"kills left {left} of {len(rows)} rows"


class _DiesInCommit(sqlite3.Connection):
    """Kills its process between the last row of the third batch and its commit."""

    batches = 0

    def executemany(self, statement, rows):
        result = super().executemany(statement, rows)
        if "INTO cells" in statement:
            type(self).batches += 1
            if type(self).batches == 3:
                os.kill(os.getpid(), signal.SIGKILL)
        return result


def _run_and_die(sweep: Sweep, path: object) -> None:
    connect = sqlite3.connect
    sqlite3.connect = lambda path, **options: connect(path, factory=_DiesInCommit, **options)
    sweep.run(path)


def test_killed_inside_a_transaction(sweep, uninterrupted, tmp_path):
    rows, _ = uninterrupted
    path = tmp_path / "store.sqlite"
    for turn in (1, 2):
        child = FORK.Process(target=_run_and_die, args=(sweep, path))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert len(Store(path).to_dataframe()) == 4 * turn
    assert_same_rows(sweep.run(path), rows)


def _lay_out_and_die(sweep: Sweep, path: object, statement: str) -> None:
    class Dies(sqlite3.Connection):
        def execute(self, text, *parameters):
            if statement in text:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().execute(text, *parameters)

    connect = sqlite3.connect
    sqlite3.connect = lambda path, **options: connect(path, factory=Dies, **options)
    sweep.run(path)


@pytest.mark.parametrize(
    "statement", ["journal_mode", "TABLE IF NOT EXISTS facts", "'format'", "'identity'", "REPLACE"]
)
@pytest.mark.slow
def test_killed_while_the_store_is_made(sweep, uninterrupted, tmp_path, statement):
    rows, _ = uninterrupted
    path = tmp_path / "store.sqlite"
    child = FORK.Process(target=_lay_out_and_die, args=(sweep, path, statement))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert _stored(path) == 0
    assert_same_rows(sweep.run(path), rows)
