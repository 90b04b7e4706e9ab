"""The cache with room, against transformers' own, while rows leave, join and are widened."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from stepflow_tl.models.kv_cache import RoomyLayer, WindowLayer, roomy_cache

WINDOW = 6


def drawn(rows: int, columns: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Keys and values."""
    keys = torch.randn(rows, 2, columns, 3, generator=generator)
    return keys, torch.randn(rows, 2, columns, 5, generator=generator)


@pytest.mark.parametrize("seed", range(4))
def test_writing_is_what_transformers_does(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for mine, theirs in (
        (RoomyLayer(3), DynamicLayer()),
        (WindowLayer(WINDOW), DynamicSlidingWindowLayer(WINDOW)),
    ):
        for columns in (7, 1, 1, 200, 1):
            new = drawn(3, columns, generator)
            for one, other in zip(mine.update(*new), theirs.update(*new), strict=True):
                assert torch.equal(one, other)
            assert mine.get_seq_length() == theirs.get_seq_length()
            assert mine.get_mask_sizes(1) == theirs.get_mask_sizes(1)


def row_by_row(rows: list[list[Tensor]], width: int) -> Tensor:
    """Rows of any length, aligned at the right end, and zeros before them."""
    whole = [torch.cat(row, dim=1) for row in rows]
    return torch.stack(
        [torch.nn.functional.pad(x, (0, 0, width - x.shape[1], 0))[:, -width:] for x in whole]
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["all positions", "window"])
def test_rows_leave_join_and_are_aligned(kind: str, seed: int) -> None:
    """Whatever happens, a row holds its own keys at the right end, and nothing is not a number."""
    generator = torch.Generator().manual_seed(seed)

    def layer() -> Any:
        return RoomyLayer(4) if kind == "all positions" else WindowLayer(WINDOW)

    def length(row: list[Tensor]) -> int:
        return sum(x.shape[1] for x in row)

    def begun(count: int, columns: int) -> tuple[Any, list[list[Tensor]]]:
        one, (keys, values) = layer(), drawn(count, columns, generator)
        one.update(keys, values)
        return one, [[x] for x in keys]

    mine, rows = begun(3, 5)
    width = 5
    for turn in range(40):
        choice = int(torch.randint(0, 4, (), generator=generator))
        if choice == 0 and len(rows) > 1:  # one leaves, the last takes its place
            gone = turn % len(rows)
            kept = [i for i in range(len(rows) - 1)]
            if gone < len(kept):
                kept[gone] = len(rows) - 1
            mine.select(kept)
            rows = [rows[i] for i in kept]
        elif choice == 1 and len(rows) < 5:
            other, more = begun(1, int(torch.randint(1, 9, (), generator=generator)))
            wider = max(width, length(more[0]))
            if wider != width:
                mine.resize(wider)
                width = wider
            mine.join(other)
            rows += more
        elif choice == 2:
            longest = max(map(length, rows))
            mine.resize(longest)
            width = longest
        else:
            keys, values = drawn(len(rows), 1, generator)
            mine.update(keys, values)
            rows = [[*row, x] for row, x in zip(rows, keys, strict=True)]
            width += 1
        seen = width if kind == "all positions" else min(width, WINDOW - 1)
        assert mine.keys.shape == (len(rows), 2, seen, 3)
        assert mine.values.shape == (len(rows), 2, seen, 5)
        assert mine.keys.isfinite().all() and mine.values.isfinite().all()
        for one, row in zip(mine.keys, rows, strict=True):
            own = min(seen, length(row))
            assert torch.equal(one[:, seen - own :], row_by_row([row], own)[0])


def test_samples_of_a_prompt_are_copies() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, values = drawn(2, 4, generator)
    for layer in (RoomyLayer(2), WindowLayer(WINDOW)):
        layer.update(keys, values)
        layer.select([0, 0, 1, 1, 1])
        assert torch.equal(layer.keys, keys[[0, 0, 1, 1, 1]])
        assert torch.equal(layer.values, values[[0, 0, 1, 1, 1]])


def test_other_caches_are_left_to_the_model() -> None:
    config = Qwen2Config(num_hidden_layers=2, hidden_size=8, num_attention_heads=2)
    assert roomy_cache(type("Decoder", (), {"config": config})(), 1) is not None
    cache = DynamicCache(config=config)
    assert all(type(layer) is DynamicLayer for layer in cache.layers)
