"""Whose hooks live on a model: this package's own, or somebody else's.

Rows of a batch may move while it is decoded, and bridges be left out, only where nobody else looks
on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

HOOK_DICTS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module of torch's keeps its hooks, by the numbers of their handles."""

_OF_MODELS = ("transformers.", "transformer_lens.model_bridge.")

_own: set[int] = set()  # numbers of this package's handles; torch gives each number once
_last: set[int] = set()  # those of them that run after all others of this package


@contextmanager
def own_hooks(numbers: Iterable[int]) -> Iterator[None]:
    """Inside, the hooks of these handles are this package's own."""
    claimed = set(numbers)
    _own.update(claimed)
    try:
        yield
    finally:
        _own.difference_update(claimed)


def hook_numbers(modules: Iterable[nn.Module]) -> set[int]:
    """Numbers of the handles of all hooks on these modules."""
    return {n for m in modules for hooks in HOOK_DICTS for n in getattr(m, hooks)}


@contextmanager
def in_place(modules: Iterable[nn.Module], numbers: Iterable[int], place: str) -> Iterator[None]:
    """Inside, the forward hooks of these handles stand "first", "last", or where they are.

    Those that stand last stay so when others come.
    """
    mine = set(numbers)
    if place == "last":
        _last.update(mine)
    for module in modules:
        held: Any = module._forward_hooks  # an OrderedDict
        if place == "first":
            for number in reversed([n for n in held if n in mine]):
                held.move_to_end(number, last=False)
        for number in [n for n in held if n in _last]:
            held.move_to_end(number)
    try:
        yield
    finally:
        _last.difference_update(mine)


def foreign_hooks(*roots: Any) -> list[str]:
    """Names of the modules, in or under these, that carry hooks of somebody else."""
    return [
        name
        for name, module in _modules(*roots)
        if any(
            number not in _own and not _is_of_model(hook)
            for hooks in HOOK_DICTS
            for number, hook in getattr(module, hooks).items()
        )
    ]


@contextmanager
def without_recorders(root: nn.Module) -> Iterator[None]:
    """Inside, no hook of transformers collects a model's outputs, which nobody asks for.

    Such hooks stay on layers and attention once patterns were asked for, as TransformerLens does,
    and each costs time in every pass.
    """
    aside = [
        (module, module._forward_hooks)
        for module in root.modules()
        if module._forward_hooks and all(map(_is_recorder, module._forward_hooks.values()))
    ]
    try:
        for module, hooks in aside:
            module._forward_hooks = type(hooks)()
        yield
    finally:
        for module, hooks in aside:
            module._forward_hooks = hooks


def _is_recorder(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")) == "transformers.utils.output_capturing"


def _is_of_model(hook: Any) -> bool:
    """Whether a hook is how a library's model works; a user's are wrapped at hook points."""
    return str(getattr(hook, "__module__", "")).startswith(_OF_MODELS)


def _modules(*roots: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module in or under these, those inside TransformerLens's bridges included."""
    seen: set[int] = set()
    waiting = [(type(root).__name__, root) for root in roots]
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        waiting.extend((f"{name}.{k}", m) for k, m in module._modules.items() if m is not None)
        inside = getattr(module, "original_component", None)
        if isinstance(inside, nn.Module):
            waiting.append((name, inside))
