"""What a step cutter is: asked token by token where a new step starts inside one segment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

Cutter = Callable[[str, str], bool]
CutterName = Literal["sentence", "full_stop", "anchors", "paragraph", "line", "none"]


class StepCutter(ABC):
    """Decides where a new step starts inside one segment; keeps what it needs of the open step.

    An instance serves one segment of one trace.
    """

    @abstractmethod
    def open(self, token: str) -> None:
        """Begin a step with this token, and forget the step before."""

    @abstractmethod
    def push(self, token: str, may_cut: bool = True) -> bool:
        """Read the next token of the segment; True if it starts a new step, which is then open.

        Args:
            token: Its text; empty where it ends inside a UTF-8 character.
            may_cut: False where the token must join the open step; a boundary before it then
                waits for the next token.
        """


Cutting = CutterName | Cutter | type[StepCutter]
"""How a segment is cut: by a rule of that name, by a callable, or by a class called afresh."""
