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
from stepflow_tl.strategies import Decoding
from stepflow_tl.sweep import Store, StoreError, Sweep, grid
from stepflow_tl.tasks import WordProblems

FORK = multiprocessing.get_context("fork")
KILLS = 20


@pytest.fixture(scope="module")
def sweep(tiny_model):
    """64 cells in 32 batches: a new problem set for each of two difficulties and four arms."""
    return Sweep(
        WordProblems(n=8, difficulties=(1, 2)),
        grid(OddsEqualBridge, tau_max=[0.0, 0.9, 1.0], layers=["shallow", "all"][1:]),
        model=tiny_model,
        decoding=Decoding(max_new_tokens=4, chat=False, format="plain", batch_size=2),
    )


@pytest.fixture(scope="module")
def uninterrupted(sweep, tmp_path_factory):
    """Its rows, and the seconds that they took."""
    started = time.perf_counter()
    rows = sweep.run(tmp_path_factory.mktemp("whole") / "store.sqlite")
    return rows, time.perf_counter() - started


def _run(sweep: Sweep, path: object) -> None:
    torch.set_num_threads(1)
    sweep.run(path)


def _stored(path: object) -> int:
    """Rows so far; 0 where the kill came before there was a store."""
    try:
        return len(Store(path).to_dataframe())
    except (FileNotFoundError, StoreError):
        return 0


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed(sweep, uninterrupted, tmp_path, record_property):
    """Twenty kills, each at a random moment; a store that a kill left whole begins anew."""
    rows, whole = uninterrupted
    random_moment = random.Random(2026)
    stores, partial, caught, midway = 1, set(), 0, 0
    before = 0
    for _ in range(KILLS):
        path = tmp_path / f"store-{stores}.sqlite"
        child = FORK.Process(target=_run, args=(sweep, path))
        child.start()
        child.join(timeout=random_moment.uniform(0.0, 0.5 * whole))
        if child.exitcode is None:
            os.kill(child.pid, signal.SIGKILL)
            child.join()
        caught += child.exitcode == -signal.SIGKILL
        count = _stored(path)
        assert before <= count <= len(rows)
        assert count % 2 == 0, "a batch was stored in part"
        if 0 < count < len(rows):
            midway += count > before
            partial.add((stores, count))
        before = count
        if count == len(rows):
            assert_same_rows(sweep.run(path), rows)
            stores, before = stores + 1, 0
    for number in range(1, stores + 1):
        assert_same_rows(sweep.run(tmp_path / f"store-{number}.sqlite"), rows)
        assert len(Store(tmp_path / f"store-{number}.sqlite").to_dataframe()) == len(rows)
    record_property("kills", caught)
    record_property("partial stores", len(partial))
    record_property("stores", stores)
    assert caught >= KILLS // 2
    assert len(partial) >= 5, f"only {sorted(partial)} of {len(rows)} rows were left by kills"
    assert midway >= 5


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
def test_killed_while_the_store_is_made(sweep, uninterrupted, tmp_path, statement):
    rows, _ = uninterrupted
    path = tmp_path / "store.sqlite"
    child = FORK.Process(target=_lay_out_and_die, args=(sweep, path, statement))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert _stored(path) == 0
    assert_same_rows(sweep.run(path), rows)
