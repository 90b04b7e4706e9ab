"""Cells of a sweep: what each is, its content hash, and which decode together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from stepflow_tl.decoding.settings import Decoding
from stepflow_tl.errors import SettingError
from stepflow_tl.interventions import StepFlow
from stepflow_tl.models.layers import resolve_layers
from stepflow_tl.sweep.grid import BASELINE, Grid, Setting, to_spec
from stepflow_tl.tasks import Item, Task
from stepflow_tl.tasks.strategies import Strategy
from stepflow_tl.traces.formats import FORMATS, Format


@dataclass(frozen=True)
class Arm:
    """A strategy under a setting: what is compared."""

    strategy: Strategy
    setting: Setting

    @property
    def label(self) -> str:
        """Its name in tables: the setting's, led by the strategy's where that is not plain."""
        if self.strategy.name == "plain":
            return self.setting.label
        if self.setting.label == BASELINE:
            return self.strategy.label
        return f"{self.strategy.label} + {self.setting.label}"


@dataclass(frozen=True)
class Cell:
    """One problem, under one arm, with one seed.

    Attributes:
        hash: Of the arm, decoding, problem, seed, weights and library version: 32 hex digits.
        item: The problem.
    """

    hash: str
    item: Item


@dataclass(frozen=True)
class Batch:
    """Cells of one arm and one seed: as many as decode at the same time."""

    arm: Arm
    seed: int
    cells: tuple[Cell, ...]


def arms_of(strategies: Sequence[Strategy], grid: Grid) -> tuple[Arm, ...]:
    """Every strategy under every setting, the baseline first."""
    plain = Setting(BASELINE, StepFlow())
    settings = [plain, *(setting for setting in grid if setting.flow != plain.flow)]
    return tuple(Arm(strategy, setting) for setting in settings for strategy in strategies)


def batches_of(
    arms: Sequence[Arm],
    task: Task,
    seeds: Sequence[int],
    decoding: Decoding,
    identity: Mapping[str, Any],
    n_layers: int,
    exact: bool = True,
) -> Iterator[Batch]:
    """The whole plan, in order: the same description gives the same batches every time.

    An arm whose answers do not depend on the seed has the first seed only. Two ways to name the
    same layers give the same cells. Where the model is not `exact` (float32 or wider), rounding
    depends on the batch size, and texts may: cells of another batch size are other cells.
    """
    for arm in arms:
        size = cells_together(arm.strategy, decoding)
        content = _content(arm, decoding, identity, n_layers)
        if not exact:
            content["batch_size"] = decoding.batch_size
        for seed in seeds if arm.strategy.draws(decoding) else seeds[:1]:
            cells = [
                Cell(_hash(content, item, seed, task.content(item, seed)), item)
                for item in task.items
            ]
            for first in range(0, len(cells), size):
                yield Batch(arm, seed, tuple(cells[first : first + size]))


def check_shard(shard: tuple[int, int]) -> None:
    """Refuse what is no part of a plan.

    Raises:
        SettingError: It is not the number of a part, from 1, and how many there are.
    """
    numbers = isinstance(shard, tuple) and [isinstance(n, int) for n in shard] == [True, True]
    if not numbers or not 1 <= shard[0] <= shard[1]:
        raise SettingError(
            f"expected a shard such as (3, 16), the third of sixteen, numbered from 1, got {shard}"
        )


def shard_of(plan: Sequence[Batch], number: int, of: int) -> list[Batch]:
    """One part of a plan: every so-manieth of its different cells.

    Args:
        plan: All batches.
        number: Which part, from 1.
        of: How many parts there are.
    """
    order: dict[str, int] = {}
    for batch in plan:
        for cell in batch.cells:
            order.setdefault(cell.hash, len(order))
    mine = [
        replace(batch, cells=tuple(c for c in batch.cells if order[c.hash] % of == number - 1))
        for batch in plan
    ]
    return [batch for batch in mine if batch.cells]


def cells_together(strategy: Strategy, decoding: Decoding) -> int:
    """Number of cells that decode at the same time, and that a store takes in at once."""
    return max(1, decoding.batch_size // strategy.traces_per_answer)


def strategy_spec(strategy: Strategy) -> dict[str, Any]:
    """JSON-able description of a strategy."""
    return {"type": strategy.name, **asdict(strategy)}


def decoding_spec(decoding: Decoding) -> dict[str, Any]:
    """JSON-able description of what decides a response: all but the batch size and the seed."""
    spec = asdict(decoding)
    del spec["batch_size"], spec["seed"]
    return spec | {"format": _format_spec(decoding.format)}


def _format_spec(form: str | Format) -> str | dict[str, Any]:
    """A format by its name where that says it all; else all that it is, cutters by their names."""
    if isinstance(form, str):
        return form
    return form.name if FORMATS.get(form.name) == form else form.describe()


def _content(
    arm: Arm, decoding: Decoding, identity: Mapping[str, Any], n_layers: int
) -> dict[str, Any]:
    interventions = arm.setting.flow.interventions
    layers = [list(resolve_layers(item.layers, n_layers)) for item in interventions]
    specs = to_spec(arm.setting.flow)
    return {
        "flow": [spec | {"layers": where} for spec, where in zip(specs, layers, strict=True)],
        "strategy": strategy_spec(arm.strategy),
        "decoding": decoding_spec(decoding),
        "weights": identity["weights"],
        "version": identity["version"],
    }


def _hash(content: Mapping[str, Any], item: Item, seed: int, more: str) -> str:
    parts = [content, item.key, item.group, seed, *([more] if more else [])]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
