"""Sweeps as plain settings: YAML files for the command line, and what a store remembers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from stepflow_tl.decoding.budget import ThinkingBudget
from stepflow_tl.decoding.settings import Decoding
from stepflow_tl.errors import ConfigError, StoreError
from stepflow_tl.interventions import StepFlow
from stepflow_tl.sweep.executors import Executor
from stepflow_tl.sweep.grid import Grid, from_spec, grid, intervention_class
from stepflow_tl.sweep.store import Store
from stepflow_tl.sweep.sweep import Sweep
from stepflow_tl.tasks import Benchmark, Task, WordProblems
from stepflow_tl.tasks.strategies import STRATEGIES, Strategy
from stepflow_tl.traces.chat import Chat
from stepflow_tl.traces.formats import Format

KEYS = ("model", "dtype", "load", "problems", "grid", "settings", "strategies", "seeds", "decoding")


def read_config(path: str | Path, *, allow_code_execution: bool = False) -> Sweep:
    """The sweep of a YAML file; docs/sweeps.md shows its keys.

    Args:
        path: The file.
        allow_code_execution: Whether grading may run code that the model wrote. No file can say
            so: whoever runs the sweep does.

    Raises:
        FileNotFoundError: There is no such file.
        ConfigError: A key or value is unknown; it is named.
    """
    return _sweep(read_yaml(path), allow_code_execution)


def resume(
    path: str | Path,
    *,
    executor: Executor | None = None,
    progress: bool = False,
    mix: bool = False,
    allow_code_execution: bool = False,
) -> pd.DataFrame:
    """Finish every sweep that a store remembers.

    Args:
        path: The store.
        executor: Where to decode; None for this process.
        progress: Show a progress bar with rate and remaining time.
        mix: Accept sweeps of another version, model, decoding or problem set than the first.
        allow_code_execution: Whether grading may run code that the model wrote; a store does not
            remember it.

    Returns:
        All rows of the store.

    Raises:
        FileNotFoundError: There is no such store.
        StoreError: It is no store, remembers no sweep, or holds results of something else.
        ConfigError: A sweep cannot be made again from what the store remembers.
    """
    store = Store(path)
    remembered = store.fact("sweeps")
    if not remembered:
        raise StoreError(f"{path} remembers no sweep: it was stopped too early; run it again")
    for known in remembered:
        if known["settings"]["model"] is None:
            raise ConfigError(
                "this sweep was run on a model given as an object, and cannot be resumed from the "
                "store alone; run the same Sweep in Python on the same store"
            )
        described = _sweep(known["settings"], allow_code_execution)
        shard = tuple(known["shard"]) if "shard" in known else None
        described.run(store, executor=executor, progress=progress, mix=mix, shard=shard)
    return store.to_dataframe()


def status(path: str | Path) -> pd.DataFrame:
    """How far a store's sweeps are; while one is running, too.

    Returns:
        A row per arm: ``arm``, ``cells`` in all, ``done``, ``accuracy`` so far, ``seconds`` spent.

    Raises:
        FileNotFoundError: There is no such store.
        StoreError: It is no store.
    """
    return Store(path).counts()


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML file.

    Raises:
        FileNotFoundError: There is no such file.
        ConfigError: It is no YAML mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration at {path}")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"expected settings such as 'grid: ...' in {path}, got {settings!r}")
    return settings


def arguments_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a `Sweep` from plain settings.

    ``grid`` is one mapping or a list of them, added up; inside one, interventions multiply::

        grid:
          OddsEqualBridge: {tau_max: [0, 0.05, 0.15], layers: [shallow, deep]}
          StepMomentum: {alpha: [0, 0.06]}

    ``problems`` are word problems, or a benchmark: ``{benchmark: aime24}``, or
    ``{benchmark: {path: mine.jsonl, kind: math}}``.

    ``settings`` gives settings names: a preset (``paper``, ``release``, ``digest``), or a list of
    interventions with their ``type``.

    Raises:
        ConfigError: A key or value is unknown; it is named.
    """
    unknown = set(settings) - set(KEYS)
    if unknown:
        raise ConfigError(f"unknown settings {sorted(unknown)}: expected some of {list(KEYS)}")
    if "problems" not in settings:
        raise ConfigError("expected problems, such as 'problems: {n: 50, difficulties: [16, 17]}'")
    if "given" in _mapping("problems", settings["problems"]):
        raise ConfigError(
            "these problems were given one by one in Python, and cannot be made again from here; "
            "run the same Sweep in Python on the same store"
        )
    if "trust_remote_code" in _mapping_of(settings, "load"):
        raise ConfigError(
            "a file cannot trust a model's own code: load the model in Python, and pass it as "
            "Sweep(model=...)"
        )
    try:
        arguments: dict[str, Any] = {
            "problems": _problems(settings["problems"]),
            "grid": _grid(settings),
            "strategy": [_strategy(one) for one in _list(settings, "strategies", ["plain"])],
        }
        if "decoding" in settings:
            arguments["decoding"] = _decoding(_mapping("decoding", settings["decoding"]))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"configuration: {error}") from None
    return arguments | {
        key: settings[key] for key in ("model", "dtype", "load", "seeds") if key in settings
    }


