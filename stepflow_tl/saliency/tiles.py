"""Attention and its backward pass in tiles: the scores of Eq. (1) on the way, no square matrix.

With q, k, v of one layer, z its head outputs, and lse the rows' log-sum-exp of scores::

    A = exp(q k^T * scale - lse)         the pattern; where a sink takes a share, lse includes it
    G = dL/dA = dz v^T
    X = A * G                            the score, before |.|
    dS = X - A * delta,  delta = dz . z  gradient of the attention scores
    dq = scale * dS k,  dk = scale * dS^T q,  dv = A^T dz

so that a backward pass in tiles (Dao et al. 2022, FlashAttention, appendix B.4) has A, G and X at
hand in every tile. Axes: kv (key and value heads), group (query heads that share one), query, key,
d (d_head). Queries are the last positions of the keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepflow_tl.models.precision import widened
from stepflow_tl.saliency.collect import Collector
from stepflow_tl.saliency.rules import TokenRule, visible_keys

Queries = Float[Tensor, "kv group query d"]
Keys = Float[Tensor, "kv key d"]
Values = Float[Tensor, "kv key d_v"]
Outputs = Float[Tensor, "kv group query d_v"]
RowSums = Float[Tensor, "kv group query"]

_DENSE_AT_ONCE = 1 << 24  # scores in memory, where attention is not flash attention


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """What attention in a layer does, beside its queries, keys and values.

    Attributes:
        index: Number of the layer.
        scale: Factor between q . k and the scores.
        window: Number of keys that a query sees at most, its own included; None for all.
        sinks: Score of each head's attention sink, which takes a share of every row and has no
            value; None for none.
    """

    index: int
    scale: float
    window: int | None = None
    sinks: Float[Tensor, "kv group"] | None = None

    def first_key(self, query: int) -> int:
        """First key that a query at this position sees."""
        return 0 if self.window is None else max(0, query - self.window + 1)

    def visible(self, queries: range, keys: range, device: torch.device) -> Bool[Tensor, "q k"]:
        """Which of the keys each query sees."""
        return visible_keys(queries, keys, self.window, device)

    def sees_all(self, queries: range, keys: range) -> bool:
        """Whether each query sees each of the keys."""
        return keys.stop <= queries.start + 1 and keys.start >= self.first_key(queries.stop - 1)


def attend(q: Queries, k: Keys, v: Values, layer: Layer) -> tuple[Outputs, RowSums]:
    """Causal attention with the log-sum-exp of each row, sink included, in float32 or wider."""
    start = k.shape[1] - q.shape[2]
    if q.device.type == "cpu" and layer.window is None and k.shape[2] == v.shape[2]:
        z, lse = _flash(q, k[:, start:], v[:, start:], layer.scale, causal=True)
        if start:
            z, lse = _merge(z, lse, *_flash(q, k[:, :start], v[:, :start], layer.scale))
    else:
        parts = []
        for rows in _row_blocks(q, k, layer):
            keys = slice(layer.first_key(rows.start), rows.stop)
            visible = layer.visible(rows, range(keys.start, keys.stop), q.device)
            block = q[:, :, rows.start - start : rows.stop - start]
            parts.append(_dense(block, k[:, keys], v[:, keys], visible, layer.scale))
        z, lse = (torch.cat(part, dim=2) for part in zip(*parts, strict=True))
    if layer.sinks is not None:
        over_sink = lse - layer.sinks.to(lse)[..., None]
        z = (z * over_sink.sigmoid()[..., None]).to(z.dtype)
        lse = lse + torch.nn.functional.softplus(-over_sink)
    return z, lse


def _flash(
    q: Queries, k: Keys, v: Values, scale: float, causal: bool = False
) -> tuple[Outputs, RowSums]:
    z, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q.flatten(0, 1)[None], k[None], v[None], 0.0, causal, scale=scale
    )
    return z[0].view(*q.shape[:3], -1), lse[0].view(q.shape[:3])


def _merge(z: Outputs, lse: RowSums, z2: Outputs, lse2: RowSums) -> tuple[Outputs, RowSums]:
    """Attention to two sets of keys from attention to each."""
    total = torch.logaddexp(lse, lse2)
    both = z * (lse - total).exp()[..., None] + z2 * (lse2 - total).exp()[..., None]
    return both.to(z.dtype), total


def _row_blocks(q: Queries, k: Keys, layer: Layer) -> Iterator[range]:
    """Blocks of query positions whose scores make a matrix of bounded size."""
    keys, window = k.shape[1], layer.window or k.shape[1]
    heads = q.shape[0] * q.shape[1]
    rows = max(16, min(max(window, 128), _DENSE_AT_ONCE // (heads * min(keys, window))))
    for first in range(keys - q.shape[2], keys, rows):
        yield range(first, min(keys, first + rows))


def _dense(
    q: Queries, k: Keys, v: Values, visible: Bool[Tensor, "query key"], scale: float
) -> tuple[Outputs, RowSums]:
    scores = torch.matmul(widened(q), widened(k[:, None]).mT) * scale
    scores = scores.masked_fill(~visible, -torch.inf)
    z = torch.matmul(scores.softmax(-1), widened(v[:, None]))
    return z.to(q.dtype), scores.logsumexp(-1)


class Tile(NamedTuple):
    """Some heads' queries and keys.

    Attributes:
        heads: Of the kv axis.
        rows: Of the query axis.
        keys: Of the key axis.
        visible: Which keys of the tile each of its queries sees; None for all.
    """

    heads: slice
    rows: slice
    keys: slice
    visible: Bool[Tensor, "query key"] | None

    def pattern(self, q: Queries, k: Keys, lse: RowSums, scale: float) -> Tensor:
        """A [kv, group * query, key] of the tile."""
        shift = -self.of_rows(lse[..., None])
        pattern = torch.baddbmm(shift, self.of_rows(q), self.of_keys(k).mT, alpha=scale).exp_()
        return pattern if self.visible is None else self.hide(pattern)

    def hide(self, x: Tensor) -> Tensor:
        """Zero in place what is not visible, of [kv, group * query, key]."""
        if self.visible is not None:
            x.view(x.shape[0], -1, *self.visible.shape).masked_fill_(~self.visible, 0.0)
        return x

    def of_rows(self, x: Tensor) -> Tensor:
        """The tile's part of [kv, group, query, ...], as [kv, group * query, ...]."""
        return widened(x[self.heads, :, self.rows].flatten(1, 2))

    def of_keys(self, x: Tensor) -> Tensor:
        """The tile's part of [kv, key, ...]."""
        return widened(x[self.heads, self.keys])


