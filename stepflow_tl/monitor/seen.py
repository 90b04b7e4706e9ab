"""What a monitor has seen: a record of each step that is over."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import pandas as pd
from torch import Tensor

from stepflow_tl.errors import SettingError
from stepflow_tl.traces.rows import Row
from stepflow_tl.traces.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOTS = "stepflow_tl.plots"  # a higher floor

PLACES = ("trace", "step", "segment", "start", "stop", "layer")
"""Columns of a monitor's table that are no measures."""


@dataclass(frozen=True)
class Record:
    """What was measured of one step.

    Attributes:
        trace: Number of the row it is of, in the order in which they were seen.
        step: Its number among the trace's steps.
        segment: "thinking" or "summary".
        start: Its first token.
        stop: The one after its last.
        values: By measure: a number per monitored layer, or one for all.
    """

    trace: int
    step: int
    segment: str
    start: int
    stop: int
    values: dict[str, Tensor | float]


@dataclass
class Seen:
    """What a monitor has seen so far; it grows while the model runs.

    Attributes:
        layers: The monitored layers.
        n_layers: Number of layers of the model.
        records: One for each step that is over, in the order in which they ended.
    """

    layers: tuple[int, ...]
    n_layers: int
    records: list[Record] = field(default_factory=list)
    _numbers: dict[Row, int] = field(default_factory=dict, repr=False)
    _segments: dict[Row, list[str]] = field(default_factory=dict, repr=False)

    def table(self, trace: Trace | int | None = None) -> pd.DataFrame:
        """A row per step and layer.

        Args:
            trace: Only the steps of this trace, or of the one of this number.

        Returns:
            Columns ``trace, step, segment, start, stop, layer`` and the measures; what is read off
            logits is the same at all layers.

        Raises:
            SettingError: The trace was not seen.
        """
        number = self._number_of(trace)
        rows = [
            {
                "trace": record.trace,
                "step": record.step,
                "segment": record.segment,
                "start": record.start,
                "stop": record.stop,
                "layer": layer,
                **{
                    name: float(value[index]) if isinstance(value, Tensor) else value
                    for name, value in record.values.items()
                },
            }
            for record in self.records
            if number is None or record.trace == number
            for index, layer in enumerate(self.layers)
        ]
        found = pd.DataFrame(rows, columns=None if rows else list(PLACES))
        return found.sort_values(["trace", "step", "layer"], ignore_index=True)

    def by_step(self, trace: Trace | int | None = None) -> dict[str, pd.Series]:
        """Each measure by step, its mean over the monitored layers: what a reader shows.

        Args:
            trace: The trace, or its number; None where one alone was seen.

        Raises:
            SettingError: The trace was not seen, or there are several.
        """
        table = self.table(trace)
        if table["trace"].nunique() > 1:
            raise SettingError(
                f"expected one of the {table['trace'].nunique()} traces seen, got None"
            )
        measures = [name for name in table.columns if name not in PLACES]
        return {name: table.groupby("step")[name].mean() for name in measures}

    def plot(self, measure: str | None = None, ax: Axes | None = None, **options: Any) -> Axes:
        """Draw a measure by step: `stepflow_tl.plots.plot_monitor`."""
        return cast("Axes", import_module(PLOTS).plot_monitor(self, measure, ax=ax, **options))

    def _number_of(self, trace: Trace | int | None) -> int | None:
        if trace is None or isinstance(trace, int):
            return trace
        ids = trace.token_ids.tolist()
        for row, number in self._numbers.items():
            if row.token_ids[: len(ids)] == ids:
                return number
        raise SettingError(
            f"expected a trace that was decoded while the monitor was attached, got one of "
            f"{len(trace)} tokens that none of its {len(self._numbers)} rows begins with"
        )
