"""Gradient momentum: against autograd on whole prefixes; runs within runs leave no trace."""

import contextlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from flows import EXACT, GM, NEAR, OEB, SMI, close
from helpers import MODEL_KINDS, cached, hooks_of, load_tiny, teacher_forced
from torch import Tensor

from stepflow_tl.interventions import (
    GradientMomentum,
    Intervention,
    StepFlow,
    UniformPriorBridge,
)
from stepflow_tl.interventions.base import Edited
from stepflow_tl.interventions.position import EditPosition
from stepflow_tl.interventions.rerun import (
    StepGradient,
    moving_average,
    relative_entropy,
    step_loss,
)
from stepflow_tl.models.sites import hook_name
from stepflow_tl.saliency import step_saliency
from stepflow_tl.traces.trace import Step, Trace

ALONE = StepFlow(GM)


class ByHand:
    """The definition, each step from one uncached run of its whole prefix."""

    def __init__(self, model: Any, trace: Trace, item: GradientMomentum) -> None:
        self.model, self.trace, self.item = model, trace, item
        self.units: dict[int, Tensor] = {}  # [layer, d_model] at each step start

    def inject(self, x: Tensor, index: int) -> Tensor:
        x = x.clone()
        for at, unit in self.units.items():
            if at < x.shape[1]:
                norm = x[0, at].detach().norm()
                x[0, at] -= self.item.step_size * norm * unit[index]
        return x

    def hooks(self) -> list:
        return [
            (hook_name("resid_post", layer), lambda x, hook, i=i: self.inject(x, i))
            for i, layer in enumerate(self.item.layers)
        ]

    def gradient(self, step: Step) -> StepGradient:
        streams: list[Tensor] = []

        def constant_before(x: Tensor, hook: Any) -> Tensor:
            return torch.cat([x[:, : step.start].detach(), x[:, step.start :]], dim=1)

        def take(x: Tensor, hook: Any) -> Tensor:
            streams.append(x * 1.0)
            return streams[-1]

        hooks = self.hooks()
        for layer in range(4):
            hooks += [(hook_name(site, layer), constant_before) for site in ("rot_k", "v")]
        hooks += [(hook_name("resid_post", layer), take) for layer in self.item.layers]
        tokens = self.trace.tokens[:, : step.stop]
        with torch.enable_grad(), self.model.hooks(fwd_hooks=hooks):
            logits = self.model(tokens, return_type="logits")[0].double()
        log_p = logits.log_softmax(-1)
        rows = torch.arange(step.start - 1, step.stop - 1)
        loss = -log_p[rows, tokens[0, rows + 1]].mean()
        gradients = torch.autograd.grad(loss, streams)
        entropy = -(log_p.exp() * log_p).sum(-1)[step.start : step.stop].mean()
        return StepGradient(
            float(entropy.detach()) / math.log(logits.shape[-1]),
            torch.stack([g[0, step.start : step.stop].sum(0) for g in gradients]),
        )

    def logits(self) -> Tensor:
        thinking = self.trace.steps_in("thinking")
        closed = []
        for step, after in pairwise(thinking):
            closed.append(self.gradient(step))
            average = torch.zeros_like(closed[0].gradient)
            for a, g in closed[-self.item.steps :]:
                average = a * average + (1 - a) * g
            self.units[after.start] = average / average.norm(dim=-1, keepdim=True)
        with torch.no_grad(), self.model.hooks(fwd_hooks=self.hooks()):
            return self.model(self.trace.tokens, return_type="logits")


