"""Where hook functions can go: names and shapes of TransformerLens's hook points.

==================== ============================= =============================================
hook                 shape                         note
==================== ============================= =============================================
``hook_embed``       [batch, pos, d_model]
``hook_resid_pre``   [batch, pos, d_model]
``attn.hook_rot_q``  [batch, pos, head, d_head]
``attn.hook_rot_k``  [batch, pos, kv_head, d_head]
``attn.hook_q``      [batch, pos, head, d_head]    of fused projections (Phi-3, GPT-NeoX, GPT-2),
``attn.hook_k``      [batch, pos, kv_head, d_head] whose bridge leaves ``hook_rot_q`` and
``attn.hook_cos``    [#batch, pos, d_rotary]       ``hook_rot_k`` unused: these three and
``attn.hook_sin``    [#batch, pos, d_rotary]       ``hook_sin`` tell as much
``attn.hook_v``      [batch, pos, kv_head, d_head] under a KV cache: the new positions only
``attn.hook_attn_scores`` [batch, head, query, key]
``attn.hook_pattern``  [batch, head, query, key]   under a KV cache: all cached keys
``attn.hook_z``      [batch, pos, head, d_head]
``hook_resid_post``  [batch, pos, d_model]
==================== ============================= =============================================
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal, TypeAlias, get_args

from torch import Tensor

Site = Literal[
    "embed",
    "resid_pre",
    "q",
    "k",
    "cos",
    "sin",
    "rot_q",
    "rot_k",
    "v",
    "attn_scores",
    "pattern",
    "z",
    "resid_post",
]
"""A hook point, whatever its layer."""

SITES: tuple[Site, ...] = get_args(Site)

Hook: TypeAlias = tuple[str, Callable[..., Tensor | None]]
"""A hook's name and its function ``f(tensor, hook)``, which may give another tensor back."""


@cache
def hook_name(site: Site, layer: int | None = None) -> str:
    """Name of a hook point; the same in `TransformerBridge` and `HookedTransformer`."""
    if layer is None:
        return f"hook_{site}"
    prefix = "" if site.startswith("resid") else "attn."
    return f"blocks.{layer}.{prefix}hook_{site}"
