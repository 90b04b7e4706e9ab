"""Where the batches of a sweep are decoded: in this process, or on a Ray cluster.

An executor opens workers for a job. They say which model they have, take batches and yield their
rows as they are finished, in any order. They write nothing: the driver alone does.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, islice
from typing import Any, Protocol, runtime_checkable

from stepflow_tl.decoding.settings import Decoding
from stepflow_tl.errors import SettingError
from stepflow_tl.models.base import Model
from stepflow_tl.models.loading import load_model
from stepflow_tl.models.view import view
from stepflow_tl.sweep.cells import Batch
from stepflow_tl.sweep.work import Row, solve_batches
from stepflow_tl.tasks import Task
from stepflow_tl.tasks.strategies import Strategy

_RETRIES = 20
"""How often work runs again whose worker or node was lost."""

_UNIT = 4
"""Batches handed out together at most."""


@dataclass(frozen=True)
class Job:
    """What every batch of a sweep needs.

    Attributes:
        name: The model's name or folder; None where it was given as an object.
        dtype: Precision of its weights.
        load: What else `load_model` takes.
        task: The problems and their grader.
        strategies: How the problems are put.
        decoding: How to decode.
        model_here: The model, for workers in the sweep's own process.
    """

    name: str | None
    dtype: str
    load: Mapping[str, Any]
    task: Task
    strategies: tuple[Strategy, ...]
    decoding: Decoding
    model_here: Callable[[], Any] | None


@dataclass(frozen=True)
class Survey:
    """What a sweep must know of its model before it can plan.

    Attributes:
        model: Its name, for records.
        weights: Hash of its weights.
        n_layers: Its layers.
        exact: Whether it computes in float32 or wider: cells of any batch size are the same.
    """

    model: str
    weights: str
    n_layers: int
    exact: bool

    @classmethod
    def of(cls, model: Model, job: Job) -> Survey:
        """The survey of a loaded model.

        Raises:
            ValueError: The model lacks the delimiter that a strategy needs.
        """
        for strategy in job.strategies:
            strategy.check(job.decoding, model)
        seen = view(model)
        return cls(seen.name, seen.weights_hash(), seen.n_layers, seen.is_exact)


class Workers(Protocol):
    """Those who decode for one job."""

    @property
    def survey(self) -> Survey:
        """What model they have."""
        ...

    def run(
        self, identity: Mapping[str, Any], batches: Sequence[Batch]
    ) -> Generator[list[Row], None, None]:
        """Yield the rows of each batch once it is finished, in any order."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Decodes batches somewhere."""

    def open(self, job: Job) -> AbstractContextManager[Workers]:
        """Workers for a job, who leave with the block."""
        ...


@dataclass(frozen=True)
class LocalExecutor:
    """Decodes in this process, one batch after the other."""

    @contextmanager
    def open(self, job: Job) -> Iterator[LocalWorkers]:
        """This process."""
        assert job.model_here is not None
        yield LocalWorkers(job, job.model_here())


@dataclass(frozen=True)
class LocalWorkers:
    """This process at work."""

    job: Job
    model: Model

    @property
    def survey(self) -> Survey:
        """What model is here."""
        return Survey.of(self.model, self.job)

    def run(
        self, identity: Mapping[str, Any], batches: Sequence[Batch]
    ) -> Generator[list[Row], None, None]:
        """Yield rows, arm by arm: as many together as a batch has, as they are finished."""
        task, decoding = self.job.task, self.job.decoding
        for _, alike in groupby(batches, key=lambda batch: (batch.arm, batch.seed)):
            solved = solve_batches(self.model, task, decoding, identity, list(alike))
            with closing(solved):
                yield from solved


@dataclass(frozen=True, kw_only=True)
class RayExecutor:
    """Decodes on a Ray cluster (extra ``ray``); batches of a lost node run again on the others.

    Each worker is an actor that loads the model once, by its name, keeps its GPUs, and is given no
    work if it finds other weights than the first. The sweep's own process loads none, so that its
    machine needs no room for it.

    Attributes:
        address: Of a running cluster ("auto": the one this machine belongs to, after ``ray
            start``); None starts one on this machine for the time of the sweep.
        cpus: CPUs per worker.
        gpus: GPUs per worker.
        ahead: Batches handed out at once per worker.
    """

    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    ahead: int = 2

    @contextmanager
    def open(self, job: Job) -> Iterator[RayWorkers]:
        """The cluster's workers; a cluster that was started for them ends with the block.

        Raises:
            ImportError: Ray is not installed.
            ValueError: The model was given as an object, which cannot travel.
        """
        try:
            import ray
        except ImportError as error:
            raise ImportError(
                "the ray executor needs pip install 'stepflow-tl[ray]'", name="ray"
            ) from error
        if job.name is None:
            raise SettingError(
                "the ray executor loads the model in every worker: expected Sweep(model=...) to be "
                "a name or a folder, got a loaded model"
            )
        started = not ray.is_initialized()
        if started:
            # "local", as None would join whatever cluster happens to run on this machine
            own = {"address": "local", "include_dashboard": False}
            ray.init(
                log_to_driver=False,
                logging_level="error",
                **({"address": self.address} if self.address else own),
            )
        workers = RayWorkers(self, ray, ray.put(replace(job, model_here=None)))
        try:
            yield workers
        finally:
            workers.leave()
            if started:
                ray.shutdown()


