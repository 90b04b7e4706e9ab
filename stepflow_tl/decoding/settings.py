"""How responses are decoded: one frozen object with one default for each value."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import TypedDict

from stepflow_tl.decoding.budget import ThinkingBudget
from stepflow_tl.decoding.stopping import stop_strings
from stepflow_tl.errors import GenerationError
from stepflow_tl.traces.chat import Chat
from stepflow_tl.traces.formats import Format, named_format

PAPER_MAX_NEW_TOKENS = 32_768
"""Where the paper cuts a response."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How responses are decoded; what `generate`, tasks, strategies and sweeps take.

    Attributes:
        max_new_tokens: Cut a response here; its trace then has ``ended`` False.
        temperature: 0 for greedy decoding, which makes all samples of a prompt equal.
        top_p: Nucleus sampling's probability.
        seed: Same seed, same traces; each trace draws from its own generator, which is seeded by
            the question, or by the token ids of any other prompt.
        batch_size: Responses decoded at a time, left-padded, against one KV cache; where one ends,
            the next in the queue takes its place. In float32 it changes a text only where two
            logits are equal to within rounding; in narrower types rounding is coarser, and texts
            may differ.
        budget: Cut or prolong the thinking at a number of tokens. A response whose prompt has
            closed the thinking, or of a model that has none, is left alone.
        stop: Texts that end a response in its answer (from the first character that is not white
            space), with the token that completes one; its trace then has ``ended`` False.
        chat: Whether to ask with the tokenizer's chat template, and how.
        format: How the model writes its reasoning; ``"auto"`` asks chat template, prompt and text.
    """

    max_new_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 32
    budget: ThinkingBudget | None = None
    stop: str | Sequence[str] = ()
    chat: bool | Chat = True
    format: str | Format = "auto"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            GenerationError: A setting is out of range.
            ValueError: The format is unknown, or a stop string is empty.
        """
        for name in ("max_new_tokens", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise GenerationError(f"expected {name} >= 1, got {value!r}")
        for name in ("temperature", "top_p"):
            if not isinstance(getattr(self, name), Real):
                raise GenerationError(f"expected {name} as a number, got {getattr(self, name)!r}")
            object.__setattr__(self, name, float(getattr(self, name)))  # 1 and 1.0 are one setting
        if not 0.0 <= self.temperature < float("inf"):
            raise GenerationError(f"expected temperature >= 0, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise GenerationError(f"expected top_p in (0, 1], got {self.top_p}")
        if self.budget is not None and not isinstance(self.budget, ThinkingBudget):
            raise GenerationError(f"expected budget to be a ThinkingBudget, got {self.budget!r}")
        named_format(self.format)
        object.__setattr__(self, "stop", stop_strings(self.stop))

    @property
    def draws(self) -> bool:
        """Whether tokens are sampled, so that traces depend on the seed."""
        return self.temperature > 0.0

    def generator(self, prompt: str, sample: int) -> torch.Generator:
        """The random numbers of one trace."""
        digest = hashlib.sha256(f"{self.seed}\0{sample}\0{prompt}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def choose(
        self, logits: Float[Tensor, "batch vocab"], generators: Sequence[torch.Generator]
    ) -> Int[Tensor, "batch"]:
        """The next token of each row."""
        if not self.draws:
            return logits.argmax(-1)
        probabilities = (logits.float() / self.temperature).softmax(-1)
        ordered, tokens = probabilities.sort(dim=-1, descending=True)
        reached = ordered.cumsum(-1)
        ordered = ordered.masked_fill(reached - ordered >= self.top_p, 0.0)
        reached = ordered.cumsum(-1)
        drawn = torch.cat([torch.rand(1, generator=g) for g in generators]).to(logits.device)
        chosen = torch.searchsorted(reached, (drawn * reached[:, -1])[:, None], right=True)
        return tokens.gather(1, chosen.clamp_max(tokens.shape[1] - 1))[:, 0]


class DecodingSettings(TypedDict, total=False):
    """The settings of a `Decoding`, as keywords."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    batch_size: int
    budget: ThinkingBudget | None
    stop: str | Sequence[str]
    chat: bool | Chat
    format: str | Format


def settled(decoding: Decoding | None, settings: Mapping[str, Any]) -> Decoding:
    """A decoding, with single settings in place of its own.

    Raises:
        GenerationError: There is no such setting, or one is out of range.
    """
    known = [field.name for field in fields(Decoding)]
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise GenerationError(f"unknown settings {unknown} of decoding: expected some of {known}")
    if decoding is not None and not isinstance(decoding, Decoding):
        raise GenerationError(f"expected a Decoding, got {decoding!r}")
    return replace(decoding or Decoding(), **settings)
