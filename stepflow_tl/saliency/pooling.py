"""Pooling token scores into step-to-step maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepflow_tl.traces.tokens import FRAME

Pool = Literal["mean", "sum", "share"]
Diagonal = Literal["causal", "full"]
FrameKeys = Literal["in", "out"]


@dataclass(frozen=True)
class StepPooler:
    """Pools a token map into a step map, Eq. (2).

        M[i, j] = mean_{t in step i, k in step j} I[t, k]

    Frame tokens are in no step and drop out. Above the diagonal the map is zero. With "share" each
    token has one vote, whatever its scale::

        M[i, j] = mean_{t in step i} (sum_{k in step j} I[t, k] / sum_{k <= t} I[t, k])

    so that a row of M sums to one, or to what its frame leaves. Token rows without any score have
    no shares and are left out of the mean.

    Attributes:
        step_of_token: Step of each token, `FRAME` (-1) for none.
        n_steps: Number of steps.
        pool: "mean" over a block, its "sum", or the mean "share" of each token's row.
        diagonal: What the mean of a diagonal block divides by: "causal", its pairs k <= t; or
            "full", all of its entries, causal zeros included (the authors' code). Of no matter to
            sums and shares.
        frame_keys: Whether the frame's keys are "in" a share's denominator, or "out".
    """

    step_of_token: Int[Tensor, "pos"]
    n_steps: int
    pool: Pool = "mean"
    diagonal: Diagonal = "causal"
    frame_keys: FrameKeys = "in"

    def __call__(
        self, scores: Float[Tensor, "*batch query key"]
    ) -> Float[Tensor, "*batch query_step key_step"]:
        """Pool the two token axes into step axes."""
        member = self._membership(scores)
        if self.pool != "share":
            return self.of_sums(member.T @ scores @ member)
        counted = scores if self.frame_keys == "in" else scores * member.sum(-1)
        total = counted.sum(-1, keepdim=True)
        shares = torch.where(total > 0, scores / total, torch.zeros_like(scores))
        used = (total > 0).to(scores).mT @ member  # [..., 1, step]
        return member.T @ shares @ member / used.mT.clamp_min(1.0)

    def of_sums(
        self, sums: Float[Tensor, "*batch query_step key_step"]
    ) -> Float[Tensor, "*batch query_step key_step"]:
        """The map, from the sums over the token pairs of each pair of steps.

        For "share" they are the map: `stepflow_tl.saliency.collect.StepShares` has divided them.
        """
        if self.pool != "mean":
            return sums
        return sums / self.pair_counts().to(sums).clamp_min(1.0)

    def pair_counts(self) -> Float[Tensor, "query_step key_step"]:
        """Number of token pairs that each block's mean divides by."""
        on_steps = self.step_of_token[self.step_of_token != FRAME]
        sizes = torch.bincount(on_steps, minlength=self.n_steps)
        counts = torch.outer(sizes, sizes).tril()
        if self.diagonal == "causal":
            counts = counts - torch.diag(sizes * (sizes - 1) // 2)
        return counts.double()

    def _membership(self, scores: Tensor) -> Float[Tensor, "pos step"]:
        steps = torch.arange(self.n_steps, device=scores.device)
        return (self.step_of_token.to(scores.device)[:, None] == steps).to(scores)
