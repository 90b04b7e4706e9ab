"""Conditions: small frozen predicates over the steps of a trace, for ``when=`` of interventions.

Example::

    OddsEqualBridge(tau_max=0.3, when=measure("lock_in").above(0.4, hold=1))
    StepMomentum(when=step(segment="thinking") & ~previous_step(matches=r"wait|but"))

Each is decided once for each step of each row, where the step begins, from the steps before it.
`above` and `below` speak of the score: ``measure("lock_in").above(0.4)`` holds where lock-in is
above 0.4.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite, isnan
from typing import Any, Literal, get_args

import numpy as np

from stepflow_tl.errors import SettingError, WrongTypeError
from stepflow_tl.interventions.conditions import Deciding
from stepflow_tl.interventions.position import Follower
from stepflow_tl.models.base import ModelView
from stepflow_tl.models.layers import LayerSpec, check_layer_spec, resolve_layers
from stepflow_tl.monitor.deciding import (
    DecidingChance,
    DecidingMeasured,
    DecidingParts,
    DecidingStep,
    DecidingText,
    mean_over,
)
from stepflow_tl.monitor.measures import MEASURES, OF_SHARES
from stepflow_tl.monitor.seen import Seen
from stepflow_tl.traces.formats import PLAIN, Format
from stepflow_tl.traces.rows import SUMMARY, THINKING

Side = Literal["above", "below"]
Segment = Literal["thinking", "summary"]
_NO_SUMMARY = "its responses have no summary: all is thinking"
_SEGMENTS = {"thinking": THINKING, "summary": SUMMARY}


class When(ABC):
    """A condition; ``&``, ``|`` and ``~`` make others of it."""

    @property
    def is_measured(self) -> bool:
        """Whether it has to see the passes over the steps before."""
        return False

    def never(self, form: Format) -> str | None:
        """Why it can hold in no response of a format; None where it may."""
        return None

    @abstractmethod
    def deciding(self, view: ModelView, follower: Follower) -> Deciding:
        """It, on a model."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """JSON-able description, as `from_dict` and configurations of sweeps take it."""

    def __and__(self, other: When) -> When:
        """Where both hold."""
        return AllOf((self, other))

    def __or__(self, other: When) -> When:
        """Where one of them holds."""
        return AnyOf((self, other))

    def __invert__(self) -> When:
        """Where it does not hold."""
        return Not(self)


@dataclass(frozen=True)
class Measured(When):
    """Where a measure of the last finished step is above or below a threshold.

    The step's measure is its mean over `layers`, of the attention that interventions found. A step
    of which it is undefined neither is above nor below.

    Attributes:
        name: The measure, out of `stepflow_tl.monitor.MEASURES`.
        side: Where the score has to be.
        threshold: Of what.
        hold: How many more steps it holds after a step of which it held.
        layers: Layers that the measure is a mean over.
    """

    name: str
    side: Side
    threshold: float
    hold: int = 0
    layers: LayerSpec = "all"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SettingError: There is no such measure or side, or a number is out of range.
        """
        check_measure(self.name)
        if self.side not in get_args(Side):
            raise SettingError(f"expected side 'above' or 'below', got {self.side!r}")
        if not isfinite(self.threshold) or self.hold < 0:
            raise SettingError(
                f"expected a finite threshold and hold >= 0, got {self.threshold} and {self.hold}"
            )
        if self.name in OF_SHARES and not (0 <= self.threshold <= 1):
            raise SettingError(
                f"expected a threshold from 0 to 1 for {self.name!r}, a share, got "
                f"{self.threshold}: it would hold always, or never"
            )
        check_layer_spec(self.layers)

    @property
    def is_measured(self) -> bool:
        """True."""
        return True

    def never(self, form: Format) -> str | None:
        """Responses of the format "plain" have no summary to be measured."""
        if self.name.startswith("summary_on") and form.name == PLAIN.name:
            return _NO_SUMMARY
        return None

    def deciding(self, view: ModelView, follower: Follower) -> Deciding:
        """It, on a model."""
        layers = resolve_layers(self.layers, view.n_layers)
        return DecidingMeasured(self.name, self.holds, self.hold, layers, follower)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able description."""
        made: dict[str, Any] = {"measure": self.name, self.side: self.threshold}
        if self.hold:
            made["hold"] = self.hold
        if self.layers != "all":
            made["layers"] = self.layers
        return made

    def holds(self, value: float) -> bool:
        """Whether a score is where it has to be."""
        return value > self.threshold if self.side == "above" else value < self.threshold


@dataclass(frozen=True)
class InStep(When):
    """Where a step lies.

    Attributes:
        segment: Its segment; None for both.
        number: Its number in its segment, from 0: one of these; None for any.
    """

    segment: Segment | None = None
    number: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SettingError: It names no segment, or a number below 0, or nothing.
        """
        if self.segment is not None and self.segment not in _SEGMENTS:
            raise SettingError(
                f"expected segment 'thinking' or 'summary', got {self.segment!r}: interventions "
                "act in no other"
            )
        if self.number is not None and (not self.number or min(self.number) < 0):
            raise SettingError(
                f"expected numbers of steps in their segment, from 0, got {self.number}"
            )

    def never(self, form: Format) -> str | None:
        """Responses of the format "plain" have no summary."""
        if self.segment == "summary" and form.name == PLAIN.name:
            return _NO_SUMMARY
        return None

    def deciding(self, view: ModelView, follower: Follower) -> Deciding:
        """It, on a model."""
        segment = None if self.segment is None else _SEGMENTS[self.segment]
        return DecidingStep(segment, self.number)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able description."""
        made = {"segment": self.segment, "number": self.number and list(self.number)}
        return {"step": {name: value for name, value in made.items() if value is not None}}


@dataclass(frozen=True)
class PreviousStep(When):
    """Where the text of the step before matches.

    Attributes:
        matches: A regular expression, searched for; of any case.
    """

    matches: str

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SettingError: It is no regular expression, or an empty one.
        """
        try:
            re.compile(self.matches)
        except re.error as error:
            raise SettingError(
                f"expected a regular expression as matches, got {self.matches!r}: {error}"
            ) from None
        if not self.matches:
            raise SettingError("expected matches that say something, got an empty one")

    def deciding(self, view: ModelView, follower: Follower) -> Deciding:
        """It, on a model."""
        return DecidingText(self.matches)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able description."""
        return {"previous_step": {"matches": self.matches}}


@dataclass(frozen=True)
class Chance(When):
    """In steps drawn at random: what a condition has to be held against.

    The draw is of the row's tokens up to the step, so that the same step of the same row is always
    drawn alike, however it is run.

    Attributes:
        rate: Expected share of steps.
        seed: Of the draws.
    """

    rate: float
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SettingError: The rate is no share, or none at all; the seed is below 0.
        """
        if not 0 < self.rate <= 1 or self.seed < 0:
            raise SettingError(
                f"expected a rate above 0, at most 1, and a seed from 0, got {self.rate} and "
                f"{self.seed}"
            )

    def deciding(self, view: ModelView, follower: Follower) -> Deciding:
        """It, on a model."""
        return DecidingChance(self.rate, self.seed)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able description."""
        return {"chance": {"rate": self.rate, "seed": self.seed}}


@dataclass(frozen=True)
class AllOf(When):
    """Where all of some conditions hold."""

    parts: tuple[When, ...]

    @property
    def is_measured(self) -> bool:
        """Whether one of them has to."""
        return any(part.is_measured for part in self.parts)

    def never(self, form: Format) -> str | None:
        """What the first of them says."""
        return next(filter(None, (part.never(form) for part in self.parts)), None)

    def deciding(self, view: ModelView, follower: Follower) -> Deciding:
        """They, on a model."""
        return DecidingParts(all, [part.deciding(view, follower) for part in self.parts])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able description."""
        return {"all": [part.to_dict() for part in self.parts]}


