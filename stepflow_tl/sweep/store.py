"""Finished cells in one SQLite file: what is in it survives whatever happens to the process.

SQLite's write-ahead log shares memory between the processes of one machine, which no network file
system carries to another; so a store there is kept with a rollback journal, and belongs to one
process at a time.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from stepflow_tl.errors import SettingError, StoreError
from stepflow_tl.files import network_file_system, replacing

COLUMNS: dict[str, str] = {
    "hash": "TEXT PRIMARY KEY",
    "arm": "TEXT NOT NULL",
    "setting": "TEXT NOT NULL",
    "strategy": "TEXT NOT NULL",
    "flow": "TEXT NOT NULL",
    "group": "TEXT NOT NULL",
    "problem": "TEXT NOT NULL",
    "seed": "INTEGER NOT NULL",
    "correct": "INTEGER NOT NULL",
    "answer": "TEXT",
    "error": "TEXT",
    "error_step": "INTEGER",
    "tied": "INTEGER NOT NULL",
    "ended": "INTEGER NOT NULL",
    "steps": "INTEGER NOT NULL",
    "tokens": "INTEGER NOT NULL",
    "forward_passes": "REAL NOT NULL",
    "seconds": "REAL NOT NULL",
    "fired": "REAL NOT NULL",
    "response": "TEXT NOT NULL",
    "token_ids": "TEXT NOT NULL",
    "prompt_length": "INTEGER NOT NULL",
    "identity": "TEXT NOT NULL",
    "reason": "TEXT",
    "format": "TEXT",
    "cut": "TEXT",
}
_BOOLEANS = ("correct", "tied", "ended")
_FORMAT = "3"
_ADDED = ("reason", "format", "cut")  # in formats 2 and 3: what older rows do not say
_OLDER = ("1", "2")
_PATIENCE = 200  # tries, 0.05 s apart
_PARAMETERS = 900  # SQLite's own limit is higher; this holds everywhere


class Store:
    """One SQLite file (in WAL mode) with a row per finished cell.

    Any number of processes of this machine may read while one writes. Rows come in whole batches or
    not at all. On a network file system it is in rollback mode, and one process has it at a time:
    let each machine write a store of its own, and `merge` them.

    Args:
        path: The file.
        create: Make it where there is none; else it must be there.

    Raises:
        FileNotFoundError: There is no such file, and `create` is False.
        StoreError: It is no store, or one of another format.
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        self.path = Path(path)
        if not create and not self.path.is_file():
            raise FileNotFoundError(f"no sweep store at {self.path}")
        if create:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._connected() as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            if not tables and create:
                self._lay_out(database)
            elif not {"cells", "facts", "plan"} <= tables:
                raise StoreError(f"{self.path} is no sweep store")
            else:
                self._set_journal(database)
        if self.fact("format") in _OLDER:
            self._add_columns()
        found = self.fact("format")
        if found != _FORMAT:
            raise StoreError(f"expected a sweep store of format {_FORMAT}, {self.path} has {found}")

    def fact(self, name: str) -> Any:
        """What was noted under a name; None where nothing was."""
        with self._connected() as database:
            row = database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def note(self, name: str, value: Any) -> None:
        """Note a JSON-able fact."""
        with self._connected() as database, database:
            database.execute(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value))
            )

    def identify(self, identity: Mapping[str, Any], *, mix: bool = False) -> None:
        """Make sure that all rows come from one version, one model, one decoding, one problem set.

        Raises:
            StoreError: The store holds rows of another, and `mix` is False; each difference is
                spelled out.
        """
        identity = json.loads(json.dumps(dict(identity)))
        with self._connected() as database, database:
            database.execute(  # of two that come first, one is refused
                "INSERT OR IGNORE INTO facts VALUES ('identity', ?)", (json.dumps(identity),)
            )
        known = self.fact("identity")
        names = [*known, *(name for name in identity if name not in known)]
        differences = [
            f"{name}: {known.get(name)!r} there, {identity.get(name)!r} now"
            for name in names
            if known.get(name) != identity.get(name)
        ]
        if differences and not mix:
            raise StoreError(
                f"expected a store of this sweep, but {self.path} holds results of something else "
                f"({'; '.join(differences)}); use "
                "another file, or mix=True to keep both side by side"
            )

    def plan(self, cells: Iterable[tuple[str, str]]) -> None:
        """Note which cells are to come: the hash and the arm of each."""
        with self._connected() as database, database:
            database.executemany("INSERT OR IGNORE INTO plan VALUES (?, ?)", cells)

    def done(self, hashes: Iterable[str]) -> set[str]:
        """Which of these cells are finished."""
        with self._connected() as database:
            return {
                row[0]
                for part in _parts(list(hashes))
                for row in database.execute(
                    f"SELECT hash FROM cells WHERE hash IN ({_marks(part)})", part
                )
            }

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add the finished cells of a batch, all or none; those that are there stay as they are."""
        marks = ", ".join(["?"] * len(COLUMNS))
        with self._connected() as database, database:
            names = ", ".join(f'"{name}"' for name in COLUMNS)
            database.executemany(
                f"INSERT OR IGNORE INTO cells ({names}) VALUES ({marks})",
                [tuple(_storable(row[name]) for name in COLUMNS) for row in rows],
            )

    def take_in(self, source: Store) -> tuple[int, int, int]:
        """Add what another store holds, and what it has planned, all or nothing.

        Returns:
            Its rows; how many of them were added; and how many are here with another response.
        """
        names = ", ".join(f'"{name}"' for name in COLUMNS)
        with self._connected() as database:
            database.execute("ATTACH ? AS source", (str(source.path.resolve()),))
            with database:
                database.execute("BEGIN IMMEDIATE")
                (rows,) = database.execute("SELECT COUNT(*) FROM source.cells").fetchone()
                (differ,) = database.execute(
                    "SELECT COUNT(*) FROM source.cells AS theirs JOIN main.cells AS ours "
                    "USING (hash) WHERE theirs.token_ids != ours.token_ids"
                ).fetchone()
                added = database.execute(
                    f"INSERT OR IGNORE INTO main.cells ({names}) SELECT {names} FROM source.cells "
                    "ORDER BY source.cells.rowid"
                ).rowcount
                database.execute(
                    "INSERT OR IGNORE INTO main.plan SELECT hash, arm FROM source.plan "
                    "ORDER BY source.plan.rowid"
                )
        return int(rows), int(added), int(differ)

    def to_dataframe(self, hashes: Sequence[str] | None = None) -> pd.DataFrame:
        """Finished cells, a row each, in the order they were finished; or those asked for.

        Columns: ``hash``; ``arm`` (strategy and setting), ``setting``, ``strategy``, ``flow``
        (JSON; `stepflow_tl.sweep.settings_columns` spreads it); ``group``, ``problem``, ``seed``;
        ``correct``, ``answer``, ``error`` and ``error_step`` (its first error, where the task can
        tell), ``reason`` (why it was graded so); ``tied`` (a vote was), ``ended`` (False: cut at
        max_new_tokens, or, where ``cut`` is "context", at the end of the model's context),
        ``steps`` of thinking; what it cost: ``tokens`` generated, over all traces of the answer,
        ``forward_passes`` over one token (those of interventions with them; a backward pass counts
        as two), ``seconds`` (its share of those that the cells stored with it took); ``fired``,
        how often the interventions acted on it; ``response``, untrusted text, and its trace:
        ``token_ids`` (JSON), ``prompt_length``, ``format`` (JSON: how it was read); ``identity``:
        of weights, version, decoding and problem set.
        """
        names = ", ".join(f'"{name}"' for name in COLUMNS)
        query = f"SELECT {names} FROM cells"
        with self._connected() as database:
            if hashes is None:
                rows = database.execute(f"{query} ORDER BY rowid").fetchall()
            else:
                rows = [
                    row
                    for part in _parts(list(hashes))
                    for row in database.execute(f"{query} WHERE hash IN ({_marks(part)})", part)
                ]
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        if hashes is not None:
            order = {name: i for i, name in enumerate(hashes)}
            table = table.sort_values("hash", key=lambda column: column.map(order))
        table = table.astype({name: bool for name in _BOOLEANS} | {"seed": int})
        table["error_step"] = table["error_step"].astype("Int64")
        return table.reset_index(drop=True)

    def counts(self) -> pd.DataFrame:
        """Planned and finished cells, accuracy so far and seconds spent, by arm."""
        with self._connected() as database:
            rows = database.execute(
                "SELECT plan.arm, COUNT(*), COUNT(cells.hash), AVG(correct), SUM(seconds) "
                "FROM plan LEFT JOIN cells ON plan.hash = cells.hash "
                "GROUP BY plan.arm ORDER BY MIN(plan.rowid)"
            ).fetchall()
        table = pd.DataFrame(rows, columns=["arm", "cells", "done", "accuracy", "seconds"])
        return table.astype({"accuracy": float, "seconds": float})

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=60.0)) as database:
                yield database
        except sqlite3.Error as error:
            raise StoreError(
                f"{self.path} is no sweep store, damaged, or cannot be used: {error}"
            ) from None

    def _add_columns(self) -> None:
        """Bring a store of the older format to this one; its rows stay as they are."""
        with self._connected() as database, database:
            database.execute("BEGIN IMMEDIATE")
            columns = {row[1] for row in database.execute("PRAGMA table_info(cells)")}
            for name in _ADDED:
                if name not in columns:  # else another process was faster
                    database.execute(f'ALTER TABLE cells ADD COLUMN "{name}" TEXT')
            database.execute(
                "UPDATE facts SET value = ? WHERE name = 'format'", (json.dumps(_FORMAT),)
            )

    def _set_journal(self, database: sqlite3.Connection) -> None:
        """The journal that the file's place allows; a store that was moved may have the other."""
        _journal(database, "wal" if network_file_system(self.path) is None else "delete")

    def _lay_out(self, database: sqlite3.Connection) -> None:
        self._set_journal(database)
        columns = ", ".join(f'"{name}" {kind}' for name, kind in COLUMNS.items())
        with database:
            database.execute("BEGIN IMMEDIATE")
            database.execute(f"CREATE TABLE IF NOT EXISTS cells ({columns})")
            database.execute(
                "CREATE TABLE IF NOT EXISTS plan (hash TEXT, arm TEXT, PRIMARY KEY (hash, arm))"
            )
            database.execute("CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT)")
            database.execute(
                "INSERT OR IGNORE INTO facts VALUES ('format', ?)", (json.dumps(_FORMAT),)
            )


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table as .parquet or .csv; the file is there whole, or as it was before.

    Raises:
        ValueError: The name ends with neither.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".csv"):
        raise SettingError(f"expected a name that ends with .parquet or .csv, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        if path.suffix == ".csv":
            table.to_csv(unfinished, index=False)
        else:
            table.to_parquet(unfinished, index=False)


def _journal(database: sqlite3.Connection, mode: str) -> None:
    """Switch to a journal; SQLite's timeout does not hold while another process does the same."""
    for patience in range(_PATIENCE, -1, -1):
        try:
            (found,) = database.execute("PRAGMA journal_mode").fetchone()
            if found != mode:
                database.execute(f"PRAGMA journal_mode = {mode}")
            return
        except sqlite3.OperationalError as error:
            if not patience or "locked" not in str(error):
                raise
            time.sleep(0.05)


def _storable(value: Any) -> Any:
    """The value; a lone surrogate, which is no character, becomes U+FFFD."""
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def _parts(values: list[str]) -> Iterator[list[str]]:
    for first in range(0, len(values), _PARAMETERS):
        yield values[first : first + _PARAMETERS]


def _marks(values: Sequence[str]) -> str:
    return ", ".join(["?"] * len(values))
