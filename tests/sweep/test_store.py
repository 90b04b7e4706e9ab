import contextlib
import json
import multiprocessing
import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stepflow_tl.sweep import Store, StoreError, trace_of, write_table
from stepflow_tl.sweep.store import COLUMNS

FORK = multiprocessing.get_context("fork")
IDENTITY = {"version": "0.1.0", "weights": "ab", "decoding": {"temperature": 0.0}, "problems": "cd"}


def row(name: object, **changes: object) -> dict[str, object]:
    """A finished cell."""
    return {
        "hash": str(name),
        "arm": "baseline",
        "setting": "baseline",
        "strategy": "plain",
        "flow": "[]",
        "group": "2",
        "problem": "p",
        "seed": 0,
        "correct": True,
        "answer": "7",
        "error": None,
        "error_step": None,
        "tied": False,
        "ended": True,
        "steps": 3,
        "tokens": 40,
        "forward_passes": 40.0,
        "seconds": 0.5,
        "fired": 0.0,
        "response": "It is 7.",
        "token_ids": "[1, 2]",
        "prompt_length": 1,
        "identity": "ef",
        "reason": None,
        "format": '{"name": "think"}',
        "cut": None,
    } | changes


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store.sqlite", create=True)


def test_rows_come_back_as_they_were(store):
    rows = [row("a"), row("b", error="wrong_carry", error_step=2, answer=None, correct=False)]
    store.add(rows)
    table = store.to_dataframe()
    assert table.columns.tolist() == list(COLUMNS)
    back = table.astype(object).where(table.notna(), None).to_dict("records")
    assert back == rows
    assert table[["correct", "tied", "ended"]].dtypes.tolist() == [bool] * 3
    assert str(table["error_step"].dtype) == "Int64"


def test_an_empty_store_has_an_empty_table(store):
    assert store.to_dataframe().shape == (0, len(COLUMNS))
    assert store.to_dataframe([]).shape == (0, len(COLUMNS))
    assert store.counts().empty
    assert store.done([]) == set()
    assert store.fact("sweeps") is None


@pytest.mark.parametrize(
    ("version", "missing"), [("1", ("reason", "format", "cut")), ("2", ("format", "cut"))]
)
def test_a_store_of_an_older_format_keeps_its_rows(store, version, missing):
    store.add([row("a")])
    with contextlib.closing(sqlite3.connect(store.path)) as database, database:
        for name in missing:
            database.execute(f"ALTER TABLE cells DROP COLUMN {name}")
        database.execute("UPDATE facts SET value = ? WHERE name = 'format'", (f'"{version}"',))
    opened = Store(store.path)
    opened.add([row("b", reason="expected 8, got 7", cut="context")])
    table = opened.to_dataframe()
    assert table["hash"].tolist() == ["a", "b"]
    assert table["reason"].dropna().tolist() == ["expected 8, got 7"]
    assert table["cut"].dropna().tolist() == ["context"]
    with pytest.raises(ValueError, match="one of an older store: pass format="):
        trace_of(None, table.iloc[0])


def test_rows_are_kept_in_the_order_asked_for(store):
    store.add([row(i) for i in range(5)])
    assert store.to_dataframe(["3", "missing", "0"])["hash"].tolist() == ["3", "0"]
    assert store.to_dataframe()["hash"].tolist() == ["0", "1", "2", "3", "4"]


def test_more_hashes_than_sqlite_takes_parameters(store):
    names = [f"{i:05d}" for i in range(2500)]
    store.add([row(name) for name in names[::2]])
    assert store.done(iter(names)) == set(names[::2])
    assert store.to_dataframe(names[::-1])["hash"].tolist() == names[::2][::-1]


def test_a_cell_that_is_there_stays_as_it_is(store):
    store.add([row("a", response="first")])
    store.add([row("a", response="second"), row("b")])
    assert store.to_dataframe()["response"].tolist() == ["first", "It is 7."]


