"""Models whose layers live on several devices, or on the disk."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from far import FAR, move_far, two_devices
from helpers import teacher_forced
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

from stepflow_tl import (
    Format,
    OddsEqualBridge,
    StepFlow,
    StepMomentum,
    generate,
    load_model,
    step_saliency,
)
from stepflow_tl.errors import ModelError
from stepflow_tl.models.view import view
from stepflow_tl.traces.trace import Trace

BOOT_OPTIONS = inspect.signature(TransformerBridge.boot_transformers).parameters
EVERY_FEW = Format(name="every few", thinking_cutter=lambda step, token: len(step) > 8)
ASK = {"max_new_tokens": 12, "chat": False, "format": EVERY_FEW}
QUESTIONS = ["Tom has 3 pens.", "He buys 4 more pens than that."]
FLOW = StepFlow(OddsEqualBridge(tau_max=0.5, layers="all"), StepMomentum(alpha=1.0, layers="all"))
SETTINGS = [
    {"backend": "hooks"},
    {"backend": "hooks", "chunk": 7},
    {"backend": "hooks", "objective": "sequence"},
    {"backend": "fused", "chunk": 7},
    {"backend": "fused", "objective": "sequence"},
    {"rule": "jacobian"},
]
WHERE = {"upper half and head": (range(2, 4), True), "middle layers": (range(1, 3), False)}


@pytest.fixture(scope="module")
def folder(tiny_folder: Callable[..., Path]) -> Path:
    return tiny_folder("qwen2")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Any:
    """The same checkpoint on one device."""
    return load_model(folder, device="cpu")


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def assert_same_maps(model: Any, whole: Any, trace: Trace, settings: list[dict[str, Any]]) -> None:
    for setting in settings:
        expected = step_saliency(whole, trace, **setting).scores
        torch.testing.assert_close(
            step_saliency(model, trace, **setting).scores,
            expected,
            atol=1e-5 * float(expected.abs().max()),
            rtol=0,
        )


class TestTwoDevices:
    def test_mixing_them_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with two_devices(monkeypatch):
            far, near = torch.ones(3, device=FAR), torch.ones(3)
            assert far.device == FAR and (far + 1.0).device == FAR
            assert (far * 2).tolist() == [2.0] * 3
            assert far[torch.tensor([0, 2])].shape == (2,)
            for mixed in (
                lambda: far + near,
                lambda: near[far.long()],
                lambda: torch.cat([far, near]),
                lambda: torch.where(near > 0, far, near),
            ):
                with pytest.raises(RuntimeError, match="all tensors on one device"):
                    mixed()

    @pytest.mark.parametrize("where", WHERE)
    def test_a_bridge(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path, whole: Any, trace: Trace, where: str
    ) -> None:
        logits = teacher_forced(whole, trace.tokens)
        with FLOW.attach(whole):
            traces = generate(whole, QUESTIONS, **ASK)
        with two_devices(monkeypatch):
            inner = plain(folder)
            layers, head = WHERE[where]
            move_far(inner, layers, head=head)
            model = load_model(folder, hf_model=inner)
            assert {p.device.type for p in model.parameters()} == {"cpu", "lazy"}
            assert torch.equal(teacher_forced(model, trace.tokens).cpu(), logits)
            with FLOW.attach(model) as run:
                assert generate(model, QUESTIONS, **ASK) == traces
            assert run.actions > 0
            assert view(model).weights_hash() == view(whole).weights_hash()
            assert_same_maps(model, whole, trace, SETTINGS)

    @pytest.mark.parametrize("where", WHERE)
    def test_a_plain_model(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path, whole: Any, trace: Trace, where: str
    ) -> None:
        with FLOW.attach(whole):
            expected = teacher_forced(whole, trace.tokens)
        with two_devices(monkeypatch):
            model = plain(folder)
            layers, head = WHERE[where]
            move_far(model, layers, head=head)
            with FLOW.attach(model, tokenizer=whole.tokenizer) as run, torch.no_grad():
                logits = model(trace.tokens).logits.cpu()
            assert run.actions > 0
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
            assert_same_maps(
                model, whole, trace, [s for s in SETTINGS if s.get("backend") == "fused"]
            )

    def test_a_stopped_run_goes_on(
        self,
        monkeypatch: pytest.MonkeyPatch,
        folder: Path,
        whole: Any,
        trace: Trace,
        tmp_path: Path,
    ) -> None:
        """Keys and values come back from the work file on the CPU, and belong elsewhere."""
        work = tmp_path / "map.work"
        expected = step_saliency(whole, trace, backend="fused", chunk=9).scores
        with two_devices(monkeypatch):
            model = plain(folder)
            move_far(model, range(2, 4), head=True)

            class Stop(Exception):
                pass

            passes = 0

            def stop(module: Any, args: Any) -> None:
                nonlocal passes
                passes += 1
                if passes == 4:  # the first is the probe of the fused backend
                    raise Stop

            handle = model.model.layers[3].register_forward_pre_hook(stop)
            with pytest.raises(Stop):
                step_saliency(model, trace, backend="fused", chunk=9, work_file=work)
            handle.remove()
            again = step_saliency(model, trace, backend="fused", chunk=9, work_file=work).scores
        torch.testing.assert_close(again, expected, atol=1e-5, rtol=1e-4)


class TestOnTheDisk:
    """accelerate keeps the weights of some modules in files, and on the meta device."""

    def device_map(self, embedding: str) -> dict[str, str]:
        layers = {f"model.layers.{i}": "cpu" if i < 2 else "disk" for i in range(4)}
        ends = {"model.embed_tokens": embedding, "lm_head": embedding}
        return {**ends, "model.norm": "cpu", "model.rotary_emb": "cpu", **layers}

    @pytest.mark.parametrize("embedding", ["cpu", "disk"])
    @pytest.mark.slow
    def test_a_bridge(
        self, folder: Path, whole: Any, trace: Trace, tmp_path: Path, embedding: str
    ) -> None:
        placed = {"device_map": self.device_map(embedding), "offload_folder": str(tmp_path)}
        if "offload_folder" not in BOOT_OPTIONS:  # transformer-lens 3.9
            with pytest.raises(ModelError, match=r"none of \['offload_folder'\]: expected some of"):
                load_model(folder, **placed)
            return
        model = load_model(folder, **placed)
        assert any(parameter.is_meta for parameter in model.parameters())
        assert view(model).device == torch.device("cpu")
        assert torch.equal(teacher_forced(model, trace.tokens), teacher_forced(whole, trace.tokens))
        with FLOW.attach(whole):
            traces = generate(whole, QUESTIONS, **ASK)
        with FLOW.attach(model):
            assert generate(model, QUESTIONS, **ASK) == traces
        assert view(model).weights_hash() == view(whole).weights_hash()
        assert_same_maps(model, whole, trace, SETTINGS)

    def test_a_plain_model(self, folder: Path, whole: Any, trace: Trace, tmp_path: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(
            folder, device_map=self.device_map("disk"), offload_folder=str(tmp_path)
        ).eval()
        assert_same_maps(model, whole, trace, SETTINGS[3:5])
        with FLOW.attach(model, tokenizer=whole.tokenizer) as run, torch.no_grad():
            model(trace.tokens)
        assert run.actions > 0


def test_device_and_device_map_exclude_each_other(folder: Path) -> None:
    with pytest.raises(ModelError, match="mutually exclusive"):
        load_model(folder, device="cpu", device_map="auto")