@pytest.mark.parametrize("kind", MODEL_KINDS)
class TestAgainstAutograd:
    """In float64; the softmax alone stays in float32 where the model keeps it there."""

    @pytest.mark.parametrize("steps", [1, 2, 3])
    def test_alone(self, tiny: Callable[..., Any], trace: Trace, kind: str, steps: int) -> None:
        model = tiny(kind, torch.float64)
        item = GradientMomentum(step_size=0.5, layers=(1, 3), steps=steps)
        expected = ByHand(model, trace, item).logits()
        plain = teacher_forced(model, trace.tokens)
        assert (expected - plain).abs().max() > 0.1
        for run in (teacher_forced, lambda *args: cached(*args, [30, 17])):
            with StepFlow(item).attach(model):
                close(run(model, trace.tokens), expected, atol=1e-5, rtol=1e-5)

    def test_under_the_other_interventions(
        self, tiny: Callable[..., Any], trace: Trace, kind: str
    ) -> None:
        model = tiny(kind, torch.float64)
        others = StepFlow(OEB, SMI)
        with model.hooks(fwd_hooks=others.fwd_hooks(model, trace)):
            expected = ByHand(model, trace, GM).logits()
        for order in ((GM, OEB, SMI), (OEB, GM, SMI), (OEB, SMI, GM)):
            with StepFlow(*order).attach(model):
                close(teacher_forced(model, trace.tokens), expected, atol=1e-5, rtol=1e-5)


class TestPieces:
    def test_the_moving_average_by_hand(self) -> None:
        steps = [
            StepGradient(0.5, torch.tensor([[2.0]])),
            StepGradient(0.25, torch.tensor([[-4.0]])),
        ]
        assert moving_average(steps[:1]).item() == 0.5 * 2.0
        assert moving_average(steps).item() == 0.25 * 1.0 + 0.75 * -4.0

    def test_a_step_of_full_uncertainty_keeps_the_older_direction(self) -> None:
        old, new = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        steps = [StepGradient(0.0, old), StepGradient(1.0, new)]
        assert torch.equal(moving_average(steps), old)

    @pytest.mark.parametrize(
        ("row", "share"),
        [
            ([0.0, 0.0, 0.0, 0.0], 1.0),
            ([0.0, 0.0, -99.0, -99.0], 0.5),
            ([99.0, 0.0, 0.0, 0.0], 0.0),
        ],
    )
    def test_entropy_as_a_share_of_the_largest(self, row: list[float], share: float) -> None:
        assert relative_entropy(torch.tensor([[row, row]])) == pytest.approx(share, abs=1e-6)

    def test_the_loss_by_hand(self) -> None:
        logits = torch.tensor([[[0.0, 0.0], [math.log(3.0), 0.0], [5.0, 0.0]]])
        loss = step_loss(logits, torch.tensor([[1, 0, 1]]))
        assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 3)

    def test_a_steps_own_length(self) -> None:
        stream, unit = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 1.0]])
        added = GradientMomentum(step_size=0.2).against(stream, unit)
        close(added, torch.tensor([[0.0, -1.0]]))


def test_the_gradient_is_that_of_a_shift_of_the_whole_step(
    tiny: Callable[..., Any], trace: Trace
) -> None:
    model = tiny("qwen2", torch.float64)
    step = trace.steps_in("thinking")[0]
    g = ByHand(model, trace, GM).gradient(step).gradient[1]
    tokens = trace.tokens[:, : step.stop]
    rows = torch.arange(step.start - 1, step.stop - 1)

    def loss(length: float) -> float:
        def shift(x: Tensor, hook: Any) -> Tensor:
            moved = x[:, step.start :] + length * g / g.norm()
            return torch.cat([x[:, : step.start], moved], dim=1)

        with torch.no_grad(), model.hooks(fwd_hooks=[(hook_name("resid_post", 3), shift)]):
            log_p = model(tokens)[0].log_softmax(-1)
        return -log_p[rows, tokens[0, rows + 1]].mean().item()

    slope = (loss(0.05) - loss(-0.05)) / 0.1
    assert slope == pytest.approx(g.norm().item(), rel=1e-3)


def test_only_step_starts_change_in_the_first_layer(model: Any, trace: Trace) -> None:
    streams: list[Tensor] = []
    look = [(hook_name("resid_post", 1), lambda x, hook: streams.append(x.clone()))]
    with torch.no_grad():
        model.run_with_hooks(trace.tokens, fwd_hooks=look)
        with ALONE.attach(model):
            model.run_with_hooks(trace.tokens, fwd_hooks=look)
    assert len(streams) == 2  # a user's hooks do not see the runs within
    plain, nudged = streams
    changed = (plain != nudged).any(-1)[0].nonzero()[:, 0].tolist()
    assert changed == [step.start for step in trace.steps_in("thinking")[1:]]
    moved = (nudged - plain)[0, changed].norm(dim=-1) / plain[0, changed].norm(dim=-1)
    close(moved, torch.full_like(moved, 0.5), atol=1e-4, rtol=1e-4)


