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
    "compare": "stepflow_tl.analysis",
    "compare_groups": "stepflow_tl.analysis.diagnostics",
    "diagnose": "stepflow_tl.analysis.diagnostics",
    "ThinkingBudget": "stepflow_tl.decoding.budget",
    "generate": "stepflow_tl.decoding.generation",
    "BenchmarkError": "stepflow_tl.errors",
    "GenerationError": "stepflow_tl.errors",
    "InterventionWarning": "stepflow_tl.errors",
    "ModelError": "stepflow_tl.errors",
    "StepMapError": "stepflow_tl.errors",
    "StoreError": "stepflow_tl.errors",
    "TraceError": "stepflow_tl.errors",
    "WorkFileError": "stepflow_tl.errors",
    "GradientMomentum": "stepflow_tl.interventions",
    "Intervention": "stepflow_tl.interventions",
    "Ledger": "stepflow_tl.interventions",
    "OddsEqualBridge": "stepflow_tl.interventions",
    "StepFlow": "stepflow_tl.interventions",
    "StepMomentum": "stepflow_tl.interventions",
    "UniformPriorBridge": "stepflow_tl.interventions",
    "resolve_layers": "stepflow_tl.models.layers",
    "load_model": "stepflow_tl.models.loading",
    "StepMap": "stepflow_tl.saliency",
    "step_saliency": "stepflow_tl.saliency",
    "token_saliency": "stepflow_tl.saliency",
    "Grid": "stepflow_tl.sweep",
    "LocalExecutor": "stepflow_tl.sweep",
    "RayExecutor": "stepflow_tl.sweep",
    "Store": "stepflow_tl.sweep",
    "Sweep": "stepflow_tl.sweep",
    "grid": "stepflow_tl.sweep",
    "Benchmark": "stepflow_tl.tasks",
    "Task": "stepflow_tl.tasks",
    "WordProblems": "stepflow_tl.tasks",
    "BudgetForcing": "stepflow_tl.tasks.strategies",
    "ChainOfThought": "stepflow_tl.tasks.strategies",
    "Decoding": "stepflow_tl.decoding.settings",
    "Plain": "stepflow_tl.tasks.strategies",
    "SelfConsistency": "stepflow_tl.tasks.strategies",
    "Strategy": "stepflow_tl.tasks.strategies",
    "Chat": "stepflow_tl.traces.chat",
    "Format": "stepflow_tl.traces.formats",
    "Segment": "stepflow_tl.traces.trace",
    "Step": "stepflow_tl.traces.trace",
    "Trace": "stepflow_tl.traces.trace",
    "__version__": "stepflow_tl.version",
}
"""Where each public name lives; it is imported on first use, so that nothing waits for torch."""

__all__ = sorted(_HOMES)

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from stepflow_tl.analysis import compare as compare
    from stepflow_tl.analysis.diagnostics import compare_groups as compare_groups
    from stepflow_tl.analysis.diagnostics import diagnose as diagnose
    from stepflow_tl.decoding.budget import ThinkingBudget as ThinkingBudget
    from stepflow_tl.decoding.generation import generate as generate
    from stepflow_tl.decoding.settings import Decoding as Decoding
    from stepflow_tl.errors import BenchmarkError as BenchmarkError
    from stepflow_tl.errors import GenerationError as GenerationError
    from stepflow_tl.errors import InterventionWarning as InterventionWarning
    from stepflow_tl.errors import ModelError as ModelError
    from stepflow_tl.errors import StepMapError as StepMapError
    from stepflow_tl.errors import StoreError as StoreError
    from stepflow_tl.errors import TraceError as TraceError
    from stepflow_tl.errors import WorkFileError as WorkFileError
    from stepflow_tl.interventions import GradientMomentum as GradientMomentum
    from stepflow_tl.interventions import Intervention as Intervention
    from stepflow_tl.interventions import Ledger as Ledger
    from stepflow_tl.interventions import OddsEqualBridge as OddsEqualBridge
    from stepflow_tl.interventions import StepFlow as StepFlow
    from stepflow_tl.interventions import StepMomentum as StepMomentum
    from stepflow_tl.interventions import UniformPriorBridge as UniformPriorBridge
    from stepflow_tl.models.layers import resolve_layers as resolve_layers
    from stepflow_tl.models.loading import load_model as load_model
    from stepflow_tl.saliency import StepMap as StepMap
    from stepflow_tl.saliency import step_saliency as step_saliency
    from stepflow_tl.saliency import token_saliency as token_saliency
    from stepflow_tl.sweep import Grid as Grid
    from stepflow_tl.sweep import LocalExecutor as LocalExecutor
    from stepflow_tl.sweep import RayExecutor as RayExecutor
    from stepflow_tl.sweep import Store as Store
    from stepflow_tl.sweep import Sweep as Sweep
    from stepflow_tl.sweep import grid as grid
    from stepflow_tl.tasks import Benchmark as Benchmark
    from stepflow_tl.tasks import Task as Task
    from stepflow_tl.tasks import WordProblems as WordProblems
    from stepflow_tl.tasks.strategies import BudgetForcing as BudgetForcing
    from stepflow_tl.tasks.strategies import ChainOfThought as ChainOfThought
    from stepflow_tl.tasks.strategies import Plain as Plain
    from stepflow_tl.tasks.strategies import SelfConsistency as SelfConsistency
    from stepflow_tl.tasks.strategies import Strategy as Strategy
    from stepflow_tl.traces.chat import Chat as Chat
    from stepflow_tl.traces.formats import Format as Format
    from stepflow_tl.traces.trace import Segment as Segment
    from stepflow_tl.traces.trace import Step as Step
    from stepflow_tl.traces.trace import Trace as Trace
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
