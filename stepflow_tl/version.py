"""The package's version, and those that its results depend on."""

import platform
from importlib.metadata import version

__version__ = version("stepflow-tl")


def versions() -> dict[str, str]:
    """Versions that a result depends on, by package."""
    return {
        "stepflow-tl": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformer-lens", "transformers")},
    }
