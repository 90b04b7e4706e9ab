"""Layers by name."""

import re
from typing import Any

import pytest

from stepflow_tl.models.layers import check_layer_spec, resolve_layers


@pytest.mark.parametrize(
    ("spec", "count", "layers"),
    [
        ("shallow", 28, range(7)),
        ("deep", 28, range(21, 28)),
        ("middle", 28, range(7, 21)),
        ("deep-onset", 28, [21]),
        ("all", 28, range(28)),
        ("shallow", 8, [0, 1]),
        ("deep", 8, [6, 7]),
        ("middle", 8, range(2, 6)),
        ("shallow", 1, [0]),
        ("deep", 1, [0]),
        (0.25, 28, range(7)),
        (-0.25, 28, range(21, 28)),
        (1.0, 4, range(4)),
        (-1.0, 4, range(4)),
        (0.01, 4, [0]),
        (-0.01, 4, [3]),
        ((0.25, 0.5), 8, [2, 3]),
        ((0.0, 0.25), 28, range(7)),
        ((0, 0.25), 28, range(7)),
        ((0.75, 1), 28, range(21, 28)),
        ((0.97, 0.98), 4, [3]),
        ((0.5, 0.51), 4, [2]),
        (5, 8, [5]),
        (-1, 8, [7]),
        (range(1, 8, 3), 8, [1, 4, 7]),
        ([3, -1, 3, 0], 8, [0, 3, 7]),
        ((0, 1), 8, [0, 1]),
    ],
)
def test_layers(spec: Any, count: int, layers: Any) -> None:
    assert resolve_layers(spec, count) == tuple(layers)
    check_layer_spec(spec)


@pytest.mark.parametrize("count", range(1, 50))
def test_fractions_agree_with_bands_in_models_of_any_depth(count: int) -> None:
    assert resolve_layers(0.25, count) == resolve_layers("shallow", count)
    assert resolve_layers(-0.25, count) == resolve_layers("deep", count)
    for spec in (0.01, -0.01, 0.3, -0.3, (0.3, 0.31), (0.9, 1.0), (0.99, 1.0)):
        layers = resolve_layers(spec, count)
        assert layers
        assert 0 <= layers[0] <= layers[-1] < count


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("spec", "count", "message"),
    [
        ("bottom", 8, "layers='bottom': expected one of ['shallow', 'middle', 'deep', 'all'"),
        ("middle", 2, "layers='middle' is empty in a model of 2 layers"),
        (8, 8, "layers=8 names layer 8, but the model has 8 layers (0 to 7)"),
        (-9, 8, "names layer -9, but the model has 8 layers"),
        ([0, 9], 8, "layers=[0, 9] names layer 9"),
        ([], 8, "expected at least one layer index, a band or a fraction"),
        (range(3, 3), 8, "expected at least one layer index"),
        ([True], 8, "layers=[True]: expected at least one layer index"),
        (["1"], 8, "expected at least one layer index"),
        (0.0, 8, "expected a fraction in (0, 1] or [-1, 0)"),
        (1.5, 8, "expected a fraction in (0, 1]"),
        (float("nan"), 8, "expected a fraction in (0, 1]"),
        ((0.5, 0.25), 8, "0 <= low < high <= 1"),
        ((0.5, 1.5), 8, "0 <= low < high <= 1"),
    ],
)
def test_impossible_layers(spec: Any, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve_layers(spec, count)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("spec", ["bottom", 1.5, (0.5, 0.25), [], 0.0])
def test_what_no_model_has_is_refused_without_one(spec: Any) -> None:
    with pytest.raises(ValueError, match="layers="):
        check_layer_spec(spec)