@pytest.mark.parametrize("broken", [{"response": object()}, {"seed": 2**70}, {"seed": ...}])
def test_a_batch_is_stored_whole_or_not_at_all(store, broken):
    store.add([row("before")])
    with pytest.raises((StoreError, sqlite3.Error, OverflowError)):
        store.add([row("a"), row("b", **broken), row("c")])
    with pytest.raises(KeyError):
        store.add([row("a"), {"hash": "b"}])
    assert store.to_dataframe()["hash"].tolist() == ["before"]
    store.add([row("a"), row("b")])  # no lock was left behind
    assert len(store.to_dataframe()) == 3


HOSTILE = [
    "NUL \0 inside \0",
    "a lone surrogate \ud800, and \udcff",
    "\x1b[31m'; DROP TABLE cells; --",
    "\\boxed{" * 1000,
    "数学 é ≈ \u202e\ufeff\r\n",
    "",
    "long " * 1_000_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:12]))
def test_untrusted_text_is_stored_and_exported(store, text, tmp_path):
    """Whatever is Unicode comes back as it was; a lone surrogate is no character."""
    store.add([row("a", response=text, answer=text)])
    kept = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    table = store.to_dataframe()
    assert table.loc[0, ["response", "answer"]].tolist() == [kept, kept]
    write_table(table, tmp_path / "table.parquet")
    assert pd.read_parquet(tmp_path / "table.parquet")["response"][0] == kept
    write_table(table, tmp_path / "table.csv")


def _add_in_turns(store: Store, wrote: Any, go_on: Any) -> None:
    for i in range(60):
        store.add([row(f"{i}-{j}") for j in range(4)])
        if i % 20 == 10:
            wrote.release()
            go_on.acquire()


def test_another_process_reads_while_one_writes(store):
    wrote, go_on = FORK.Semaphore(0), FORK.Semaphore(0)
    writer = FORK.Process(target=_add_in_turns, args=(store, wrote, go_on))
    writer.start()
    seen = []
    for turn in range(3):
        assert wrote.acquire(timeout=60)
        seen.append(len(store.to_dataframe()))
        assert seen[-1] == 4 * (20 * turn + 11)
        go_on.release()
        seen += [len(store.to_dataframe()) for _ in range(5)]  # in the middle of its writing
        assert len(Store(store.path).done(["0-0", "0-3"])) == 2
    writer.join()
    assert writer.exitcode == 0
    assert all(count % 4 == 0 for count in seen), "a batch was seen in part"
    assert seen == sorted(seen)
    assert len(store.to_dataframe()) == 240


def test_a_reader_in_the_middle_of_its_query_blocks_no_writer(store):
    store.add([row(i) for i in range(10)])
    reader = sqlite3.connect(store.path)
    cursor = reader.execute("SELECT hash FROM cells")
    cursor.fetchone()
    store.add([row("new")])
    assert len(cursor.fetchall()) == 9
    reader.close()


def test_many_threads_and_stores_on_one_file(tmp_path):
    path = tmp_path / "store.sqlite"

    def work(number: int) -> None:
        mine = Store(path, create=True)
        mine.identify(IDENTITY)
        for i in range(10):
            mine.add([row(f"{number}-{i}"), row(f"shared-{i}")])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert len(Store(path).to_dataframe()) == 6 * 10 + 10


def test_a_store_is_refused_with_every_difference_spelt_out(store):
    store.identify(IDENTITY)
    store.identify(dict(reversed(IDENTITY.items())))
    other = IDENTITY | {"weights": "xy", "decoding": {"temperature": 1.0}, "task": "new"}
    with pytest.raises(StoreError) as refusal:
        store.identify(other)
    message = str(refusal.value)
    assert "weights: 'ab' there, 'xy' now" in message
    assert "decoding: {'temperature': 0.0} there, {'temperature': 1.0} now" in message
    assert "task: None there, 'new' now" in message
    assert "version" not in message and "problems" not in message
    assert "another file" in message and "mix" in message
    store.identify(other, mix=True)
    store.identify(IDENTITY)
    with pytest.raises(StoreError):
        store.identify(other)