def test_a_later_token_never_matters(model: Any, trace: Trace) -> None:
    stop = trace.steps_in("thinking")[-1].start + 2
    other = trace.tokens.clone()
    other[0, stop:] = 65
    with ALONE.attach(model):
        logits = teacher_forced(model, trace.tokens)
    with ALONE.attach(model):
        close(teacher_forced(model, other)[:, :stop], logits[:, :stop], **NEAR)


def test_steps_of_one_token_give_nothing(model: Any, tokenizer: Any) -> None:
    ids = tokenizer("Why?<think>a\nb\nc\n", add_special_tokens=False)["input_ids"]
    from stepflow_tl.traces.formats import Format

    lines = Format(
        name="lines", thinking_open="<think>", summary_open="</think>", thinking_cutter="line"
    )
    trace = Trace.from_token_ids(model, ids, format=lines)
    with contextlib.suppress(UserWarning), ALONE.attach(model, format=lines):
        assert teacher_forced(model, trace.tokens).isfinite().all()


class TestLedger:
    def test_counts_by_hand(self, model: Any, trace: Trace) -> None:
        tables = []
        for run_model in (teacher_forced, lambda *args: cached(*args, [28, 9])):
            with ALONE.attach(model) as run:
                run_model(model, trace.tokens)
            tables.append(run.ledger.to_dataframe())
        for table in tables:
            assert table.layer.tolist() == [1, 3]
            assert table.injections.tolist() == [3, 3]
            assert table.injection_norm.tolist() == pytest.approx([0.5, 0.5], rel=1e-4)
            assert table.extra_forwards.tolist() == [4, 0]  # the prefix, then three steps
            assert table.extra_tokens.tolist() == [trace.steps_in("thinking")[-1].start, 0]

    def test_each_row_of_a_batch_is_run_again(self, model: Any, trace: Trace) -> None:
        with ALONE.attach(model) as run:
            teacher_forced(model, trace.tokens.expand(3, -1))
        assert run.ledger.to_dataframe().extra_forwards.tolist() == [12, 0]
        assert run.ledger.to_dataframe().injections.tolist() == [9, 9]

    def test_runs_without_a_cache_repeat_no_step(self, model: Any, trace: Trace) -> None:
        with ALONE.attach(model) as run:
            for size in (40, 60, 86):
                teacher_forced(model, trace.tokens[:, :size])
        assert run.ledger.total("GradientMomentum", "extra_forwards") == 4


WHOLE = 86  # tokens of the trace; a run within a run is of a part


@dataclass(frozen=True, kw_only=True)
class Failing(Intervention):
    """Raises in the second run within a run."""

    layers: Any = 2
    error: type[BaseException] = RuntimeError
    runs: list = None  # type: ignore[assignment]

    site = "z"
    columns = ("injections",)
    fired = "injections"

    def edit(self, z: Tensor, at: EditPosition) -> Edited:
        if at.segment.shape[1] < WHOLE:
            self.runs.append(at.start)
            if len(self.runs) == 2:
                raise self.error("stop")
        return None, {"injections": 1}


class TestTheModelIsLeftAsItWas:
    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_after_an_exception_in_a_run_within(
        self, model: Any, trace: Trace, error: type[BaseException]
    ) -> None:
        with ALONE.attach(model):
            expected = teacher_forced(model, trace.tokens)
        plain = teacher_forced(model, trace.tokens)
        failing = Failing(error=error, runs=[])
        with StepFlow(GM, failing).attach(model):
            inside = hooks_of(model)
            with pytest.raises(error, match="stop"):
                teacher_forced(model, trace.tokens)
            assert hooks_of(model) == inside
            close(teacher_forced(model, trace.tokens), expected, **EXACT)  # from the beginning
        assert not any(hooks_of(model).values())
        close(teacher_forced(model, trace.tokens), plain, **EXACT)
        starts = [step.start for step in trace.steps_in("thinking")]
        assert failing.runs == [0, starts[0], 0, *starts[:-1]]

    def test_no_graph_and_no_gradient_stay(self, model: Any, trace: Trace) -> None:
        with ALONE.attach(model):
            assert not teacher_forced(model, trace.tokens).requires_grad
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_caching_sees_the_outer_run_alone(self, model: Any, trace: Trace) -> None:
        with ALONE.attach(model), torch.no_grad():
            logits, cache = model.run_with_cache(trace.tokens)
            close(logits, teacher_forced(model, trace.tokens), **EXACT)
            for name in ("hook_embed", hook_name("pattern", 0), hook_name("resid_post", 3)):
                assert len(trace) in cache[name].shape

    def test_a_pass_that_stops_early(self, model: Any, trace: Trace) -> None:
        with ALONE.attach(model), torch.no_grad():
            _, cache = model.run_with_cache(trace.tokens)
            stopped = model(trace.tokens, stop_at_layer=3)
        close(stopped, cache[hook_name("resid_post", 2)], **NEAR)


