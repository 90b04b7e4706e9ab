"""Merging: the stores of a sweep's shards, or of several machines, put together in one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from stepflow_tl.errors import SettingError
from stepflow_tl.sweep.store import Store


def merge(
    sources: Sequence[str | Path], into: str | Path | Store, *, mix: bool = False
) -> pd.DataFrame:
    """Put the rows of several stores into one; cells that are there already stay as they are.

    The sweeps that the sources remember, whole or in shards, are remembered as whole ones, so that
    `stepflow_tl.sweep.resume` finishes what is still missing. A source is added in one transaction,
    whole or not at all, and keeps its rows (one of an older format is brought to this one). Merging
    again changes nothing.

    Args:
        sources: The stores.
        into: The store that takes them in; made where there is none.
        mix: Accept stores of another version, model, decoding or problem set than the first.

    Returns:
        A row per source: ``store``, its ``rows``, how many of them were ``added``, and of the
        others, which were there, how many are the ``same`` and how many ``differ`` in what was
        answered (two machines may round two equal logits apart).

    Raises:
        FileNotFoundError: There is no such store; nothing is changed then.
        StoreError: One is no store, or holds results of something else; the difference is spelled
            out, and those before it are in.
        SettingError: A source is the store that takes it in, or there is none.
    """
    target = into.path if isinstance(into, Store) else Path(into)
    if not sources:
        raise SettingError("expected stores to merge, got none")
    if any(Path(path).resolve() == target.resolve() for path in sources):
        raise SettingError(f"expected other stores to merge into {target}, got itself")
    opened = [Store(path) for path in sources]
    store = into if isinstance(into, Store) else Store(target, create=True)
    table = []
    for source in opened:
        identity = source.fact("identity")
        if identity is not None:
            store.identify(identity, mix=mix)
        rows, added, differ = store.take_in(source)
        same = rows - added - differ
        table.append((str(source.path), rows, added, same, differ))
        _remember(store, source)
    return pd.DataFrame(table, columns=["store", "rows", "added", "same", "differ"])


def missing_shards(sources: Sequence[str | Path]) -> list[tuple[int, int]]:
    """Shards that these stores, of the same sweep's other shards, do not hold.

    Args:
        sources: The stores.

    Raises:
        FileNotFoundError: There is no such store.
        StoreError: One is no store.
    """
    notes = [note for path in sources for note in Store(path).fact("sweeps") or []]
    if any("shard" not in note for note in notes):
        return []  # one remembers the whole
    held = {tuple(note["shard"]) for note in notes}
    return sorted(
        (number, of)
        for of in {of for _, of in held}
        for number in range(1, of + 1)
        if (number, of) not in held
    )


def _remember(store: Store, source: Store) -> None:
    """Remember the source's sweeps, whole."""
    known = store.fact("sweeps") or []
    for sweep in source.fact("sweeps") or []:
        whole = {name: value for name, value in sweep.items() if name != "shard"}
        known = [*(other for other in known if other != whole), whole]
    if known:
        store.note("sweeps", known)