@dataclass(frozen=True)
class AnyOf(When):
    """Where at least one of some conditions holds."""

    parts: tuple[When, ...]

    @property
    def is_measured(self) -> bool:
        """Whether one of them has to."""
        return any(part.is_measured for part in self.parts)

    def never(self, form: Format) -> str | None:
        """What the first of them says, where none may hold."""
        said = [part.never(form) for part in self.parts]
        return said[0] if all(said) else None

    def deciding(self, view: ModelView, follower: Follower) -> Deciding:
        """They, on a model."""
        return DecidingParts(any, [part.deciding(view, follower) for part in self.parts])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able description."""
        return {"any": [part.to_dict() for part in self.parts]}


@dataclass(frozen=True)
class Not(When):
    """Where a condition does not hold."""

    part: When

    @property
    def is_measured(self) -> bool:
        """Whether it has to."""
        return self.part.is_measured

    def deciding(self, view: ModelView, follower: Follower) -> Deciding:
        """It, on a model."""
        return DecidingParts(lambda said: not all(said), [self.part.deciding(view, follower)])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able description."""
        return {"not": self.part.to_dict()}


@dataclass(frozen=True)
class _Measure:
    """A measure that waits for a threshold."""

    name: str
    layers: LayerSpec

    def above(self, threshold: float, hold: int = 0) -> Measured:
        """Where the score is above a threshold, and `hold` more steps."""
        return Measured(self.name, "above", threshold, hold, self.layers)

    def below(self, threshold: float, hold: int = 0) -> Measured:
        """Where the score is below a threshold, and `hold` more steps."""
        return Measured(self.name, "below", threshold, hold, self.layers)

    def above_percentile(self, percent: float, of: Seen, hold: int = 0) -> Measured:
        """Where the score is above what so many percent of other steps' scores stay below.

        Args:
            percent: From 0 to 100.
            of: What a `Monitor` saw of warm-up traces, the measure at the layers among it.
            hold: As above.

        Raises:
            SettingError: The monitor did not see the measure there, or no step with a score.
            WrongTypeError: It is not what a monitor saw.
        """
        return self.above(self._percentile(percent, of), hold)

    def below_percentile(self, percent: float, of: Seen, hold: int = 0) -> Measured:
        """Where the score is below what so many percent of other steps' scores stay below."""
        return self.below(self._percentile(percent, of), hold)

    def _percentile(self, percent: float, of: Seen) -> float:
        if not 0 <= percent <= 100:
            raise SettingError(f"expected a percentile from 0 to 100, got {percent}")
        if not isinstance(of, Seen):
            raise WrongTypeError(
                "expected of= what a Monitor saw of warm-up traces (with "
                f"Monitor(...).attach(model) as seen: ...), got {type(of).__name__}"
            )
        wanted = resolve_layers(self.layers, of.n_layers)
        missing = [layer for layer in wanted if layer not in of.layers]
        scores = [
            mean_over(record.values[self.name], [of.layers.index(layer) for layer in wanted])
            for record in of.records
            if not missing and self.name in record.values
        ]
        scores = [score for score in scores if not isnan(score)]
        if not scores:
            raise SettingError(
                f"expected warm-up steps with {self.name!r} at layers {list(wanted)}, got "
                f"{len(of.records)} steps at layers {list(of.layers)}"
            )
        return float(np.percentile(scores, percent))


