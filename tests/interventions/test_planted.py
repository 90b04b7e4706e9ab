"""Planted failures: the map by hand, what is kept, and where each of them acts."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from flows import EXACT, NEAR, close
from helpers import cached, teacher_forced
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stepflow_tl.errors import SettingError
from stepflow_tl.interventions import (
    PlantedDecay,
    PlantedForgetting,
    PlantedLockIn,
    PlantedNoise,
    StepFlow,
)
from stepflow_tl.interventions.planted import move_attention
from stepflow_tl.models.sites import hook_name
from stepflow_tl.traces.rows import QUESTION, SUMMARY, THINKING
from stepflow_tl.traces.tokens import FRAME
from stepflow_tl.traces.trace import Trace

LOCKED = PlantedLockIn(strength=0.5, layers="all")
PLANTED = [
    LOCKED,
    PlantedLockIn(strength=0.9, layers="all", source="earlier"),
    PlantedLockIn(strength=1.0, layers=1, source="both"),
    PlantedDecay(strength=0.7, layers="all", beyond=2),
    PlantedForgetting(strength=1.0, layers="all"),
    PlantedNoise(strength=0.5, layers=(1, 2)),
]


def patterns(model: Any, trace: Trace, flow: StepFlow, layer: int = 0) -> Tensor:
    """Pattern of a layer after the flow has acted, [head, query, key]."""
    seen = []
    hooks = flow.fwd_hooks(model, trace)
    hooks.append((hook_name("pattern", layer), lambda x, hook: seen.append(x.detach().clone())))
    with torch.no_grad():
        model.run_with_hooks(trace.tokens, fwd_hooks=hooks)
    return seen[0][0]


class TestTheMap:
    def test_by_hand(self) -> None:
        """Half of .6 goes to keys that hold .1 and .2, in this proportion."""
        pattern = torch.tensor([0.6, 0.1, 0.2, 0.1], dtype=torch.float64).view(1, 1, 1, 4)
        lose = torch.tensor([True, False, False, False]).view(1, 1, 4)
        gain = torch.tensor([False, True, True, False]).view(1, 1, 4)
        moved = move_attention(pattern, lose, gain, strength=0.5)
        assert moved.pattern.flatten().tolist() == pytest.approx([0.3, 0.2, 0.4, 0.1])
        assert moved.taken.item() == pytest.approx(0.3)
        assert moved.changed.all()

    @given(st.lists(st.floats(0.0, 1.0), min_size=6, max_size=6), st.floats(0.0, 1.0))
    def test_what_is_kept(self, row: list[float], strength: float) -> None:
        pattern = torch.tensor(row, dtype=torch.float64).view(1, 1, 1, 6)
        lose = torch.tensor([1, 1, 0, 0, 0, 0]).bool().view(1, 1, 6)
        gain = torch.tensor([0, 0, 1, 1, 0, 0]).bool().view(1, 1, 6)
        moved = move_attention(pattern, lose, gain, strength=strength)
        new = moved.pattern.flatten()
        assert float(new.sum()) == pytest.approx(sum(row), abs=1e-9)
        assert new[4:].tolist() == row[4:]
        assert (new >= 0).all()
        if not moved.changed.any():
            assert torch.equal(moved.pattern, pattern)
        else:
            assert float(new[:2].sum()) == pytest.approx((1 - strength) * sum(row[:2]), abs=1e-9)

    def test_gradients_are_finite_where_next_to_nothing_gains(self) -> None:
        """Keys of mass 1e-24 get a half: d q_1 / d p_1 = d p(L) / p(G) (1 - p_1 / p(G)) + 1."""
        pattern = torch.tensor([1.0, 1e-24, 3e-24]).view(1, 1, 1, 3).requires_grad_()
        lose = torch.tensor([True, False, False]).view(1, 1, 3)
        moved = move_attention(pattern, lose, ~lose, strength=0.5)
        (gradient,) = torch.autograd.grad(moved.pattern[..., 1].sum(), pattern)
        expected = torch.tensor([0.125, 0.5 / 4e-24 * 0.75, -0.5 / 4e-24 * 0.25])
        torch.testing.assert_close(gradient.flatten(), expected, rtol=1e-4, atol=1e-6)

    def test_rows_with_nobody_to_give_to_are_left_alone(self) -> None:
        pattern = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
        lose = torch.tensor([True, False]).view(1, 1, 2)
        moved = move_attention(pattern, lose, ~lose, strength=1.0)
        assert torch.equal(moved.pattern, pattern)
        assert not moved.changed.any()


class TestWhereTheyAct:
    """On the pattern of the first layer, which nothing before it has changed."""

    def change(self, model: Any, trace: Trace, item: Any) -> tuple[Tensor, Tensor]:
        before = patterns(model, trace, StepFlow())
        return before, patterns(model, trace, StepFlow(item))

    def test_lock_in(self, model: Any, trace: Trace) -> None:
        before, after = self.change(model, trace, LOCKED)
        segment, step = trace.segment_of_token, trace.step_of_token
        question = (segment == QUESTION) & (step != FRAME)
        thinks = segment == THINKING
        gains = before[:, :, thinks].sum(-1) > 0
        rows = thinks[None, :] & gains & (before[:, :, question].sum(-1) > 0)
        expected = before[:, :, question].sum(-1) * torch.where(rows, 0.5, 1.0)
        close(after[:, :, question].sum(-1), expected, **NEAR)
        close(after.sum(-1), before.sum(-1), **NEAR)
        close(after[:, ~thinks], before[:, ~thinks], **EXACT)
        others = ~(question | thinks)
        close(after[:, :, others], before[:, :, others], **NEAR)

    def test_earlier_steps(self, qwen2: Any, trace: Trace) -> None:
        item = PlantedLockIn(strength=1.0, layers="all", source="earlier")
        _, after = self.change(qwen2, trace, item)
        thinking = trace.steps_in("thinking")
        query = thinking[3]
        for key in thinking:
            held = float(after[:, query.start : query.stop, key.start : key.stop].sum())
            assert (held == 0.0) == (key.index < query.index - 1 or key.index > query.index)

    def test_decay(self, qwen2: Any, trace: Trace) -> None:
        item = PlantedDecay(strength=1.0, layers="all", beyond=1)
        before, after = self.change(qwen2, trace, item)
        summary = trace.segment_of_token == SUMMARY
        thinking = trace.steps_in("thinking")
        for key in thinking:
            held = after[:, summary, key.start : key.stop].sum(-1)
            was = before[:, summary, key.start : key.stop].sum(-1)
            if key.index == thinking[-1].index:
                assert (held > was).all()
            else:
                assert (held == 0.0).all()
        close(after[:, ~summary], before[:, ~summary], **EXACT)

    def test_forgetting(self, model: Any, trace: Trace) -> None:
        before, after = self.change(model, trace, PlantedForgetting())
        thinking = trace.steps_in("thinking")
        firsts = [step.start for step in thinking[1:]]
        others = [t for t in range(len(trace)) if t not in firsts]
        close(after[:, others], before[:, others], **EXACT)
        for earlier, step in pairwise(thinking):
            assert float(after[:, step.start, earlier.start : earlier.stop].sum()) == 0.0
        close(after.sum(-1), before.sum(-1), **NEAR)

    def test_noise(self, qwen2: Any, trace: Trace) -> None:
        """From the second layer on: before the first pattern nobody knows where a pass stands."""
        flow = StepFlow(PlantedNoise(strength=1.0, layers=1))
        before, after = (patterns(qwen2, trace, f, 1) for f in (StepFlow(), flow))
        thinks = trace.segment_of_token == THINKING
        close(after[:, ~thinks], before[:, ~thinks], **EXACT)
        assert (after[:, thinks] - before[:, thinks]).abs().amax((0, 2)).min() > 1e-4
        other = patterns(qwen2, trace, StepFlow(PlantedNoise(layers=1, seed=1)), 1)
        assert (after - other).abs().max() > 1e-3


@pytest.mark.parametrize("item", PLANTED, ids=lambda item: item.name)
def test_cached_and_padded_rows_are_one_pass(qwen2: Any, trace: Trace, item: Any) -> None:
    """Token by token, in chunks, and left-padded: the logits of one teacher-forced pass."""
    flow = StepFlow(item)
    with flow.attach(qwen2):
        whole = teacher_forced(qwen2, trace.tokens)
    head = trace.prompt_length
    steps = [1] * (len(trace) - head)
    for chunks in ([head, *steps], [head + 9, 11, len(trace) - head - 20]):
        with flow.attach(qwen2) as run:
            close(cached(qwen2, trace.tokens, chunks), whole, **NEAR)
    assert run.ledger.total(item.name, item.fired) > 0
    assert (teacher_forced(qwen2, trace.tokens) - whole).abs().max() > 1e-4


@pytest.mark.parametrize("kind", [PlantedLockIn, PlantedDecay, PlantedForgetting, PlantedNoise])
def test_nothing_at_zero(kind: Any) -> None:
    assert kind(strength=0.0).is_neutral


def test_the_ledger(qwen2: Any, trace: Trace) -> None:
    with LOCKED_FLOW.attach(qwen2) as run:
        teacher_forced(qwen2, trace.tokens)
    table = run.ledger.to_dataframe()
    heads = int(qwen2.cfg.n_heads)
    thinks = int((trace.segment_of_token == THINKING).sum())
    assert table["rows_seen"].tolist() == [heads * thinks] * len(table)
    assert (table["mass_taken"] > 0).all()


LOCKED_FLOW = StepFlow(LOCKED)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PlantedLockIn(strength=1.5), r"expected strength in \[0, 1\], got 1.5"),
        (lambda: PlantedLockIn(source="past"), "expected source in .* got 'past'"),
        (lambda: PlantedDecay(beyond=-1), "expected beyond >= 0 steps, got -1"),
        (lambda: PlantedForgetting(strength=float("nan")), "got nan"),
        (lambda: PlantedNoise(strength=-1.0), "expected a finite strength >= 0, got -1.0"),
        (lambda: PlantedNoise(strength="a"), "expected a finite strength >= 0, got 'a'"),
        (lambda: PlantedNoise(seed=1.5), "expected a whole seed from 0 .* got 1.5"),
        (lambda: PlantedNoise(seed=1 << 40), "expected a whole seed from 0"),
        (lambda: PlantedNoise(layers=(0, 1)), "expected layers from 1 on, got layers=.0, 1."),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_settings(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()
