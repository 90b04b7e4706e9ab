"""Shards of a sweep, and stores put together."""

import json
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace

import pytest
from small import CELLS, DECODING, GRID, PROBLEMS, assert_same_cells, assert_same_rows, small
from test_store import IDENTITY, row

from stepflow_tl import files
from stepflow_tl.sweep import Store, StoreError, merge, resume
from stepflow_tl.tasks import WordProblems


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory):
    """The rows of the sweep in one piece."""
    return small(tiny_model).run(tmp_path_factory.mktemp("whole") / "store.sqlite")


@pytest.mark.parametrize("of", [1, 2, 5, 12, 14])
def test_every_cell_is_in_one_shard_and_merged_they_are_the_sweep(tiny_model, whole, tmp_path, of):
    stores = [tmp_path / f"{number}.sqlite" for number in range(1, of + 1)]
    sizes = []
    for number, path in enumerate(stores, 1):
        rows = small(tiny_model).run(path, shard=(number, of))
        assert set(rows["hash"]) == set(Store(path).to_dataframe()["hash"])
        sizes.append(len(rows))
        assert Store(path).counts()["cells"].sum() == len(rows)
    assert sum(sizes) == CELLS
    assert max(sizes) - min(sizes) <= 1
    table = merge(stores, tmp_path / "all.sqlite")
    assert table["store"].tolist() == list(map(str, stores))
    assert table["rows"].tolist() == table["added"].tolist() == sizes
    merged = Store(tmp_path / "all.sqlite")
    assert_same_cells(merged.to_dataframe(), whole)
    assert merged.counts()["done"].sum() == CELLS
    assert_same_rows(small(tiny_model).run(merged.path), whole)  # nothing is left to do


def test_a_shard_is_the_same_at_every_batch_size(tiny_model, tmp_path):
    hashes = []
    for size in (1, 2, 7):
        sweep = small(tiny_model, decoding=replace(DECODING, batch_size=size))
        hashes.append(set(sweep.run(tmp_path / f"{size}.sqlite", shard=(2, 3))["hash"]))
    assert hashes[0] == hashes[1] == hashes[2]


@pytest.mark.parametrize("shard", [(0, 3), (4, 3), (1, 0), (-1, 2), (1.0, 2), (1,), "1/2", (True,)])
@pytest.mark.usefixtures("unchecked")
def test_no_such_shard(tiny_model, tmp_path, shard):
    with pytest.raises(ValueError, match=r"expected a shard such as \(3, 16\)"):
        small(tiny_model).run(tmp_path / "store.sqlite", shard=shard)
    assert not list(tmp_path.iterdir())


def test_an_arm_without_a_cell_of_the_shard_is_not_said_never_to_act(tiny_model, tmp_path):
    one = small(tiny_model, problems=WordProblems(n=1, difficulties=(1,)))
    rows = one.run(tmp_path / "store.sqlite", shard=(1, 3))
    assert rows["arm"].tolist() == ["baseline"]


def test_a_stopped_shard_is_resumed_and_a_merged_store_finishes_the_rest(tmp_path):
    sweep = small("reasoner", problems=PROBLEMS, grid=GRID)
    path = tmp_path / "shard.sqlite"
    whole = sweep.run(path, shard=(2, 3))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM cells WHERE rowid > 1")
    assert_same_cells(resume(path), whole)  # the shard's cells, no others
    merge([path], tmp_path / "all.sqlite")
    described = json.loads(json.dumps(sweep.describe()))
    assert Store(tmp_path / "all.sqlite").fact("sweeps") == [{"settings": described}]
    assert len(resume(tmp_path / "all.sqlite")) == CELLS


@pytest.fixture
def stores(tmp_path):
    """Two stores of one sweep, which share a cell that they answered differently."""
    made = []
    for name, rows in (
        ("a", [row("1"), row("2", seconds=1.0)]),
        ("b", [row("2", seconds=9.0), row("3"), row("1", token_ids="[5]")]),
    ):
        store = Store(tmp_path / f"{name}.sqlite", create=True)
        store.identify(IDENTITY)
        store.plan((one["hash"], "baseline") for one in rows)
        store.add(rows)
        made.append(store)
    return made


def test_what_is_there_stays_and_what_differs_is_counted(stores):
    first, second = stores
    table = merge([second.path], first)
    assert table[["rows", "added", "same", "differ"]].values.tolist() == [[3, 1, 1, 1]]
    assert first.to_dataframe()["hash"].tolist() == ["1", "2", "3"]
    assert first.to_dataframe()["token_ids"].tolist()[0] == "[1, 2]"
    assert len(second.to_dataframe()) == 3
    again = merge([second.path], first)
    assert again[["rows", "added", "same", "differ"]].values.tolist() == [[3, 0, 2, 1]]


