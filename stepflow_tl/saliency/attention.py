"""The attention function of the fused backend: fused attention that scores as it goes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl.errors import SettingError
from stepflow_tl.models.base import ModelView
from stepflow_tl.saliency.collect import Collector
from stepflow_tl.saliency.rules import TokenRule, needs_gradient
from stepflow_tl.saliency.tiles import (
    Keys,
    Layer,
    Outputs,
    Queries,
    Values,
    attend,
    score_attention,
    score_backward,
)
from stepflow_tl.saliency.values import ValueNorms

_CHANGES_SCORES = ("softcap", "position_bias")  # keyword arguments of attention functions


class KeyValues:
    """Keys and values of a layer, without gradients, of the tokens so far.

    Args:
        window: Number of keys that a query sees at most; earlier ones are forgotten.
        length: Number of tokens to come.
    """

    def __init__(self, window: int | None, length: int) -> None:
        self.last: tuple[Keys, Values] = (torch.empty(0), torch.empty(0))
        self._window, self._length, self._seen = window, length, 0
        self._keys = self._values = torch.empty(0)

    def append(
        self, k: Float[Tensor, "kv new d"], v: Float[Tensor, "kv new d_v"]
    ) -> tuple[Keys, Values, int]:
        """Add the next tokens' keys and values.

        Returns:
            All keys and values that the new tokens' queries may see, and the first one's position.
        """
        self.last = k, v = k.detach(), v.detach()
        start, self._seen = self._seen, self._seen + k.shape[1]
        if start == 0:
            room = self._length if self._window is None else 0
            self._keys = k.new_empty(k.shape[0], room, k.shape[2])
            self._values = v.new_empty(v.shape[0], room, v.shape[2])
        elif self._keys.device != k.device:  # those of a stopped run were read into main memory
            self._keys, self._values = self._keys.to(k.device), self._values.to(v.device)
        if self._window is None:
            self._keys[:, start : self._seen] = k
            self._values[:, start : self._seen] = v
            return self._keys[:, : self._seen], self._values[:, : self._seen], 0
        stale = max(0, self._keys.shape[1] - self._window + 1)
        self._keys = torch.cat([self._keys[:, stale:], k], dim=1)
        self._values = torch.cat([self._values[:, stale:], v], dim=1)
        return self._keys, self._values, self._seen - self._keys.shape[1]


class ScoringAttention:
    """The attention function that every layer calls.

    Args:
        view: A Hugging Face decoder, or a bridge around one.
        rule: How A and G give a score.
        collector: Where scores go; None to run the model alone.
        scored: Told each layer whose scores of some queries are complete, as the backward pass
            leaves it.
        stores: Of each layer, for chunks of each row's own loss; None for one loss.
    """

    def __init__(
        self,
        view: ModelView,
        rule: TokenRule,
        collector: Collector | None,
        scored: Callable[[int, range], None] = lambda layer, queries: None,
        stores: Sequence[KeyValues] | None = None,
    ) -> None:
        self.rule, self.queries = rule, range(0)
        self._collector, self._scored, self._stores = collector, scored, stores
        self._norms_of = ValueNorms(view)
        self._windows = [view.attention_window(layer) for layer in range(view.n_layers)]

    @property
    def own_row(self) -> bool:
        """Whether keys and values are constants but for each query's own."""
        return self._stores is not None

    @property
    def lowest(self) -> int:
        """The lowest layer that is scored: no gradient is needed below it."""
        return 0 if self._collector is None else min(self._collector.layers)

    def collector(self, layer: int) -> Collector | None:
        """Where a layer's scores go; None where it is not scored."""
        if self._collector is None or layer not in self._collector.layers:
            return None
        return self._collector

    def scored(self, layer: int) -> None:
        """Tell that a layer's scores of the present queries are complete."""
        self._scored(layer, self.queries)

    def key_weights(self, layer: int, values: Values) -> Float[Tensor, "kv group key"] | None:
        """What the rule multiplies each key's attention by; None for nothing."""
        return self._norms_of(layer, values) if self.rule == "attention_x_value" else None

    def remember(
        self, layer: int, k: Float[Tensor, "kv new d"], v: Float[Tensor, "kv new d_v"]
    ) -> tuple[Keys, Values, int]:
        """All keys and values that the queries may see, and the first one's position."""
        return (k, v, 0) if self._stores is None else self._stores[layer].append(k, v)

    def __call__(
        self,
        module: Any,
        query: Float[Tensor, "1 head query d"],
        key: Float[Tensor, "1 kv query d"],
        value: Float[Tensor, "1 kv query d_v"],
        attention_mask: None,
        *,
        scaling: float,
        s_aux: Float[Tensor, "head"] | None = None,
        **options: Any,
    ) -> tuple[Float[Tensor, "1 query head d_v"], None]:
        """As transformers calls it; masks are causal, and follow the layer's window."""
        changed = [name for name in _CHANGES_SCORES if options.get(name) is not None]
        if changed:
            raise SettingError(
                "expected plain, windowed or sink attention for backend='fused', but "
                f"{type(module).__name__} passes {changed}; use backend='hooks'"
            )
        kv, group = key.shape[1], query.shape[1] // key.shape[1]
        index = int(module.layer_idx)
        layer = Layer(
            index=index,
            scale=scaling,
            window=self._windows[index],
            sinks=None if s_aux is None else s_aux.detach().view(kv, group),
        )
        q = query[0].reshape(kv, group, *query.shape[2:])
        z: Tensor = _Attend.apply(q, key[0], value[0], layer, self)  # type: ignore[no-untyped-call]
        return z.flatten(0, 1).transpose(0, 1)[None].contiguous(), None


class _Attend(torch.autograd.Function):
    """Fused attention that scores its layer in its backward pass."""

    @staticmethod
    def forward(
        ctx: Any, q: Queries, k: Keys, v: Values, layer: Layer, attention: ScoringAttention
    ) -> Outputs:
        keys, values, first = attention.remember(layer.index, k, v)
        z, lse = attend(q, keys, values, layer)
        collector = attention.collector(layer.index)
        if collector is not None and not needs_gradient(attention.rule):
            weights = attention.key_weights(layer.index, values)
            score_attention(layer, q, keys, lse, weights, collector=collector, first=first)
            attention.scored(layer.index)
        ctx.save_for_backward(q, keys, values, z, lse)
        ctx.layer, ctx.attention, ctx.first = layer, attention, first
        return z

    @staticmethod
    def backward(ctx: Any, dz: Outputs) -> tuple[Queries, Keys, Values, None, None]:
        q, keys, values, z, lse = ctx.saved_tensors
        collector = ctx.attention.collector(ctx.layer.index)
        gradients = score_backward(
            ctx.layer,
            q,
            keys,
            values,
            z,
            lse,
            dz,
            rule=ctx.attention.rule,
            collector=collector,
            own_row=ctx.attention.own_row,
            first=ctx.first,
        )
        if collector is not None:
            ctx.attention.scored(ctx.layer.index)
        return *gradients, None, None
