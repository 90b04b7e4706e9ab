"""Sweep: a frozen description of problems x settings x samples, run into a store."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from stepflow_tl.decoding.settings import Decoding
from stepflow_tl.errors import (
    GenerationError,
    InterventionWarning,
    ModelError,
    SettingError,
    WrongTypeError,
)
from stepflow_tl.models.base import Model
from stepflow_tl.models.loading import load_model
from stepflow_tl.models.memory import is_out_of_memory
from stepflow_tl.models.precision import read_dtype
from stepflow_tl.sweep.cells import (
    Arm,
    Batch,
    arms_of,
    batches_of,
    check_shard,
    decoding_spec,
    shard_of,
    strategy_spec,
)
from stepflow_tl.sweep.executors import Executor, Job, LocalExecutor, Survey
from stepflow_tl.sweep.grid import Grid, to_spec
from stepflow_tl.sweep.store import Store
from stepflow_tl.tasks import Task, as_task
from stepflow_tl.tasks.strategies import Plain, Strategy
from stepflow_tl.tasks.word_problems import Problem
from stepflow_tl.version import __version__

_LABELS = ["arm", "setting", "strategy"]


@dataclass(frozen=True)
class Sweep:
    """A frozen description: its cells are problem x setting x sample, for each strategy.

    Example::

        sweep = Sweep(
            WordProblems(n=50, difficulties=(16, 17)),
            grid(OddsEqualBridge, tau_max=[0, 0.05, 0.15]) * grid(StepMomentum, alpha=[0, 0.06]),
        )
        rows = sweep.run("outputs/sweep.sqlite", progress=True)  # a row per cell
        compare(rows, baseline="baseline")

    The baseline, where nothing intervenes, is always among the settings; each problem is decoded
    under it once per seed, whatever is compared with it.

    Attributes:
        problems: A task, or a sequence of word problems.
        grid: The settings.
        model: A name or folder as `load_model` takes it, or a loaded model.
        strategy: One, or several; each is run under every setting.
        seeds: The samples. A strategy that does not draw (greedy decoding) has the first only.
        decoding: How responses are decoded.
        dtype: Precision of the weights, where `model` is a name: "float32", "bfloat16",
            "float16", "float64", or "auto" for the checkpoint's own.
        load: What else `load_model` takes: ``{"device_map": "auto", "revision": "main"}``.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: There is no seed, one comes twice, two strategies are called the same, or one
            does not fit the decoding.
    """

    problems: Task | Sequence[Problem]
    grid: Grid
    model: Model | str | Path = "reasoner"
    strategy: Strategy | Sequence[Strategy] = field(default_factory=Plain)
    seeds: Sequence[int] = (0,)
    decoding: Decoding = field(default_factory=Decoding)
    dtype: str = "float32"
    load: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "problems", as_task(self.problems))
        if not isinstance(self.grid, Grid):
            raise WrongTypeError(f"expected a grid such as grid(StepMomentum), got {self.grid!r}")
        if not isinstance(self.model, (str, Path)) and not hasattr(self.model, "named_parameters"):
            raise WrongTypeError(f"expected a model or its name, got {self.model!r}")
        given = [self.strategy] if isinstance(self.strategy, Strategy) else self.strategy
        strategies = _all(Strategy, given, "strategies such as SelfConsistency(k=4)")
        object.__setattr__(self, "strategy", strategies)
        object.__setattr__(self, "seeds", _all(int, self.seeds, "seeds such as (0, 1)"))
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise SettingError(f"expected different seeds, at least one, got {self.seeds}")
        if self.decoding.seed != Decoding().seed:
            raise SettingError(
                f"expected the seeds of a sweep as Sweep(seeds=({self.decoding.seed},)), got "
                f"seed={self.decoding.seed} in its decoding"
            )
        read_dtype(self.dtype, ModelError)
        object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))
        for strategy in self.strategies:
            strategy.check(self.decoding)
        labels = [arm.label for arm in self.arms]
        if not labels or len(set(labels)) < len(labels):
            raise SettingError(f"expected different strategies, at least one, got arms {labels}")

    @property
    def task(self) -> Task:
        """The problems as a task."""
        assert isinstance(self.problems, Task)
        return self.problems

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        """The strategies."""
        assert isinstance(self.strategy, tuple)
        return self.strategy

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Every strategy under every setting, baselines first."""
        return arms_of(self.strategies, self.grid)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of cells of each arm."""
        return {
            arm.label: len(self.task.items)
            * (len(self.seeds) if arm.strategy.draws(self.decoding) else 1)
            for arm in self.arms
        }

    def __len__(self) -> int:
        """Number of cells."""
        return sum(self.sizes.values())

    def run(
        self,
        store: str | Path | Store,
        *,
        executor: Executor | None = None,
        progress: bool = False,
        mix: bool = False,
        shard: tuple[int, int] | None = None,
    ) -> pd.DataFrame:
        """Decode and grade every cell that the store does not hold yet.

        Each batch is stored as soon as it is finished. Stopped at any moment, and started again,
        it goes on with what is missing, and ends with the rows of an uninterrupted run.

        Args:
            store: The SQLite file; made where there is none.
            executor: Where to decode; None for this process.
            progress: Show a progress bar with rate and remaining time.
            mix: Accept a store with rows of another version, model, decoding or problem set.
            shard: ``(3, 16)`` for the third of sixteen parts, as one task of a job array takes it:
                every cell is in one part, whatever the batch size, and every arm in each where it
                has cells enough. `stepflow_tl.sweep.merge` puts the parts' stores together.

        Returns:
            This sweep's rows (a shard's own), in order, with the columns of `Store.to_dataframe`;
            ``arm`` and ``setting`` carry the labels of this sweep's grid.

        Raises:
            StoreError: The store holds results of something else; the difference is spelled out.
            ModelError: The model cannot be loaded.
            ValueError: The model lacks a layer, or the delimiter that a strategy needs; or the task
                cannot be graded.
            GenerationError: A batch does not fit in memory, or has logits that are not finite;
                what is finished is kept.
            SettingError: There is no such shard.

        Warns:
            InterventionWarning: For each arm whose interventions never acted on any problem.
        """
        if shard is not None:
            check_shard(shard)
        self.task.check()
        if any(strategy.traces_per_answer > 1 for strategy in self.strategies):
            self.task.check_votes()
        with (executor or LocalExecutor()).open(self._job()) as workers:
            survey = workers.survey
            identity = self._identity(survey)
            plan = list(
                batches_of(
                    self.arms,
                    self.task,
                    self.seeds,
                    self.decoding,
                    identity,
                    survey.n_layers,
                    survey.exact,
                )
            )
            if shard is not None:
                plan = shard_of(plan, *shard)
            cells = {cell.hash for batch in plan for cell in batch.cells}
            store = store if isinstance(store, Store) else Store(store, create=True)
            store.identify(identity, mix=mix)
            self._leave_note(store, shard)
            store.plan((cell.hash, batch.arm.label) for batch in plan for cell in batch.cells)
            done = store.done(cells)
            with (
                tqdm(total=len(cells), initial=len(done), unit="cell", disable=not progress) as bar,
                contextlib.closing(workers.run(identity, _missing(plan, done))) as batches,
            ):
                try:
                    for rows in batches:
                        store.add(rows)
                        bar.update(len(rows))
                except GenerationError as error:
                    raise _go_on(error, store, len(store.done(cells)), len(cells)) from (
                        error.__cause__ or error
                    )
        return self._rows(store, plan)

    def describe(self) -> dict[str, Any]:
        """Plain settings that make the same sweep again, as a configuration file has them.

        A model or problems given as objects are described, but cannot be made again.
        """
        return {
            "model": self._name,
            "dtype": self.dtype,
            "problems": self.task.describe(),
            "settings": {setting.label: to_spec(setting.flow) for setting in self.grid},
            "strategies": [strategy_spec(strategy) for strategy in self.strategies],
            "seeds": list(self.seeds),
            "decoding": decoding_spec(self.decoding) | {"batch_size": self.decoding.batch_size},
            **({"load": dict(self.load)} if self.load else {}),
        }

    def _leave_note(self, store: Store, shard: tuple[int, int] | None) -> None:
        """Let the store remember the sweep, so that it can be resumed from there."""
        known = store.fact("sweeps") or []
        part = {} if shard is None else {"shard": shard}
        mine = json.loads(json.dumps({"settings": self.describe(), **part}))
        if mine not in known:
            store.note("sweeps", [*known, mine])

    @property
    def _name(self) -> str | None:
        """What the model is loaded by, from any working directory; None for a loaded one."""
        if not isinstance(self.model, (str, Path)):
            return None
        is_here = str(self.model) != "reasoner" and Path(self.model).exists()
        return str(Path(self.model).resolve()) if is_here else str(self.model)

    @cached_property
    def _loaded(self) -> Any:
        if isinstance(self.model, (str, Path)):
            return load_model(self.model, dtype=self.dtype, **self.load)
        return self.model

    def _job(self) -> Job:
        return Job(
            name=self._name,
            dtype=self.dtype,
            load=self.load,
            task=self.task,
            strategies=self.strategies,
            decoding=self.decoding,
            model_here=lambda: self._loaded,
        )

    def _identity(self, survey: Survey) -> dict[str, Any]:
        """What all rows of one store have in common."""
        return {
            "version": __version__,
            "model": survey.model,
            "weights": survey.weights,
            "decoding": decoding_spec(self.decoding),
            "problems": self.task.digest,
        }

    def _rows(self, store: Store, plan: Sequence[Batch]) -> pd.DataFrame:
        labels = pd.DataFrame(
            [
                (cell.hash, batch.arm.label, batch.arm.setting.label, batch.arm.strategy.label)
                for batch in plan
                for cell in batch.cells
            ],
            columns=["hash", *_LABELS],
        )
        stored = store.to_dataframe(list(labels["hash"].unique()))
        table = labels.merge(stored.drop(columns=_LABELS), on="hash")
        for arm in self.arms:
            fired = table.loc[table["arm"] == arm.label, "fired"]
            if arm.setting.flow.interventions and len(fired) and not fired.any():
                warnings.warn(
                    f"{arm.label}: its interventions never acted on any of {len(fired)} problems",
                    InterventionWarning,
                    stacklevel=3,
                )
        return table


def _go_on(error: GenerationError, store: Store, done: int, cells: int) -> GenerationError:
    """The error that stopped a sweep, with what is kept of it."""
    where = " of Decoding" if is_out_of_memory(error.__cause__) else ""
    kept = f"{done} of {cells} cells are kept in {store.path}: run the same sweep again to go on"
    return GenerationError(f"{error}{where}; {kept}")


def _missing(plan: Sequence[Batch], done: set[str]) -> list[Batch]:
    """The plan without the cells that are done, and each other cell once."""
    due, taken = [], set(done)
    for batch in plan:
        cells = tuple(cell for cell in batch.cells if cell.hash not in taken)
        taken.update(cell.hash for cell in cells)
        if cells:
            due.append(replace(batch, cells=cells))
    return due


def _all(kind: type, values: Any, wanted: str) -> tuple[Any, ...]:
    """The values, each of this kind.

    Raises:
        TypeError: They are not.
    """
    found = tuple(values) if isinstance(values, Iterable) else None
    if found is None or not all(isinstance(v, kind) and not isinstance(v, bool) for v in found):
        raise WrongTypeError(f"expected {wanted}, got {values!r}")
    return found
