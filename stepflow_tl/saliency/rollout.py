"""Attention rollout (Abnar and Zuidema 2020): attention followed through the layers.

With A[l] a layer's pattern, averaged over heads, each row divided by its sum (which attention sinks
take below one)::

    R[l] = (A[l] + 1) / 2 * R[l - 1],    R[-1] = 1
    M[l, i, j] = mean_{t in step i} sum_{k in step j} R[l, t, k]

The half is the residual stream's. No gradient is needed, and heads are told apart by nothing. Rows
of R sum to one; what of them lies on the frame is in no step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl.saliency.pooling import StepPooler
from stepflow_tl.traces.trace import Trace


def rollout_scores(
    patterns: Mapping[int, Float[Tensor, "query key"]], trace: Trace, layers: tuple[int, ...]
) -> dict[int, Float[Tensor, "query_step key_step"]]:
    """The rollout up to each of some layers.

    Args:
        patterns: Attention of every layer up to the last of `layers`, averaged over heads.
        trace: Their trace.
        layers: The layers to stop at.
    """
    pooler = StepPooler(trace.step_of_token, len(trace.steps), "share")
    rolled = torch.eye(len(trace), dtype=patterns[0].dtype)
    scores = {}
    for layer in range(max(layers) + 1):
        pattern = patterns[layer]
        shares = pattern / pattern.sum(-1, keepdim=True).clamp_min(1e-30)
        rolled = (shares @ rolled + rolled) / 2
        if layer in layers:
            scores[layer] = pooler(rolled)
    return scores