class RayWorkers:
    """A cluster's workers, as many as it has room for.

    Args:
        executor: What a worker needs.
        ray: The library, connected.
        job: A reference to the job, which travels once.
    """

    def __init__(self, executor: RayExecutor, ray: Any, job: Any) -> None:
        self._executor, self._ray, self._job = executor, ray, job
        self._kind = ray.remote(
            num_cpus=executor.cpus, num_gpus=executor.gpus, scheduling_strategy="SPREAD"
        )(_Worker)
        self._starting: dict[Any, Any] = {}  # the promised survey of a worker -> the worker
        self._load: dict[Any, int] = {}  # a worker that stands -> units it has
        self._running: dict[Any, tuple[Any, tuple[Batch, ...]]] = {}

    @cached_property
    def survey(self) -> Survey:
        """What model the first worker has."""
        self._start()
        (promised,) = self._starting
        found: Survey = self._ray.get(promised)
        return found

    def run(
        self, identity: Mapping[str, Any], batches: Sequence[Batch]
    ) -> Generator[list[Row], None, None]:
        """Yield the rows of each unit of work as it comes in.

        A unit is some batches of one arm and seed, which wait in one queue: a few where there are
        many for each worker.

        Raises:
            ValueError: A worker has other weights than the first.
        """
        shared = self._ray.put(dict(identity))
        waiting = deque(_units(batches, max(1, min(_UNIT, len(batches) // (4 * self._slots)))))
        tries = Counter[str]()
        while waiting or self._running:
            self._hand_out(shared, waiting)
            finished, _ = self._ray.wait([*self._starting, *self._running])
            for reference in finished:
                if reference in self._starting:
                    self._stands(reference, identity["weights"])
                    continue
                worker, unit = self._running.pop(reference)
                try:
                    rows: list[Row] = self._ray.get(reference)
                except self._ray.exceptions.RayActorError:  # it, or its node, was lost
                    self._load.pop(worker, None)
                    tries[unit[0].cells[0].hash] += 1
                    if tries[unit[0].cells[0].hash] > _RETRIES:  # then it may be the work itself
                        raise
                    waiting.appendleft(unit)
                else:
                    if worker in self._load:  # else it was lost after this batch
                        self._load[worker] -= 1
                    yield rows

    def leave(self) -> None:
        """End all workers, whatever they are doing."""
        for worker in (*self._load, *self._starting.values()):
            self._ray.kill(worker)

    def _hand_out(self, identity: Any, waiting: deque[tuple[Batch, ...]]) -> None:
        """Give each worker what it can hold; start more workers where there is room for them."""
        for worker in self._load:
            while waiting and self._load[worker] < self._executor.ahead:
                unit = waiting.popleft()
                self._running[worker.solve.remote(identity, unit)] = (worker, unit)
                self._load[worker] += 1
        if (waiting or not self._load) and len(self._load) + len(self._starting) < self._slots:
            self._start()

    def _start(self) -> None:
        worker = self._kind.remote(self._job)
        self._starting[worker.survey.remote()] = worker

    def _stands(self, promised: Any, weights: str) -> None:
        """Take a worker in that has loaded its model."""
        worker = self._starting.pop(promised)
        try:
            found = self._ray.get(promised).weights
        except self._ray.exceptions.RayActorError:
            return  # lost before it was given anything
        if found != weights:
            raise SettingError(
                f"expected one model everywhere, but a worker's has other weights ({found}) than "
                f"the first worker's ({weights})"
            )
        self._load[worker] = 0

    @property
    def _slots(self) -> int:
        """Workers that the cluster has room for, as it is now."""
        resources, wanted = self._ray.cluster_resources(), self._executor
        slots = resources.get("CPU", 1) / max(wanted.cpus, 0.01)
        if wanted.gpus:
            slots = min(slots, resources.get("GPU", 0) / wanted.gpus)
        return max(1, int(slots))


def _units(batches: Sequence[Batch], size: int) -> Iterator[tuple[Batch, ...]]:
    """Consecutive batches of one arm and seed, so many together at most."""
    for _, alike in groupby(batches, key=lambda batch: (batch.arm, batch.seed)):
        while unit := tuple(islice(alike, size)):
            yield unit


class _Worker:
    """One process with the model; loaded when asked, so that its errors come as they are."""

    def __init__(self, job: Job) -> None:
        self._job = job

    @cached_property
    def _model(self) -> Any:
        assert self._job.name is not None
        return load_model(self._job.name, dtype=self._job.dtype, **self._job.load)

    def survey(self) -> Survey:
        return Survey.of(self._model, self._job)

    def solve(self, identity: Mapping[str, Any], batches: Sequence[Batch]) -> list[Row]:
        task, decoding = self._job.task, self._job.decoding
        with closing(solve_batches(self._model, task, decoding, identity, batches)) as solved:
            return [row for rows in solved for row in rows]
