"""The GPU's benchmark, on a CPU: everything runs, and what is wrong is said."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


@pytest.mark.slow
def test_all_of_it_on_a_cpu(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--small", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert {"device", "dtype", "torch"} <= set(found["facts"])
    kinds = " ".join(line["what"] for line in found["lines"])
    for what in ("logits", "batch 32", "StepFlow", "step map, 160 tokens", "sweep of"):
        assert what in kinds
    assert all(line["right"] for line in found["lines"])
    assert capsys.readouterr().out.count("| yes |") == len(found["lines"])


def test_without_a_device(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="expected a CUDA device, found none: --device cpu"):
        gpu.main([])


def test_what_is_wrong_is_seen(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = gpu.Line("decoding", 1.0, "", None, 0.2, 0.9, False)
    for part in ("decoding", "saliency", "sweep"):
        monkeypatch.setattr(gpu, part, lambda *given: [wrong])
    out = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--small", "--out", str(out)]) == 1


def test_texts_are_alike_up_to_where_they_differ(gpu: ModuleType, trace: object) -> None:
    assert gpu.alike([trace], [trace]) == 1.0
