"""The package's version, and those that its results depend on."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

__version__ = version("stepflow-tl")

RUNS_MODELS = ("torch", "transformer-lens", "transformers")
"""Bounded by major version in pyproject.toml: another one may run a model otherwise."""


def versions() -> dict[str, str]:
    """Versions that a result depends on, by package."""
    return {
        "stepflow-tl": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in RUNS_MODELS},
    }


def check_versions() -> None:
    """Refuse versions that are not supported, before they fail in words of their own.

    Raises:
        ImportError: A package is missing, or of a version that this one does not support.
    """
    wrong = dict(_unsupported())
    if wrong:
        said = "; ".join(f"expected {needed}, found {found}" for needed, found in wrong.items())
        raise ImportError(f"cannot run models: {said}; pip install {' '.join(map(repr, wrong))}")


def _unsupported() -> Iterator[tuple[str, str]]:
    """What this package asks for, and what is installed instead."""
    from packaging.requirements import Requirement

    for need in map(Requirement, requires("stepflow-tl") or ()):
        if need.name not in RUNS_MODELS:
            continue
        try:
            found = version(need.name)
            fits = need.specifier.contains(found, prereleases=True)  # builds from source
        except PackageNotFoundError:
            found, fits = "none", False
        if not fits:
            bounds = sorted(map(str, need.specifier), reverse=True)  # from ">=" to "<"
            yield f"{need.name}{','.join(bounds)}", found
