"""What the value of a key adds to the residual stream: the rule "attention_x_value".

With v_k the value of key k in a head h, and W_O the head's part of the output projection::

    I[l, t, k] = mean_h A[l, h, t, k] * |v_k W_O|

the norm-based measure of Kobayashi et al. (2020), head by head. A sink, which takes attention and
adds little, scores little. No gradient is needed. What comes after the output projection (its bias,
a norm of its own as in Gemma) is not in it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl.models.base import ModelView
from stepflow_tl.models.precision import widened


class ValueNorms:
    """Norms of what values add to the residual stream; each layer's W_O is asked for once.

    Args:
        view: The model.
    """

    def __init__(self, view: ModelView) -> None:
        self._view = view
        self._products: dict[int, Float[Tensor, "head d_v d_v"]] = {}

    def __call__(self, layer: int, v: Float[Tensor, "kv key d_v"]) -> Float[Tensor, "kv group key"]:
        """|v W_O| of each key, for every query head of its group, in float32 or wider."""
        products = self._of(layer, v).view(v.shape[0], -1, v.shape[2], v.shape[2])
        exact = widened(v)
        squares = torch.einsum("nkd,ngde,nke->ngk", exact, products.to(exact), exact)
        return squares.clamp_min(0.0).sqrt()

    def _of(self, layer: int, v: Float[Tensor, "kv key d_v"]) -> Float[Tensor, "head d_v d_v"]:
        """W_O W_O^T of each head."""
        if layer not in self._products:
            heads, size = self._view.n_heads, v.shape[2]
            units = torch.eye(heads * size, dtype=v.dtype, device=v.device)
            with torch.no_grad():
                rows = self._view.running.heads_to_residual(layer, units.view(-1, heads, size))
            weights = widened(rows).view(heads, size, -1)
            self._products[layer] = weights @ weights.mT
        return self._products[layer]
