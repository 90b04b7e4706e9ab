"""Conditions at work on a model: what decides of each step, from the steps before it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from math import nan

import numpy as np
from torch import Tensor

from stepflow_tl.interventions.conditions import Begin, Deciding, Verdict
from stepflow_tl.interventions.position import Follower
from stepflow_tl.models.sites import Hook
from stepflow_tl.monitor.live import FinishedStep, LiveSteps, live_hooks, measured
from stepflow_tl.monitor.measures import OF_LOGITS, OF_SHARES
from stepflow_tl.traces.rows import Row


def mean_over(value: Tensor | float, at: Sequence[int]) -> float:
    """A measure's mean over layers; NaN where it is undefined."""
    return float(value[list(at)].mean()) if isinstance(value, Tensor) else float(value)


class DecidingMeasured(Deciding):
    """By a measure of the last finished steps.

    Args:
        name: The measure.
        holds: Whether a score is where it has to be.
        hold: How many more steps it counts.
        layers: The layers that it is a mean over.
        follower: Knows where each pass stands.
    """

    def __init__(
        self,
        name: str,
        holds: Callable[[float], bool],
        hold: int,
        layers: Sequence[int],
        follower: Follower,
    ) -> None:
        self._name, self._holds, self._hold = name, holds, hold
        self._scores: dict[Row, list[float]] = {}
        self._segments: dict[Row, list[str]] = {}
        self._follower = follower
        by_shares = name in OF_SHARES
        self._layers = tuple(layers) if by_shares else ()
        uncertainties = {} if by_shares else {name: OF_LOGITS[name]}
        self._live = LiveSteps(self._layers, uncertainties, "in", self._finished)

    def hooks(self) -> list[Hook]:
        """What shows it patterns, or logits."""
        return live_hooks(self._live, self._follower, self._layers)

    def decide(self, begin: Begin) -> Verdict:
        """Whether it holds of the last finished step, or of one that it holds on from."""
        scores = self._scores.get(begin.row, [])
        recent = scores[-1 - self._hold :]
        said = scores[-1] if scores else nan
        return Verdict(any(map(self._holds, recent)), {self._name: said})

    def _finished(self, done: FinishedStep) -> None:
        name, row = self._name, done.row
        value = measured((name,), done, self._segments.setdefault(row, []))[name]
        self._scores.setdefault(row, []).append(mean_over(value, range(len(self._layers))))
        for known in (self._scores, self._segments):
            for old in [one for one in known if one.finished and one is not row]:
                del known[old]


class DecidingStep(Deciding):
    """By a step's segment, and its number in it; None for any."""

    def __init__(self, segment: int | None, numbers: Collection[int] | None) -> None:
        self._segment, self._numbers = segment, numbers

    def decide(self, begin: Begin) -> Verdict:
        """Whether it is one of them."""
        here = self._segment is None or begin.segment == self._segment
        return Verdict(here and (self._numbers is None or begin.number in self._numbers), {})


class DecidingText(Deciding):
    """By the text of the step before."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern, re.IGNORECASE)

    def decide(self, begin: Begin) -> Verdict:
        """Whether the pattern is found in it."""
        text = "" if begin.previous is None else begin.row.text(*begin.previous)
        return Verdict(self._pattern.search(text) is not None, {})


class DecidingChance(Deciding):
    """By a draw of the row's tokens up to the step."""

    def __init__(self, rate: float, seed: int) -> None:
        self._rate, self._seed = rate, seed

    def decide(self, begin: Begin) -> Verdict:
        """Whether it is drawn."""
        drawn_from = [self._seed, *begin.row.token_ids[: begin.start]]
        return Verdict(bool(np.random.default_rng(drawn_from).random() < self._rate), {})


class DecidingParts(Deciding):
    """By what several say together.

    Args:
        joined: Of whether each is open, whether all of it is.
        parts: They.
    """

    def __init__(self, joined: Callable[[Sequence[bool]], bool], parts: Sequence[Deciding]) -> None:
        self._joined, self._parts = joined, parts

    def hooks(self) -> list[Hook]:
        """What each has to see."""
        return [hook for part in self._parts for hook in part.hooks()]

    def decide(self, begin: Begin) -> Verdict:
        """What they say, with the scores of all."""
        said = [part.decide(begin) for part in self._parts]
        scores = {name: score for one in said for name, score in one.scores.items()}
        return Verdict(bool(self._joined([one.is_open for one in said])), scores)
