"""StepFlow: interventions on how information flows between steps, as composable hook functions."""

from stepflow_tl.errors import InterventionWarning
from stepflow_tl.interventions.base import Intervention
from stepflow_tl.interventions.flow import Run, StepFlow
from stepflow_tl.interventions.gradient_momentum import GradientMomentum
from stepflow_tl.interventions.ledger import Ledger
from stepflow_tl.interventions.odds_equal_bridge import OddsEqualBridge
from stepflow_tl.interventions.step_momentum import StepMomentum
from stepflow_tl.interventions.uniform_prior_bridge import UniformPriorBridge

INTERVENTIONS: dict[str, type[Intervention]] = {
    kind.__name__: kind
    for kind in (OddsEqualBridge, StepMomentum, UniformPriorBridge, GradientMomentum)
}
"""By name, as configurations name them."""

__all__ = [
    "INTERVENTIONS",
    "GradientMomentum",
    "Intervention",
    "InterventionWarning",
    "Ledger",
    "OddsEqualBridge",
    "Run",
    "StepFlow",
    "StepMomentum",
    "UniformPriorBridge",
]