def test_of_several_that_come_first_all_but_one_are_refused(tmp_path):
    barrier = threading.Barrier(4, timeout=60)

    def come(number: int, path: Path) -> bool:
        """Make the store, and say whether it was accepted."""
        barrier.wait()
        store = Store(path, create=True)
        barrier.wait()
        with contextlib.suppress(StoreError):
            store.identify(IDENTITY | {"weights": str(number)})
            return True
        return False

    with ThreadPoolExecutor(4) as pool:
        for i in range(10):
            accepted = list(pool.map(come, range(4), [tmp_path / f"{i}.sqlite"] * 4))
            assert sum(accepted) == 1


def test_a_store_that_another_is_making_is_waited_for(tmp_path, monkeypatch):
    """SQLite itself does not wait where two switch a file to WAL at once."""

    class Busy(sqlite3.Connection):
        left = 3

        def execute(self, statement, *parameters):
            if "journal_mode" in statement and Busy.left:
                Busy.left -= 1
                raise sqlite3.OperationalError("database is locked")
            return super().execute(statement, *parameters)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda p, **o: connect(p, factory=Busy, **o))
    Store(tmp_path / "a.sqlite", create=True).add([row("a")])
    assert Busy.left == 0


def test_no_store_is_made_where_one_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no sweep store at .*missing\.sqlite"):
        Store(tmp_path / "missing.sqlite")
    assert not list(tmp_path.iterdir())
    Store(tmp_path / "new" / "folder" / "s.sqlite", create=True)
    Store(str(tmp_path / "new" / "folder" / "s.sqlite"))


def _foreign(path):
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE other (a)")


