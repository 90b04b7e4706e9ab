"""Somebody else's step boundaries: offsets of tokens or characters, and what is said of steps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from numbers import Integral
from typing import Any

from stepflow_tl.errors import SettingError
from stepflow_tl.traces.tokens import FRAME


def increasing(cuts: Sequence[int], size: int, what: str) -> list[int]:
    """Offsets that go up within a sequence.

    Args:
        cuts: The offsets.
        size: Length of the sequence.
        what: What is counted, for the message.

    Raises:
        ValueError: They do not.
    """
    places = list(cuts)
    if not all(isinstance(cut, Integral) for cut in places):
        raise SettingError(f"expected cuts as numbers of {what}, got {places[:10]!r}")
    if any(b <= a for a, b in pairwise(places)) or not all(0 <= at < size for at in places):
        raise SettingError(
            f"expected cuts that go up from 0 to below the {size} {what}, got {places[:10]}"
        )
    return places


def tokens_at(texts: Sequence[str], text: str, cuts: Sequence[int]) -> list[int]:
    """The token that each cut, counted in characters, begins at.

    It is the one that holds the first character that is not white space from the cut on; the next
    one, where that token has begun with other text before the cut.

    Args:
        texts: Text of each token.
        text: The whole text.
        cuts: Numbers of characters.

    Raises:
        ValueError: The tokens do not say the text, or the cuts do not go up within it.
    """
    places = increasing(cuts, len(text), "characters")
    if "".join(texts) != text:
        raise SettingError(
            f"expected a text that its tokens say, to count its {len(text)} characters, got tokens "
            f"that say {sum(map(len, texts))}; pass cuts of tokens to Trace.from_token_ids"
        )
    starts = list(accumulate(map(len, texts), initial=0))
    found = []
    for cut in places:
        first = next((i for i in range(cut, len(text)) if not text[i].isspace()), len(text))
        token = bisect_right(starts, first) - 1
        found.append(token + bool(text[starts[token] : cut].strip()))
    return found


def labels_of_steps(
    steps: Sequence[int], cuts: Sequence[int], labels: Sequence[Mapping[str, Any]]
) -> dict[int, Mapping[str, Any]]:
    """What is said of each step: that of the cut where it begins, or that lies before it.

    Args:
        steps: Step of each token.
        cuts: Tokens that steps begin at.
        labels: What is said at each cut.

    Raises:
        ValueError: There are not as many labels as cuts.
    """
    if len(labels) != len(cuts):
        raise SettingError(f"expected labels for {len(cuts)} cuts, got {len(labels)}")
    found: dict[int, Mapping[str, Any]] = {}
    for cut, said in zip(cuts, labels, strict=True):
        step = next((step for step in steps[cut:] if step != FRAME), None)
        if step is not None:
            found[step] = {**found.get(step, {}), **said}
    return found
