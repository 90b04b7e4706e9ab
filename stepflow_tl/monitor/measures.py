"""What a step's row of a map says of it: plain functions of shares.

Each takes a step's shares ``[layer, key_step]`` of the steps up to itself, in order (the last one
is its own share), which sum to one, and the segments of these steps; it gives a number per layer,
NaN where the step has none. Maps are diagnosed with the same functions
(`stepflow_tl.analysis.diagnose`), and watched with them while they come to be (`Monitor`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

Shares = Float[Tensor, "layer key_step"]
PerLayer = Float[Tensor, "layer"]
Measure = Callable[[Shares, Sequence[str]], PerLayer]
"""Of a step's shares, and the segments of all steps up to it, its own last, a number per layer."""


def self_share(shares: Shares, segments: Sequence[str]) -> PerLayer:
    """Share of a step on itself."""
    return shares[:, -1]


def neighbor_share(shares: Shares, segments: Sequence[str]) -> PerLayer:
    """Share of a thinking step on the one just before it; the first one has none."""
    if not _is_thinking(2, segments):
        return _nothing(shares)
    return shares[:, -2]


def lock_in(shares: Shares, segments: Sequence[str]) -> PerLayer:
    """Share of a thinking step on itself and its neighbor: near 1 where the rest is ignored.

    Of the third thinking step on: before, there is no rest but the question.
    """
    if not _is_thinking(3, segments):
        return _nothing(shares)
    return self_share(shares, segments) + neighbor_share(shares, segments)


def earlier_share(shares: Shares, segments: Sequence[str]) -> PerLayer:
    """Share of a thinking step on all thinking before its neighbor; of the third one on."""
    return share_on("thinking", shares, segments) - lock_in(shares, segments)


def share_on(segment: str, shares: Shares, segments: Sequence[str]) -> PerLayer:
    """Share of a step on all steps of a segment."""
    wanted = torch.tensor([name == segment for name in segments], device=shares.device)
    return shares[:, wanted].sum(-1)


def _is_thinking(number: int, segments: Sequence[str]) -> bool:
    """Whether the last step is of the thinking, the second, third, ... of it or a later one."""
    return segments[-1] == "thinking" and list(segments).count("thinking") >= number


def _of_summary(segment: str, shares: Shares, segments: Sequence[str]) -> PerLayer:
    if segments[-1] != "summary":
        return _nothing(shares)
    return share_on(segment, shares, segments)


def _nothing(shares: Shares) -> PerLayer:
    return shares.new_full(shares.shape[:1], torch.nan)


OF_SHARES: Mapping[str, Measure] = {
    "self_share": self_share,
    "neighbor_share": neighbor_share,
    "question_share": partial(share_on, "question"),
    "earlier_share": earlier_share,
    "lock_in": lock_in,
    "summary_on_thinking": partial(_of_summary, "thinking"),
    "summary_on_summary": partial(_of_summary, "summary"),
    "summary_on_question": partial(_of_summary, "question"),
}
"""Every measure of a step's shares, by its name."""


def entropy(logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """Entropy of next-token distributions, in nats."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


TOP = 20


def confidence(logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """Minus the mean log-probability of the 20 likeliest next tokens, in nats.

    Large where one token takes it all (DeepConf: Fu et al. 2025, Eq. 2).
    """
    log_p = logits.log_softmax(-1)
    return -log_p.topk(min(TOP, log_p.shape[-1]), dim=-1).values.mean(-1)


OF_LOGITS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "entropy": entropy,
    "confidence": confidence,
}
"""Every measure of what a token was drawn from, by its name; a step has the mean of its tokens."""

MEASURES = (*OF_SHARES, *OF_LOGITS)
"""The names of all measures."""
