"""A line that follows what a monitor sees, in a terminal or a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from math import isfinite
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text
from torch import Tensor

from stepflow_tl.monitor.seen import Record

_BARS = "▁▂▃▄▅▆▇█"
_PAST = 24  # steps that the bars show


class LiveLine:
    """The last finished step and its measures, the first of them with its past as bars.

    Args:
        console: Where to draw; None for the usual place.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._stack = ExitStack()
        self._live: Live | None = None
        self._shown: Any = None  # in a notebook
        self._pretty: Any = None

    def __enter__(self) -> LiveLine:
        """Begin; nothing is drawn yet."""
        if not self._console.is_jupyter:
            live = Live(console=self._console, auto_refresh=False, transient=False)
            self._live = self._stack.enter_context(live)
        return self

    def __exit__(self, *raised: object) -> None:
        """The line stays as it is."""
        self._stack.close()

    def follow(self, records: Sequence[Record]) -> None:
        """Draw what the last record says."""
        text = line_of(records)
        if self._live is not None:
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
            return
        if self._shown is None:
            notebook: Any = import_module("IPython.display")
            self._pretty = notebook.Pretty
            self._shown = notebook.display(self._pretty(text), display_id=True)
        else:
            self._shown.update(self._pretty(text))


def line_of(records: Sequence[Record]) -> str:
    """The last record as a line; means over layers."""
    last = records[-1]
    shown = []
    for number, name in enumerate(last.values):
        past = [_mean(one.values[name]) for one in records if one.trace == last.trace]
        bars = f" {_bars(past[-_PAST:])}" if number == 0 else ""
        shown.append(f"{name}{bars} {past[-1]:.3f}" if isfinite(past[-1]) else f"{name}{bars} -")
    return "  ".join([f"trace {last.trace}  step {last.step} ({last.segment})", *shown])


def _mean(value: Tensor | float) -> float:
    return float(value.mean()) if isinstance(value, Tensor) else float(value)


def _bars(values: Sequence[float]) -> str:
    """Heights between 0 and the largest; a blank where there is no value."""
    most = max((value for value in values if isfinite(value)), default=0.0)
    heights = (
        round((len(_BARS) - 1) * value / most) if isfinite(value) and most > 0 else -1
        for value in values
    )
    return "".join(" " if height < 0 else _BARS[height] for height in heights)
