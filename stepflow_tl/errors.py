"""What this package raises: one base, and one class for each thing that can be wrong.

Every message names what was expected and what came. The pages under ``docs/errors`` say of each why
it happens and what to do.
"""


class StepFlowError(Exception):
    """The base of all errors of this package."""


class SettingError(StepFlowError, ValueError):
    """A setting or an argument that is out of range, unknown, or means nothing here."""


class WrongTypeError(StepFlowError, TypeError):
    """An argument of another type than is taken."""


class ModelError(StepFlowError, ValueError):
    """A model could not be loaded, or lacks what was asked of it."""


class TraceError(StepFlowError, ValueError):
    """A transcript or a trace file is not what was expected."""


class TrackingError(StepFlowError, RuntimeError):
    """The model was run in a way that leaves a row's position unknown."""


class GenerationError(StepFlowError, ValueError):
    """A question, a setting or a model that nothing can be generated from."""


class StepMapError(StepFlowError, ValueError):
    """A step map cannot do what was asked, or its file is not one."""


class NonFiniteError(StepMapError, FloatingPointError):
    """A score or a gradient is NaN or infinite."""


class WorkFileError(StepFlowError, ValueError):
    """A work file is of another run, or no work file."""


class BenchmarkError(StepFlowError, ValueError):
    """A benchmark that is not known, cannot be had, or whose rows are not what they should be."""


class SandboxError(StepFlowError, RuntimeError):
    """Programs cannot be run here within limits."""


class ConfigError(StepFlowError, ValueError):
    """A sweep's configuration is not understood."""


class StoreError(StepFlowError, ValueError):
    """A store cannot be read, or holds results of something else."""


class EstimateError(StepFlowError, ValueError):
    """A configuration, a task or a setting from which no cost can be told."""


class InterventionWarning(UserWarning):
    """An intervention that was expected to fire never did."""
