"""What the interventions of a run have seen and done, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from torch import Tensor

from stepflow_tl.errors import SettingError

COUNTS = (
    "rows_seen",
    "rows_changed",
    "rows_infeasible",
    "injections",
    "extra_forwards",
    "extra_tokens",
)
MEANS = {
    "bridge_mass_before": "rows_seen",
    "bridge_mass_after": "rows_seen",
    "entropy_before": "rows_seen",
    "entropy_after": "rows_seen",
    "injection_norm": "injections",
}
"""What is shown as a mean, and the count it is a mean over."""

COLUMNS = (*COUNTS, *MEANS)
"""What an intervention reports, unless it declares fewer, or others that are shown as sums."""


class Ledger:
    """Counts per intervention and layer.

    Sums stay on the device they were computed on until they are read, so that writing to the
    ledger never waits for the device. They are kept in float64, and counts as whole numbers, so
    that no row is lost in a long run.

    Columns of `to_dataframe`, one row per intervention and layer; a mean is NaN where there is
    nothing to report:

    - ``rows_seen``: attention rows (batch x head x query) of thinking and summary;
    - ``rows_changed``: rows whose bridge mass was raised, or that were flattened;
    - ``rows_infeasible``: rows whose target was more than S and B held together;
    - ``bridge_mass_before``, ``bridge_mass_after``: mean share of the row's attention on the
      bridge, over the rows seen;
    - ``entropy_before``, ``entropy_after``: mean entropy in nats of the row's attention over real
      keys, over the rows seen;
    - ``injections``: step starts that received momentum;
    - ``injection_norm``: mean norm of what was added to the residual stream, relative to the
      residual stream's norm there;
    - ``extra_forwards``: forward passes over a part of one row, beside those of the caller, each
      with its backward pass where a gradient was taken; on the line of the first layer;
    - ``extra_tokens``: tokens that these passes ran, on the same line.

    A column of another name, which an intervention declares (`Intervention.columns`), follows as
    a sum; it is NaN on the lines of others.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, int], dict[str, Tensor | float | int]] = {}
        self._columns: dict[str, tuple[str, ...]] = {}

    def open(self, intervention: str, layer: int, columns: Sequence[str] = COLUMNS) -> None:
        """Begin a line at zero, so that what never fired is seen to have never fired.

        Args:
            intervention: Name of the intervention.
            layer: The layer.
            columns: What the intervention may add to.
        """
        self._columns[intervention] = tuple(columns)
        others = (name for name in columns if name not in MEANS)
        self._sums.setdefault((intervention, layer), dict.fromkeys([*COUNTS, *others], 0))

    def add(self, intervention: str, layer: int, **amounts: Tensor | float | int) -> None:
        """Add to the sums of one intervention at one layer.

        Raises:
            ValueError: The intervention declares no such column.
        """
        if (intervention, layer) not in self._sums:
            self.open(intervention, layer, self._columns.get(intervention, COLUMNS))
        for name in amounts:
            _check_column(intervention, name, self._columns[intervention])
        line = self._sums[intervention, layer]
        for name, amount in amounts.items():
            line[name] = line.get(name, 0.0) + _widened(amount)

    def total(self, intervention: str, name: str) -> float:
        """Sum of a column over the layers of one intervention.

        Raises:
            ValueError: There is no such column.
        """
        _check_column(intervention, name, (*COLUMNS, *self._others()))
        lines = [line for (who, _), line in self._sums.items() if who == intervention]
        return sum((float(line.get(name, 0.0)) for line in lines), start=0.0)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per intervention and layer."""
        rows = []
        for (intervention, layer), line in sorted(self._sums.items()):
            numbers = {name: float(value) for name, value in line.items()}
            rows.append(
                {
                    "intervention": intervention,
                    "layer": layer,
                    **{name: int(numbers[name]) for name in COUNTS},
                    **{
                        name: _mean(numbers.get(name), numbers[count])
                        for name, count in MEANS.items()
                    },
                    **{name: numbers.get(name, float("nan")) for name in self._others()},
                }
            )
        return pd.DataFrame(rows, columns=["intervention", "layer", *COLUMNS, *self._others()])

    def _others(self) -> list[str]:
        """Declared columns that are not the ledger's own."""
        declared = dict.fromkeys(name for names in self._columns.values() for name in names)
        return [name for name in declared if name not in COLUMNS]

    def __repr__(self) -> str:
        """The table."""
        return self.to_dataframe().to_string(index=False)


def _check_column(intervention: str, name: str, columns: Sequence[str]) -> None:
    if name not in columns:
        raise SettingError(
            f"{intervention}: expected a column of the ledger that is declared, one of "
            f"{list(columns)}, got {name!r}"
        )


def _widened(amount: Tensor | float | int) -> Tensor | float | int:
    if isinstance(amount, Tensor) and amount.is_floating_point() and amount.device.type != "mps":
        return amount.double()
    return amount


def _mean(total: float | None, count: float) -> float:
    return total / count if count and total is not None else float("nan")
