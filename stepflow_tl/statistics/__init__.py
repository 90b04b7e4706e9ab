"""Small statistics: intervals, paired tests, permutation tests, and whole sweeps compared."""

from stepflow_tl.statistics.comparison import compare
from stepflow_tl.statistics.intervals import (
    Bounds,
    Estimate,
    bootstrap_accuracy,
    bootstrap_paired_difference,
    clustered_difference,
    proportion,
)
from stepflow_tl.statistics.labels import LabelTest, label_permutation_test, permute_labels
from stepflow_tl.statistics.paired import (
    PairedOutcome,
    compare_paired,
    holm,
    mcnemar,
    sign_flip_test,
)

__all__ = [
    "Bounds",
    "Estimate",
    "LabelTest",
    "PairedOutcome",
    "bootstrap_accuracy",
    "bootstrap_paired_difference",
    "clustered_difference",
    "compare",
    "compare_paired",
    "holm",
    "label_permutation_test",
    "mcnemar",
    "permute_labels",
    "proportion",
    "sign_flip_test",
]
