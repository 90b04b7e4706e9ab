"""The normalized Jacobian: against autograd and finite differences, and what it has no use for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import MODEL_KINDS, hooks_of, load_tiny
from torch import Tensor

from stepflow_tl.analysis.diagnostics import diagnose
from stepflow_tl.interventions import OddsEqualBridge, StepFlow, StepMomentum
from stepflow_tl.models.sites import hook_name
from stepflow_tl.saliency import StepMap, step_saliency, token_saliency
from stepflow_tl.traces.trace import Trace

TEXT = (
    "Tom has 3 pens.<think>He buys 4 more pens. So he has the sum. It is 7.</think>"
    "The sum is \\boxed{7}.\n\nThat is it."
)
FLOW = StepFlow(OddsEqualBridge(tau_max=0.9, layers=(0, 1)), StepMomentum(alpha=0.7, layers=(1, 3)))


@pytest.fixture(scope="module")
def short(tokenizer: Any) -> Trace:
    return Trace.from_text(tokenizer, TEXT)


def target(logits: Tensor, trace: Trace, i: int) -> Tensor:
    step = trace.steps[i]
    rows = range(step.start, min(step.stop, len(trace) - 1))
    return sum((logits[0, t, trace.token_ids[t + 1]] for t in rows), start=logits.new_zeros(()))


def by_autograd(model: Any, trace: Trace, layer: int, i: int) -> Tensor:
    """A row of the map, from one backward pass of its own."""
    held: list[Tensor] = []

    def leaf(x: Tensor, hook: Any) -> Tensor:
        held.append(x.detach().requires_grad_())
        return held[0]

    with model.hooks(fwd_hooks=[(hook_name("resid_post", layer), leaf)]):
        y = target(model(trace.tokens, return_type="logits"), trace, i)
    (gradient,) = torch.autograd.grad(y, held)
    norms = [gradient[0, step.start : step.stop].norm() for step in trace.steps]
    return torch.stack(norms) / torch.stack(norms).sum()


@pytest.mark.parametrize("kind", MODEL_KINDS)
class TestAgainstAutograd:
    @pytest.mark.parametrize("attached", [False, True], ids=["plain", "under StepFlow"])
    def test_every_row(
        self, tiny: Callable[..., Any], short: Trace, kind: str, attached: bool
    ) -> None:
        model = tiny(kind, torch.float64)
        with (FLOW if attached else StepFlow()).attach(model) as run:
            maps = step_saliency(model, short, rule="jacobian").scores
            for layer in range(4):
                for i in range(len(short.steps)):
                    row = by_autograd(model, short, layer, i)
                    torch.testing.assert_close(maps[layer, i], row, atol=1e-9, rtol=0.0)
        assert not attached or run.ledger.total("StepMomentum", "injections") > 0

    def test_finite_differences(self, tiny: Callable[..., Any], short: Trace, kind: str) -> None:
        """The ratio of two entries, along each step's own gradient."""
        model, layer, i = tiny(kind, torch.float64), 1, 3
        held: list[Tensor] = []
        look = [(hook_name("resid_post", layer), lambda x, hook: held.append(x.detach()))]
        with torch.no_grad():
            model.run_with_hooks(short.tokens, fwd_hooks=look)

        def y(stream: Tensor) -> Tensor:
            put = [(hook_name("resid_post", layer), lambda x, hook: stream)]
            logits = model.run_with_hooks(short.tokens, fwd_hooks=put)
            return target(logits, short, i)

        free = held[0].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(y(free), free)
        slopes = []
        for step in short.steps[1:3]:
            way = torch.zeros_like(gradient)
            way[0, step.start : step.stop] = gradient[0, step.start : step.stop]
            way = 0.02 * way / way.norm()
            with torch.no_grad():
                slopes.append((y(held[0] + way) - y(held[0] - way)) / 0.04)
        row = step_saliency(model, short, rule="jacobian").scores[layer, i]
        ratio = (slopes[0] / slopes[1]).item()
        assert (row[1] / row[2]).item() == pytest.approx(ratio, rel=2e-2)


