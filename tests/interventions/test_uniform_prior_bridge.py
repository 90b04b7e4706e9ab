"""Uniform-prior bridge: the closed form, what it keeps, and its ledger."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flows import EXACT, close
from helpers import hooks_of, teacher_forced
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from stepflow_tl.interventions import StepFlow, UniformPriorBridge
from stepflow_tl.interventions.uniform_prior_bridge import toward_uniform
from stepflow_tl.models.layers import resolve_layers
from stepflow_tl.models.sites import hook_name
from stepflow_tl.traces.trace import Trace


def flatten(row: list[float], strength: float) -> list[float]:
    pattern = torch.tensor(row, dtype=torch.float64).view(1, 1, 1, -1)
    flat = toward_uniform(pattern, torch.ones(1, 1, dtype=torch.bool), strength=strength)
    return flat.pattern.flatten().tolist()


class TestTheMap:
    def test_by_hand(self) -> None:
        assert flatten([0.8, 0.2], 1.0) == pytest.approx([2 / 3, 1 / 3])  # 2 : 1 of 4 : 1

    @pytest.mark.parametrize("strength", [0.1, 1.0, 7.0])
    @pytest.mark.parametrize("seed", range(3))
    def test_it_is_the_minimum(self, strength: float, seed: int) -> None:
        p = np.random.default_rng(seed).dirichlet(np.ones(6))

        def penalty(scores: np.ndarray) -> float:
            log_q = scores - np.logaddexp.reduce(scores)
            q = np.exp(log_q)
            return float(q @ (log_q - np.log(p)) + strength * (q @ (log_q + np.log(len(p)))))

        found = minimize(penalty, np.zeros(6), tol=1e-12).x
        expected = np.exp(found - np.logaddexp.reduce(found))
        assert flatten(p.tolist(), strength) == pytest.approx(expected.tolist(), abs=1e-5)

    @given(
        st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8),
        st.floats(0.0, 50.0),
    )
    def test_what_is_kept(self, row: list[float], strength: float) -> None:
        flat = flatten(row, strength)
        assert all(math.isfinite(x) and x >= 0 for x in flat)
        assert sum(flat) == pytest.approx(sum(row), rel=1e-9, abs=1e-12)
        for before, after in zip(row, flat, strict=True):
            assert (after == 0.0) == (before == 0.0) or before < 1e-29
        order = np.argsort(row, kind="stable")
        assert all(np.diff(np.array(flat)[order]) >= -1e-12)

    def test_zero_strength_gives_the_row_back(self) -> None:
        row = [0.1, 0.0, 0.5, 0.2]
        assert flatten(row, 0.0) == pytest.approx(row, rel=1e-12)

    def test_a_sink_keeps_its_share(self) -> None:
        assert sum(flatten([0.3, 0.1, 0.0], 0.5)) == pytest.approx(0.4)

    @pytest.mark.parametrize("row", [[0.0, 0.0, 0.0], [0.0, 0.7, 0.0], [1e-45, 0.5, 0.0]])
    def test_rows_with_nothing_to_move_are_left_alone(self, row: list[float]) -> None:
        pattern = torch.tensor(row).view(1, 1, 1, -1)
        flat = toward_uniform(pattern, torch.ones(1, 1, dtype=torch.bool), strength=1.0)
        assert torch.equal(flat.pattern, pattern)
        assert not flat.changed.any()
        assert flat.before.item() == flat.after.item() == 0.0

    def test_entropies(self) -> None:
        pattern = torch.tensor([0.4, 0.4, 0.0]).view(1, 1, 1, -1)
        flat = toward_uniform(pattern, torch.ones(1, 1, dtype=torch.bool), strength=1.0)
        assert flat.before.item() == pytest.approx(math.log(2))
        uneven = torch.tensor([0.7, 0.1, 0.2]).view(1, 1, 1, -1)
        flat = toward_uniform(uneven, torch.ones(1, 1, dtype=torch.bool), strength=1.0)
        assert flat.before.item() < flat.after.item() < math.log(3)

    def test_gradients_are_finite_and_right(self) -> None:
        rows = torch.ones(1, 4, dtype=torch.bool)
        pattern = torch.rand(1, 2, 4, 4, dtype=torch.float64).tril()
        positions = pattern.nonzero(as_tuple=True)
        free = pattern[positions].clone().requires_grad_()

        def of(values: Tensor) -> Tensor:
            full = torch.zeros_like(pattern).index_put(positions, values)
            return toward_uniform(full, rows, strength=0.5).pattern

        assert torch.autograd.gradcheck(of, free)
        tiny = torch.tensor([1e-42, 1e-20, 0.9, 0.0]).view(1, 1, 1, -1).requires_grad_()
        toward_uniform(tiny, rows[:, :1], strength=0.5).pattern.square().sum().backward()
        assert tiny.grad.isfinite().all()

    def test_other_rows_and_half_precision(self) -> None:
        pattern = torch.rand(2, 3, 4, 5).softmax(-1).to(torch.bfloat16)
        rows = torch.tensor([[True, False, False, True], [False] * 4])
        flat = toward_uniform(pattern, rows, strength=3.0)
        assert flat.pattern.dtype == torch.bfloat16
        left = ~rows[:, None].expand(2, 3, 4)
        assert torch.equal(flat.pattern[left], pattern[left])
        assert (flat.pattern[~left] != pattern[~left]).any()


def patterns(model: Any, trace: Trace, flow: StepFlow, layer: int) -> Tensor:
    seen: list[Tensor] = []
    look = [(hook_name("pattern", layer), lambda p, hook: seen.append(p.clone()))]
    with flow.attach(model), torch.no_grad():
        model.run_with_hooks(trace.tokens, fwd_hooks=look)
    return seen[0]


class TestOnModels:
    @pytest.mark.parametrize("layer", [0, 1])  # in GPT-OSS, a window of 8 keys and none
    def test_rows_of_thinking_and_summary_alone(self, model: Any, trace: Trace, layer: int) -> None:
        flow = StepFlow(UniformPriorBridge(strength=2.0, layers=layer))
        plain, flat = (patterns(model, trace, f, layer) for f in (StepFlow(), flow))
        start = trace.thinking.start
        assert torch.equal(flat[:, :, :start], plain[:, :, :start])
        close(flat.sum(-1), plain.sum(-1))
        assert torch.equal(flat == 0.0, plain == 0.0)
        q = plain.double() ** (1 / 3)
        q = q / q.sum(-1, keepdim=True) * plain.double().sum(-1, keepdim=True)
        close(flat[:, :, start:].double(), q[:, :, start:], atol=1e-6, rtol=1e-4)

    def test_the_ledger(self, model: Any, trace: Trace) -> None:
        with StepFlow(UniformPriorBridge(layers=(0, 1))).attach(model) as run:
            teacher_forced(model, trace.tokens)
        table = run.ledger.to_dataframe()
        rows = (len(trace.thinking) + len(trace.summary)) * 4
        assert table.rows_seen.tolist() == table.rows_changed.tolist() == [rows, rows]
        assert (table.entropy_after > table.entropy_before).all()
        assert table.bridge_mass_before.isna().all()
        p = patterns(model, trace, StepFlow(), 0)[:, :, trace.thinking.start :].double()
        p = p / p.sum(-1, keepdim=True)
        entropy = -torch.xlogy(p, p).sum(-1).mean()
        assert table.entropy_before[0] == pytest.approx(entropy.item(), rel=1e-5)

    def test_gradients_pass(self, model: Any, trace: Trace) -> None:
        with StepFlow(UniformPriorBridge(strength=2.0, layers="all")).attach(model):
            model(trace.tokens, return_type="loss").backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert grads
        assert all(g.isfinite().all() for g in grads)
        for parameter in model.parameters():
            parameter.grad = None


class TestSettings:
    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize("strength", [-0.1, math.inf, math.nan])
    def test_bad_ones(self, strength: float) -> None:
        message = f"UniformPriorBridge: expected a finite strength >= 0, got {strength}"
        with pytest.raises(ValueError, match=re.escape(message)):
            UniformPriorBridge(strength=strength)

    def test_the_first_layers(self, tiny: Callable[..., Any]) -> None:
        layers = UniformPriorBridge().layers
        assert [len(resolve_layers(layers, n)) for n in (1, 4, 8, 28, 80)] == [1, 1, 1, 4, 12]
        assert resolve_layers(layers, 28) == (0, 1, 2, 3)

    def test_neutral_is_bit_identical_and_hooks_nothing(self, model: Any, trace: Trace) -> None:
        plain = teacher_forced(model, trace.tokens)
        with StepFlow(UniformPriorBridge(strength=0.0, layers="all")).attach(model):
            assert not any(hooks_of(model).values())
            close(teacher_forced(model, trace.tokens), plain, **EXACT)
