"""Decoding on the bare decoder: rows leave and join, and nobody else's hook is passed by."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Readings, hooks_of
from torch import Tensor

from stepflow_tl import OddsEqualBridge, StepFlow, StepMomentum, generate, load_model
from stepflow_tl.decoding.budget import ThinkingBudget
from stepflow_tl.interventions import GradientMomentum, UniformPriorBridge
from stepflow_tl.models.huggingface import HuggingFaceView
from stepflow_tl.models.running_batch import MovingBatch
from stepflow_tl.models.view import view
from stepflow_tl.traces.trace import Trace

BRIDGE = "stepflow_tl.models.bridge"
QUESTIONS = ["Why?", "Tom has 3 pens. He buys 4 more. How many?", "How is it so?", "Who?", "Is it?"]
ASK = {"max_new_tokens": 16, "chat": False, "format": "plain"}
FLOW = StepFlow(
    OddsEqualBridge(tau_max=0.9, layers=(0, 1)),
    StepMomentum(alpha=0.7, layers=(1, 2, 3), boundaries="all"),
)
FLOWS = {
    "none": StepFlow(),
    "both": FLOW,
    "whole steps": StepFlow(StepMomentum(alpha=0.7, layers="all", window="step")),
    "digest": StepFlow(
        UniformPriorBridge(strength=2.0, layers="all"), GradientMomentum(layers=(1, 3))
    ),
}


@pytest.fixture
def model(tiny_folder: Callable[..., Path]) -> Any:
    return load_model(tiny_folder("qwen2"))


def ids(traces: list[Trace]) -> list[list[int]]:
    return [trace.token_ids.tolist() for trace in traces]


@contextmanager
def watched(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Rows and new tokens of each pass of the decoder inside."""
    shapes: list[tuple[int, int]] = []
    run = MovingBatch.run

    def noted(batch: MovingBatch, tokens: Tensor) -> Tensor:
        shapes.append(tuple(tokens.shape))
        return run(batch, tokens)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MovingBatch, "run", noted)
        yield shapes


@contextmanager
def looked_at(model: Any) -> Iterator[None]:
    """Somebody's hook, which nobody may pass by."""
    handle = model.embed.register_forward_hook(lambda *passed: None)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.filterwarnings("ignore:.*never fired")
@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_trace_depends_on_no_batch(model: Any, name: str, temperature: float) -> None:
    """Alone, in batches whose rows leave and join, and on the bridge: the same, ledger included."""
    ask = {**ASK, "temperature": temperature, "samples": 2}
    with FLOWS[name].attach(model) as run:
        alone = [generate(model, q, batch_size=1, **ask) for q in QUESTIONS]
    expected = [trace for traces in alone for trace in traces]
    acted = [trace.metadata.get("ledger", {}) for trace in expected]
    if name == "both":
        assert run.actions == sum(sum(said.values()) for said in acted) > 0
    for size in (2, 3, 32):
        with FLOWS[name].attach(model) as run, watched(model) as shapes:
            found = generate(model, QUESTIONS, batch_size=size, **ask)
        assert ids(found) == ids(expected)
        assert [trace.metadata.get("ledger", {}) for trace in found] == acted
        assert shapes and max(rows for rows, _ in shapes) <= size
    with FLOWS[name].attach(model), looked_at(model), watched(model) as shapes:
        assert ids(generate(model, QUESTIONS, batch_size=3, **ask)) == ids(expected)
        assert not shapes


def test_rows_leave_and_prompts_take_their_places(model: Any) -> None:
    with watched(model) as shapes:
        traces = generate(model, QUESTIONS, **{**ASK, "max_new_tokens": 12}, batch_size=2)
    prompts = [rows for rows, new in shapes if new > 1]
    assert sum(prompts) == len(QUESTIONS)
    assert {rows for rows, new in shapes if new == 1} <= {1, 2}
    decoded = sum(rows for rows, new in shapes if new == 1)
    assert decoded == sum(len(t) - t.prompt_length - 1 for t in traces)  # nobody waits for others


def test_long_prompts_go_first_and_samples_share_a_prefill(model: Any) -> None:
    with watched(model) as shapes:
        generate(model, QUESTIONS, **ASK, samples=3, temperature=1.0, batch_size=6)
    first = [shape for shape in shapes if shape[1] > 1]
    assert first[0][0] == 2  # two prompts, of three samples each
    assert [new for _, new in first] == sorted((new for _, new in first), reverse=True)