def measure(name: str, layers: LayerSpec = "all") -> _Measure:
    """A measure of the last finished step, for ``measure("lock_in").above(0.4)``.

    Args:
        name: Out of `stepflow_tl.monitor.MEASURES`.
        layers: Layers that it is a mean over.

    Raises:
        SettingError: There is no such measure.
    """
    check_measure(name)
    return _Measure(name, layers)


def step(segment: Segment | None = None, number: int | Iterable[int] | None = None) -> InStep:
    """Steps of a segment, or of these numbers in their segment, from 0.

    Raises:
        SettingError: There is no such segment or number.
    """
    numbers = (number,) if isinstance(number, int) else None if number is None else tuple(number)
    return InStep(segment, numbers)


def previous_step(matches: str) -> PreviousStep:
    """Steps after one whose text matches a regular expression.

    Raises:
        SettingError: It is none.
    """
    return PreviousStep(matches)


def chance(rate: float, seed: int = 0) -> Chance:
    """Steps drawn at random, as many as `rate` in expectation: a control of the same rate.

    Raises:
        SettingError: The rate is no share, or none at all.
    """
    return Chance(float(rate), seed)


def check_measure(name: str) -> None:
    """Refuse what is no measure.

    Raises:
        SettingError: There is no such measure.
    """
    if name not in MEASURES:
        raise SettingError(f"expected a measure out of {list(MEASURES)}, got {name!r}")


def condition_of(said: Mapping[str, Any]) -> When:
    """The condition of a description, as `When.to_dict` gives it and configurations have it.

    Raises:
        SettingError: It describes none.
    """
    try:
        if "measure" in said:
            side: Side = "above" if "above" in said else "below"
            rest = {name: said[name] for name in ("hold", "layers") if name in said}
            unknown = said.keys() - {"measure", side, *rest}
            if not unknown:
                layers = rest.get("layers", "all")
                rest["layers"] = tuple(layers) if isinstance(layers, list) else layers
                return Measured(said["measure"], side, float(said[side]), **rest)
        elif len(said) == 1:
            ((kind, value),) = said.items()
            if kind == "step":
                return step(**value)
            if kind == "previous_step":
                return previous_step(**value)
            if kind == "chance":
                return chance(**value)
            if kind in ("all", "any") and value:
                parts = tuple(condition_of(part) for part in value)
                return AllOf(parts) if kind == "all" else AnyOf(parts)
            if kind == "not":
                return Not(condition_of(value))
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        if isinstance(error, SettingError):
            raise
    raise SettingError(
        "expected a condition such as {measure: lock_in, above: 0.4}, {step: {segment: thinking}}, "
        "{previous_step: {matches: wait}}, {chance: {rate: 0.2}}, {all: [...]}, {any: [...]} or "
        "{not: ...}, got "
        f"{said!r}"
    )
