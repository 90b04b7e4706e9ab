"""Partial results of an experiment in one file, so that a stopped one goes on where it was."""

import json
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor


class Parts:
    """Named results, each computed once; a result is there whole or not at all.

    Args:
        path: The file, made if there is none.
        made_of: What all results depend on: other results are other ones.
    """

    def __init__(self, path: Path, made_of: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._made_of = path, json.dumps(dict(made_of), sort_keys=True)
        with closing(self._open()) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS parts (name TEXT PRIMARY KEY, data BLOB)")

    def tensors(self, name: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors of this name, computed if they are not there."""
        made: dict[str, Tensor] = load(
            self._get(
                name,
                lambda: save({key: value.contiguous() for key, value in compute().items()}),
            )
        )
        return made

    def json(self, name: str, compute: Callable[[], Any]) -> Any:
        """What JSON can say, of this name, computed if it is not there."""
        return json.loads(self._get(name, lambda: json.dumps(compute()).encode()))

    def _get(self, name: str, compute: Callable[[], bytes]) -> bytes:
        key = f"{self._made_of} {name}"
        with closing(self._open()) as database:
            found = database.execute("SELECT data FROM parts WHERE name = ?", [key]).fetchone()
        if found is not None:
            return bytes(found[0])
        data = compute()
        with closing(self._open()) as database, database:
            database.execute("INSERT OR REPLACE INTO parts VALUES (?, ?)", [key, data])
        return data

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path)
