"""stepflow_tl: see and repair how information flows between the steps of a reasoning trace.

Example::

    model = load_model("reasoner")
    trace = generate(model, question)              # question -> thinking -> summary, in steps
    step_saliency(model, trace).band("deep").plot()

    with StepFlow.paper().attach(model) as run:    # hooks live exactly as long as this block
        repaired = generate(model, question)
    run.ledger
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "Preset": "stepflow_tl.analysis",
    "compare": "stepflow_tl.analysis",
    "compare_groups": "stepflow_tl.analysis",
    "diagnose": "stepflow_tl.analysis",
    "Decoding": "stepflow_tl.decoding",
    "ThinkingBudget": "stepflow_tl.decoding",
    "generate": "stepflow_tl.decoding",
    "InterventionWarning": "stepflow_tl.errors",
    "StepFlowError": "stepflow_tl.errors",
    "StoreError": "stepflow_tl.errors",
    "GradientMomentum": "stepflow_tl.interventions",
    "Intervention": "stepflow_tl.interventions",
    "OddsEqualBridge": "stepflow_tl.interventions",
    "StepFlow": "stepflow_tl.interventions",
    "StepMomentum": "stepflow_tl.interventions",
    "UniformPriorBridge": "stepflow_tl.interventions",
    "load_model": "stepflow_tl.models",
    "StepMap": "stepflow_tl.saliency",
    "step_saliency": "stepflow_tl.saliency",
    "token_saliency": "stepflow_tl.saliency",
    "Grid": "stepflow_tl.sweep",
    "RayExecutor": "stepflow_tl.sweep",
    "Store": "stepflow_tl.sweep",
    "Sweep": "stepflow_tl.sweep",
    "grid": "stepflow_tl.sweep",
    "trace_of": "stepflow_tl.sweep",
    "Benchmark": "stepflow_tl.tasks",
    "SelfConsistency": "stepflow_tl.tasks",
    "Task": "stepflow_tl.tasks",
    "WordProblems": "stepflow_tl.tasks",
    "Chat": "stepflow_tl.traces",
    "Format": "stepflow_tl.traces",
    "Trace": "stepflow_tl.traces",
    "__version__": "stepflow_tl.version",
}
"""Where each public name lives; it is imported on first use, so that nothing waits for torch."""

__all__ = sorted(_HOMES)

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from stepflow_tl.analysis import Preset as Preset
    from stepflow_tl.analysis import compare as compare
    from stepflow_tl.analysis import compare_groups as compare_groups
    from stepflow_tl.analysis import diagnose as diagnose
    from stepflow_tl.decoding import Decoding as Decoding
    from stepflow_tl.decoding import ThinkingBudget as ThinkingBudget
    from stepflow_tl.decoding import generate as generate
    from stepflow_tl.errors import InterventionWarning as InterventionWarning
    from stepflow_tl.errors import StepFlowError as StepFlowError
    from stepflow_tl.errors import StoreError as StoreError
    from stepflow_tl.interventions import GradientMomentum as GradientMomentum
    from stepflow_tl.interventions import Intervention as Intervention
    from stepflow_tl.interventions import OddsEqualBridge as OddsEqualBridge
    from stepflow_tl.interventions import StepFlow as StepFlow
    from stepflow_tl.interventions import StepMomentum as StepMomentum
    from stepflow_tl.interventions import UniformPriorBridge as UniformPriorBridge
    from stepflow_tl.models import load_model as load_model
    from stepflow_tl.saliency import StepMap as StepMap
    from stepflow_tl.saliency import step_saliency as step_saliency
    from stepflow_tl.saliency import token_saliency as token_saliency
    from stepflow_tl.sweep import Grid as Grid
    from stepflow_tl.sweep import RayExecutor as RayExecutor
    from stepflow_tl.sweep import Store as Store
    from stepflow_tl.sweep import Sweep as Sweep
    from stepflow_tl.sweep import grid as grid
    from stepflow_tl.sweep import trace_of as trace_of
    from stepflow_tl.tasks import Benchmark as Benchmark
    from stepflow_tl.tasks import SelfConsistency as SelfConsistency
    from stepflow_tl.tasks import Task as Task
    from stepflow_tl.tasks import WordProblems as WordProblems
    from stepflow_tl.traces import Chat as Chat
    from stepflow_tl.traces import Format as Format
    from stepflow_tl.traces import Trace as Trace
    from stepflow_tl.version import __version__ as __version__
else:  # hidden from type checkers, to whom it would promise every name

    def __getattr__(name: str) -> Any:
        """A public name, from the module that it lives in."""
        if name not in _HOMES:
            raise AttributeError(
                f"module {__name__!r} has no attribute {name!r}",
                name=name,
                obj=sys.modules[__name__],
            )
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value  # the next use finds it without asking here
        return value


def __dir__() -> list[str]:
    """What the package has, imported or not yet."""
    return sorted({*globals(), *_HOMES})
