"""The ledger's sums and means."""

import math

import torch

from stepflow_tl.interventions import Ledger


def test_lines_open_at_zero_and_add_up() -> None:
    ledger = Ledger()
    ledger.open("B", 3)
    ledger.open("A", 1)
    ledger.add("A", 1, rows_seen=torch.tensor(4), bridge_mass_before=torch.tensor(1.0))
    ledger.add("A", 1, rows_seen=torch.tensor(4), bridge_mass_before=torch.tensor(3.0))
    ledger.add("A", 2, rows_seen=2, rows_changed=1)
    table = ledger.to_dataframe()
    assert table.intervention.tolist() == ["A", "A", "B"]
    assert table.layer.tolist() == [1, 2, 3]
    assert table.rows_seen.tolist() == [8, 2, 0]
    assert table.bridge_mass_before[0] == 0.5
    assert math.isnan(table.injection_norm[2])
    assert (ledger.total("A", "rows_seen"), ledger.total("C", "rows_seen")) == (10, 0)


def test_what_nobody_reported_is_no_zero() -> None:
    ledger = Ledger()
    ledger.add("A", 0, rows_seen=2, entropy_before=torch.tensor(3.0), entropy_after=4.0)
    ledger.add("B", 0, rows_seen=2, bridge_mass_before=1.0, extra_forwards=3, extra_tokens=40)
    table = ledger.to_dataframe().set_index("intervention")
    assert table.loc["A", ["entropy_before", "entropy_after"]].tolist() == [1.5, 2.0]
    assert table.loc["B", ["extra_forwards", "extra_tokens"]].tolist() == [3, 40]
    assert math.isnan(table.loc["A", "bridge_mass_before"])
    assert math.isnan(table.loc["B", "entropy_before"])
    assert ledger.total("B", "entropy_before") == 0.0


def test_an_empty_ledger_is_an_empty_table() -> None:
    table = Ledger().to_dataframe()
    assert len(table) == 0
    assert list(table.columns[:2]) == ["intervention", "layer"]


def test_counts_stay_whole_over_many_rows() -> None:
    ledger = Ledger()
    for _ in range(3):
        ledger.add("A", 0, rows_seen=torch.tensor(2**24 + 1))
    assert ledger.to_dataframe().rows_seen.tolist() == [3 * (2**24 + 1)]