def test_nan_weights_are_no_silent_step(tiny_folder: Callable[..., Any], trace: Trace) -> None:
    model = load_tiny(tiny_folder("qwen2"))
    with torch.no_grad():
        model.blocks[2].attn.q.weight.fill_(float("nan"))
    first = trace.steps_in("thinking")[0].start
    message = f"gradient of the step at position {first} is NaN or infinite"
    with pytest.raises(FloatingPointError, match=message), ALONE.attach(model):
        teacher_forced(model, trace.tokens)
    assert not any(hooks_of(model).values())


class TestAround:
    @pytest.mark.parametrize("rule", ["attention_x_gradient", "jacobian"])
    def test_saliency_sees_it(self, model: Any, trace: Trace, rule: Any) -> None:
        plain = step_saliency(model, trace, rule=rule).scores
        with ALONE.attach(model) as run:
            nudged = step_saliency(model, trace, rule=rule).scores
        assert run.ledger.total("GradientMomentum", "injections") == 6
        assert nudged.isfinite().all()
        assert (nudged - plain).abs().max() > 1e-6

    def test_inference_mode(self, model: Any, trace: Trace) -> None:
        with ALONE.attach(model):
            expected = teacher_forced(model, trace.tokens)
        with ALONE.attach(model), torch.inference_mode():
            close(model(trace.tokens.clone()), expected, **EXACT)
            close(cached(model, trace.tokens.clone(), [40, 30]), expected, **NEAR)

    def test_gradients_pass(self, model: Any, trace: Trace) -> None:
        with ALONE.attach(model):
            model(trace.tokens, return_type="loss").backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert grads
        assert all(g.isfinite().all() for g in grads)
        for parameter in model.parameters():
            parameter.grad = None

    def test_half_precision(self, tiny: Callable[..., Any], trace: Trace) -> None:
        model = tiny("qwen2", torch.bfloat16)
        with ALONE.attach(model) as run:
            logits = teacher_forced(model, trace.tokens)
        assert logits.dtype == torch.bfloat16
        assert logits.isfinite().all()
        assert run.ledger.total("GradientMomentum", "injections") == 6


class TestSettings:
    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"step_size": math.inf}, "GradientMomentum: expected a finite step_size, got inf"),
            ({"step_size": math.nan}, "expected a finite step_size, got nan"),
            ({"steps": 0}, "GradientMomentum: expected a number of steps >= 1, got 0"),
            ({"steps": 2.5}, "got 2.5"),
            ({"layers": "top"}, "layers='top'"),
        ],
    )
    def test_bad_ones(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            GradientMomentum(**settings)

    def test_neutral_is_bit_identical_and_hooks_nothing(self, model: Any, trace: Trace) -> None:
        item = GradientMomentum(step_size=0.0)
        assert item.is_neutral
        plain = teacher_forced(model, trace.tokens)
        with StepFlow(item).attach(model):
            assert not any(hooks_of(model).values())
            close(teacher_forced(model, trace.tokens), plain, **EXACT)

    def test_one_in_a_flow(self) -> None:
        with pytest.raises(ValueError, match="at most one GradientMomentum.*got"):
            StepFlow(GM, OEB, GradientMomentum(layers=2))

    def test_the_digests_preset(self) -> None:
        assert StepFlow.digest() == StepFlow(UniformPriorBridge(), GradientMomentum())
