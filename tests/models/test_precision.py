"""Every precision of the weights, packed ones too; and numbers that are no longer finite."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Readings, load_tiny, teacher_forced
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from stepflow_tl import (
    Format,
    OddsEqualBridge,
    StepFlow,
    StepMomentum,
    generate,
    load_model,
    step_saliency,
)
from stepflow_tl.errors import GenerationError, ModelError, StepMapError
from stepflow_tl.interventions.groups import Groups
from stepflow_tl.interventions.odds_equal_bridge import equalize_odds
from stepflow_tl.models.decoder_hooks import attend_through
from stepflow_tl.models.view import view
from stepflow_tl.models.weights import is_quantized
from stepflow_tl.saliency import NonFiniteError, token_saliency
from stepflow_tl.saliency.rules import gain_of, objective_weights
from stepflow_tl.traces.trace import Trace

EVERY_FEW = Format(name="every few", thinking_cutter=lambda step, token: len(step) > 8)
ASK = {"max_new_tokens": 12, "chat": False, "format": EVERY_FEW}
QUESTIONS = ["Tom has 3 pens.", "He buys 4 more pens than that."]
FLOW = StepFlow(OddsEqualBridge(tau_max=0.5, layers="all"), StepMomentum(alpha=1.0, layers="all"))
HALF = {"bfloat16": 8, "float16": 11}  # bits of a significand
SETTINGS = [
    {"backend": "hooks"},
    {"backend": "hooks", "chunk": 7},
    {"backend": "hooks", "objective": "sequence"},
    {"backend": "fused", "chunk": 7},
    {"backend": "fused", "objective": "sequence"},
    {"rule": "jacobian"},
]


class TestDtypes:
    @pytest.mark.parametrize("name", ["float64", "float32", "bfloat16", "float16"])
    def test_by_name_and_by_type(self, tiny_folder: Callable[..., Path], name: str) -> None:
        folder = tiny_folder("qwen2")
        for dtype in (name, getattr(torch, name)):
            model = load_model(folder, dtype=dtype)
            assert {p.dtype for p in model.parameters()} == {getattr(torch, name)}

    def test_auto_is_the_checkpoints_own(
        self, tiny_folder: Callable[..., Path], tmp_path: Path
    ) -> None:
        folder = tiny_folder("qwen2")
        inner = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        inner.save_pretrained(tmp_path)
        load_tiny(folder).tokenizer.save_pretrained(tmp_path)
        assert next(load_model(tmp_path, dtype="auto").parameters()).dtype == torch.bfloat16
        assert next(load_model(folder, dtype="auto").parameters()).dtype == torch.float32
        given = load_model(folder, hf_model=inner)
        assert (next(given.parameters()).dtype, given.cfg.dtype) == (torch.bfloat16,) * 2

    @pytest.mark.parametrize("dtype", ["float7", "int8", torch.int32, torch.float8_e4m3fn, 16])
    def test_what_is_none(self, dtype: Any, unchecked: None) -> None:
        message = "expected a dtype such as 'float32'.*'float16', 'auto'.*got .*hf_model="
        with pytest.raises(ModelError, match=message):
            load_model(dtype=dtype)

    @pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt_oss"])
    @pytest.mark.parametrize("name", HALF)
    @pytest.mark.slow
    def test_maps_are_those_of_float32(
        self, tiny: Callable[..., Any], trace: Trace, kind: str, name: str
    ) -> None:
        """Within the rounding of a few dozen operations on a path, at the map's largest entry."""
        model, exact = tiny(kind, getattr(torch, name)), tiny(kind)
        for setting in SETTINGS:
            found, expected = (step_saliency(m, trace, **setting) for m in (model, exact))
            assert found.scores.dtype == torch.float32
            assert found.settings["dtype"] == name
            gap = (found.scores - expected.scores).abs().max() / expected.scores.abs().max()
            assert float(gap) < 50 * 2.0 ** -HALF[name], setting

    @pytest.mark.parametrize("kind", ["qwen2", "gpt_oss"])
    @pytest.mark.parametrize("name", HALF)
    def test_stepflow_on_bridge_and_plain_model(
        self,
        tiny: Callable[..., Any],
        tiny_folder: Callable[..., Path],
        trace: Trace,
        kind: str,
        name: str,
    ) -> None:
        model = tiny(kind, getattr(torch, name))
        with FLOW.attach(model) as run:
            logits = teacher_forced(model, trace.tokens)
            assert len(generate(model, QUESTIONS, **ASK)) == 2
        assert logits.dtype == getattr(torch, name) and logits.isfinite().all()
        lines = run.ledger.to_dataframe().set_index("intervention").loc["OddsEqualBridge"]
        assert (lines["bridge_mass_after"] > lines["bridge_mass_before"]).all()
        plain = AutoModelForCausalLM.from_pretrained(tiny_folder(kind), dtype=name).eval()
        with FLOW.attach(plain, tokenizer=model.tokenizer) as inside, torch.no_grad():
            assert plain(trace.tokens).logits.isfinite().all()
        assert inside.actions > 0


