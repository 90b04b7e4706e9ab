"""Budget forcing: a response's thinking is cut, or prolonged, at a number of tokens.

After Muennighoff et al., "s1: Simple test-time scaling" (2025). Like sampling, it only decides
which token comes next: it knows nothing of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stepflow_tl.errors import SettingError
from stepflow_tl.traces.formats import NEXT_MESSAGE, Format
from stepflow_tl.traces.reader import TraceReader

_CLOSINGS = {"think": "\n</think>\n\n", "harmony": NEXT_MESSAGE}


@dataclass(frozen=True, kw_only=True)
class ThinkingBudget:
    """How many tokens the thinking of a response may and must have.

    Attributes:
        least: While the thinking is shorter, the token that would end it is replaced by `wait`.
        most: When the thinking is this long, it is closed by the format's own delimiter; None for
            no limit.
        wait: What is written instead of an end that comes too early.
    """

    least: int = 0
    most: int | None = None
    wait: str = "Wait"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: A limit is negative, they contradict each other, or `wait` is empty.
        """
        if self.least < 0 or (self.most is not None and self.most < max(1, self.least)):
            raise SettingError(
                f"expected 0 <= least <= most and most >= 1 (or None), got least={self.least}, "
                f"most={self.most}"
            )
        if not self.wait:
            raise SettingError("expected wait to be some text, got ''")

    def plan(self, tokenizer: Any, form: Format, end_ids: frozenset[int]) -> Forcing:
        """The token ids that this budget means for a tokenizer and a format.

        Raises:
            ValueError: The format has no delimiter between thinking and summary, or the tokenizer
                cannot write what is needed.
        """
        if form.summary_open is None:
            raise SettingError(
                f"a thinking budget needs a format with a delimiter after the thinking, and format "
                f"{form.name!r} has none"
            )

        def ids(text: str) -> tuple[int, ...]:
            return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

        closing = _CLOSINGS.get(form.name, form.summary_open)
        if form.summary_open not in closing:
            closing += form.summary_open
        added = set(tokenizer.get_added_vocab().values())
        enders = [token for token in ids(closing) if token in added][:1]
        if self.least and not enders:
            raise SettingError(
                f"prolonging the thinking needs a delimiter that begins with a token of its own, "
                f"but the tokenizer splits {closing!r} into ordinary tokens"
            )
        if self.least and not ids(self.wait):
            raise SettingError(f"expected wait to be some text, but {self.wait!r} has no token")
        return Forcing(
            budget=self,
            closing=ids(closing),
            wait=ids(self.wait),
            enders=frozenset(enders) | end_ids,
        )


@dataclass(frozen=True)
class Forcing:
    """A `ThinkingBudget` in token ids.

    Attributes:
        budget: The budget.
        closing: What is written to close the thinking.
        wait: What is written to prolong it.
        enders: Tokens that would end it.
    """

    budget: ThinkingBudget
    closing: tuple[int, ...]
    wait: tuple[int, ...]
    enders: frozenset[int]


class Plans:
    """What a budget means in token ids, for each format that responses turn out to have.

    Args:
        budget: The budget.
        tokenizer: The model's tokenizer.
        end_ids: Ids that end a response.
    """

    def __init__(self, budget: ThinkingBudget, tokenizer: Any, end_ids: frozenset[int]) -> None:
        self._budget, self._tokenizer, self._end_ids = budget, tokenizer, end_ids
        self._plans: dict[Format, Forcing] = {}

    def of(self, form: Format) -> Forcing:
        """The plan for a format.

        Raises:
            ValueError: The budget does not fit it.
        """
        if form not in self._plans:
            self._plans[form] = self._budget.plan(self._tokenizer, form, self._end_ids)
        return self._plans[form]


class ForcedRow:
    """One response under a budget.

    Args:
        plans: The budget in token ids.
        reader: Reads the response, each token that `next` gave: says whether it is thinking, and
            how long it is.
    """

    def __init__(self, plans: Plans, reader: TraceReader) -> None:
        self._plans = plans
        self._reader = reader
        self._due: Sequence[int] = ()
        self._cut = False

    def next(self, chosen: int) -> int:
        """The token that is written where the model chose `chosen`."""
        if not self._due:
            if self._cut or not self._reader.thinking:
                return chosen
            forcing, length = self._plans.of(self._reader.form), self._reader.response_length
            most = forcing.budget.most
            if most is not None and length >= most:
                self._due, self._cut = forcing.closing, True
            elif chosen in forcing.enders and length < forcing.budget.least:
                self._due = forcing.wait
            else:
                return chosen
        token, *rest = self._due
        self._due = rest
        return token
