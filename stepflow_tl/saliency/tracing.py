"""From the answer back to the question: hops along a map's row shares.

A walk begins at a step. From a step of the thinking or summary it goes to an earlier one, with the
chance that the step's row of the map gives it (what lies on the step itself is left out, and the
rest divided by its sum); in the question it ends. With P[i, j], j < i, these chances::

    hop_1[j] = P[target, j],    hop_n[j] = sum_i hop_{n-1}[i] P[i, j]  over i outside the question
    through[j] = hop_1[j] + hop_2[j] + ...

No walk comes by a step twice, so that ``through`` is the chance that it passes there: of the steps
of the question, the shares in which the target rests on them, directly or through the thinking.
(Attribution of a span in hops through the reasoning is FlashTrace's idea, 2602.01914; this is its
plainest form, on steps.)
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepflow_tl.errors import NonFiniteError, SettingError, StepMapError
from stepflow_tl.saliency.maps import StepMap


def chances(
    scores: Float[Tensor, "*batch query_step key_step"],
) -> Float[Tensor, "*batch query_step key_step"]:
    """P: each row's shares of the steps before it; zero where it has no score on any."""
    earlier = scores.double().abs().tril(-1)
    total = earlier.sum(-1, keepdim=True)
    return torch.where(total > 0, earlier / total.clamp_min(1e-300), torch.zeros_like(earlier))


def passing(
    shares: Float[Tensor, "*batch query_step key_step"], ends: Bool[Tensor, "step"]
) -> Float[Tensor, "*batch query_step key_step"]:
    """The chance that a walk from each step passes each earlier one.

    Args:
        shares: P, of `chances`.
        ends: Steps where a walk ends: those of the question.
    """
    through = torch.zeros_like(shares)
    going_on = (~ends).to(shares)
    for step in range(shares.shape[-1]):
        row = shares[..., step, :]
        through[..., step, :] = row + ((row * going_on)[..., None, :] @ through)[..., 0, :]
    return through


def trace_back(step_map: StepMap, target: int | str = "answer", hops: int = 3) -> pd.DataFrame:
    """Follow a map's rows from a step back to the question; layers and heads are averaged.

    Args:
        step_map: The map; `StepMap.band` chooses layers.
        target: Where walks begin: the number of a step, or "answer" for the summary's last one.
        hops: Number of hops that are told apart.

    Returns:
        A row per step before the target: ``step, segment, text``; ``hop_1, hop_2, ...``, the chance
        to be there after so many hops; and ``through``, the chance to pass there at all.

    Raises:
        StepMapError: There is no such step, or no summary.
        NonFiniteError: A score is NaN or infinite.
        SettingError: There is no hop.
    """
    if hops < 1:
        raise SettingError(f"expected hops >= 1, got {hops}")
    if not bool(step_map.scores.isfinite().all()):
        raise NonFiniteError("expected scores that are numbers, got a map with NaN or infinity")
    step_map = step_map.mean_over_heads()
    at = _target(step_map, target)
    shares = chances(step_map.scores.double().abs().mean(0))
    ends = torch.tensor([step.segment == "question" for step in step_map.steps])
    here = torch.zeros(len(ends), dtype=shares.dtype)
    here[at] = 1.0
    table = pd.DataFrame(
        {
            "step": range(at),
            "segment": [step.segment for step in step_map.steps[:at]],
            "text": [step.text for step in step_map.steps[:at]],
        }
    )
    for hop in range(1, hops + 1):
        here = here @ shares
        table[f"hop_{hop}"] = here[:at].tolist()
        here = here * (~ends)
    table["through"] = passing(shares, ends)[at, :at].tolist()
    return table


def passing_map(step_map: StepMap) -> StepMap:
    """The map whose rows say where walks from each step pass, layer by layer."""
    ends = torch.tensor([step.segment == "question" for step in step_map.steps])
    scores = passing(chances(step_map.scores), ends).to(step_map.scores.dtype)
    return replace(step_map, scores=scores, settings={**step_map.settings, "hops": "all"})


def _target(step_map: StepMap, target: int | str) -> int:
    count = len(step_map.steps)
    if target == "answer":
        found = [step.index for step in step_map.steps if step.segment == "summary"]
        if not found:
            raise StepMapError(
                "expected a summary, whose last step is the answer, got a map without one; give "
                "the number of a step"
            )
        return found[-1]
    if isinstance(target, (bool, str)) or not 0 <= target < count:
        raise StepMapError(
            f"expected target='answer' or a step from 0 to {count - 1}, got {target!r}"
        )
    return int(target)
