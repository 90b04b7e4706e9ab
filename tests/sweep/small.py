"""A sweep of a second: problems, settings and decoding that several tests share."""

from typing import Any

import pandas as pd
from helpers import hooks_of
from pandas.testing import assert_frame_equal

from stepflow_tl.interventions import OddsEqualBridge
from stepflow_tl.sweep import Sweep, grid
from stepflow_tl.tasks import WordProblems
from stepflow_tl.tasks.strategies import Decoding

PROBLEMS = WordProblems(n=2, difficulties=(1, 2))
GRID = grid(OddsEqualBridge, tau_max=[0.0, 0.9, 1.0], layers="all")
DECODING = Decoding(max_new_tokens=6, chat=False, format="plain", batch_size=2)
CELLS = 12  # 4 problems x (baseline and 2 settings)


def small(model: Any, **changes: Any) -> Sweep:
    """The small sweep, with changes."""
    return Sweep(
        **{"problems": PROBLEMS, "grid": GRID, "decoding": DECODING} | changes, model=model
    )


def assert_same_rows(rows: pd.DataFrame, others: pd.DataFrame) -> None:
    """Equal rows in equal order, but for the seconds they took; each hash once."""
    assert rows["hash"].is_unique
    assert_frame_equal(rows.drop(columns="seconds"), others.drop(columns="seconds"))


def assert_same_cells(rows: pd.DataFrame, others: pd.DataFrame) -> None:
    """The same of a store's rows, which stand in the order in which they were finished."""
    assert_same_rows(rows.set_index("hash").loc[others["hash"]].reset_index(), others)


def assert_clean(model: Any) -> None:
    """No hook was left behind."""
    assert not any(hooks_of(model).values())