class TestWhichWay:
    """Hooks of others and processed weights choose the bridge, and a log says so."""

    def why(self, caplog: pytest.LogCaptureFixture, model: Any, **ask: Any) -> list[str]:
        caplog.clear()
        with caplog.at_level("DEBUG", BRIDGE), watched(model) as shapes:
            generate(model, "Why?", **{**ASK, "max_new_tokens": 3, **ask})
        messages = [r.message for r in caplog.records if r.name == BRIDGE]
        assert bool(messages) != bool(shapes)
        return messages

    def test_nobody_looks_on(self, model: Any, caplog: pytest.LogCaptureFixture) -> None:
        assert self.why(caplog, model) == []
        with FLOW.attach(model):
            assert self.why(caplog, model) == []
        assert self.why(caplog, model) == []

    def test_a_hook_of_transformer_lens(self, model: Any, caplog: pytest.LogCaptureFixture) -> None:
        seen: list[int] = []

        def note(z: Tensor, hook: Any) -> None:
            seen.append(z.shape[0])

        with FLOW.attach(model), model.hooks(fwd_hooks=[("blocks.2.attn.hook_z", note)]):
            (message,) = self.why(caplog, model)
        assert "through its bridge: hooks at" in message
        assert seen == [1, 1, 1]

    @pytest.mark.parametrize("inside", [False, True])
    def test_a_hook_of_torch(
        self, model: Any, caplog: pytest.LogCaptureFixture, inside: bool
    ) -> None:
        seen: list[int] = []
        at = model.blocks[1].original_component if inside else model.blocks[1].mlp
        handle = at.register_forward_hook(lambda *passed: seen.append(1))
        (message,) = self.why(caplog, model)
        assert "hooks at" in message
        assert seen
        handle.remove()
        assert self.why(caplog, model) == []

    def test_a_users_rows_keep_their_places(self, model: Any) -> None:
        """A hook that steers by row may count on the order of the prompts."""
        rows: list[list[int]] = []

        def note(tokens: Tensor, hook: Any) -> None:
            rows.append(list(tokens.shape))

        with model.hooks(fwd_hooks=[("hook_embed", note)]):
            generate(model, QUESTIONS, **ASK, batch_size=3)
        assert {shape[0] for shape in rows} == {3, 2}

    def test_processed_weights(self, model: Any, caplog: pytest.LogCaptureFixture) -> None:
        expected = generate(model, "Why?", **ASK)
        model.enable_compatibility_mode()
        (message,) = self.why(caplog, model)
        assert "processed (compatibility mode)" in message
        assert generate(model, "Why?", **ASK).token_ids.tolist() == expected.token_ids.tolist()

    def test_training(self, model: Any, caplog: pytest.LogCaptureFixture) -> None:
        model.train()
        assert "training mode" in self.why(caplog, model)[0]

    def test_logits_are_compared_once_for_each_state_of_the_weights(
        self, model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        compared: list[int] = []
        logits = HuggingFaceView.logits

        def noted(plain: HuggingFaceView, tokens: Tensor) -> Tensor:
            compared.append(tokens.shape[1])
            return logits(plain, tokens)

        monkeypatch.setattr(HuggingFaceView, "logits", noted)
        for _ in range(3):
            assert self.why(caplog, model) == []
        assert len(compared) == 1 and compared[0] <= 32
        with torch.no_grad():
            next(model.parameters()).mul_(1.5)
        assert self.why(caplog, model) == []
        assert len(compared) == 2

    def test_other_logits(
        self, model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        logits = HuggingFaceView.logits
        monkeypatch.setattr(HuggingFaceView, "logits", lambda v, t: logits(v, t) + 1e-2)
        assert "the decoder inside gives other logits" in self.why(caplog, model)[0]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_whatever_is_raised_the_bridge_is_back(
    model: Any, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    expected = ids(generate(model, QUESTIONS, **ASK))
    modules = [(name, id(module)) for name, module in model.named_modules()]
    attention, calls, run = model.original_model.config._attn_implementation, [], MovingBatch.run

    def failing(batch: MovingBatch, tokens: Tensor) -> Tensor:
        calls.append(tokens)
        if len(calls) == 7:
            raise error("stop")
        return run(batch, tokens)

    with monkeypatch.context() as patched, FLOW.attach(model):
        patched.setattr(MovingBatch, "run", failing)
        with pytest.raises(error, match="stop"):
            generate(model, QUESTIONS, batch_size=2, **ASK)
    assert [(name, id(module)) for name, module in model.named_modules()] == modules
    assert model.original_model.config._attn_implementation == attention
    assert not any(hooks_of(model).values())
    assert view(model).running == view(model)
    assert ids(generate(model, QUESTIONS, **ASK)) == expected


@pytest.mark.parametrize("flow", [StepFlow(), FLOW], ids=["plain", "StepFlow"])
def test_one_reading_a_token_whatever_the_layers(
    model: Any, flow: StepFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is kept of single rows is read when one has ended, not at each token."""
    counts, lengths = [], []
    generate(model, "Why?", **ASK)  # logits of both ways are compared once
    for tokens in (4, 24):
        with monkeypatch.context() as patch, flow.attach(model), Readings(patch) as readings:
            made = generate(model, "Why is it so?", **{**ASK, "max_new_tokens": tokens})
        counts.append(readings.count)
        lengths.append(len(made))
    assert lengths[1] - lengths[0] > 8
    assert counts[1] - counts[0] == lengths[1] - lengths[0]


def test_a_budget_and_stop_strings_while_rows_move(tiny_folder: Callable[..., Path]) -> None:
    model = load_model(tiny_folder("qwen2"))
    ask = {
        "max_new_tokens": 20,
        "chat": False,
        "format": "think",
        "budget": ThinkingBudget(least=2, most=6),
        "stop": ["e", "a"],
    }
    prompts = [f"{question}<think>" for question in QUESTIONS]
    alone = [generate(model, prompt, **ask) for prompt in prompts]
    assert ids(generate(model, prompts, batch_size=2, **ask)) == ids(alone)
