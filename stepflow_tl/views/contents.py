"""A table of contents: a page whose lines each open a reader; that of a sweep among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from stepflow_tl.errors import SettingError
from stepflow_tl.models.base import Model
from stepflow_tl.saliency.maps import StepMap
from stepflow_tl.sweep.work import trace_of
from stepflow_tl.version import __version__
from stepflow_tl.views.packing import packed_json
from stepflow_tl.views.reader import Reader, render, written
from stepflow_tl.views.reading import Reading, shown

COLUMNS = ("arm", "problem", "seed", "answer", "correct", "reason", "tokens", "steps", "fired")
"""Columns of a sweep's rows that the table shows, where there are such."""


@dataclass(frozen=True)
class Contents:
    """A table of which each line opens a reader, in one file.

    Example::

        rows = Store("sweep.sqlite").to_dataframe()
        Contents.of_sweep(rows, model).write("sweep.html")

    Attributes:
        rows: The table: a line for each reader. A column "correct" colors its lines.
        readers: What a line opens.
        title: The page's title.
        text: Paragraphs above the table.
    """

    rows: pd.DataFrame
    readers: Sequence[Reader]
    title: str = "Contents"
    text: Sequence[str] = ()

    @classmethod
    def of_sweep(
        cls,
        rows: pd.DataFrame,
        model: Model,
        maps: Mapping[str, Mapping[str, StepMap]] | None = None,
        title: str = "Sweep",
    ) -> Contents:
        """The page of a sweep's answers.

        Args:
            rows: Of `Sweep.run` or `Store.to_dataframe`, the columns of `COLUMNS` among them.
            model: The model that they were decoded with: its tokenizer reads them again.
            maps: Maps of some rows, by the row's ``hash`` and the map's name.
            title: The page's title.
        """
        readers = [
            Reader(
                Reading(
                    trace=trace_of(model, row),
                    maps=(maps or {}).get(str(row["hash"]), {}),
                    facts={name: row[name] for name in COLUMNS if name in rows},
                    name=f"row {number}",
                ),
                title=title,
            )
            for number, (_, row) in enumerate(rows.iterrows())
        ]
        return cls(rows[[name for name in COLUMNS if name in rows]], readers, title)

    def page(self) -> str:
        """The page.

        Raises:
            SettingError: There is not one reader for each line.
            StepMapError: A map is not of its row's trace.
        """
        if len(self.rows) != len(self.readers):
            raise SettingError(
                f"expected a reader for each of {len(self.rows)} rows, got {len(self.readers)}"
            )
        facts: dict[str, Any] = {
            "title": self.title,
            "version": __version__,
            "sides": [],
            "text": list(self.text),
            "table": {
                "columns": [str(name) for name in self.rows.columns],
                "rows": [
                    [shown(value) for value in row] for row in self.rows.itertuples(index=False)
                ],
            },
        }
        data = {"facts": packed_json(facts)}
        for number, reader in enumerate(self.readers):
            parts = reader.data().items()
            data |= {f"row-{number}-{name}": part for name, part in parts}
        return render(self.title, data)

    def write(self, path: str | Path) -> Path:
        """Write the page to a file.

        Raises:
            OSError: The file cannot be written.
        """
        return written(path, self.page())
