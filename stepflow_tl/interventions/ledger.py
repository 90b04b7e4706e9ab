"""What the interventions of a run have seen and done, layer by layer."""

from __future__ import annotations

from collections import defaultdict

import pandas as pd
from torch import Tensor

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
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, int], dict[str, Tensor | float | int]] = defaultdict(
            lambda: dict.fromkeys(COUNTS, 0)
        )

    def open(self, intervention: str, layer: int) -> None:
        """Begin a line at zero, so that what never fired is seen to have never fired."""
        self._sums[intervention, layer]

    def add(self, intervention: str, layer: int, **amounts: Tensor | float | int) -> None:
        """Add to the sums of one intervention at one layer."""
        line = self._sums[intervention, layer]
        for name, amount in amounts.items():
            line[name] = line.get(name, 0.0) + _widened(amount)

    def total(self, intervention: str, name: str) -> float:
        """Sum of a column over the layers of one intervention."""
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
                }
            )
        return pd.DataFrame(rows, columns=["intervention", "layer", *COUNTS, *MEANS])

    def __repr__(self) -> str:
        """The table."""
        return self.to_dataframe().to_string(index=False)


def _widened(amount: Tensor | float | int) -> Tensor | float | int:
    if isinstance(amount, Tensor) and amount.is_floating_point() and amount.device.type != "mps":
        return amount.double()
    return amount


def _mean(total: float | None, count: float) -> float:
    return total / count if count and total is not None else float("nan")
