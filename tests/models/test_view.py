"""Loading, and the hook names and shapes of both model classes."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import cached, hooks_of, teacher_forced
from transformer_lens.model_bridge import TransformerBridge

from stepflow_tl.decoding.batch import pad_token_id
from stepflow_tl.errors import ModelError
from stepflow_tl.models.loading import load_model
from stepflow_tl.models.sites import hook_name
from stepflow_tl.models.view import view
from stepflow_tl.traces.trace import Trace


class TestLoading:
    def test_a_folder_without_config(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"checkpoint in .*, found no config.json there"):
            load_model(tmp_path)

    @pytest.mark.parametrize("name", ["nobody/nothing", "nothing-at-all", "not/a/folder/of/mine"])
    def test_an_unknown_name(self, name: str) -> None:
        with pytest.raises(ModelError, match=rf"no model '{name}': expected 'reasoner'"):
            load_model(name)

    def test_a_broken_config(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(ModelError, match="no model"):
            load_model(tmp_path)

    def test_an_unknown_architecture(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
        with pytest.raises(ModelError, match="unheard-of"):
            load_model(tmp_path)

    def test_truncated_weights(self, tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(tiny_folder("qwen2"), folder)
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(ModelError, match="could not be loaded"):
            load_model(folder)

    def test_a_folder_without_weights(self, tiny_folder: Callable[..., Path]) -> None:
        folder = tiny_folder("qwen2")
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelError, match="no file named"):
            load_model(folder)

    def test_nothing_is_installed(
        self, tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """TransformerLens would install torchvision for a multimodal checkpoint's processor."""
        refused: list[str] = []

        def boot(source: str, **options: Any) -> Any:
            for command in (["uv", "pip", "install", "torchvision"], ["-m", "pip", "install", "x"]):
                with pytest.raises(PermissionError, match="installs nothing while a model loads"):
                    subprocess.check_call(command)
                refused.append(source)
            assert subprocess.check_call([sys.executable, "-c", ""]) == 0
            return torch.nn.Identity()

        monkeypatch.setattr(TransformerBridge, "boot_transformers", staticmethod(boot))
        before = subprocess.check_call
        load_model(tiny_folder("qwen2"))
        assert len(refused) == 2
        assert subprocess.check_call is before

    def test_dtype_device_and_mode(self, tiny: Callable[..., Any]) -> None:
        model = tiny("qwen2", torch.bfloat16)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert not model.training
        assert next(tiny("qwen2").parameters()).dtype == torch.float32

    def test_a_folder_gives_the_name(self, qwen2: Any) -> None:
        assert view(qwen2).name == "qwen2"
        assert view(qwen2).n_layers == 4

    def test_a_model_without_tokenizer(self) -> None:
        bare = SimpleNamespace(original_model=None, tokenizer=None)
        with pytest.raises(ModelError, match="has no tokenizer: set model.tokenizer"):
            _ = view(bare).tokenizer

    @pytest.mark.parametrize("stranger", [None, "reasoner", torch.nn.Identity()])
    def test_no_model(self, stranger: Any) -> None:
        with pytest.raises(ModelError, match="a Hugging Face decoder, got"):
            view(stranger)


def test_hooks_have_the_documented_names_and_shapes(model: Any, trace: Trace) -> None:
    seen: dict[str, tuple[int, ...]] = {}

    def note(x: torch.Tensor, hook: Any) -> None:
        seen[site] = tuple(x.shape)

    n, d = len(trace), 8
    shapes = {
        "embed": (1, n, 32),
        "resid_pre": (1, n, 32),
        "resid_post": (1, n, 32),
        "rot_q": (1, n, 4, d),
        "rot_k": (1, n, 2, d),
        "v": (1, n, 2, d),
        "attn_scores": (1, 4, n, n),
        "pattern": (1, 4, n, n),
        "z": (1, n, 4, d),
    }
    for site in shapes:
        layer = None if site == "embed" else 1
        with torch.no_grad():
            model.run_with_hooks(trace.tokens, fwd_hooks=[(hook_name(site, layer), note)])
    assert seen == shapes