class TestTheBridgesArithmetic:
    def test_half_precision_is_widened(self) -> None:
        """Rows in float16 come out as those in float32 do, rounded once."""
        pattern = torch.rand(1, 2, 3, 4).softmax(-1).half()
        bridge = torch.tensor([[[True, True, False, False]] * 3])
        groups = Groups.of(bridge, ~bridge)
        found = equalize_odds(pattern, groups, tau_max=0.7)
        exact = equalize_odds(pattern.float(), groups, tau_max=0.7)
        assert found.pattern.dtype == torch.float16 and found.before.dtype == torch.float32
        assert torch.equal(found.pattern, exact.pattern.half())

    def test_nan_is_not_hidden(self) -> None:
        pattern = torch.full((1, 1, 2, 4), 0.25)
        pattern[0, 0, 1, 3] = float("nan")
        bridge = torch.tensor([[[True, False, False, False]] * 2])
        groups = Groups.of(bridge, ~bridge)
        result = equalize_odds(pattern, groups, tau_max=0.9)
        assert result.pattern[0, 0, 0].isfinite().all()
        assert result.pattern[0, 0, 1].isnan().any()
        assert result.before[0, 0, 1].isnan()

    def test_a_mask_does_not_overflow_in_float16(self) -> None:
        """A row without any key it sees, as padding has: finite, or its NaN reaches others."""
        query, key = torch.full((1, 1, 1, 4), -40.0), torch.full((1, 1, 3, 4), 40.0)
        mask = torch.full((1, 1, 1, 3), torch.finfo(torch.float16).min)
        z = attend_through([], query.half(), key.half(), torch.ones(1, 1, 3, 4).half(), mask.half())
        assert z.isfinite().all()


def test_a_mean_losss_gradients_do_not_vanish_in_float16(
    tiny: Callable[..., Any], trace: Trace
) -> None:
    long = Trace.from_token_ids(
        tiny("qwen2"), trace.token_ids.tolist() * 6, prompt_length=16, format="plain", strict=False
    )
    weights = objective_weights(long, "sequence")
    gain = gain_of(weights)
    assert math.log2(gain) == int(math.log2(gain)) and 0.5 < float(weights.max()) * gain <= 1.0
    for backend in ("hooks", "fused"):
        setting: dict[str, Any] = {"backend": backend, "objective": "sequence"}
        found = token_saliency(tiny("qwen2", torch.float16), long, **setting)
        expected = token_saliency(tiny("qwen2"), long, **setting)
        small = (expected > 0) & (expected < expected.max() * 1e-4)
        assert small.sum() > 1000
        ratio = found[small].double().sum() / expected[small].double().sum()
        assert 0.97 < float(ratio) < 1.03