class TestTheMap:
    def test_shares_below_the_diagonal(self, model: Any, short: Trace) -> None:
        found = step_saliency(model, short, rule="jacobian")
        assert found.scores.shape == (4, len(short.steps), len(short.steps))
        assert torch.equal(found.scores, found.scores.tril())
        sums = found.scores.sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))
        last = torch.eye(len(short.steps)).expand_as(found.scores[3])
        torch.testing.assert_close(found.scores[3], last)
        assert (found.scores[0].tril() > 0).sum() > len(short.steps)

    def test_settings_say_how_it_was_made(self, model: Any, short: Trace, tmp_path: Any) -> None:
        found = step_saliency(model, short, rule="jacobian", layers=[1, 2])
        assert found.settings["rule"] == "jacobian"
        assert found.settings["normalized"] == "row"
        assert "objective" not in found.settings
        found.save(tmp_path / "map.safetensors")
        assert torch.equal(StepMap.load(tmp_path / "map.safetensors").scores, found.scores)
        whole = step_saliency(model, short, rule="jacobian")
        torch.testing.assert_close(found.scores, whole.scores[1:3])

    def test_diagnostics_read_it(self, model: Any, short: Trace) -> None:
        table = diagnose(step_saliency(model, short, rule="jacobian"))
        assert len(table) == 4
        assert table.lock_in.between(0, 1).all()

    def test_a_prefix_scores_as_in_the_whole(self, qwen2: Any, short: Trace) -> None:
        step = short.steps_in("thinking")[1]
        prefix = Trace.from_token_ids(qwen2, short.token_ids[: step.stop + 1])
        whole, part = (step_saliency(qwen2, t, rule="jacobian").scores for t in (short, prefix))
        n = step.index + 1
        torch.testing.assert_close(part[:, :n, :n], whole[:, :n, :n], atol=1e-5, rtol=1e-4)

    def test_one_step(self, model: Any) -> None:
        ids = model.tokenizer("Tom has 3 pens.")["input_ids"]
        trace = Trace.from_token_ids(model, ids, prompt_length=len(ids), format="plain")
        assert len(trace.steps) == 1
        scores = step_saliency(model, trace, rule="jacobian").scores
        torch.testing.assert_close(scores, torch.ones(4, 1, 1))

    def test_a_last_step_that_nothing_follows(self, model: Any) -> None:
        ids = model.tokenizer("Why?<think>")["input_ids"]
        ids += model.tokenizer("a")["input_ids"]
        trace = Trace.from_token_ids(model, ids)
        assert len(trace.steps[-1]) == 1
        scores = step_saliency(model, trace, rule="jacobian").scores
        assert scores[:, -1].count_nonzero() == 0
        assert (scores[:, 0].sum(-1) > 0.99).all()

    def test_half_precision(self, tiny: Callable[..., Any], short: Trace) -> None:
        half = step_saliency(tiny("qwen2", torch.bfloat16), short, rule="jacobian")
        assert half.scores.isfinite().all()
        assert half.scores.dtype == torch.float32

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_where_gradients_are_off(self, qwen2: Any, short: Trace, mode: Any) -> None:
        expected = step_saliency(qwen2, short, rule="jacobian").scores
        hooks = hooks_of(qwen2)
        flags = [p.requires_grad for p in qwen2.parameters()]
        with mode():
            assert torch.equal(step_saliency(qwen2, short, rule="jacobian").scores, expected)
        assert hooks_of(qwen2) == hooks
        assert [p.requires_grad for p in qwen2.parameters()] == flags
        assert all(p.grad is None for p in qwen2.parameters())


class TestErrors:
    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("name", "value"),
        [("objective", "sequence"), ("pool", "sum"), ("diagonal", "full"), ("per_head", True)],
    )
    def test_settings_without_meaning(
        self, qwen2: Any, short: Trace, name: str, value: Any
    ) -> None:
        message = f"{name} means nothing to rule='jacobian'.*got {value!r}"
        with pytest.raises(ValueError, match=message):
            step_saliency(qwen2, short, rule="jacobian", **{name: value})

    @pytest.mark.usefixtures("unchecked")
    def test_tokens_have_no_such_score(self, qwen2: Any, short: Trace) -> None:
        message = r"scores steps, not tokens: expected step_saliency.*\['attention_x_gradient'"
        with pytest.raises(ValueError, match=message):
            token_saliency(qwen2, short, rule="jacobian")  # type: ignore[arg-type]

    def test_nan_weights_name_the_layer(
        self, tiny_folder: Callable[..., Any], short: Trace
    ) -> None:
        model = load_tiny(tiny_folder("qwen2"))
        with torch.no_grad():
            model.blocks[2].attn.q.weight.fill_(float("nan"))
        with pytest.raises(FloatingPointError, match=r"saliency at layer \d is NaN or infinite"):
            step_saliency(model, short, rule="jacobian")

    def test_one_token(self, qwen2: Any) -> None:
        trace = Trace.from_token_ids(qwen2, [70], prompt_length=1, format="plain")
        with pytest.raises(ValueError, match=r"a next token to predict: expected >= 2.*got 1"):
            step_saliency(qwen2, trace, rule="jacobian")