def test_scores_are_scaled_queries_and_keys(model: Any, trace: Trace) -> None:
    seen: dict[str, torch.Tensor] = {}

    def keep(site: str) -> Callable[..., None]:
        return lambda x, hook: seen.update({site: x.detach()})

    sites = ("rot_q", "rot_k", "attn_scores")
    with torch.no_grad():
        model.run_with_hooks(
            trace.tokens, fwd_hooks=[(hook_name(site, 1), keep(site)) for site in sites]
        )
    keys = seen["rot_k"].repeat_interleave(2, dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", seen["rot_q"], keys) * view(model).score_scale(1)
    visible = torch.ones(len(trace), len(trace)).tril().bool()
    torch.testing.assert_close(scores[0, :, visible], seen["attn_scores"][0, :, visible])
    assert view(model).score_softcap(1) is None


def test_heads_to_residual_leaves_the_bias_out(model: Any, trace: Trace) -> None:
    seen: dict[str, torch.Tensor] = {}

    def keep(z: torch.Tensor, hook: Any) -> None:
        seen["z"] = z

    def keep_out(out: torch.Tensor, hook: Any) -> None:
        seen["out"] = out

    with torch.no_grad():
        model.run_with_hooks(
            trace.tokens,
            fwd_hooks=[(hook_name("z", 1), keep), ("blocks.1.hook_attn_out", keep_out)],
        )
        z, out = seen["z"][0], seen["out"][0]
        change = view(model).heads_to_residual(1, z[:5] - z[5:10])
    torch.testing.assert_close(change, out[:5] - out[5:10], atol=1e-5, rtol=1e-4)


def test_windows(model: Any, gpt_oss: Any) -> None:
    if model is gpt_oss:
        assert [view(model).attention_window(layer) for layer in range(4)] == [8, None, 8, None]
    else:
        assert [view(model).attention_window(layer) for layer in range(4)] == [None] * 4


def test_a_window_that_is_configured_but_off(tiny_folder: Callable[..., Path]) -> None:
    off = load_model(tiny_folder("qwen2", sliding_window=8, use_sliding_window=False))
    assert [view(off).attention_window(layer) for layer in range(4)] == [None] * 4
    on = load_model(
        tiny_folder("qwen2", sliding_window=8, use_sliding_window=True, max_window_layers=2)
    )
    assert [view(on).attention_window(layer) for layer in range(4)] == [None, None, 8, 8]


def test_decode_step_by_step_gives_the_logits_of_one_pass(model: Any, trace: Trace) -> None:
    tokens = trace.tokens[:, :20]
    whole = teacher_forced(model, tokens)
    cache, at = None, 0
    for size in (10, 6, 1, 1, 1, 1):
        at += size
        with torch.no_grad():
            logits, cache = view(model).decode(
                tokens[:, at - size : at], torch.ones(1, at, dtype=torch.long), cache
            )
        torch.testing.assert_close(logits, whole[:, at - 1], atol=2e-4, rtol=1e-4)


def test_decode_with_left_padding(model: Any, trace: Trace) -> None:
    pad = pad_token_id(model.tokenizer)
    short, whole = trace.tokens[:, :12], trace.tokens[:, :20]
    padded = torch.cat([torch.full((1, 8), pad), short], dim=1)
    logits = cached(model, torch.cat([whole, padded]), [18], pads=[0, 8])
    alone = teacher_forced(model, short)
    torch.testing.assert_close(logits[1, -1], alone[0, -1], atol=2e-4, rtol=1e-4)


def test_a_detached_cache_keeps_its_values_and_no_graph(model: Any, trace: Trace) -> None:
    tokens, mask = trace.tokens[:, :20], torch.ones(1, 20, dtype=torch.long)
    whole = teacher_forced(model, tokens)
    first, cache = view(model).run_cached(tokens[:, :12], mask[:, :12], None)
    assert first.requires_grad
    view(model).detach(cache)
    hooks = [(hook_name("embed"), lambda x, hook: x.detach())]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        with model.hooks(fwd_hooks=hooks):
            second, _ = view(model).run_cached(tokens[:, 12:], mask, cache)
    finally:
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
    assert not second.requires_grad
    logits = torch.cat([first, second], dim=1)
    torch.testing.assert_close(logits, whole, atol=2e-4, rtol=1e-4)


class TestOnlyHooks:
    """A pass within a pass sees its own hooks, and the outer pass never knows."""

    def test_others_are_set_aside_and_return(self, model: Any, trace: Trace) -> None:
        plain = teacher_forced(model, trace.tokens)
        seen: list[str] = []

        def note(name: str) -> Any:
            return lambda x, hook: seen.append(name)

        def zero(x: torch.Tensor, hook: Any) -> torch.Tensor:
            seen.append("outer")
            return x * 0

        with model.hooks(fwd_hooks=[(hook_name("z", 1), zero)]):
            before = hooks_of(model)
            with view(model).only_hooks([(hook_name("z", 1), note("inner"))]):
                torch.testing.assert_close(teacher_forced(model, trace.tokens), plain)
            assert hooks_of(model) == before
            assert seen == ["inner"]
            assert (teacher_forced(model, trace.tokens) - plain).abs().max() > 1e-3
            assert seen == ["inner", "outer"]
        assert not any(hooks_of(model).values())

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_within_a_pass_whatever_is_raised(
        self, model: Any, trace: Trace, error: type[BaseException]
    ) -> None:
        inner: list[torch.Tensor] = []

        def fail(x: torch.Tensor, hook: Any) -> None:
            raise error("stop")

        def run_again(x: torch.Tensor, hook: Any) -> None:
            with view(model).only_hooks([]):
                inner.append(model(trace.tokens[:, :9], return_type="logits"))
            with pytest.raises(error), view(model).only_hooks([(hook_name("z", 2), fail)]):
                model(trace.tokens[:, :9])

        plain = teacher_forced(model, trace.tokens)
        with model.hooks(fwd_hooks=[(hook_name("pattern", 0), run_again)]):
            hooks = hooks_of(model)
            assert torch.equal(teacher_forced(model, trace.tokens), plain)
            assert hooks_of(model) == hooks
        torch.testing.assert_close(inner[0], plain[:, :9], atol=2e-4, rtol=1e-4)
        assert not any(hooks_of(model).values())