class TestNonFiniteScores:
    @pytest.fixture
    def broken(self, tiny_folder: Callable[..., Path], trace: Trace) -> Any:
        """A model whose numbers are yet to be broken."""
        model = load_tiny(tiny_folder("qwen2"))
        step_saliency(model, trace, backend="fused")  # its check of the model, while it is whole
        return model

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("backend", ["hooks", "fused"])
    def test_layer_position_and_cause(
        self, broken: Any, trace: Trace, backend: Any, value: float
    ) -> None:
        position = int((trace.token_ids == trace.token_ids[20]).nonzero()[0])
        with torch.no_grad():
            broken.original_model.get_input_embeddings().weight[trace.token_ids[20]] = value
        message = (
            r"saliency at layer 3 is NaN or infinite at query position 0 \(in no step\); the "
            rf"forward pass itself is not finite from the embedding on, at position {position}; "
            "check the weights"
        )
        with pytest.raises(StepMapError, match=message) as caught:
            step_saliency(broken, trace, backend=backend)
        assert isinstance(caught.value, FloatingPointError)
        with pytest.raises(NonFiniteError, match="layer 0 is NaN or infinite at query position"):
            step_saliency(broken, trace, backend=backend, rule="attention", layers=[0])

    @pytest.mark.parametrize("backend", ["hooks", "fused"])
    def test_nothing_of_it_is_stored(
        self, broken: Any, trace: Trace, backend: Any, tmp_path: Path
    ) -> None:
        import sqlite3

        from safetensors.torch import load

        with torch.no_grad():
            broken.original_model.get_input_embeddings().weight[trace.token_ids[40]] = float("nan")
        work = tmp_path / "map.work"
        with pytest.raises(NonFiniteError):
            step_saliency(broken, trace, backend=backend, chunk=6, work_file=work)
        rows = sqlite3.connect(work).execute("SELECT data FROM sums").fetchall()
        assert rows
        assert all(load(data)["sums"].isfinite().all() for (data,) in rows)

    def test_a_gradient_that_overflows_in_float16(
        self, tiny_folder: Callable[..., Path], trace: Trace
    ) -> None:
        model = load_tiny(tiny_folder("qwen2"), dtype=torch.float16)

        def steep(resid: Tensor, hook: Any) -> Tensor:
            return resid.detach() + (resid - resid.detach()) * 6e4 * 6e4

        message = "forward pass is finite, so that the gradient overflows; float16 overflows beyond"
        with (
            model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", steep)]),
            pytest.raises(NonFiniteError, match=message),
        ):
            step_saliency(model, trace, backend="hooks")


