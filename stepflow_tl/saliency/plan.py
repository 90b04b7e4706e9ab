"""How a trace is scored, decided once (`stepflow_tl.saliency.planning`) and only executed after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from stepflow_tl.saliency.rules import OWN_ROW, Objective, TokenRule, needs_gradient

Backend = Literal["auto", "hooks", "fused"]

_OR_FUSED = " or backend='fused', which keeps no pattern"


@dataclass(frozen=True)
class Plan:
    """How a trace is to be scored.

    Attributes:
        rule: How a pattern and its gradient give a score.
        objective: Whose gradient.
        backend: "hooks" or "fused".
        layers: The layers to score.
        chunks: The queries of each chunk; one chunk for the whole trace.
        checkpointing: Whether layers run again in the backward pass.
        weights: Weight of each row's own loss, times the gain.
        gain: What scores are multiplied by on their way; results are divided by it.
    """

    rule: TokenRule
    objective: Objective
    backend: Literal["hooks", "fused"]
    layers: tuple[int, ...]
    chunks: tuple[range, ...]
    checkpointing: bool
    weights: Float[Tensor, "pos"]
    gain: float

    @property
    def needs_gradient(self) -> bool:
        """Whether a backward pass is made."""
        return needs_gradient(self.rule)

    @property
    def streamed(self) -> bool:
        """Whether rows are scored each for itself, or without a gradient: chunk by chunk."""
        return in_chunks(self.rule, self.objective)

    def advice(self) -> str:
        """What would need less memory."""
        got = f"backend={self.backend!r}, objective={self.objective!r}"
        if self.streamed:
            size = len(self.chunks[0])
            less = f"chunk={max(1, size // 2)}" + ("" if self.backend == "fused" else _OR_FUSED)
            return f"expected a chunk that fits, got chunk={size} with {got}; try {less}"
        if self.backend == "hooks":
            less = "backend='fused', with checkpointing=True, or objective='token' with a chunk=..."
        elif not self.checkpointing:
            less = "checkpointing=True, or objective='token' with a chunk=..."
        else:
            less = "objective='token' with a chunk=..., or a model in dtype='bfloat16'"
        return (
            f"expected a trace that fits whole, got {self.chunks[-1].stop} tokens with {got}, "
            f"checkpointing={self.checkpointing}; try {less}"
        )


def in_chunks(rule: TokenRule, objective: Objective) -> bool:
    """Whether rows are independent given earlier keys and values."""
    return objective in OWN_ROW or not needs_gradient(rule)
