"""Step maps: bands, scaling, tables, files."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import DATA
from torch import Tensor

from stepflow_tl.saliency import StepMap, StepMapError, step_saliency
from stepflow_tl.traces.trace import Step, Trace

STEPS = (
    Step(0, "question", 0, 2, "Why?"),
    Step(1, "thinking", 3, 5, " Because ≈."),
    Step(2, "summary", 6, 7, "So."),
)
SCORES = torch.tensor([[2.0, 0.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 0.0]])


FOUR = SCORES.expand(4, 3, 3)


def make(scores: Tensor = FOUR, layers: tuple[int, ...] = (0, 1, 2, 3)) -> StepMap:
    factor = torch.tensor([float(layer + 1) for layer in layers])
    scores = scores * factor.view(-1, *[1] * (scores.ndim - 1))
    return StepMap(
        scores=scores, layers=layers, n_layers=4, steps=STEPS, settings={"rule": "signed"}
    )


def test_a_band_is_the_mean_of_its_layers() -> None:
    assert torch.equal(make().band("shallow").scores, SCORES[None])
    assert torch.equal(make().band("all").scores, SCORES[None] * 2.5)
    assert torch.equal(make().band((0.5, 1.0)).scores, SCORES[None] * 3.5)
    band = make().band("middle")
    assert band.settings == {"rule": "signed", "band": "middle", "band_layers": [1, 2]}


def test_select_keeps_layers_and_their_numbers() -> None:
    part = make().select([3, -3])
    assert part.layers == (1, 3)
    assert torch.equal(part.scores, make().scores[[1, 3]])
    assert part.select(3).scores[0, 0, 0] == 8.0


def test_select_refuses_layers_that_are_not_there() -> None:
    part = make(SCORES.expand(2, 3, 3), (1, 3))
    message = "layers [0] are not in this map of layers [1, 3]"
    with pytest.raises(StepMapError, match=re.escape(message)):
        part.select("shallow")
    with pytest.raises(ValueError, match="names layer 4"):
        make().select(4)


def test_normalized_rows_and_layers() -> None:
    rows = make().normalize("row").scores[2]
    assert rows.tolist() == [[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.0, 0.0, 0.0]]
    layers = make().normalize("layer")
    torch.testing.assert_close(layers.scores.sum((1, 2)), torch.ones(4))
    assert layers.settings["normalized"] == "layer"


def test_signed_scores_are_scaled_by_magnitude() -> None:
    rows = make(-FOUR).normalize("row").scores[0]
    assert rows[1].tolist() == [-0.25, -0.75, 0.0]


@pytest.mark.parametrize("tiny", [1e-44, 1e-30])
def test_scores_near_zero_are_scaled_without_overflow(tiny: float) -> None:
    rows = make(FOUR * tiny).normalize("row").scores
    assert rows.isfinite().all()
    torch.testing.assert_close(rows[0].sum(1), torch.tensor([1.0, 1.0, 0.0]), atol=0.3, rtol=0)


@pytest.mark.usefixtures("unchecked")
def test_normalizing_by_something_else() -> None:
    with pytest.raises(StepMapError, match="expected by='row' or by='layer', got 'column'"):
        make().normalize("column")


def test_the_table_holds_the_lower_triangle() -> None:
    table = make(SCORES.expand(2, 3, 3), (1, 3)).to_dataframe()
    assert len(table) == 2 * 6
    row = table[(table.layer == 3) & (table.query_step == 1) & (table.key_step == 0)].iloc[0]
    assert (row.query_segment, row.key_segment, row.score) == ("thinking", "question", 4.0)
    assert "head" not in table


def test_heads() -> None:
    heads = torch.stack([SCORES, 3 * SCORES]).expand(4, 2, 3, 3)
    whole = make(heads)
    assert torch.equal(whole.mean_over_heads().scores, make().scores * 2)
    assert set(whole.to_dataframe()["head"]) == {0, 1}
    assert whole.band("all").scores.shape == (1, 2, 3, 3)
    assert make().mean_over_heads() is not None


class TestFiles:
    def test_round_trip(self, tmp_path: Path) -> None:
        saved = make().band("deep")
        saved.save(tmp_path / "map.safetensors")
        loaded = StepMap.load(tmp_path / "map.safetensors")
        assert torch.equal(loaded.scores, saved.scores)
        for name in ("layers", "n_layers", "steps", "settings"):
            assert getattr(loaded, name) == getattr(saved, name)

    def test_a_truncated_file(self, tmp_path: Path) -> None:
        path = tmp_path / "map.safetensors"
        make().save(path)
        path.write_bytes(path.read_bytes()[:-3])
        with pytest.raises(StepMapError, match=r"not a readable .*StepMap file \(truncated\?\)"):
            StepMap.load(path)

    def test_a_foreign_file(self) -> None:
        with pytest.raises(StepMapError, match=r"expected a stepflow_tl.StepMap file of version 1"):
            StepMap.load(DATA / "token_saliency.safetensors")

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no stepflow_tl.StepMap file at"):
            StepMap.load(tmp_path / "none")


def test_the_repr_says_sizes_and_settings() -> None:
    assert repr(make()) == "StepMap([4, 3, 3], layers [0, 1, 2, 3]; rule=signed)"


class TestFromACache:
    @pytest.mark.parametrize("per_head", [False, True])
    def test_it_is_the_map_of_attention(self, model: Any, trace: Trace, per_head: bool) -> None:
        with torch.no_grad():
            _, cache = model.run_with_cache(trace.tokens)
        found = StepMap.from_cache(cache, trace, per_head=per_head)
        expected = step_saliency(model, trace, rule="attention", per_head=per_head)
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-6)
        assert (found.layers, found.n_layers) == (expected.layers, expected.n_layers)
        assert found.steps == trace.steps
        assert found.settings["rule"] == "attention"

    def test_of_some_layers(self, qwen2: Any, trace: Trace) -> None:
        names = ["blocks.1.attn.hook_pattern", "blocks.3.attn.hook_pattern"]
        with torch.no_grad():
            _, cache = qwen2.run_with_cache(trace.tokens, names_filter=names)
        found = StepMap.from_cache(cache, trace)
        assert (found.layers, found.n_layers) == ((1, 3), 4)
        assert found.select([3]).scores.shape == (1, 7, 7)

    def test_what_is_no_cache_of_the_trace(self, qwen2: Any, trace: Trace) -> None:
        with torch.no_grad():
            _, cache = qwen2.run_with_cache(trace.tokens[:, :9])
        with pytest.raises(StepMapError, match=r"of 86 tokens, .*got \[1, 4, 9, 9\] at blocks.0"):
            StepMap.from_cache(cache, trace)
        with pytest.raises(StepMapError, match="attention patterns .*found none"):
            StepMap.from_cache({"hook_embed": torch.zeros(1)}, trace)