def score_attention(
    layer: Layer,
    q: Queries,
    k: Keys,
    lse: RowSums,
    weights: Float[Tensor, "kv group key"] | None,
    *,
    collector: Collector,
    first: int,
) -> None:
    """Score by the pattern, each key's times its weight; this needs no gradient."""
    for rows, tiles in _row_tiles(layer, q, k):
        with _open(collector, layer, rows, first, q, k) as add:
            for tile in tiles:
                scores = tile.pattern(q, k, lse, layer.scale)
                if weights is not None:
                    by_query = scores.view(len(scores), weights.shape[1], -1, scores.shape[-1])
                    by_query *= weights[tile.heads, :, None, tile.keys].to(scores)
                add(tile, scores)


def score_backward(
    layer: Layer,
    q: Queries,
    k: Keys,
    v: Values,
    z: Outputs,
    lse: RowSums,
    dz: Outputs,
    *,
    rule: TokenRule,
    collector: Collector | None,
    own_row: bool,
    first: int,
) -> tuple[Queries, Float[Tensor, "kv _ d"], Float[Tensor, "kv _ d_v"]]:
    """Score the layer, and give the gradients of its queries, keys and values.

    Args:
        layer: The layer.
        q: Its queries, rotated.
        k: Its keys, rotated.
        v: Its values.
        z: Its head outputs.
        lse: Log-sum-exp of its scores, as `attend` gave it.
        dz: Gradient of z.
        rule: How A and G give a score.
        collector: Where scores go; None for gradients alone.
        own_row: Keys and values are constants, but for each query's own: the chain rule of the
            paper's L_t, each row's own loss. Gradients of k and v are then of the queries' own.
        first: Position in the trace of the first key.
    """
    delta = (widened(dz) * widened(z)).sum(-1)
    dq = torch.zeros_like(widened(q))
    if own_row:
        own = slice(k.shape[1] - q.shape[2], None)
        dk, dv = _own_row_gradients(layer, q, k[:, own], v[:, own], lse, dz, delta)
    else:
        dk, dv = torch.zeros_like(widened(k)), torch.zeros_like(widened(v))
    for rows, tiles in _row_tiles(layer, q, k):
        with _open(collector, layer, rows, first, q, k) as add:
            for tile in tiles:
                a = tile.pattern(q, k, lse, layer.scale)
                q_rows, dz_rows, keys = tile.of_rows(q), tile.of_rows(dz), tile.of_keys(k)
                if not own_row:
                    dv[tile.heads, tile.keys].baddbmm_(a.mT, dz_rows)
                g = torch.bmm(dz_rows, tile.of_keys(v).mT)
                if rule == "gradient":
                    add(tile, tile.hide(g.abs()))
                x = g.mul_(a)
                ds = torch.sub(x, a.mul_(tile.of_rows(delta[..., None])), out=a)
                if rule != "gradient":
                    add(tile, x if rule == "signed" else x.abs_())
                dq[tile.heads, :, rows] += torch.bmm(ds, keys).view(dq[tile.heads, :, rows].shape)
                if not own_row:
                    dk[tile.heads, tile.keys].baddbmm_(ds.mT, q_rows)
    return dq.mul_(layer.scale).to(q.dtype), dk.mul_(layer.scale).to(k.dtype), dv.to(v.dtype)


