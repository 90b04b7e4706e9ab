"""What a run costs, on paper: from a model's configuration alone, before anything is downloaded.

A configuration becomes sizes (`architecture`), these become bounds of time and memory on a GPU
(`cost`), and a table says them (`table`).
"""

from stepflow_tl.errors import EstimateError
from stepflow_tl.estimate.architecture import DTYPE_BYTES, Architecture, read_architecture
from stepflow_tl.estimate.cost import (
    GPUS,
    MEASURED,
    Estimate,
    Gpu,
    Run,
    estimate,
    gpu,
)
from stepflow_tl.estimate.table import notes, record, table

__all__ = [
    "DTYPE_BYTES",
    "GPUS",
    "MEASURED",
    "Architecture",
    "Estimate",
    "EstimateError",
    "Gpu",
    "Run",
    "estimate",
    "gpu",
    "notes",
    "read_architecture",
    "record",
    "table",
]
