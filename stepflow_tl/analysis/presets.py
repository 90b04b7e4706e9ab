"""Whole settings of a publication: interventions, how to cut, what to score and to pool."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypedDict, get_args

from stepflow_tl.errors import SettingError
from stepflow_tl.interventions.flow import StepFlow
from stepflow_tl.saliency.pooling import Diagonal, Pool
from stepflow_tl.saliency.rules import Objective, Rule
from stepflow_tl.traces.cutting import Cutting
from stepflow_tl.traces.formats import AUTO, Format

PresetName = Literal["paper", "release", "digest"]


class SaliencySettings(TypedDict):
    """Keywords of `step_saliency`."""

    rule: Rule
    objective: Objective
    pool: Pool
    diagonal: Diagonal


@dataclass(frozen=True, kw_only=True)
class Preset:
    """All settings of a publication, for whoever reproduces it whole.

    Example::

        preset = Preset.of("release")
        with preset.flow.attach(model):
            trace = generate(model, question, format=preset.format)
        maps = step_saliency(model, trace, **preset.saliency)

    Attributes:
        name: "paper", "release" (the authors' code) or "digest" (the news digest's variants).
        flow: The interventions.
        cutter: How the thinking is cut into steps.
        rule: What a score is.
        objective: Whose gradient.
        pool: How scores of tokens become one of a pair of steps.
        diagonal: Whether zeros above the diagonal count in a step's own block.
    """

    name: PresetName
    flow: StepFlow
    cutter: Cutting = "full_stop"
    rule: Rule = "attention_x_gradient"
    objective: Objective = "token"
    pool: Pool = "share"
    diagonal: Diagonal = "causal"
    format: Format = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", Format(name=AUTO, thinking_cutter=self.cutter))

    @classmethod
    def of(cls, name: str) -> Preset:
        """The settings of a publication.

        Raises:
            SettingError: There is no such preset.
        """
        if name == "paper":
            return cls(name="paper", flow=StepFlow.paper(), pool="mean")
        if name == "release":
            return cls(
                name="release",
                flow=StepFlow.release(),
                objective="sequence",
                pool="mean",
                diagonal="full",
            )
        if name == "digest":
            return cls(name="digest", flow=StepFlow.digest(), rule="jacobian")
        raise SettingError(f"no preset {name!r}: expected one of {list(get_args(PresetName))}")

    @property
    def saliency(self) -> SaliencySettings:
        """Keywords of `step_saliency`."""
        return {
            "rule": self.rule,
            "objective": self.objective,
            "pool": self.pool,
            "diagonal": self.diagonal,
        }
