"""Audits: what a map can be trusted for. Every claim about flow, held against what is known.

In reading order: `hiding` runs a trace with keys hidden; `knock_out` does so step by step, the
causal reference that needs no sampling; `truth` is what else is known (a world's dependencies,
other people's labels); `agreement` compares scores with a truth pair by pair, and `auditing` makes
one table of it, with what distance alone says beside it; `perturbation` hides what a map names
(RISE, MAS); `receiver_heads` finds heads that return to a few steps.
"""

from stepflow_tl.analysis.audit.auditing import audit
from stepflow_tl.analysis.audit.knock_out import KnockOut, knock_out
from stepflow_tl.analysis.audit.perturbation import hops_of, perturbation
from stepflow_tl.analysis.audit.receiver_heads import receiver_heads, receiver_scores
from stepflow_tl.analysis.audit.truth import (
    Truth,
    dependencies,
    impact_truth,
    knock_out_truth,
    labeled_dependencies,
    with_premises,
)

__all__ = [
    "KnockOut",
    "Truth",
    "audit",
    "dependencies",
    "hops_of",
    "impact_truth",
    "knock_out",
    "knock_out_truth",
    "labeled_dependencies",
    "perturbation",
    "receiver_heads",
    "receiver_scores",
    "with_premises",
]
