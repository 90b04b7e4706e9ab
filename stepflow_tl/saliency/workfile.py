"""A file that holds a saliency run while it is computed, so that a stopped one can go on.

One SQLite file: the sums of each layer, written as the backward pass leaves the layer; and, for a
run in chunks, the keys and values of each chunk. A chunk is there whole or not at all.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from stepflow_tl.errors import WorkFileError
from stepflow_tl.saliency.collect import Collector

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (made_of TEXT);
CREATE TABLE IF NOT EXISTS sums (start INT, stop INT, layer INT, data BLOB);
CREATE TABLE IF NOT EXISTS chunks (start INT, stop INT);
CREATE TABLE IF NOT EXISTS stored (start INT, layer INT, data BLOB);
"""


class WorkFile:
    """The state of one saliency run on disk.

    Args:
        path: The file; made if there is none.
        made_of: What the scores depend on; a file of anything else is refused.

    Raises:
        WorkFileError: The file is of another run, or no work file.
    """

    def __init__(self, path: str | Path, made_of: Mapping[str, Any]) -> None:
        self._path = Path(path)
        try:
            # A backward pass on a GPU runs, and writes, in a thread of its own.
            self._database = sqlite3.connect(self._path, check_same_thread=False)
        except sqlite3.OperationalError as error:
            raise WorkFileError(f"expected a place for a work file at {path}: {error}") from error
        try:
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.executescript(_TABLES)
            self._check(dict(made_of))
        except BaseException as error:
            self.close()
            if isinstance(error, sqlite3.DatabaseError):
                raise WorkFileError(f"expected a work file in {path}: {error}") from error
            raise

    def failed(self, error: sqlite3.Error) -> WorkFileError:
        """What to say where the file could not be read or written any more."""
        return WorkFileError(
            f"could not go on with the work file {self._path}: {error}; the chunks that are in it "
            "stay there (where the disk is full: make room, and run the same again)"
        )

    def _check(self, made_of: dict[str, Any]) -> None:
        line = self._database.execute("SELECT made_of FROM facts").fetchone()
        if line is None:
            with self._database:
                self._database.execute("INSERT INTO facts VALUES (?)", [json.dumps(made_of)])
            return
        held = json.loads(line[0])
        differences = [
            f"{name}: {held.get(name)!r} in the file, {value!r} now"
            for name, value in made_of.items()
            if held.get(name) != value
        ]
        if differences:
            raise WorkFileError(
                f"{self._path} is the work file of another run ({'; '.join(differences)}); "
                "expected one of this run: give another file, or remove it"
            )

    def close(self) -> None:
        """Close the file; what is not committed is gone."""
        self._database.close()

    def restore(self, collector: Collector) -> int:
        """Read the sums of all complete chunks into the collector.

        Returns:
            Where the first chunk that is not in the file begins.
        """
        (stop,) = self._database.execute("SELECT MAX(stop) FROM chunks").fetchone()
        if stop is None:  # layers of a run in one piece that was stopped
            with self._database:
                self._database.execute("DELETE FROM sums")
        rows = self._database.execute("SELECT start, stop, layer, data FROM sums ORDER BY start")
        for start, end, layer, data in rows:
            collector.written(layer, range(start, end)).copy_(load(data)["sums"])
        return int(stop or 0)

    def stored(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Keys and values of each layer, chunk by chunk."""
        for (start,) in self._database.execute("SELECT start FROM chunks ORDER BY start"):
            layers = self._database.execute(
                "SELECT data FROM stored WHERE start = ? ORDER BY layer", [start]
            )
            pairs = (load(data) for (data,) in layers)
            yield [(pair["keys"], pair["values"]) for pair in pairs]

    def write_sums(self, collector: Collector, layer: int, queries: range, keep: bool) -> None:
        """Add what these queries have written of a layer's sums.

        Args:
            collector: Holds the sums.
            layer: The layer.
            queries: The queries.
            keep: At once, not with the chunk.
        """
        sums = collector.written(layer, queries)
        self._database.execute(
            "INSERT INTO sums VALUES (?, ?, ?, ?)",
            [queries.start, queries.stop, layer, _bytes(sums=sums)],
        )
        if keep:
            self._database.commit()

    def write_chunk(self, queries: range, stored: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Add a chunk's keys and values, and keep the chunk."""
        for layer, (keys, values) in enumerate(stored):
            self._database.execute(
                "INSERT INTO stored VALUES (?, ?, ?)",
                [queries.start, layer, _bytes(keys=keys, values=values)],
            )
        self._database.execute("INSERT INTO chunks VALUES (?, ?)", [queries.start, queries.stop])
        self._database.commit()

    def forget_stored(self) -> None:
        """Drop keys and values, which a finished run needs no more."""
        with self._database:
            self._database.execute("DELETE FROM stored")
        self._database.execute("VACUUM")


@contextmanager
def open_work_file(
    path: str | Path | None, made_of: Mapping[str, Any]
) -> Iterator[WorkFile | None]:
    """The work file, closed at the end; None for no path."""
    if path is None:
        yield None
        return
    work = WorkFile(path, made_of)
    try:
        yield work
    except sqlite3.Error as error:
        raise work.failed(error) from error
    finally:
        work.close()


def _bytes(**tensors: Tensor) -> bytes:
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