def _sweep(settings: Mapping[str, Any], allow_code_execution: bool) -> Sweep:
    arguments = arguments_of(settings)
    if allow_code_execution and isinstance(arguments["problems"], Benchmark):
        arguments["problems"] = replace(arguments["problems"], allow_code_execution=True)
    try:
        return Sweep(**arguments)
    except TypeError as error:
        raise ConfigError(f"configuration: {error}") from None


def _problems(settings: Mapping[str, Any]) -> Task:
    """Word problems by their settings, or ``{benchmark: ...}``: its name, or its settings."""
    if "benchmark" not in settings:
        return WordProblems(**settings)
    if len(settings) > 1:
        raise ConfigError(
            f"expected settings of the benchmark inside it, such as 'benchmark: {{name: aime24, "
            f"n: 10}}', got {sorted(set(settings) - {'benchmark'})} beside it"
        )
    benchmark = settings["benchmark"]
    if isinstance(benchmark, str):
        return Benchmark(name=benchmark)
    if "allow_code_execution" in _mapping("benchmark", benchmark):
        raise ConfigError(
            "expected --allow-code-execution (allow_code_execution=True) from whoever runs the "
            "sweep, got allow_code_execution in its settings"
        )
    return Benchmark(**benchmark)


def _decoding(settings: Mapping[str, Any]) -> Decoding:
    """A decoding; format, chat and budget may be settings of their own."""
    chat = settings.get("chat")
    if isinstance(chat, Mapping):
        settings = {**settings, "chat": Chat(**chat)}
    budget = settings.get("budget")
    if isinstance(budget, Mapping):
        settings = {**settings, "budget": ThinkingBudget(**budget)}
    form = settings.get("format")
    if isinstance(form, Mapping):
        settings = {**settings, "format": Format.from_description(form)}
    try:
        return Decoding(**settings)
    except TypeError as error:
        raise ConfigError(f"decoding: {error}; got {dict(settings)}") from None


def _grid(settings: Mapping[str, Any]) -> Grid:
    parts = settings.get("grid", [])
    grids = [_product(part) for part in (parts if isinstance(parts, list) else [parts])]
    named = {name: _flow(name, spec) for name, spec in _mapping_of(settings, "settings").items()}
    if named:
        grids.append(Grid.of(named))
    if not grids:
        raise ConfigError("expected a grid or settings, got neither")
    total = grids[0]
    for part in grids[1:]:
        total = total + part
    return total


def _product(part: Any) -> Grid:
    factors = [_factor(name, axes or {}) for name, axes in _mapping("grid", part).items()]
    if not factors:
        raise ConfigError("expected at least one intervention in each part of the grid")
    total = factors[0]
    for factor in factors[1:]:
        total = total * factor
    return total


def _factor(name: str, axes: Any) -> Grid:
    kind = intervention_class(name)
    try:
        return grid(kind, **_mapping(name, axes))
    except TypeError as error:  # a value of another kind, such as 1e-3, which is text in YAML
        raise ConfigError(f"{name}: {error}; got {axes!r}") from None


def _flow(name: str, spec: Any) -> StepFlow:
    if isinstance(spec, str):
        return StepFlow.preset(spec)
    if not isinstance(spec, list):
        raise ConfigError(
            f"expected a preset or a list of interventions for {name!r}, got {spec!r}"
        )
    return from_spec(spec)


def _strategy(spec: Any) -> Strategy:
    """A strategy by name, as ``{self_consistency: {k: 4}}``, or as a store remembers it."""
    if isinstance(spec, str):
        spec = {"type": spec}
    elif isinstance(spec, dict) and "type" not in spec and len(spec) == 1:
        ((name, settings),) = spec.items()
        spec = {"type": name, **_mapping(name, settings or {})}
    settings = dict(_mapping("strategies", spec))
    name = settings.pop("type", None)
    if name not in STRATEGIES:
        raise ConfigError(f"no strategy {name!r}: expected one of {list(STRATEGIES)}")
    return STRATEGIES[name](**settings)


def _list(settings: Mapping[str, Any], key: str, default: list[Any]) -> list[Any]:
    value = settings.get(key, default)
    if not isinstance(value, list):
        raise ConfigError(f"{key}: expected a list such as {default}, got {value!r}")
    return value


def _mapping_of(settings: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return _mapping(key, settings.get(key, {}))


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}: expected settings by name, got {value!r}")
    return value
