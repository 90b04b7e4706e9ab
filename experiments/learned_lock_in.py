"""Lock-in that was learned, and can be switched on step by step: a failure that comes and goes.

The reasoner that was fine-tuned to lock in (`reasoner/lock_in`) differs from the bundled one by the
queries and keys of its look-up layers. Here the difference of the queries alone is added, as many
times as `strength` says, to the queries of some steps: the rest of the model, and all other steps,
are the healthy reasoner's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM

from stepflow_tl.errors import ModelError
from stepflow_tl.files import read_file
from stepflow_tl.interventions import Intervention
from stepflow_tl.interventions.base import Edited
from stepflow_tl.interventions.position import EditPosition
from stepflow_tl.models.layers import LayerSpec
from stepflow_tl.models.locked_in import KIND
from stepflow_tl.models.sites import Site
from stepflow_tl.reasoner import LOCKED_IN, WEIGHTS
from stepflow_tl.traces.rows import THINKING


@dataclass(frozen=True, kw_only=True)
class LearnedLockIn(Intervention):
    """Queries of the thinking, moved as training to lock in moved them.

    With n_t the layer's normed input, and R_t the rotation of position t::

        q'_t = q_t + strength * R_t (dW n_t + db)

    Attributes:
        strength: How many times the learned difference is added; 0 is neutral.
        layers: Of 4, 5 and 6, which alone were trained.
    """

    site: ClassVar[Site] = "rot_q"
    reads: ClassVar[tuple[Site, ...]] = ("resid_pre",)
    columns: ClassVar[tuple[str, ...]] = ("queries_changed",)
    fired: ClassVar[str] = "queries_changed"
    is_failure: ClassVar[bool] = True

    strength: float = 1.0
    layers: LayerSpec = (4, 5, 6)

    @property
    def is_neutral(self) -> bool:
        """True for strength = 0."""
        return self.strength == 0.0

    def edit(self, queries: Float[Tensor, "batch pos head d_head"], at: EditPosition) -> Edited:
        """The layer's queries, with the difference on those of the thinking."""
        thinks = at.query_segment == THINKING
        if not thinks.any():
            return None, {}
        norm, weight, bias, epsilon, theta = _learned(at.layer)
        x = at.seen["resid_pre"]
        normed = x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt() * norm
        moved = (normed @ weight.T + bias).view_as(queries)
        first = at.start - torch.tensor(at.pads)
        positions = first[:, None] + torch.arange(queries.shape[1])
        changed = queries + self.strength * _rotated(moved, positions, theta)
        new = torch.where(thinks[..., None, None], changed, queries)
        return new, {"queries_changed": thinks}


def _rotated(
    x: Float[Tensor, "batch pos head d_head"], positions: Tensor, theta: float
) -> Float[Tensor, "batch pos head d_head"]:
    """Rotary positions, as the reasoner (Qwen2) has them."""
    half = x.shape[-1] // 2
    angles = positions[..., None] * theta ** (-torch.arange(half) / half)
    cos, sin = angles.cos()[:, :, None], angles.sin()[:, :, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


@cache
def _learned(layer: int) -> tuple[Tensor, Tensor, Tensor, float, float]:
    """Of a layer: its norm's weight, the queries' learned difference, epsilon, and theta.

    Raises:
        ModelError: The layer was not trained.
    """
    tensors, facts = read_file(LOCKED_IN, KIND, ModelError)
    name = f"{facts['doses'][-1]}/model.layers.{layer}.self_attn.q_proj"
    if f"{name}.weight" not in tensors:
        raise ModelError(f"expected a layer out of {facts['layers']}, got {layer}")
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32)
    norm = model.model.layers[layer].input_layernorm.weight.detach()
    weight, bias = (tensors[f"{name}.{part}"].float() for part in ("weight", "bias"))
    config = model.config
    return norm, weight, bias, config.rms_norm_eps, config.rope_parameters["rope_theta"]
