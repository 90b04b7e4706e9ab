"""Why a checkpoint could not be loaded, in words of what to do about it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError

from stepflow_tl.files import is_disk_full
from stepflow_tl.models.decoder import without_weights
from stepflow_tl.models.memory import in_gib
from stepflow_tl.models.precision import own_dtype

_EXPECTED = "expected 'reasoner', a local folder, a .gguf file, or a Hugging Face name"


def explain(name: str, error: BaseException) -> str:
    """Why a model could not be loaded, and what would help.

    Args:
        name: What the model was asked for by.
        error: What was raised; what caused it is looked at, too.
    """
    from huggingface_hub import errors

    chain = list(_causes(error))
    for kind, message in (
        (errors.GatedRepoError, _gated),
        (errors.RevisionNotFoundError, _no_revision),
        (errors.RepositoryNotFoundError, _not_found),
    ):
        if any(isinstance(one, kind) for one in chain):
            return message(name)
    if any(is_disk_full(one) for one in chain):
        return _no_space(name)
    unreachable = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError)
    if any(isinstance(one, unreachable) for one in chain):
        return _unreachable(name)
    said = " ".join(str(error).strip().splitlines()[:1]) or type(error).__name__
    if any(isinstance(one, SafetensorError) for one in chain):
        damage = next(one for one in chain if isinstance(one, SafetensorError))
        return (
            f"model {name!r} could not be loaded: expected whole .safetensors files, got damaged "
            f"or truncated weights ({damage}); remove them, and download or save them again"
        )
    if isinstance(error, OSError):
        return f"no model {name!r}: {_EXPECTED} that is cached or can be downloaded ({said})"
    return f"model {name!r} could not be loaded: {error}"


def cache_folder() -> Path:
    """Where downloaded models are kept."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def weights_size(source: str, dtype: torch.dtype | None = None) -> int | None:
    """Bytes of a checkpoint's weights, from its configuration alone; None where it is not known.

    Args:
        source: A folder, or a name whose configuration is cached.
        dtype: The type they are to be in; None for their own.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, local_files_only=True)
        model = without_weights(config)
    except Exception:  # it is only said to help
        return None
    each = (dtype or own_dtype(config)).itemsize
    size: int = sum(parameter.numel() for parameter in model.parameters()) * each
    return size


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _gated(name: str) -> str:
    return (
        f"model {name!r} is gated: expected an account that may read it, got none; accept its "
        f"licence on the model's page on the Hugging Face Hub ({name}), then log in with "
        "'hf auth login' or set HF_TOKEN"
    )


def _not_found(name: str) -> str:
    return (
        f"no model {name!r}: {_EXPECTED} that is cached or can be downloaded; the Hub has none of "
        "this name: check its spelling, and log in with 'hf auth login' if it is private"
    )


def _no_revision(name: str) -> str:
    return (
        f"model {name!r} has no such revision: expected a branch, a tag or a commit of it; leave "
        "revision=... out for the newest"
    )


def _unreachable(name: str) -> str:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    why = "HF_HUB_OFFLINE is set" if offline else "the Hub could not be reached"
    return (
        f"no model {name!r}: {_EXPECTED} that is cached or can be downloaded; it is not cached in "
        f"{cache_folder()}, and {why}: check the spelling, or download it where there is a network"
    )


def _no_space(name: str) -> str:
    folder, needed = cache_folder(), weights_size(name)
    there = next((p for p in (folder, *folder.parents) if p.is_dir()), Path("/"))
    free = in_gib(shutil.disk_usage(there).free)
    size = "enough" if needed is None else f"about {in_gib(needed)}"
    return (
        f"no space left on the disk for model {name!r}: expected {size} in {folder}, got {free} "
        "free; make room there, or set HF_HOME to a folder on a larger disk"
    )
