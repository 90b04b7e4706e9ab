"""StepFlow: interventions on how information flows between steps, as pure edits of tensors.

An intervention is a frozen description with one method, `edit(tensor, at) -> tensor, facts`
(`base`; what it is told stands in `position`, how keys split in `groups`). `wiring` makes hook
functions of it, for any model; `tracker` knows where each forward pass stands; what was done is
counted in a `ledger`. `flow` attaches several together (`attached` counts flows on a model);
`conditions` say in which steps. The four kinds: `odds_equal_bridge`, `step_momentum` (the paper's),
`uniform_prior_bridge`, `gradient_momentum` (the digest's; it runs steps again: `rerun`). Failures
of known place and dose, to hold diagnostics and repairs against: `planted`, `planted_noise`.
"""

from stepflow_tl.errors import InterventionWarning
from stepflow_tl.interventions.base import INTERVENTIONS, Edited, Facts, Intervention
from stepflow_tl.interventions.flow import Run, StepFlow
from stepflow_tl.interventions.gradient_momentum import GradientMomentum
from stepflow_tl.interventions.ledger import Later, Ledger
from stepflow_tl.interventions.odds_equal_bridge import OddsEqualBridge
from stepflow_tl.interventions.planted import PlantedDecay, PlantedForgetting, PlantedLockIn
from stepflow_tl.interventions.planted_noise import PlantedNoise
from stepflow_tl.interventions.position import EditPosition, PassPosition
from stepflow_tl.interventions.step_momentum import StepMomentum
from stepflow_tl.interventions.uniform_prior_bridge import UniformPriorBridge

__all__ = [
    "INTERVENTIONS",
    "EditPosition",
    "Edited",
    "Facts",
    "GradientMomentum",
    "Intervention",
    "InterventionWarning",
    "Later",
    "Ledger",
    "OddsEqualBridge",
    "PassPosition",
    "PlantedDecay",
    "PlantedForgetting",
    "PlantedLockIn",
    "PlantedNoise",
    "Run",
    "StepFlow",
    "StepMomentum",
    "UniformPriorBridge",
]