class TestNonFiniteLogits:
    def test_row_and_position_are_named(self, qwen2: Any) -> None:
        passes = 0

        def spoil(logits: Tensor, hook: Any) -> Tensor:
            nonlocal passes
            passes += 1
            if passes == 3:
                logits[1, -1, 7] = float("nan")
            return logits

        lengths = [len(qwen2.tokenizer(q)["input_ids"]) for q in QUESTIONS]
        message = (
            rf"NaN or infinite ones in row 1 of a batch of 2, for its new token 2 \(position "
            rf"{lengths[1] + 2}, after a prompt of {lengths[1]}\).*bfloat16"
        )
        with (
            qwen2.hooks(fwd_hooks=[("unembed.hook_out", spoil)]),
            pytest.raises(GenerationError, match=message),
        ):
            generate(qwen2, QUESTIONS, **ASK)

    def test_forbidden_tokens_are_fine(self, qwen2: Any) -> None:
        plain = generate(qwen2, QUESTIONS[0], **ASK)
        first = int(plain.token_ids[plain.prompt_length])

        def forbid(logits: Tensor, hook: Any) -> Tensor:
            logits[..., first] = -torch.inf
            return logits

        with qwen2.hooks(fwd_hooks=[("unembed.hook_out", forbid)]):
            trace = generate(qwen2, QUESTIONS[0], **ASK)
        assert first not in trace.token_ids[trace.prompt_length :]

    def test_one_reading_a_token(self, qwen2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        counts = []
        for tokens in (4, 12):
            with monkeypatch.context() as patch, Readings(patch) as readings:
                generate(qwen2, QUESTIONS, **{**ASK, "max_new_tokens": tokens})
            counts.append(readings.count)
        assert counts[1] - counts[0] == 8


def teacher_forced_readings(model: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often the model itself asks the device in a pass of cached decoding."""
    from helpers import Decoding

    decoding = Decoding(model, [0])
    decoding(torch.tensor([[5, 6, 7]]))
    with monkeypatch.context() as patch, Readings(patch) as readings:
        decoding(torch.tensor([[8]]))
    return readings.count


class Packed(nn.Module):
    """A linear layer that keeps 8-bit numbers and scales, and no matrix."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter(
            (linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False
        )
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.weight.to(x.dtype) * self.scale.to(x.dtype)
        return nn.functional.linear(x, matrix, self.bias)


def packed(folder: Path, make: Callable[[nn.Linear], nn.Module] = Packed) -> Any:
    """A plain model whose decoder layers have packed weights."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, make(child))
    return model


class TestPackedWeights:
    def test_everything_works_on_them(
        self, tiny_folder: Callable[..., Path], qwen2: Any, trace: Trace
    ) -> None:
        folder = tiny_folder("qwen2")
        model = load_model(folder, hf_model=packed(folder))
        assert is_quantized(model) and not is_quantized(qwen2)
        for setting in SETTINGS:
            found, exact = (step_saliency(m, trace, **setting).scores for m in (model, qwen2))
            assert float((found - exact).abs().max() / exact.abs().max()) < 0.1
        with FLOW.attach(model) as run:
            assert len(generate(model, QUESTIONS, **ASK)) == 2
        assert run.actions > 0
        assert float(run.ledger.to_dataframe()["injection_norm"].max()) > 0

    def test_heads_to_the_residual_stream(
        self, tiny_folder: Callable[..., Path], qwen2: Any
    ) -> None:
        folder = tiny_folder("qwen2")
        z = torch.randn(3, 4, 8)
        expected = view(qwen2).heads_to_residual(1, z)
        for model in (packed(folder), load_model(folder, hf_model=packed(folder))):
            found = view(model).heads_to_residual(1, z)
            torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)

    def test_the_hash_knows_scales(self, tiny_folder: Callable[..., Path]) -> None:
        model = packed(tiny_folder("qwen2"))
        before = view(model).weights_hash()
        assert view(packed(tiny_folder("qwen2"))).weights_hash() == before
        model.model.layers[1].mlp.up_proj.scale[0] *= 2
        assert view(model).weights_hash() != before

    def test_layers_that_give_no_gradient_are_named(
        self, tiny_folder: Callable[..., Path], trace: Trace
    ) -> None:
        """As torch's own quantized layers: a map without them would be silently wrong."""

        class Closed(Packed):
            @torch.no_grad()
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x)

        folder = tiny_folder("qwen2")
        model = load_model(folder, hf_model=packed(folder, Closed))
        message = (
            r"layers that a gradient goes through, got Closed at .*q.*no gradient.*unquantized"
        )
        for setting in SETTINGS:
            with pytest.raises(StepMapError, match=message):
                step_saliency(model, trace, **setting)
        step_saliency(model, trace, rule="attention")
        with FLOW.attach(model):
            generate(model, QUESTIONS, **ASK)

    def test_torchs_dynamic_quantization(
        self, tiny_folder: Callable[..., Path], trace: Trace
    ) -> None:
        from torch.ao.nn.quantized.dynamic import Linear
        from torch.ao.quantization import default_dynamic_qconfig

        def make(linear: nn.Linear) -> nn.Module:
            linear.qconfig = default_dynamic_qconfig
            return Linear.from_float(linear)

        folder = tiny_folder("qwen2")
        model = load_model(folder, hf_model=packed(folder, make))
        with FLOW.attach(model) as run:
            generate(model, QUESTIONS, **ASK)
        assert run.actions > 0
        again = load_model(folder, hf_model=packed(folder, make))
        assert view(model).weights_hash() == view(again).weights_hash()
        with pytest.raises(StepMapError, match="a gradient goes through, got Linear"):
            step_saliency(model, trace)


@pytest.mark.parametrize(
    "config",
    [{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_8bit": True}],
    ids=["nf4", "int8"],
)
@pytest.mark.slow
def test_bitsandbytes(
    tiny_folder: Callable[..., Path], trace: Trace, config: dict[str, Any]
) -> None:
    pytest.importorskip("bitsandbytes")
    folder = tiny_folder("qwen2", hidden_size=64, intermediate_size=64)
    inner = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(**config), device_map={"": "cpu"}
    ).eval()
    model = load_model(folder, hf_model=inner)
    assert is_quantized(model)
    with FLOW.attach(model) as run:
        generate(model, QUESTIONS, **ASK)  # packs 4-bit weights anew where the CPU has AVX512-BF16
    assert run.actions > 0
    for setting in SETTINGS:
        found = step_saliency(model, trace, **setting).scores
        assert found.isfinite().all() and found.abs().max() > 0
    hooked, fused = (step_saliency(model, trace, backend=b).scores for b in ("hooks", "fused"))
    assert float((hooked - fused).abs().max() / hooked.abs().max()) < 0.2
    assert view(model).heads_to_residual(1, torch.randn(3, 4, 16)).isfinite().all()
    assert len(view(model).weights_hash()) == 16
