"""Files of this package: tensors in safetensors, everything else as JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_VERSION = "1"


def write_file(path: str | Path, kind: str, tensors: dict[str, Tensor], facts: Any) -> None:
    """Write tensors and JSON-able facts to one file of the given kind."""
    header = {"kind": kind, "version": _VERSION, "facts": json.dumps(facts)}
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, str(path), metadata=header
    )


def read_file(
    path: str | Path, kind: str, error: type[ValueError]
) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Read what `write_file` wrote.

    Returns:
        The tensors and the facts.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: As `error`: the file is truncated, or of another kind or version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {kind} file at {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as reason:
        raise error(f"{path} is not a readable {kind} file (truncated?): {reason}") from None
    if header.get("kind") != kind or header.get("version") != _VERSION:
        raise error(
            f"expected a {kind} file of version {_VERSION}, but {path} is "
            f"{header.get('kind', 'another kind of safetensors file')!r}, "
            f"version {header.get('version', 'unknown')!r}"
        )
    return tensors, json.loads(header["facts"])
