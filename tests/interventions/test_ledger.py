"""The ledger's sums and means."""

import math

import pytest
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


def test_a_misspelled_column_is_refused() -> None:
    ledger = Ledger()
    ledger.open("A", 0, ("rows_seen", "injections"))
    message = r"A: expected a column.*one of \['rows_seen', 'injections'\], got 'rows_sen'"
    for layer in (0, 1):
        with pytest.raises(ValueError, match=message):
            ledger.add("A", layer, injections=1, rows_sen=2)
        assert ledger.total("A", "injections") == 0
    with pytest.raises(ValueError, match="got 'rows_changed'"):
        ledger.add("A", 0, rows_changed=1)
    with pytest.raises(ValueError, match="B: expected a column.*got 'rows_sen'"):
        ledger.add("B", 0, rows_sen=1)
    for name in ("A", "C"):
        with pytest.raises(ValueError, match=f"{name}: expected.*'rows_seen', .*got 'rows_sen'"):
            ledger.total(name, "rows_sen")


def test_a_column_of_ones_own_is_a_sum() -> None:
    ledger = Ledger()
    ledger.open("A", 0, ("rows_seen", "heads_cut"))
    ledger.open("A", 1, ("rows_seen", "heads_cut"))
    ledger.add("A", 1, rows_seen=2, heads_cut=torch.tensor(3))
    ledger.add("A", 1, heads_cut=4)
    ledger.add("B", 0, rows_seen=1)
    assert ledger.total("A", "heads_cut") == 7
    table = ledger.to_dataframe()
    assert table.columns[-1] == "heads_cut"
    assert table.heads_cut[:2].tolist() == [0, 7]
    assert math.isnan(table.heads_cut[2])


def test_an_empty_ledger_is_an_empty_table() -> None:
    table = Ledger().to_dataframe()
    assert len(table) == 0
    assert list(table.columns[:2]) == ["intervention", "layer"]


def test_counts_stay_whole_over_many_rows() -> None:
    ledger = Ledger()
    for _ in range(3):
        ledger.add("A", 0, rows_seen=torch.tensor(2**24 + 1))
    assert ledger.to_dataframe().rows_seen.tolist() == [3 * (2**24 + 1)]
