"""The page of a sweep: a table of its answers, each of which opens a reader of its trace."""

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
from stepflow_tl.views.reader import render
from stepflow_tl.views.reading import Reading, shown

COLUMNS = ("arm", "problem", "seed", "answer", "correct", "reason", "tokens", "steps", "fired")
"""Columns of a sweep's rows that the table shows, where there are such."""


@dataclass(frozen=True)
class SweepPage:
    """A table of answers that opens the reader of each.

    Example::

        rows = Store("sweep.sqlite").to_dataframe()
        SweepPage.of(rows, model).write("sweep.html")

    Attributes:
        rows: A line of the table for each reading.
        readings: What a line opens.
        title: The page's title.
    """

    rows: pd.DataFrame
    readings: Sequence[Reading]
    title: str = "Sweep"

    @classmethod
    def of(
        cls,
        rows: pd.DataFrame,
        model: Model,
        maps: Mapping[str, Mapping[str, StepMap]] | None = None,
        title: str = "Sweep",
    ) -> SweepPage:
        """The page of a sweep's rows.

        Args:
            rows: Of `Sweep.run` or `Store.to_dataframe`, the columns of `COLUMNS` among them.
            model: The model that they were decoded with: its tokenizer reads them again.
            maps: Maps of some rows, by the row's ``hash`` and the map's name.
            title: The page's title.
        """
        readings = [
            Reading(
                trace=trace_of(model, row),
                maps=(maps or {}).get(str(row["hash"]), {}),
                facts={name: row[name] for name in COLUMNS if name in rows},
                name=f"row {number}",
            )
            for number, (_, row) in enumerate(rows.iterrows())
        ]
        return cls(rows[[name for name in COLUMNS if name in rows]], readings, title)

    def page(self) -> str:
        """The page.

        Raises:
            SettingError: There is not one reading for each row.
            StepMapError: A map is not of its row's trace.
        """
        if len(self.rows) != len(self.readings):
            raise SettingError(
                f"expected a reading for each of {len(self.rows)} rows, got {len(self.readings)}"
            )
        common: dict[str, Any] = {"title": self.title, "version": __version__}
        table = {
            "columns": [str(name) for name in self.rows.columns],
            "rows": [[shown(value) for value in row] for row in self.rows.itertuples(index=False)],
        }
        data = {"facts": packed_json({**common, "sides": [], "table": table})}
        for number, reading in enumerate(self.readings):
            data[f"row-{number}-facts"] = packed_json({**common, "sides": [reading.described()]})
            for index, name in enumerate(reading.maps):
                data[f"row-{number}-map-0-{index}"] = reading.packed(name)
        return render(self.title, data)

    def write(self, path: str | Path) -> Path:
        """Write the page to a file.

        Raises:
            OSError: The file cannot be written.
        """
        path = Path(path)
        path.write_text(self.page(), encoding="utf-8")
        return path
