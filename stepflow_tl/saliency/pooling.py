"""Pooling token scores into step-to-step maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepflow_tl.traces.tokens import FRAME

Pool = Literal["mean", "sum"]
Diagonal = Literal["causal", "full"]


@dataclass(frozen=True)
class StepPooler:
    """Pools a token map into a step map, Eq. (2).

        M[i, j] = mean_{t in step i, k in step j} I[t, k]

    Frame tokens are in no step and drop out. Above the diagonal the map is zero.

    Attributes:
        step_of_token: Step of each token, `FRAME` (-1) for none.
        n_steps: Number of steps.
        pool: "mean" over a block, or its "sum".
        diagonal: What the mean of a diagonal block divides by: "causal", its pairs k <= t; or
            "full", all of its entries, causal zeros included (the authors' code).
    """

    step_of_token: Int[Tensor, "pos"]
    n_steps: int
    pool: Pool = "mean"
    diagonal: Diagonal = "causal"

    def __call__(
        self, scores: Float[Tensor, "*batch query key"]
    ) -> Float[Tensor, "*batch query_step key_step"]:
        """Pool the two token axes into step axes."""
        member = self._membership(scores)
        return self.of_sums(member.T @ scores @ member)

    def of_sums(
        self, sums: Float[Tensor, "*batch query_step key_step"]
    ) -> Float[Tensor, "*batch query_step key_step"]:
        """The map, from the sums over the token pairs of each pair of steps."""
        if self.pool == "sum":
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
