"""Stop strings: a response ends where one is complete in its answer.

Like budget forcing, this only looks at what was written. Texts that end an answer, such as a blank
line, are common in thinking and mean nothing there, nor in the white space before the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from stepflow_tl.errors import SettingError
from stepflow_tl.traces.reader import TraceReader


def stop_strings(texts: str | Sequence[str]) -> tuple[str, ...]:
    """The stop strings; one text is one of them.

    Raises:
        ValueError: One of them is empty, or no text.
    """
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        given: tuple[Any, ...] = (texts,)
    else:
        given = tuple(texts)
    if not all(isinstance(text, str) and text for text in given):
        raise SettingError(f"expected stop strings with some text, got {list(given)}")
    return given


class StoppedRow:
    """One response that stop strings may end.

    Args:
        texts: The stop strings; the first that is complete ends the response.
        reader: Reads the response; asked after each token.
    """

    def __init__(self, texts: Sequence[str], reader: TraceReader) -> None:
        self._texts = tuple(texts)
        self._reader = reader
        self._reach = max(map(len, texts))
        self._tail = ""  # text of the answer in which a stop string may still complete

    def stopped(self) -> bool:
        """Whether the token that was read last completes a stop string in the answer."""
        more = self._reader.answer_text
        self._tail = (self._tail + more) if self._tail else more.lstrip()
        found = any(text in self._tail for text in self._texts)
        self._tail = self._tail[-self._reach :]
        return found
