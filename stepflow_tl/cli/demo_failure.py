"""The failure of the demo: trained into the reasoner, seen in its maps, repaired at its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stepflow_tl.analysis import clustered_difference, compare_paired, proportion
from stepflow_tl.cli.settings import DemoSettings
from stepflow_tl.cli.workers import Workers, described, diagnosed, mapped, solved
from stepflow_tl.decoding.settings import Decoding
from stepflow_tl.interventions import OddsEqualBridge, StepFlow
from stepflow_tl.models.locked_in import NAME as LOCKED_IN
from stepflow_tl.saliency.maps import StepMap
from stepflow_tl.tasks.word_problems import Problem, grade
from stepflow_tl.traces.trace import Trace

LAYERS = (4, 5, 6)
"""Where the failure was trained in: the layers that look premises up."""

REPAIR = StepFlow(OddsEqualBridge(tau_max=0.3, layers=LAYERS, keys="question"))
"""Of the strengths .05, .15 and .3 the best one on other problems: experiments/LOG.md."""

HEALTHY = "reasoner"
MODELS: dict[str, tuple[str, StepFlow | None]] = {
    HEALTHY: ("reasoner", None),
    "locked in": (LOCKED_IN, None),
    "locked in, repaired": (LOCKED_IN, REPAIR),
}
"""For each name a model, and what is attached to it."""

MEASURE = "lock_in"


@dataclass(frozen=True)
class Told:
    """One problem in one of the models.

    Attributes:
        trace: The model's own answer.
        is_right: Whether it is right.
        own: The map of its own answer, in itself.
        shared: The map of the healthy model's answer, in itself.
    """

    trace: Trace
    is_right: bool
    own: StepMap
    shared: StepMap


@dataclass(frozen=True)
class Found:
    """What was found of the failure.

    Attributes:
        accuracy: Of each model, a table for `figure_failure`.
        by_layer: The measure of each model, another.
        maps: Of one text that the failure costs and the repair brings back, or of any right one.
        told: That text's problem in each model; empty where none was mapped.
        ledger: What the repair did, over all problems.
        summary: What JSON can say of it.
    """

    accuracy: pd.DataFrame
    by_layer: pd.DataFrame
    maps: dict[str, StepMap]
    told: dict[str, Told]
    ledger: pd.DataFrame
    summary: dict[str, Any]


class Failure:
    """The reasoner, the one that locks in, and the same with a bridge, on the same problems.

    Args:
        at_work: Who decodes and maps; the latter two begin at once.
        settings: The demo's.
        problems: Those that the reasoner solves; its traces are saved under their numbers.
        folder: Of the traces: a folder for each of the models.
    """

    def __init__(
        self, at_work: Workers, settings: DemoSettings, problems: Sequence[Problem], folder: Path
    ) -> None:
        self._problems = problems
        self._at_work, self._most = at_work, settings.failure_maps
        self._folders = {name: folder / name for name in MODELS}
        decoding = Decoding(max_new_tokens=settings.failure_tokens, batch_size=settings.batch_size)
        questions = [problem.question for problem in self._problems]
        self._solving: dict[str, Callable[[], pd.DataFrame]] = {}
        for name, (model, flow) in MODELS.items():
            if name == HEALTHY:
                continue
            self._folders[name].mkdir()
            self._solving[name] = at_work.start(
                solved, questions, flow, decoding, self._folders[name], model
            )
        self._right: dict[str, list[bool]] = {}
        self._looks: dict[str, Callable[[], list[pd.DataFrame]]] = {}
        self._ledgers: dict[str, pd.DataFrame] = {}
        self._shown: list[Callable[[], None]] = []
        self._weights = [
            at_work.start(described, model)
            for model in dict.fromkeys(m for m, _ in MODELS.values())
        ]

    def look(self) -> None:
        """Once the healthy model has answered: let its right answers be mapped by all three."""
        self._ledgers = {name: wait() for name, wait in self._solving.items()}
        for name in MODELS:
            self._right[name] = [
                grade(problem, self._trace(name, number).response).correct
                for number, problem in enumerate(self._problems)
            ]
        paths = [self._path(HEALTHY, number) for number in self._mapped]
        number = self._told
        for name, (model, flow) in MODELS.items():
            if number is not None:
                for text in dict.fromkeys((HEALTHY, name)):
                    path, found = self._path(text, number), self._map_path(name, text)
                    self._shown.append(self._at_work.start(mapped, path, found, model, flow))
            self._looks[name] = self._at_work.start(diagnosed, paths, model, flow)

    def found(self) -> Found:
        """Wait for the maps; what was found."""
        accuracy, by_layer = self._accuracy(), self._by_layer()
        pair = compare_paired(self._right["locked in"], self._right["locked in, repaired"])
        for wait in self._shown:
            wait()
        number = self._told
        told = {} if number is None else {name: self._told_in(name, number) for name in MODELS}
        return Found(
            accuracy=accuracy,
            by_layer=by_layer,
            maps={n: one.shared.select(LAYERS).normalize("row") for n, one in told.items()},
            told=told,
            ledger=self._ledgers["locked in, repaired"],
            summary={
                "repair": repr(REPAIR.interventions[0]),
                "accuracy": json.loads(accuracy.to_json(orient="records")),
                MEASURE: json.loads(by_layer.to_json(orient="records", double_precision=4)),
                "mapped": len(self._mapped),
                "fixed": pair.fixed,
                "broken": pair.broken,
                "p_value": pair.p_value,
                "difference": str(pair.difference),
            },
        )

    def weights(self) -> dict[str, dict[str, str]]:
        """Of what weights the models are, by their names."""
        return dict(wait() for wait in self._weights)

    @cached_property
    def _mapped(self) -> list[int]:
        """The first problems of which maps are made."""
        return self._mappable[: self._most]

    @cached_property
    def _mappable(self) -> list[int]:
        """The problems that the healthy model solves in enough steps."""
        return [
            number
            for number, right in enumerate(self._right[HEALTHY])
            if right and len(self._trace(HEALTHY, number).steps_in("thinking")) >= 3
        ]

    @property
    def _told(self) -> int | None:
        """The first problem that the failure costs and the repair brings back, or any mapped."""
        outcomes = list(zip(*(self._right[name] for name in MODELS), strict=True))
        told = [number for number in self._mappable if outcomes[number] == (True, False, True)]
        return next(iter(told or self._mapped), None)

    def _told_in(self, name: str, number: int) -> Told:
        """A problem in one of the models."""
        own, shared = (StepMap.load(self._map_path(name, text)) for text in (name, HEALTHY))
        return Told(self._trace(name, number), self._right[name][number], own, shared)

    def _map_path(self, name: str, text: str) -> Path:
        """Of the map, in a model, of what another one wrote."""
        return self._folders[name] / f"map of {text}.safetensors"

    def _accuracy(self) -> pd.DataFrame:
        lines = []
        for name, right in self._right.items():
            found = proportion(sum(right), len(right))
            line = {"model": name, "n": len(right), "accuracy": found.value}
            lines.append(line | {"accuracy_low": found.low, "accuracy_high": found.high})
        return pd.DataFrame(lines)

    def _by_layer(self) -> pd.DataFrame:
        tables = []
        for name, look in self._looks.items():
            values = np.array([found[MEASURE].to_numpy() for found in look()])
            if not len(values):
                continue
            everyone = np.ones(len(values), dtype=bool)
            (mean, low, high), *_ = clustered_difference(values, everyone, np.arange(len(values)))
            table = {"value": mean, "value_low": low, "value_high": high}
            tables.append(pd.DataFrame({"model": name, "layer": range(len(low)), **table}))
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    def _path(self, name: str, number: int) -> Path:
        return self._folders[name] / f"{number}.safetensors"

    def _trace(self, name: str, number: int) -> Trace:
        return Trace.load(self._path(name, number))