def test_stores_of_something_else_are_refused_or_mixed(stores, tmp_path):
    other = Store(tmp_path / "other.sqlite", create=True)
    other.identify(IDENTITY | {"version": "9"})
    other.add([row("9", identity="other")])
    with pytest.raises(StoreError, match=r"version: '0\.1\.0' there, '9' now"):
        merge([other.path], stores[0])
    assert len(stores[0].to_dataframe()) == 2
    merge([other.path], stores[0], mix=True)
    assert stores[0].to_dataframe()["identity"].tolist() == ["ef", "ef", "other"]


def test_what_cannot_be_merged_is_named(stores, tmp_path):
    (tmp_path / "text.sqlite").write_text("no store" * 200)
    target = tmp_path / "all.sqlite"
    with pytest.raises(FileNotFoundError, match=r"no sweep store at .*missing\.sqlite"):
        merge([stores[0].path, tmp_path / "missing.sqlite"], target)
    with pytest.raises(StoreError, match="is no sweep store, damaged"):
        merge([tmp_path / "text.sqlite"], target)
    with pytest.raises(ValueError, match="expected stores to merge, got none"):
        merge([], target)
    with pytest.raises(ValueError, match="got itself"):
        merge([stores[0].path], tmp_path / "b" / ".." / "a.sqlite")
    assert not target.exists()


def test_a_store_that_is_being_written_may_be_merged(stores, tmp_path):
    """Readers of a write-ahead log see whole batches."""
    stop = threading.Event()

    def write() -> None:
        number = 100
        while not stop.is_set():
            stores[1].add([row(str(number)), row(str(number + 1))])
            number += 2

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            merge([stores[1].path], tmp_path / f"{number}.sqlite")
            kept = Store(tmp_path / f"{number}.sqlite").to_dataframe()["hash"].astype(int)
            assert (kept >= 100).sum() % 2 == 0
    finally:
        stop.set()
        writer.join()


def _journal(path):
    with closing(sqlite3.connect(path)) as database:
        return database.execute("PRAGMA journal_mode").fetchone()[0]


def _mounted(monkeypatch, tmp_path, *lines):
    table = tmp_path / "mounts"
    table.write_text("".join(f"{line}\n" for line in lines))
    monkeypatch.setattr(files, "_MOUNTS", table)


def test_a_store_on_a_network_file_system_has_a_rollback_journal(
    tiny_model, whole, tmp_path, monkeypatch
):
    place = tmp_path / "with space"
    place.mkdir()
    escaped = str(place).replace(" ", "\\040")
    disk, share = "/dev/sda1 / ext4 rw 0 0", f"server:/x {escaped} nfs4 rw 0 0"
    store = Store(place / "store.sqlite", create=True)
    assert _journal(store.path) == "wal"
    _mounted(monkeypatch, tmp_path, disk, share)
    rows = small(tiny_model).run(store.path)
    assert_same_rows(rows, whole)
    assert _journal(store.path) == "delete"
    assert _journal(Store(place / "new.sqlite", create=True).path) == "delete"
    assert [path.name for path in place.iterdir() if "-wal" in path.name] == []
    _mounted(monkeypatch, tmp_path, disk, share, f"/dev/sdb {escaped} xfs rw 0 0")  # mounted over
    Store(store.path)
    assert _journal(store.path) == "wal"


@pytest.mark.parametrize(
    ("kind", "is_network"),
    [
        *(("nfs", True), ("nfs4", True), ("cifs", True), ("smb3", True), ("lustre", True)),
        *(("fuse.sshfs", True), ("gpfs", True), ("beegfs_nodev", True), ("ceph", True)),
        *(("ext4", False), ("xfs", False), ("tmpfs", False), ("overlay", False), ("btrfs", False)),
        *(("fuse.ntfs-3g", False), ("fuseblk", False), ("zfs", False)),
    ],
)
def test_kinds_of_file_systems(tmp_path, monkeypatch, kind, is_network):
    _mounted(monkeypatch, tmp_path, "/dev/sda1 / ext4 rw 0 0", f"x {tmp_path} {kind} rw 0 0")
    path = tmp_path / "not" / "there" / "yet.sqlite"
    assert files.network_file_system(path) == (kind if is_network else None)
    assert files.network_file_system(tmp_path.parent / "beside") is None


def test_without_a_table_of_mounts_nothing_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MOUNTS", tmp_path / "missing")
    assert files.network_file_system(tmp_path) is None
