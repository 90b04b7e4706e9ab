"""stepflow_tl: see and repair how information flows between the steps of a reasoning trace.

Example::

    model = load_model("reasoner")
    trace = generate(model, question)              # question -> thinking -> summary, in steps
    step_saliency(model, trace).band("deep").plot()

    with StepFlow.paper().attach(model) as run:    # hooks live exactly as long as this block
        repaired = generate(model, question)
    run.ledger
"""

from stepflow_tl.diagnostics import compare_groups, diagnose
from stepflow_tl.formats import Format
from stepflow_tl.generation import GenerationError, generate
from stepflow_tl.interventions import (
    GradientMomentum,
    Intervention,
    InterventionWarning,
    Ledger,
    OddsEqualBridge,
    StepFlow,
    StepMomentum,
    UniformPriorBridge,
)
from stepflow_tl.layers import resolve_layers
from stepflow_tl.models import ModelError, load_model
from stepflow_tl.saliency import StepMap, StepMapError, step_saliency, token_saliency
from stepflow_tl.trace import Segment, Step, Trace, TraceError
from stepflow_tl.version import __version__

__all__ = [
    "Format",
    "GenerationError",
    "GradientMomentum",
    "Intervention",
    "InterventionWarning",
    "Ledger",
    "ModelError",
    "OddsEqualBridge",
    "Segment",
    "Step",
    "StepFlow",
    "StepMap",
    "StepMapError",
    "StepMomentum",
    "Trace",
    "TraceError",
    "UniformPriorBridge",
    "__version__",
    "compare_groups",
    "diagnose",
    "generate",
    "load_model",
    "resolve_layers",
    "step_saliency",
    "token_saliency",
]
