"""Attention in tiles: a case by hand, and every shape of tile against plain attention."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stepflow_tl.saliency import tiles
from stepflow_tl.saliency.collect import AddTile, Collector
from stepflow_tl.saliency.tiles import Layer, attend, score_attention, score_backward


class Kept(Collector):
    """A collector that keeps everything."""

    def __init__(self, heads: int, queries: int, keys: int) -> None:
        self.scores = torch.zeros(heads, queries, keys, dtype=torch.float64)
        self.start = keys - queries

    @contextmanager
    def rows(self, layer: int, queries: range) -> Iterator[AddTile]:
        def add(heads: slice, first_key: int, scores: Tensor) -> None:
            rows = slice(queries.start - self.start, queries.stop - self.start)
            self.scores[heads, rows, first_key : first_key + scores.shape[-1]] += scores

        yield add

    def _shape(self, trace: Any) -> Any: ...

    def _rows_of(self, queries: range) -> Any: ...


def test_three_tokens_by_hand() -> None:
    """One head; keys and queries that make the pattern [1], [1/2, 1/2], [1/4, 1/4, 1/2]."""
    k = torch.tensor([[[0.0], [0.0], [math.log(2)]]], dtype=torch.float64)
    q = torch.ones(1, 1, 3, 1, dtype=torch.float64)
    v = torch.tensor([[[1.0], [2.0], [4.0]]], dtype=torch.float64)
    z, lse = attend(q, k, v, Layer(index=0, scale=1.0))
    assert z.flatten().tolist() == pytest.approx([1.0, 1.5, 2.75])
    assert lse.exp().flatten().tolist() == pytest.approx([1.0, 2.0, 4.0])
    kept, dz = Kept(1, 3, 3), torch.tensor([[[[1.0], [-2.0], [4.0]]]], dtype=torch.float64)
    dq, dk, dv = score_backward(
        Layer(index=0, scale=1.0),
        *(q, k, v, z, lse, dz),
        rule="signed",
        collector=kept,
        own_row=False,
        first=0,
    )
    # G = dz v: [1], [-2, -4], [4, 8, 16]; the scores are A G
    by_hand = [[1, 0, 0], [-1, -2, 0], [1, 2, 8]]
    assert torch.allclose(kept.scores[0], torch.tensor(by_hand, dtype=torch.float64))
    # dS = A (G - sum A G): row 3 is [1/4 (4 - 11), 1/4 (8 - 11), 1/2 (16 - 11)]
    assert dq.flatten().tolist() == pytest.approx([0.0, 0.0, 2.5 * math.log(2)])
    assert dk.flatten().tolist() == pytest.approx([0.5 - 1.75, -0.5 - 0.75, 2.5])
    assert dv.flatten().tolist() == pytest.approx([1 - 1 + 1, -1 + 1, 2.0])


RULES = ["attention_x_gradient", "signed", "gradient"]


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    queries = draw(st.integers(1, 24))
    return {
        "kv": draw(st.integers(1, 2)),
        "group": draw(st.integers(1, 3)),
        "queries": queries,
        "keys": queries + draw(st.integers(0, 20)),
        "window": draw(st.one_of(st.none(), st.integers(1, 30))),
        "sinks": draw(st.booleans()),
        "rule": draw(st.sampled_from([*RULES, "attention", "attention_x_value"])),
        "own_row": draw(st.booleans()),
        "tile": (draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 2))),
        "seed": draw(st.integers(0, 99)),
    }


@given(cases())
def test_any_tiling_is_plain_attention(case: dict[str, Any]) -> None:
    torch.manual_seed(case["seed"])
    kv, group, n, m = (case[name] for name in ("kv", "group", "queries", "keys"))
    made = {"dtype": torch.float64, "requires_grad": True}
    q, k, v = (torch.randn(*shape, 4, **made) for shape in ((kv, group, n), (kv, m), (kv, m)))
    sinks = torch.randn(kv, group, dtype=torch.float64) if case["sinks"] else None
    layer = Layer(index=0, scale=0.5, window=case["window"], sinks=sinks)

    position = torch.arange(m)
    visible = position <= position[m - n :, None]
    if case["window"] is not None:
        visible &= position > position[m - n :, None] - case["window"]
    scores = (0.5 * torch.einsum("ugqd,ukd->ugqk", q, k)).masked_fill(~visible, -torch.inf)
    column = scores.new_full((kv, group, n, 1), -torch.inf)
    column = column if sinks is None else sinks[..., None, None].expand_as(column)
    pattern = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    plain = torch.einsum("ugqk,ukd->ugqd", pattern, v)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(tiles, "_tile_size", lambda q: case["tile"])
        patch.setattr(tiles, "_DENSE_AT_ONCE", 64)
        z, lse = attend(q.detach(), k.detach(), v.detach(), layer)
        assert torch.allclose(z, plain)
        kept, dz = Kept(kv * group, n, m), torch.randn_like(z)
        g = torch.einsum("ugqd,ukd->ugqk", dz, v) * visible
        weights = torch.rand(kv, group, m, dtype=torch.float64)
        expected = {
            "attention": pattern,
            "signed": pattern * g,
            "gradient": g.abs(),
            "attention_x_gradient": (pattern * g).abs(),
            "attention_x_value": pattern * weights[:, :, None],
        }[case["rule"]]
        if case["rule"] not in RULES:
            times = weights if case["rule"] == "attention_x_value" else None
            score_attention(layer, q, k, lse, times, collector=kept, first=0)
        else:
            own = case["own_row"]
            found = score_backward(
                layer,
                *(q.detach(), k.detach(), v.detach(), z, lse, dz),
                rule=case["rule"],
                collector=kept,
                own_row=own,
                first=0,
            )
        assert torch.allclose(kept.scores, expected.flatten(0, 1))
    if case["rule"] not in RULES:
        return
    gradients = torch.autograd.grad(plain, (q, k, v), dz, retain_graph=True)
    assert torch.allclose(found[0], gradients[0])
    if not own:
        assert all(torch.allclose(x, y) for x, y in zip(found[1:], gradients[1:], strict=True))
        return
    own_k, own_v = (torch.zeros_like(x[:, m - n :]) for x in (k, v))
    for t in range(n):  # the gradient of one row at a time reaches its own key and value
        row = torch.zeros_like(dz)
        row[:, :, t] = dz[:, :, t]
        _, dk, dv = torch.autograd.grad(plain, (q, k, v), row, retain_graph=True)
        own_k[:, t], own_v[:, t] = dk[:, m - n + t], dv[:, m - n + t]
    assert torch.allclose(found[1], own_k)
    assert torch.allclose(found[2], own_v)
