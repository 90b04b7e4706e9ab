"""A tiny checkpoint for sweeps: by name, and loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def folder(tiny_folder: Callable[..., Path]) -> Path:
    """A tiny checkpoint, as a name for `Sweep(model=...)`."""
    return tiny_folder("qwen2")


@pytest.fixture(scope="session")
def tiny_model(tiny: Callable[..., Any]) -> Any:
    """The same checkpoint, loaded."""
    return tiny("qwen2")
