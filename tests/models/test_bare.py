"""A bridge run bare: its own decoder's modules in place of all bridges, and back again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import HAS_HOOKED, hooked_from, hooks_of, teacher_forced
from torch import Tensor, nn

from stepflow_tl import StepFlow, generate, load_model
from stepflow_tl.errors import ModelError
from stepflow_tl.models.huggingface import HuggingFaceView
from stepflow_tl.models.view import view
from stepflow_tl.traces import Trace

KINDS = ["qwen2", "llama", "gpt_oss", "qwen2_moe", "gpt2"]
ASK = {"max_new_tokens": 12, "chat": False, "format": "plain"}


@pytest.fixture(params=KINDS)
def bridge(request: pytest.FixtureRequest, tiny_folder: Callable[..., Path]) -> Any:
    return load_model(tiny_folder(request.param))


def modules(model: Any) -> list[tuple[str, int]]:
    """Every module, by its place."""
    return [(name, id(module)) for name, module in model.named_modules()]


def bridges(decoder: nn.Module) -> list[str]:
    return [name for name, m in decoder.named_modules() if hasattr(m, "original_component")]


def test_the_same_logits_without_a_bridge(bridge: Any, trace: Trace) -> None:
    expected, before = teacher_forced(bridge, trace.tokens), modules(bridge)
    with view(bridge).bare() as bare:
        assert isinstance(bare, HuggingFaceView)
        assert bare.model is bridge.original_model
        assert bridges(bare.model) == []
        with torch.no_grad():
            logits = bare.logits(trace.tokens)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert modules(bridge) == before
    torch.testing.assert_close(teacher_forced(bridge, trace.tokens), expected, atol=0.0, rtol=0.0)


def test_the_same_tokens(bridge: Any) -> None:
    expected = generate(bridge, "Tom has 3 pens.", **ASK)
    with view(bridge).bare() as bare:
        found = generate(bare, "Tom has 3 pens.", tokenizer=bridge.tokenizer, **ASK)
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    again = generate(bridge, "Tom has 3 pens.", **ASK)
    assert again.token_ids.tolist() == expected.token_ids.tolist()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_bridges_return_whatever_is_raised(
    qwen2: Any, trace: Trace, error: type[BaseException]
) -> None:
    expected, before = teacher_forced(qwen2, trace.tokens), modules(qwen2)
    with pytest.raises(error, match="stop"), view(qwen2).bare():
        raise error("stop")
    assert modules(qwen2) == before
    seen: list[tuple[int, ...]] = []

    def look(pattern: Tensor, hook: Any) -> None:
        seen.append(tuple(pattern.shape))

    hooks = [("blocks.1.attn.hook_pattern", look)]
    with torch.no_grad():
        logits = qwen2.run_with_hooks(trace.tokens, fwd_hooks=hooks)
    assert seen == [(1, 4, len(trace), len(trace))]
    torch.testing.assert_close(logits, expected, atol=0.0, rtol=0.0)
    assert not any(hooks_of(qwen2).values())


@pytest.mark.parametrize("name", ["paper", "digest"])
def test_stepflow_acts_in_it_as_through_hooks(qwen2: Any, trace: Trace, name: str) -> None:
    flow = StepFlow.preset(name)
    with flow.attach(qwen2) as run:
        expected = teacher_forced(qwen2, trace.tokens)
    with view(qwen2).bare() as bare:
        with flow.attach(bare, tokenizer=qwen2.tokenizer) as inside, torch.no_grad():
            logits = bare.logits(trace.tokens)
        assert bare.hooks_on() == []
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)
    assert inside.actions == run.actions > 0


def test_bare_is_itself_on_a_plain_model(qwen2: Any) -> None:
    with view(qwen2).bare() as bare, bare.bare() as again:
        assert again is bare


@pytest.mark.skipif(not HAS_HOOKED, reason="transformer-lens 4 has no HookedTransformer")
def test_a_hooked_transformer_has_no_decoder(tiny_folder: Callable[..., Path]) -> None:
    hooked = hooked_from(tiny_folder("qwen2"))
    with pytest.raises(ModelError, match="around a Hugging Face decoder, got a HookedTransformer"):
        view(hooked).bare()
