"""How many flows are attached to a model: what runs it by itself, on the side, has to know."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from stepflow_tl.models.base import ModelView

_flows: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


@contextmanager
def attached_to(view: ModelView) -> Iterator[None]:
    """Inside, one flow more is attached."""
    _flows[view.model] = flows_on(view) + 1
    try:
        yield
    finally:
        _flows[view.model] -= 1


def flows_on(view: ModelView) -> int:
    """Number of flows that are attached."""
    return _flows.get(view.model, 0)
