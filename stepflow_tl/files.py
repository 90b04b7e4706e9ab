"""Files of this package: tensors in safetensors, everything else as JSON in its header."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_VERSION = "1"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_file(path: str | Path, kind: str, tensors: dict[str, Tensor], facts: Any) -> None:
    """Write tensors and JSON-able facts to one file of the given kind, whole or not at all.

    Raises:
        OSError: The disk is full, or the place cannot be written to; an older file stays as it is.
    """
    header = {"kind": kind, "version": _VERSION, "facts": json.dumps(facts)}
    path = Path(path)
    try:
        with replacing(path) as unfinished:
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()},
                str(unfinished),
                metadata=header,
            )
    except (SafetensorError, OSError) as error:
        raise OSError(f"could not write a {kind} file to {path}: {_said(error)}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place to write a file to, which takes that of an older one when the block is left well.

    Raises:
        OSError: The place cannot be written to; an older file stays as it is.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


_MOUNTS = Path("/proc/self/mounts")
_NETWORK = re.compile(
    r"(nfs\d?|cifs|smb\w*|afs|ceph|lustre|gpfs|beegfs\w*|panfs|gfs2|ocfs2|glusterfs|pvfs2|wekafs|"
    r"fuse\.(sshfs|glusterfs\S*|ceph\S*|s3fs|gcsfuse|rclone|juicefs|moosefs|lizardfs|weka\w*))"
)


def network_file_system(path: str | Path) -> str | None:
    """Kind of the network file system that a path lies on; None on a disk of this machine.

    Told by Linux alone (its table of mounts); elsewhere None.
    """
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    place, found = Path(path).resolve(), (0, "")
    for line in lines:
        _, mounted, kind, *_ = line.split()
        mounted = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), mounted)
        if place.is_relative_to(mounted) and len(mounted) >= found[0]:
            found = (len(mounted), kind)
    return found[1] if _NETWORK.fullmatch(found[1]) else None


def _said(error: Exception) -> str:
    if is_disk_full(error):
        return "no space left on the disk; make room, or give another folder"
    return str(error)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that no space is left to write to."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return isinstance(error, SafetensorError) and f"os error {errno.ENOSPC}" in str(error)


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
