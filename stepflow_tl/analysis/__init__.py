"""Analysis: what maps and results say. Diagnostics of maps, and small statistics of results.

In reading order: `diagnostics` (Shallow Lock-in, Deep Decay), `sinks`, `intervals`, `paired` (two
methods on the same problems), `labels` (permutation tests), `comparison` (whole sweeps), `presets`
(all settings of a publication at once).
"""

from stepflow_tl.analysis.comparison import compare
from stepflow_tl.analysis.diagnostics import compare_groups, diagnose
from stepflow_tl.analysis.intervals import (
    Bounds,
    Estimate,
    bootstrap_accuracy,
    bootstrap_paired_difference,
    clustered_difference,
    proportion,
)
from stepflow_tl.analysis.labels import LabelTest, label_permutation_test, permute_labels
from stepflow_tl.analysis.paired import (
    PairedOutcome,
    compare_paired,
    holm,
    mcnemar,
    sign_flip_test,
)
from stepflow_tl.analysis.presets import Preset
from stepflow_tl.analysis.sinks import sink_shares

__all__ = [
    "Bounds",
    "Estimate",
    "LabelTest",
    "PairedOutcome",
    "Preset",
    "bootstrap_accuracy",
    "bootstrap_paired_difference",
    "clustered_difference",
    "compare",
    "compare_groups",
    "compare_paired",
    "diagnose",
    "holm",
    "label_permutation_test",
    "mcnemar",
    "permute_labels",
    "proportion",
    "sign_flip_test",
    "sink_shares",
]
