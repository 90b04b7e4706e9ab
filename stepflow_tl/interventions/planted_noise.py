"""Planted noise: look-ups that go wrong, which no intervention inverts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl.errors import SettingError
from stepflow_tl.interventions.base import Edited, Intervention
from stepflow_tl.interventions.position import EditPosition
from stepflow_tl.models.layers import LayerSpec
from stepflow_tl.models.sites import Site
from stepflow_tl.traces.rows import THINKING

_BLOCK = 256  # positions whose noise is drawn together


@dataclass(frozen=True, kw_only=True)
class PlantedNoise(Intervention):
    """Noise on the queries of thinking: keys are looked up that do not match.

    In every head, with e a fixed standard normal vector of the layer, the head and the row's own
    position, so that the same trace has the same noise however it is run::

        q'_t = q_t + strength * |q_t| / sqrt(d_head) * e_t

    The place of the failure is known, and its dose; but no shift of mass between groups of keys
    brings back which key a query had matched. On ``hook_rot_q``, which the bridge of a fused
    projection (Phi-3, GPT-NeoX, GPT-2) leaves unused; decoding goes through the bridge's own
    forward pass.

    Attributes:
        strength: Norm of the noise over that of the query, in expectation; 0 is neutral.
        layers: The layers it is planted in, from 1 on: before the first attention nobody knows yet
            where a pass stands.
        seed: Of the noise.
    """

    site: ClassVar[Site] = "rot_q"
    columns: ClassVar[tuple[str, ...]] = ("queries_changed",)
    fired: ClassVar[str] = "queries_changed"
    is_failure: ClassVar[bool] = True

    strength: float = 1.0
    layers: LayerSpec = "middle"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: A setting is out of range.
        """
        super().__post_init__()
        number = isinstance(self.strength, (int, float))
        if not number or not 0.0 <= self.strength < float("inf"):
            raise SettingError(
                f"PlantedNoise: expected a finite strength >= 0, got {self.strength!r}"
            )
        if not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 32:
            raise SettingError(
                f"PlantedNoise: expected a whole seed from 0 to before 2^32, got {self.seed!r}"
            )
        named = (self.layers,) if isinstance(self.layers, int) else self.layers
        if not isinstance(named, (str, float)) and any(type(x) is int and x == 0 for x in named):
            raise SettingError(
                f"PlantedNoise: expected layers from 1 on, got layers={self.layers!r}: before the "
                "first attention nobody knows where a pass stands"
            )

    @property
    def is_neutral(self) -> bool:
        """True for strength = 0."""
        return self.strength == 0.0

    def edit(self, queries: Float[Tensor, "batch pos head d_head"], at: EditPosition) -> Edited:
        """The layer's queries, with noise on those of the thinking."""
        thinks = (at.query_segment == THINKING).to(queries.device)
        if not thinks.any():
            return None, {}
        shape = (queries.shape[2], queries.shape[3])
        noise = torch.stack(
            [self._noise(at, at.start - pads, queries.shape[1], shape) for pads in at.pads]
        ).to(queries.device)
        norm = queries.float().norm(dim=-1, keepdim=True) * shape[1] ** -0.5
        noisy = (queries.float() + self.strength * norm * noise).to(queries.dtype)
        changed = torch.where(thinks[..., None, None], noisy, queries)
        return changed, {"queries_changed": thinks}

    def _noise(
        self, at: EditPosition, first: int, count: int, shape: tuple[int, int]
    ) -> Float[Tensor, "pos head d_head"]:
        """Noise of some of a row's own positions; padding, before 0, has that of the first."""
        drawn: Tensor = at.memory.setdefault(at.layer, torch.empty(0, *shape))
        while len(drawn) < first + count:
            block = (self.seed * 4096 + at.layer) * 65536 + len(drawn) // _BLOCK
            generator = torch.Generator().manual_seed(block)
            more = torch.randn(_BLOCK, *shape, generator=generator)
            drawn = at.memory[at.layer] = torch.cat([drawn, more])
        return drawn[torch.arange(first, first + count).clamp_min(0)]