def _newer(path):
    Store(path, create=True).note("format", "4")


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b"no database" * 500), "no sweep store, damaged, .*: file is"),
        (lambda p: p.write_bytes(b"\0" * 5000), "no sweep store, damaged"),
        (_foreign, "is no sweep store"),
        (_newer, "expected a sweep store of format 3, .* has 4"),
        (lambda p: p.mkdir(), "no sweep store"),
    ],
    ids=["text", "zeros", "foreign", "newer", "folder"],
)
def test_other_files_are_refused_and_left_alone(tmp_path, make, message, create):
    path = tmp_path / "file.sqlite"
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises((StoreError, FileNotFoundError), match=message):
        Store(path, create=create)
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_a_file_that_was_only_begun_is_made_a_store(tmp_path):
    """Killed between SQLite's creating the file and the first transaction."""
    path = tmp_path / "file.sqlite"
    path.write_bytes(b"")
    with pytest.raises(StoreError, match="no sweep store"):
        Store(path)
    Store(path, create=True).add([row("a")])


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_a_truncated_store_is_a_store_error_everywhere(store, keep):
    store.add([row(i, response="x" * 500) for i in range(200)])
    with sqlite3.connect(store.path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    size = store.path.stat().st_size
    os.truncate(store.path, int(size * keep))
    with pytest.raises(StoreError, match=r"store\.sqlite.*(damaged|malformed)"):
        Store(store.path).to_dataframe()


def test_a_damaged_page_is_a_store_error(store):
    store.add([row(i, response="x" * 500) for i in range(200)])
    with sqlite3.connect(store.path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    with store.path.open("r+b") as file:
        file.seek(5 * 4096)
        file.write(b"\xff" * 4096 * 10)
    for use in (Store.to_dataframe, Store.counts):
        with pytest.raises(StoreError, match=r"store\.sqlite .*damaged.*malformed"):
            use(Store(store.path))


def test_a_folder_without_permission_is_explained():
    with pytest.raises((StoreError, OSError)):
        Store("/proc/sweep.sqlite", create=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_explained(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises((StoreError, OSError)):
        Store(tmp_path / "store.sqlite", create=True)


def test_a_locked_store_says_so(store, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **_: connect(path, timeout=0.01))
    holder = connect(store.path)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"store\.sqlite.*locked"):
        store.add([row("a")])
    holder.close()
    store.add([row("a")])


@pytest.mark.parametrize("name", ["table.parquet", "table.csv"])
def test_tables_are_written_whole(store, tmp_path, name):
    store.add([row("a"), row("b", answer=None, error="unfinished", error_step=1)])
    table, path = store.to_dataframe(), tmp_path / "new" / name
    write_table(table, path)
    write_table(table, str(path))
    assert [p.name for p in path.parent.iterdir()] == [name]
    if name.endswith("parquet"):
        back = pd.read_parquet(path)
        pd.testing.assert_frame_equal(back, table)
    else:
        assert len(pd.read_csv(path)) == 2


@pytest.mark.parametrize("name", ["table.xlsx", "table", "parquet"])
def test_other_kinds_of_tables_are_refused(store, tmp_path, name):
    with pytest.raises(ValueError, match=r"ends with \.parquet or \.csv, got"):
        write_table(store.to_dataframe(), tmp_path / name)


def _export_and_die(table: pd.DataFrame, path: object) -> None:
    os.replace = lambda *_: os._exit(9)
    write_table(table, path)


def test_an_export_killed_at_the_end_leaves_the_old_file(store, tmp_path):
    path = tmp_path / "table.parquet"
    store.add([row("a")])
    write_table(store.to_dataframe(), path)
    before = path.read_bytes()
    store.add([row("b")])
    child = FORK.Process(target=_export_and_die, args=(store.to_dataframe(), path))
    child.start()
    child.join()
    assert child.exitcode == 9
    assert path.read_bytes() == before
    write_table(store.to_dataframe(), path)
    assert len(pd.read_parquet(path)) == 2


def test_a_failed_export_leaves_no_rubbish(store, tmp_path, monkeypatch):
    path = tmp_path / "table.parquet"
    write_table(store.to_dataframe(), path)
    before = path.read_bytes()

    def fail(self: object, target: object, **_: object) -> None:
        target.write_bytes(b"half a")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", fail)
    with pytest.raises(OSError, match="disk full"):
        write_table(store.to_dataframe(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if "parquet" in p.name] == ["table.parquet"]


def _die_before_commit(store: Store) -> None:
    class Dying(sqlite3.Connection):
        def __exit__(self, *_: object) -> None:
            os.kill(os.getpid(), 9)

    connect = sqlite3.connect
    sqlite3.connect = lambda path, **options: connect(path, factory=Dying, **options)
    store.add([row("new-1"), row("new-2")])


def test_a_kill_inside_the_transaction_leaves_nothing_of_it(store):
    store.add([row("old")])
    child = FORK.Process(target=_die_before_commit, args=(store,))
    child.start()
    child.join()
    assert child.exitcode == -9
    assert Store(store.path).to_dataframe()["hash"].tolist() == ["old"]
    store.add([row("new-1")])
    assert len(store.to_dataframe()) == 2


def test_counts_know_what_is_to_come(store):
    store.plan([("a", "baseline"), ("b", "baseline"), ("c", "bridge")])
    store.plan(iter([("a", "baseline"), ("a", "its other name"), ("c", "bridge")]))
    store.add([row("a", correct=True, seconds=2.0), row("b", correct=False, seconds=1.0)])
    assert store.counts().to_dict("list") == {
        "arm": ["baseline", "bridge", "its other name"],
        "cells": [2, 1, 1],
        "done": [2, 0, 1],
        "accuracy": [0.5, pytest.approx(float("nan"), nan_ok=True), 1.0],
        "seconds": [3.0, pytest.approx(float("nan"), nan_ok=True), 2.0],
    }


def test_facts_are_json(store):
    store.note("sweeps", [{"a": 1.0, "b": None}])
    store.note("sweeps", [{"a": 2.0}])
    assert store.fact("sweeps") == [{"a": 2.0}]
    with sqlite3.connect(store.path) as database:
        (mode,) = database.execute("PRAGMA journal_mode").fetchone()
        (text,) = database.execute("SELECT value FROM facts WHERE name = 'sweeps'").fetchone()
    database.close()
    assert mode == "wal"
    assert json.loads(text) == [{"a": 2.0}]
