"""A batch while it is decoded: its KV cache, its mask and its positions, row by row.

Rows are left-padded: each ends at the batch's last column. Those of a `MovingBatch` may leave, and
others may join.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepflow_tl.models.decoder import attention_window_of, text_config


class RunningBatch(ABC):
    """What a model knows of the rows that it decodes.

    Attributes:
        width: Number of columns run so far.
    """

    width: int = 0

    @abstractmethod
    def run(self, tokens: Int[Tensor, "batch new"]) -> Float[Tensor, "batch vocab"]:
        """Run the next tokens of all rows: the left-padded prompts first, then one token a row.

        Returns:
            Logits that predict the token after the last.
        """

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; one of a prompt may come twice, for its samples."""
        raise NotImplementedError

    def resize(self, width: int) -> None:
        """Have so many columns: more or fewer at the left end, where all rows are padding."""
        raise NotImplementedError

    def join(self, other: RunningBatch) -> None:
        """Append the rows of another batch, which has no more columns."""
        raise NotImplementedError


class FixedBatch(RunningBatch):
    """A batch whose rows keep their places, for any view of a model.

    Args:
        view: The model's view.
        pads: Number of padding tokens of each row.
        stops: For each row, the column after its last possible one: no position is given to what
            is run for it later, as long as others go on.
        device: Where tokens go.
    """

    def __init__(
        self, view: Any, pads: Sequence[int], stops: Sequence[int], device: torch.device
    ) -> None:
        self._view, self._cache = view, None
        column = torch.arange(max(stops), device=device)
        first, last = (torch.tensor(x, device=device)[:, None] for x in (pads, stops))
        self._mask: Int[Tensor, "batch pos"] = ((column >= first) & (column < last)).long()

    def run(self, tokens: Int[Tensor, "batch new"]) -> Float[Tensor, "batch vocab"]:
        """Run the next tokens of all rows."""
        self.width += tokens.shape[1]
        mask = self._mask[:, : self.width]
        logits: Tensor
        logits, self._cache = self._view.decode(tokens, mask, self._cache)
        return logits


class MovingBatch(RunningBatch):
    """A batch of a plain Hugging Face decoder, whose rows leave and join.

    A batch without padding needs no mask; other masks are made here, once for all
    layers, where all of them see all positions.

    Args:
        decoder: The model.
        cache: A fresh cache with room (`stepflow_tl.models.kv_cache.roomy_cache`).
        pads: Number of padding tokens of each row.
        device: Where tokens go.
    """

    def __init__(self, decoder: Any, cache: Any, pads: Sequence[int], device: torch.device) -> None:
        self._decoder, self._cache, self._device = decoder, cache, device
        self._one_mask = _takes_one_mask(decoder)
        self._last_only = "logits_to_keep" in inspect.signature(decoder.forward).parameters
        self._pads = list(pads)
        self._position: Int[Tensor, "batch new"] | None = None
        self._visible: Tensor | None = None  # of columns, with room for more

    def run(self, tokens: Int[Tensor, "batch new"]) -> Float[Tensor, "batch vocab"]:
        """Run the next tokens of all rows."""
        new = tokens.shape[1]
        self.width += new
        if new > 1 or self._position is None:
            self._position = self._positions(new)
        else:
            self._position = self._position[:, -1:] + 1
        options = {"logits_to_keep": 1} if self._last_only else {}
        output = self._decoder(
            input_ids=tokens,
            attention_mask=self._seen(new),
            position_ids=self._position,
            past_key_values=self._cache,
            use_cache=True,
            **options,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; one of a prompt may come twice, for its samples."""
        for layer in self._cache.layers:
            layer.select(rows)
        self._pads = [self._pads[row] for row in rows]
        self._arrange()

    def resize(self, width: int) -> None:
        """Have so many columns: more or fewer at the left end, where all rows are padding."""
        for layer in self._cache.layers:
            layer.resize(width)
        self._pads = [pads + width - self.width for pads in self._pads]
        self.width = width
        self._arrange()

    def join(self, other: RunningBatch) -> None:
        """Append the rows of another batch, which has no more columns."""
        assert isinstance(other, MovingBatch)
        for layer, more in zip(self._cache.layers, other._cache.layers, strict=True):
            layer.join(more)
        self._pads += [pads + self.width - other.width for pads in other._pads]
        self._arrange()

    def _arrange(self) -> None:
        """Forget what was made for other rows."""
        self._position = self._visible = None

    def _positions(self, new: int) -> Int[Tensor, "batch new"]:
        column = torch.arange(self.width - new, self.width, device=self._device)
        pads = torch.tensor(self._pads, device=self._device)[:, None]
        return (column - pads).clamp_min(0)

    def _seen(self, new: int) -> Tensor | None:
        """What the model is given as its mask; None where every row sees every column."""
        if not any(self._pads):
            return None
        if self._visible is None or self._visible.shape[1] < self.width:
            column = torch.arange(self.width + self.width // 4 + 64, device=self._device)
            self._visible = column >= torch.tensor(self._pads, device=self._device)[:, None]
        visible = self._visible[:, : self.width]
        if self._one_mask and new == 1:
            return visible[:, None, None]
        return visible.long()


def _takes_one_mask(decoder: Any) -> bool:
    """Whether a model hands one mask [batch, 1, query, key] on to all layers as it is."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS

    config = text_config(decoder)
    windows = {attention_window_of(config, layer) for layer in range(config.num_hidden_layers)}
    types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if windows != {None} or types != {"full_attention"} or getattr(config, "alibi", False):
        return False
    if not getattr(decoder, "_supports_attention_backend", False):
        return False
    masks: Any = MASKS  # a mapping, whose class is private
    return masks[config._attn_implementation] is masks["sdpa"]
