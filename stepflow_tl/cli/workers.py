"""The demo's decoding and maps, on several cores: each in a process with a model of its own.

A small model leaves a second core idle, whatever torch's threads do. Traces go from process to
process as files.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from stepflow_tl.analysis.diagnostics import diagnose
from stepflow_tl.decoding.generation import generate_each
from stepflow_tl.decoding.settings import Decoding
from stepflow_tl.interventions import StepFlow
from stepflow_tl.models.layers import LayerSpec
from stepflow_tl.models.loading import load_model
from stepflow_tl.models.view import view
from stepflow_tl.saliency import step_saliency, token_saliency
from stepflow_tl.traces.trace import Trace

_LOOK = 0.1  # seconds between looks at how far the others are

_told: Any = None  # where a process says that one more is done


class Workers:
    """Processes at work, or this one alone.

    Args:
        processes: How many they are.
        pool: The processes; None for this one.
        ticks: Where they say that one more trace is done.
        bar: Shows it.
    """

    def __init__(self, processes: int, pool: Any, ticks: Any, bar: Any) -> None:
        self.processes = processes
        self._pool, self._ticks, self._bar = pool, ticks, bar

    def start(self, work: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        """Let a function of this module begin, once a process is free; what waits for its result.

        This process alone does it at once.
        """
        if self._pool is None:
            result = work(*arguments)
            return lambda: result
        promised = self._pool.apply_async(work, arguments)

        def wait() -> Any:
            while not promised.ready():
                self._count()
                time.sleep(_LOOK)
            self._count()
            return promised.get()

        return wait

    def _count(self) -> None:
        while not self._ticks.empty():
            self._bar.update(self._ticks.get())


@contextmanager
def workers(processes: int, traces: int, *, progress: bool) -> Iterator[Workers]:
    """So many processes; 1 for this one alone. They end with the block.

    Args:
        processes: How many.
        traces: Number of traces that they will decode or map.
        progress: Whether to show a progress bar.
    """
    global _told
    with tqdm(total=traces, unit="trace", disable=not progress) as bar:
        if processes == 1:
            _told = bar.update
            yield Workers(1, None, None, bar)
            return
        context = get_context("spawn")
        ticks = context.SimpleQueue()
        with context.Pool(processes, _begin, (ticks,)) as pool:
            yield Workers(processes, pool, ticks, bar)


def _begin(ticks: Any) -> None:
    """Make ready in a process of its own; Ctrl-C is for the first one."""
    global _told
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _told = ticks.put


@cache
def loaded(name: str) -> Any:
    """A bundled model, once a process."""
    return load_model(name, device="cpu")


def solved(
    questions: Sequence[str],
    flow: StepFlow | None,
    decoding: Decoding,
    folder: Path,
    name: str = "reasoner",
) -> pd.DataFrame:
    """Let a model answer; its traces are saved as ``0.safetensors``, ... in the folder.

    Returns:
        The ledger; empty without a flow.
    """
    model = loaded(name)
    with nullcontext() if flow is None else flow.attach(model) as run:
        with closing(generate_each(model, questions, decoding)) as traces:
            for number, _, trace in traces:
                trace.save(folder / f"{number}.safetensors")
                _told(1)
        return pd.DataFrame() if run is None else run.ledger.to_dataframe()


def mapped(
    trace: Path,
    path: Path,
    name: str = "reasoner",
    flow: StepFlow | None = None,
    layers: LayerSpec = "all",
) -> None:
    """Save a saved trace's map in a model, with a flow attached or none, as another file."""
    model = loaded(name)
    with nullcontext() if flow is None else flow.attach(model):
        step_saliency(model, Trace.load(trace), layers=layers).save(path)


def mapped_twice(trace: Path, path: Path) -> np.ndarray:
    """Save a saved trace's map as another file; its token map [query, key], mean over layers."""
    mapped(trace, path)
    found: np.ndarray = token_saliency(loaded("reasoner"), Trace.load(trace)).mean(0).numpy()
    return found


def described(name: str) -> tuple[str, dict[str, str]]:
    """A model's name, and what its weights are, for records."""
    model = view(loaded(name))
    return model.name, {"weights": model.weights_hash()}


def diagnosed(
    paths: Iterable[Path], name: str = "reasoner", flow: StepFlow | None = None
) -> list[pd.DataFrame]:
    """The diagnostics of saved traces' maps in a model, with a flow attached or none."""
    found, model = [], loaded(name)
    for path in paths:
        with nullcontext() if flow is None else flow.attach(model):
            found.append(diagnose(step_saliency(model, Trace.load(path))))
        _told(1)
    return found
