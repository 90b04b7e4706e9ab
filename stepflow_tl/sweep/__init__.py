"""Sweeps: a grid of settings over problems, stored cell by cell, resumable, here or elsewhere.

A `Sweep` (`sweep`) of a `grid` is planned as cells (`cells`), which executors (`executors`) decode
and grade batch by batch (`work`) into a `store`. A file can describe it (`config`), stores of its
shards are put together (`merging`). Strengths can be chosen on held-out problems (`calibration`),
and the layers, too, by what maps say (`closed_loop`). `resampling` lets a model go on from places
in its own thinking, and `importance` says what the steps between them are worth.
"""

from stepflow_tl.errors import ConfigError, StoreError
from stepflow_tl.sweep.calibration import Calibration, calibrate
from stepflow_tl.sweep.cells import Arm
from stepflow_tl.sweep.closed_loop import ClosedLoop, closed_loop
from stepflow_tl.sweep.config import read_config, resume, status
from stepflow_tl.sweep.executors import Executor, LocalExecutor, RayExecutor
from stepflow_tl.sweep.grid import BASELINE, Grid, Setting, grid, settings_columns
from stepflow_tl.sweep.importance import answer_divergence, importance
from stepflow_tl.sweep.merging import merge, missing_shards
from stepflow_tl.sweep.resampling import Resampling
from stepflow_tl.sweep.store import Store, write_table
from stepflow_tl.sweep.sweep import Sweep
from stepflow_tl.sweep.work import trace_of

__all__ = [
    "BASELINE",
    "Arm",
    "Calibration",
    "ClosedLoop",
    "ConfigError",
    "Executor",
    "Grid",
    "LocalExecutor",
    "RayExecutor",
    "Resampling",
    "Setting",
    "Store",
    "StoreError",
    "Sweep",
    "answer_divergence",
    "calibrate",
    "closed_loop",
    "grid",
    "importance",
    "merge",
    "missing_shards",
    "read_config",
    "resume",
    "settings_columns",
    "status",
    "trace_of",
    "write_table",
]