def _own_row_gradients(
    layer: Layer,
    q: Queries,
    k: Float[Tensor, "kv query d"],
    v: Float[Tensor, "kv query d_v"],
    lse: RowSums,
    dz: Outputs,
    delta: RowSums,
) -> tuple[Float[Tensor, "kv query d"], Float[Tensor, "kv query d_v"]]:
    """Gradients of each query's own key (before the factor of the scores) and value."""
    a = ((widened(q) * widened(k[:, None])).sum(-1) * layer.scale - lse).exp()
    ds = a * ((widened(dz) * widened(v[:, None])).sum(-1) - delta)
    return (ds[..., None] * widened(q)).sum(1), (a[..., None] * widened(dz)).sum(1)


def _row_tiles(layer: Layer, q: Queries, k: Keys) -> Iterator[tuple[slice, Iterator[Tile]]]:
    """Tiles of queries that see keys, a set of rows at a time."""
    start = k.shape[1] - q.shape[2]
    rows, keys, heads = _tile_size(q)
    for a in range(0, q.shape[2], rows):
        yield (
            at := slice(a, min(q.shape[2], a + rows)),
            _key_tiles(layer, q.shape[0], at, start, keys, heads, q.device),
        )


def _key_tiles(
    layer: Layer, kv: int, rows: slice, start: int, most: int, heads: int, device: torch.device
) -> Iterator[Tile]:
    queries = range(start + rows.start, start + rows.stop)
    for j in range(layer.first_key(queries.start), queries.stop, most):
        keys = range(j, min(queries.stop, j + most))
        seen = None if layer.sees_all(queries, keys) else layer.visible(queries, keys, device)
        for h in range(0, kv, heads):
            yield Tile(slice(h, min(kv, h + heads)), rows, slice(keys.start, keys.stop), seen)


def _tile_size(q: Queries) -> tuple[int, int, int]:
    """Queries, keys and kv heads of a tile: what fits a core's cache, or fills a GPU."""
    if q.device.type == "cpu":
        return max(16, 512 // q.shape[1]), 512, 1
    return 512, 1024, q.shape[0]


@contextmanager
def _open(
    collector: Collector | None, layer: Layer, rows: slice, first: int, q: Queries, k: Keys
) -> Iterator[Callable[[Tile, Tensor], None]]:
    """Open rows of the collector for tiles' scores [kv, group * query, key]."""
    if collector is None:
        yield lambda tile, scores: None
        return
    at = first + k.shape[1] - q.shape[2]
    queries, group = range(at + rows.start, at + rows.stop), q.shape[1]
    with collector.rows(layer.index, queries) as add:

        def add_tile(tile: Tile, scores: Tensor) -> None:
            heads = slice(tile.heads.start * group, tile.heads.stop * group)
            by_head = scores.view(-1, len(queries), scores.shape[-1])
            add(heads, first + tile.keys.start, by_head)

        yield add_tile
