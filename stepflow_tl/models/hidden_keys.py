"""Keys that queries do not see, inside a Hugging Face decoder: one more part of its own mask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from stepflow_tl.models.base import Seen
from stepflow_tl.models.decoder import attention_function, has_attention_function, text_config
from stepflow_tl.models.decoder_hooks import own_attention


@contextmanager
def keys_hidden_inside(decoder: Any, seen: Seen) -> Iterator[None]:
    """Inside, a Hugging Face model's queries see no keys but these, of those that they saw before.

    Args:
        decoder: The model; hook functions of this package may be at work in it already.
        seen: Which keys each query may see.

    Raises:
        ModelError: The model's attention is none that this can serve.
    """
    from transformers import AttentionInterface

    name = text_config(decoder)._attn_implementation
    if has_attention_function(decoder):
        inner = AttentionInterface._global_mapping[name]
    else:
        inner = own_attention(decoder)

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Any, Any]:
        queries, keys = query.shape[2], key.shape[2]
        also = seen(queries, keys).to(query.device)
        if mask is None:
            also = also & also.new_ones(queries, keys).tril(keys - queries)
            mask = torch.zeros(also.shape, dtype=query.dtype, device=query.device)
        if mask.dtype == torch.bool:
            mask = mask & also
        else:
            mask = mask[..., :keys].masked_fill(~also, torch.finfo(mask.dtype).min)
        attended: tuple[Any, Any] = inner(module, query, key, value, mask, **options)
        return attended

    with attention_function(decoder, attend, masks_of=name):
        yield
