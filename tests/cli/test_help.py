"""What help says of defaults and choices is what the library has, though it loads none of it."""

import inspect
import re
from dataclasses import fields
from typing import Any, get_args

import pytest
import typer

import stepflow_tl
from stepflow_tl import OddsEqualBridge, StepMomentum, estimate
from stepflow_tl.cli import app
from stepflow_tl.integrations.grade_file import Fields
from stepflow_tl.saliency import Backend, Objective, Pool, Rule
from stepflow_tl.tasks.sources import KINDS

COMMANDS = typer.main.get_command(app).commands


def option(command: str, name: str) -> Any:
    (found,) = (each for each in COMMANDS[command].params if each.name == name)
    return found


def defaults(what: Any) -> dict[str, Any]:
    """Of a function's arguments, or of a dataclass's fields."""
    if isinstance(what, type):
        return {field.name: field.default for field in fields(what)}
    return {p.name: p.default for p in inspect.signature(what).parameters.values()}


@pytest.mark.parametrize(
    ("command", "what", "names"),
    [
        ("generate", OddsEqualBridge, ["tau_max"]),
        ("generate", StepMomentum, ["alpha"]),
        (
            "generate",
            stepflow_tl.Decoding,
            ["max_new_tokens", "temperature", "top_p", "seed", "batch_size", "chat"],
        ),
        (
            "saliency",
            stepflow_tl.step_saliency,
            ["rule", "objective", "backend", "work_file", "chunk", "checkpointing"],
        ),
        ("grade", Fields, ["response", "gold", "score"]),
        ("estimate", estimate.Run, ["max_new_tokens", "prompt_tokens", "tokens", "dtype", "gpus"]),
    ],
)
def test_defaults_are_the_librarys(command: str, what: Any, names: list[str]) -> None:
    theirs = defaults(what)
    for name in names:
        assert option(command, name).default == theirs[name], name


@pytest.mark.parametrize(
    ("command", "name", "choices"),
    [
        ("saliency", "rule", get_args(Rule)),
        ("saliency", "objective", get_args(Objective)),
        ("saliency", "pool", get_args(Pool)),
        ("saliency", "backend", get_args(Backend)),
        ("prompt", "kind", KINDS),
        ("grade", "kind", KINDS),
        ("estimate", "gpu", estimate.GPUS),
        ("estimate", "dtype", estimate.DTYPE_BYTES),
    ],
)
def test_choices_are_all_named(command: str, name: str, choices: Any) -> None:
    chosen = option(command, name)
    assert set(choices) <= set(re.findall(r"[\w-]+", chosen.help))
    assert chosen.default is None or chosen.default in choices
