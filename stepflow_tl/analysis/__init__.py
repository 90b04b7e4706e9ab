"""Analysis: what maps and results say. Diagnostics of maps, and small statistics of results.

In reading order: `diagnostics` (Shallow Lock-in, Deep Decay), `bands` (which layers they accuse),
`sinks`, `intervals`, `paired` (two
methods on the same problems), `labels` (permutation tests), `comparison` (whole sweeps),
`contrasts` (correct against wrong responses to a problem), `teacher` and `divergence` (how far
interventions move predictions, and strengths that move them alike), `presets` (all settings of a
publication at once). What maps are worth is a room of its own: `stepflow_tl.analysis.audit`.
"""

from stepflow_tl.analysis.comparison import compare
from stepflow_tl.analysis.contrasts import ControlledDifference, contrast, controlled_difference
from stepflow_tl.analysis.diagnostics import compare_groups, diagnose
from stepflow_tl.analysis.divergence import (
    CalibratedStrength,
    calibrate_divergence,
    token_divergence,
    token_divergences,
)
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
    sign_flip_mean_test,
    sign_flip_test,
)
from stepflow_tl.analysis.presets import Preset
from stepflow_tl.analysis.sinks import sink_shares
from stepflow_tl.analysis.teacher import TokenDivergence

__all__ = [
    "Bounds",
    "CalibratedStrength",
    "ControlledDifference",
    "Estimate",
    "LabelTest",
    "PairedOutcome",
    "Preset",
    "TokenDivergence",
    "bootstrap_accuracy",
    "bootstrap_paired_difference",
    "calibrate_divergence",
    "clustered_difference",
    "compare",
    "compare_groups",
    "compare_paired",
    "contrast",
    "controlled_difference",
    "diagnose",
    "holm",
    "label_permutation_test",
    "mcnemar",
    "permute_labels",
    "proportion",
    "sign_flip_mean_test",
    "sign_flip_test",
    "sink_shares",
    "token_divergence",
    "token_divergences",
]
