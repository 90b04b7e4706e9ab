"""From edits to hook functions: the one place that knows layers, hooks, ledger and position."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from stepflow_tl.errors import WrongTypeError
from stepflow_tl.interventions.base import Edited, Intervention
from stepflow_tl.interventions.conditions import Decisions, Gate
from stepflow_tl.interventions.ledger import Later, Ledger
from stepflow_tl.interventions.position import EditPosition, Follower, PassPosition
from stepflow_tl.models.base import ARRIVAL, ModelView
from stepflow_tl.models.layers import resolve_layers
from stepflow_tl.models.sites import Hook, Site, hook_name

OF_CONDITIONS = ("decisions", "openings")
"""Columns of the ledger for an intervention with a condition, on the line of its first layer."""


@dataclass(frozen=True)
class Wired:
    """One intervention on one model.

    Attributes:
        item: The intervention.
        name: Its name in the ledger.
        layers: The layers that it works on.
        view: The model.
        follower: Knows where each pass stands.
        ledger: Takes what it reports.
        others: Fresh hooks of the other interventions.
        gate: Its condition at work; None for none.
        memory: What it keeps from pass to pass.
    """

    item: Intervention
    name: str
    layers: tuple[int, ...]
    view: ModelView
    follower: Follower
    ledger: Ledger
    others: Callable[[Follower], list[Hook]]
    gate: Gate | None = None
    memory: dict[Any, Any] = field(default_factory=dict)

    def hooks(self) -> list[Hook]:
        """Its forward hooks, in the order in which a pass reaches them."""
        hooks = [hook for layer in self.layers for hook in self._layer_hooks(layer)]
        if type(self.item).prepare is Intervention.prepare:
            return hooks
        return [(ARRIVAL, lambda arrival: self._prepare()), *hooks]

    def _layer_hooks(self, layer: int) -> list[Hook]:
        seen: dict[Site, Tensor] = {}
        window = self.view.attention_window(layer)

        def see(site: Site, x: Tensor, hook: Any) -> None:
            seen[site] = x.detach()

        def edit(x: Tensor, hook: Any) -> Tensor | None:
            position = self.follower.position
            queries = getattr(hook, "queries", None)  # where a pass is shown part by part
            if queries is not None:
                position = position.part(queries.start, queries.stop)
            if self.gate is not None:
                if not (self.gate.is_open or self.item.reads):
                    return None
                position = self.gate.seen(position)
            new, facts = self._checked(
                x, self.item.edit(x, self._at(position, layer, window, seen))
            )
            if new is not None and position.acting is not None:
                new = self._only_there(position.acting, new, x)
            if facts:
                self.ledger.write(self.name, layer, facts, position.rows)
            return new

        reading = [(hook_name(site, layer), partial(see, site)) for site in self.item.reads]
        return [*reading, (hook_name(self.item.site, layer), edit)]

    def _only_there(self, acting: Tensor, new: Tensor, old: Tensor) -> Tensor:
        """The new tensor where the intervention acts, bit for bit the old one elsewhere."""
        by_query = acting.to(new.device)
        by_query = by_query[:, None] if self.item.site in ("pattern", "attn_scores") else by_query
        return torch.where(by_query[(...,) + (None,) * (new.ndim - by_query.ndim)], new, old)

    def _checked(self, x: Tensor, edited: Any) -> Edited:
        """What an edit gave back.

        Raises:
            WrongTypeError: It is no tensor of the old one's shape, or None, with facts beside it.
        """
        new, facts = edited if isinstance(edited, tuple) and len(edited) == 2 else (edited, None)
        fits = new is None or (isinstance(new, Tensor) and new.shape == x.shape)
        if not (fits and isinstance(facts, (Later, Mapping))):
            raise WrongTypeError(
                f"expected {self.name}.edit to give a tensor of shape {list(x.shape)} or None, and "
                f"facts for the ledger such as {{'rows_changed': 1}}, got {_shown(edited)}"
            )
        return new, facts

    def _prepare(self) -> None:
        first = self.layers[0]
        window = self.view.attention_window(first)
        position = self.follower.position
        if self.gate is not None:
            position = self.gate.seen(position)
        facts = self.item.prepare(self._at(position, first, window, {}))
        if facts:
            self.ledger.write(self.name, first, facts, position.rows)

    def _at(
        self, position: PassPosition, layer: int, window: int | None, seen: dict[Site, Tensor]
    ) -> EditPosition:
        at = object.__new__(EditPosition)  # its `__init__` sets each field by itself, every token
        vars(at).update(
            vars(position),
            layer=layer,
            layers=self.layers,
            window=window,
            view=self.view.running,
            seen=seen,
            memory=self.memory,
            others=self.others,
        )
        return at


def _shown(edited: object) -> str:
    parts = edited if isinstance(edited, tuple) else (edited,)
    shown = (f"a tensor of {list(p.shape)}" if isinstance(p, Tensor) else repr(p) for p in parts)
    return ", ".join(shown)


def hooks_of(
    interventions: Sequence[Intervention],
    view: ModelView,
    follower: Follower,
    ledger: Ledger,
    decided: Decisions | None = None,
) -> list[Hook]:
    """The forward hooks of interventions that act together, writing to a ledger.

    Conditions see what failures left that stand first, as a model that has them would show it, and
    what all other interventions found.

    Args:
        interventions: The interventions.
        view: The model.
        follower: Knows where each pass stands.
        ledger: Takes what they report.
        decided: Takes what their conditions decide, and says what was decided before.

    Raises:
        ValueError: An intervention names a layer that the model does not have.
    """
    named = list(zip(names_of(interventions), interventions, strict=True))
    return _hooks_of(named, view, follower, ledger, Decisions() if decided is None else decided)


def _hooks_of(
    named: Sequence[tuple[str, Intervention]],
    view: ModelView,
    follower: Follower,
    ledger: Ledger,
    decided: Decisions,
) -> list[Hook]:
    found: dict[bool, tuple[list[Hook], list[Hook]]] = {True: ([], []), False: ([], [])}
    again = partial(_hooks_of, named, view, ledger=Ledger(), decided=decided)
    planted = {name for name, _ in takewhile(lambda one: one[1].is_failure, named)}
    for name, item in named:
        gates, hooks = found[name in planted]
        layers = resolve_layers(item.layers, view.n_layers)
        columns = item.columns if item.when is None else (*item.columns, *OF_CONDITIONS)
        for layer in layers:
            ledger.open(name, layer, columns)
        for column in {item.fired, "extra_tokens"}.intersection(item.columns):
            ledger.keep_rows(name, column)
        if item.is_neutral:
            continue
        gate = None
        if item.when is not None:
            report = partial(ledger.write, name, layers[0])
            gate = Gate(item.when, name, view, follower, decided, again, report)
            gates += gate.hooks()
        rest = [(other, one) for other, one in named if other != name]
        others = partial(_hooks_of, rest, view, ledger=Ledger(), decided=decided)
        hooks += Wired(item, name, layers, view, follower, ledger, others, gate).hooks()
    return [hook for group in found.values() for hooks in group for hook in hooks]


def first_query(interventions: Sequence[Intervention], follower: Follower) -> int | None:
    """Of the present pass, the first query whose attention the interventions have to see."""
    if any(not item.reasoning_only for item in interventions):
        return 0
    at = follower.position
    return at.reasoning_from - at.start if at.reasoning else None


def names_of(interventions: Sequence[Intervention]) -> list[str]:
    """Names in the ledger."""
    return numbered([item.name for item in interventions])


def numbered(names: Sequence[str]) -> list[str]:
    """Names, numbered where two share one."""
    return [
        f"{name}-{names[:i].count(name) + 1}" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]
