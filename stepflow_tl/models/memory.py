"""Out of memory: said as an error of this package, with the setting that would fit."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError

_SAYINGS = (  # of RuntimeErrors, where a backend has no type of its own
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    f"os error {errno.ENOMEM}",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_ASKED = re.compile(r"tried to allocate ([\d.]+ ?\w+)", re.IGNORECASE)
_GIB = 1 << 30


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error of torch's, or of the system, says that memory is used up."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    kinds = (RuntimeError, OSError, SafetensorError)
    return isinstance(error, kinds) and any(words in str(error) for words in _SAYINGS)


@contextmanager
def out_of_memory_as(error: type[ValueError], advice: Callable[[], str]) -> Iterator[None]:
    """Inside, running out of memory is an error of this package.

    What the failed calls held is let go, so that another try finds the memory free although the
    error is still held somewhere (a notebook keeps the last one).

    Args:
        error: What to raise, from the original error.
        advice: What was asked for, and the setting that would fit.

    Raises:
        ValueError: As `error`.
    """
    try:
        yield
    except (RuntimeError, OSError, SafetensorError) as reason:
        if not is_out_of_memory(reason):
            raise
        asked = _ASKED.search(str(reason))
        more = f" ({asked[1]} more were asked for)" if asked else ""
        traceback.clear_frames(reason.__traceback__)
        raise error(f"out of memory{more}: {advice()}") from reason


def in_gib(size: int) -> str:
    """A number of bytes, for people."""
    return f"{size / _GIB:.1f} GiB"
