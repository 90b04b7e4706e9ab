"""The command line: thin over the library.

`app` is the program, `options` what several commands take; `traces`, `benchmarks`, `repair`
and `sweeps` hold the commands, `demo` the main job (its numbers: `settings`; its processes:
`workers`; the failure in it: `demo_failure`; its page: `demo_story`). Nothing heavy is imported
before a command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from stepflow_tl.cli import traces  # noqa: F401  these bring commands, in the help's order

# isort: split
from stepflow_tl.cli import benchmarks, repair, sweeps  # noqa: F401
from stepflow_tl.cli.app import app

_HINTS = {
    "matplotlib": "; pictures need pip install 'stepflow-tl[viz]'",
    "lm_eval": "; lm-eval needs pip install 'stepflow-tl[eval]'",
}
"""What is said where a package is missing."""


@contextmanager
def errors_on_one_line() -> Iterator[None]:
    """Inside, an error is one line on standard error, and the process ends with 1 (Ctrl-C: 130)."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except (ValueError, OSError, ArithmeticError, RuntimeError, ImportError, MemoryError) as error:
        missing = str(getattr(error, "name", None) or "").split(".")[0]
        said = "out of memory" if isinstance(error, MemoryError) else type(error).__name__
        what = " ".join(str(error).split()) or said
        sys.stderr.write(f"error: {what}{_HINTS.get(missing, '')}\n")
        sys.exit(1)


def main() -> None:
    """Run the command line."""
    with errors_on_one_line():
        app()
