"""What the interventions of a run have seen and done, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import pandas as pd
import torch
from torch import Tensor

from stepflow_tl.errors import SettingError
from stepflow_tl.traces.rows import Row

Amount = Tensor | float | int

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


_WAIT = 64  # amounts that wait to be summed at once
_LARGE = 1 << 16  # numbers; what is larger is summed by row when it is written


class Later:
    """Amounts that are computed of many passes at once, when the ledger sums them up.

    Args:
        amounts: Gives the amounts by column, of tensors like these with one dimension more before
            theirs: the pass. None of them carries a gradient.
        tensors: What it needs of one pass, [batch, ...] each.
    """

    def __init__(self, amounts: Callable[..., Mapping[str, Tensor]], *tensors: Tensor) -> None:
        self.amounts, self.tensors = amounts, tensors


class _Entry(NamedTuple):
    """What waits to be summed: a column's amount, or amounts to be computed.

    Attributes:
        what: It.
        rows: The rows of its batch, of which it may speak one by one.
    """

    what: Later
    rows: tuple[Row, ...]


def _itself(amount: Tensor) -> dict[str, Tensor]:
    return {"": amount}


class Ledger:
    """Counts per intervention and layer.

    Amounts stay on the device they were computed on until they are read, many of them summed at
    once, so that writing to the ledger never waits for the device. Sums are kept in float64, and
    counts as whole numbers, so that no row is lost in a long run.

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
        self._sums: dict[tuple[str, int], dict[str, Amount]] = {}
        self._columns: dict[str, tuple[str, ...]] = {}
        self._waiting: dict[tuple[str, int, str], list[_Entry]] = {}
        self._by_row: dict[tuple[str, str], _RowSums] = {}
        self._of_no_row: dict[tuple[str, str], Amount] = {}

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

    def keep_rows(self, intervention: str, column: str) -> None:
        """Keep what this column says of each row of a batch, too; see `of_row`."""
        self._by_row[intervention, column] = _RowSums()

    def add(self, intervention: str, layer: int, **amounts: Amount) -> None:
        """Add to the sums of one intervention at one layer.

        Raises:
            ValueError: The intervention declares no such column.
        """
        self.write(intervention, layer, amounts)

    def write(
        self,
        intervention: str,
        layer: int,
        amounts: Mapping[str, Amount] | Later,
        rows: tuple[Row, ...] = (),
    ) -> None:
        """Add what a pass says: numbers, tensors of which all elements are summed, or it later.

        Args:
            intervention: Name of the intervention.
            layer: The layer.
            amounts: Amounts by column.
            rows: Rows of the batch. A tensor that begins with a dimension of their number says it
                row by row.

        Raises:
            ValueError: The intervention declares no such column.
        """
        if (intervention, layer) not in self._sums:
            self.open(intervention, layer, self._columns.get(intervention, COLUMNS))
        if isinstance(amounts, Later):
            self._wait((intervention, layer, ""), _Entry(amounts, rows))
            return
        for name in amounts:
            _check_column(intervention, name, self._columns[intervention])
        line = self._sums[intervention, layer]
        for name, amount in amounts.items():
            if not isinstance(amount, Tensor):
                line[name] = line.get(name, 0.0) + amount
                self._add_to_no_row(intervention, name, amount)
                continue
            if amount.requires_grad:
                amount = amount.detach()
            self._wait((intervention, layer, name), _Entry(Later(_itself, amount), rows))

    def _wait(self, key: tuple[str, int, str], entry: _Entry) -> None:
        """Put an entry to those of its column; sum up where they are many, or it is large."""
        waiting = self._waiting.setdefault(key, [])
        waiting.append(entry)
        if len(waiting) >= _WAIT or sum(x.numel() for x in entry.what.tensors) > _LARGE:
            self._sum_up(*key)

    def of_row(self, row: Row) -> dict[str, float]:
        """What is kept of one row: sums over the layers, as ``"StepMomentum.injections"``."""
        self._sum_all()
        return {
            f"{who}.{name}": amount
            for (who, name), kept in self._by_row.items()
            if (amount := kept.of(row))
        }

    def of_no_row(self, intervention: str, column: str) -> float:
        """What was said of a column that is kept by row, but not row by row."""
        self._sum_all()
        return float(self._of_no_row.get((intervention, column), 0))

    def _add_to_no_row(self, intervention: str, name: str, amount: Amount) -> None:
        key = (intervention, name)
        if key in self._by_row:
            self._of_no_row[key] = self._of_no_row.get(key, 0) + amount

    def _sum_all(self) -> None:
        for key in list(self._waiting):
            self._sum_up(*key)

    def _sum_up(self, intervention: str, layer: int, column: str) -> None:
        """Take what waits into the sums: what is alike is computed at once."""
        entries = self._waiting.pop((intervention, layer, column), [])
        alike: dict[tuple[object, ...], list[_Entry]] = {}
        for entry in entries:
            shapes = tuple((x.shape, x.dtype, x.device) for x in entry.what.tensors)
            alike.setdefault((entry.what.amounts, entry.rows, shapes), []).append(entry)
        for group in alike.values():
            passes = zip(*(entry.what.tensors for entry in group), strict=True)
            found = group[0].what.amounts(*map(torch.stack, passes))
            for name, amount in found.items():
                self._take(intervention, layer, name or column, amount, group[0].rows)

    def _take(
        self, intervention: str, layer: int, name: str, amount: Tensor, rows: tuple[Row, ...]
    ) -> None:
        """Add amounts [pass, ...] of some passes to the sums."""
        _check_column(intervention, name, self._columns[intervention])
        line, kept = self._sums[intervention, layer], self._by_row.get((intervention, name))
        if kept is None or amount.dim() < 2 or amount.shape[1] != len(rows):
            total = _summed(amount)
            line[name] = line.get(name, 0.0) + total
            self._add_to_no_row(intervention, name, total)
            return
        by_row = _summed(amount.transpose(0, 1).flatten(1), 1)
        line[name] = line.get(name, 0.0) + by_row.sum()
        kept.add(rows, by_row)

    def total(self, intervention: str, name: str) -> float:
        """Sum of a column over the layers of one intervention.

        Raises:
            ValueError: There is no such column.
        """
        _check_column(intervention, name, (*COLUMNS, *self._others()))
        self._sum_all()
        lines = [line for (who, _), line in self._sums.items() if who == intervention]
        return sum((float(line.get(name, 0.0)) for line in lines), start=0.0)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per intervention and layer."""
        self._sum_all()
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


class _RowSums:
    """Sums of single rows; they stay on the device until one is asked for."""

    def __init__(self) -> None:
        self._sums: WeakKeyDictionary[Row, float] = WeakKeyDictionary()
        self._of_batch: dict[tuple[Row, ...], Tensor] = {}

    def add(self, rows: tuple[Row, ...], amounts: Tensor) -> None:
        """Add an amount to each row's sum."""
        before = self._of_batch.get(rows)
        self._of_batch[rows] = amounts if before is None else before + amounts.to(before.device)

    def of(self, row: Row) -> float:
        """The sum of one row."""
        for rows, amounts in self._of_batch.items():
            for one, amount in zip(rows, amounts.tolist(), strict=True):
                self._sums[one] = self._sums.get(one, 0) + amount
        self._of_batch.clear()
        return float(self._sums.get(row, 0))


def _check_column(intervention: str, name: str, columns: Sequence[str]) -> None:
    if name not in columns:
        raise SettingError(
            f"{intervention}: expected a column of the ledger that is declared, one of "
            f"{list(columns)}, got {name!r}"
        )


def _summed(amount: Tensor, dim: int | None = None) -> Tensor:
    """Sum in float64 (which Apple's devices lack), or in whole numbers."""
    exact = amount.is_floating_point() and amount.device.type != "mps"
    return amount.sum(dim, dtype=torch.float64 if exact else None)


def _mean(total: float | None, count: float) -> float:
    return total / count if count and total is not None else float("nan")
