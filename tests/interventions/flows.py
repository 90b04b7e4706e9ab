"""Flows and tolerances that several tests use."""

import torch

from stepflow_tl.interventions import (
    GradientMomentum,
    OddsEqualBridge,
    StepFlow,
    StepMomentum,
    UniformPriorBridge,
)

OEB = OddsEqualBridge(tau_max=0.9, layers=(0, 1))
SMI = StepMomentum(alpha=0.7, layers=(1, 2, 3))
UPB = UniformPriorBridge(strength=2.0, layers=(0, 3))
GM = GradientMomentum(step_size=0.5, layers=(1, 3))
FLOW = StepFlow(OEB, SMI)
FLOWS = {
    "both": FLOW,
    "question": StepFlow(OddsEqualBridge(tau_max=0.9, layers="all", keys="question")),
    "scale": StepFlow(OddsEqualBridge(tau_max=0.9, layers="all", infeasible="scale")),
    "skip": StepFlow(OddsEqualBridge(tau_max=0.9, layers="all", infeasible="skip")),
    "whole-steps": StepFlow(StepMomentum(alpha=0.7, layers="all", window="step")),
    "one-token": StepFlow(StepMomentum(alpha=0.7, layers="all", window=1)),
    "all-boundaries": StepFlow(
        StepMomentum(alpha=-0.7, layers="all", boundaries="all", window="step"), OEB
    ),
    "uniform": StepFlow(UPB),
    "gradient": StepFlow(GM),
    "digest": StepFlow(UniformPriorBridge(strength=2.0, layers="all"), GM),
    "all": StepFlow(GM, OEB, SMI, UPB),
}
MANY_AND_FEW = [
    StepFlow(OddsEqualBridge(layers=0)),
    StepFlow(OddsEqualBridge(layers="all", keys="question")),
    StepFlow(StepMomentum(layers="all", window="step", boundaries="all")),
    StepFlow(OEB, SMI, UPB),
]
"""On one layer and on all."""

EXACT = dict(atol=0.0, rtol=0.0)
NEAR = dict(atol=3e-4, rtol=1e-4)

close = torch.testing.assert_close
