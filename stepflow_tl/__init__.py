"""stepflow_tl: see and repair how information flows between the steps of a reasoning trace.

Example::

    model = load_model("reasoner")
    trace = generate(model, question)              # question -> thinking -> summary, in steps
    step_saliency(model, trace).band("deep").plot()

    with StepFlow.paper().attach(model) as run:    # hooks live exactly as long as this block
        repaired = generate(model, question)
    run.ledger
"""

from stepflow_tl.analysis import compare
from stepflow_tl.analysis.diagnostics import compare_groups, diagnose
from stepflow_tl.decoding.budget import ThinkingBudget
from stepflow_tl.decoding.generation import generate
from stepflow_tl.decoding.settings import Decoding
from stepflow_tl.errors import (
    BenchmarkError,
    GenerationError,
    InterventionWarning,
    ModelError,
    StepMapError,
    StoreError,
    TraceError,
    WorkFileError,
)
from stepflow_tl.interventions import (
    GradientMomentum,
    Intervention,
    Ledger,
    OddsEqualBridge,
    StepFlow,
    StepMomentum,
    UniformPriorBridge,
)
from stepflow_tl.models.layers import resolve_layers
from stepflow_tl.models.loading import load_model
from stepflow_tl.saliency import StepMap, step_saliency, token_saliency
from stepflow_tl.sweep import Grid, LocalExecutor, RayExecutor, Store, Sweep, grid
from stepflow_tl.tasks import Benchmark, Task, WordProblems
from stepflow_tl.tasks.strategies import (
    BudgetForcing,
    ChainOfThought,
    Plain,
    SelfConsistency,
    Strategy,
)
from stepflow_tl.traces.chat import Chat
from stepflow_tl.traces.formats import Format
from stepflow_tl.traces.trace import Segment, Step, Trace
from stepflow_tl.version import __version__

__all__ = [
    "Benchmark",
    "BenchmarkError",
    "BudgetForcing",
    "ChainOfThought",
    "Chat",
    "Decoding",
    "Format",
    "GenerationError",
    "GradientMomentum",
    "Grid",
    "Intervention",
    "InterventionWarning",
    "Ledger",
    "LocalExecutor",
    "ModelError",
    "OddsEqualBridge",
    "Plain",
    "RayExecutor",
    "Segment",
    "SelfConsistency",
    "Step",
    "StepFlow",
    "StepMap",
    "StepMapError",
    "StepMomentum",
    "Store",
    "StoreError",
    "Strategy",
    "Sweep",
    "Task",
    "ThinkingBudget",
    "Trace",
    "TraceError",
    "UniformPriorBridge",
    "WordProblems",
    "WorkFileError",
    "__version__",
    "compare",
    "compare_groups",
    "diagnose",
    "generate",
    "grid",
    "load_model",
    "resolve_layers",
    "step_saliency",
    "token_saliency",
]
