"""Step Momentum Injection: where it adds, how much, and its settings."""

import math
import re
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import teacher_forced
from torch import Tensor

from stepflow_tl.interventions import StepFlow, StepMomentum
from stepflow_tl.interventions.step_momentum import _RecentValues
from stepflow_tl.models.sites import hook_name
from stepflow_tl.models.view import view
from stepflow_tl.traces.rows import SUMMARY, THINKING, StepStart
from stepflow_tl.traces.trace import Trace


def by_hand(trace: Trace, layer: int, alpha: float, window: int | str, boundaries: str) -> list:
    """Eq. (9), written out for one known trace."""
    seen: dict[str, Tensor] = {}

    def keep(v: Tensor, hook: Any) -> None:
        seen["v"] = v

    def add(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        heads_per_value = z.shape[2] // seen["v"].shape[2]
        steps = trace.steps[1:]
        for previous, step in pairwise(steps):
            if step.segment == "summary" and boundaries == "thinking":
                continue
            size = len(previous) if window == "step" else min(window, len(previous))
            for head in range(z.shape[2]):
                gamma = seen["v"][0, previous.stop - size : previous.stop, head // heads_per_value]
                z[0, step.start, head] += alpha * gamma.mean(0)
        return z

    return [(hook_name("v", layer), keep), (hook_name("z", layer), add)]


@pytest.mark.parametrize("boundaries", ["thinking", "all"])
@pytest.mark.parametrize("window", [1, 4, 1000, "step"])
def test_the_equation(model: Any, trace: Trace, window: Any, boundaries: Any) -> None:
    layers = (1, 3)
    hooks = [h for layer in layers for h in by_hand(trace, layer, 0.7, window, boundaries)]
    flow = StepFlow(StepMomentum(alpha=0.7, layers=layers, window=window, boundaries=boundaries))
    with torch.no_grad():
        expected = model.run_with_hooks(trace.tokens, fwd_hooks=hooks)
    with flow.attach(model):
        torch.testing.assert_close(
            teacher_forced(model, trace.tokens), expected, atol=1e-4, rtol=1e-4
        )


def test_only_step_starts_change_in_the_layer_itself(model: Any, trace: Trace) -> None:
    streams: list[Tensor] = []
    look = [(hook_name("resid_post", 3), lambda x, hook: streams.append(x.clone()))]
    with torch.no_grad():
        model.run_with_hooks(trace.tokens, fwd_hooks=look)
        with StepFlow(StepMomentum(alpha=0.7, layers=3)).attach(model):
            model.run_with_hooks(trace.tokens, fwd_hooks=look)
    changed = (streams[0] != streams[1]).any(-1)[0].nonzero()[:, 0].tolist()
    assert changed == [step.start for step in trace.steps_in("thinking")[1:]]


def test_the_norm_in_the_ledger(model: Any, trace: Trace) -> None:
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda x, hook: seen.update({name: x})

    with StepFlow(StepMomentum(alpha=0.7, layers=2)).attach(model) as run, torch.no_grad():
        look = [(hook_name("v", 2), keep("v")), (hook_name("resid_pre", 2), keep("resid"))]
        model.run_with_hooks(trace.tokens, fwd_hooks=look)
    norms = []
    steps = trace.steps_in("thinking")
    for previous, step in pairwise(steps):
        mean = seen["v"][:, previous.stop - 4 : previous.stop].mean(1)
        added = 0.7 * view(model).heads_to_residual(2, mean.repeat_interleave(2, dim=1))
        norms.append(added.norm() / seen["resid"][0, step.start].norm())
    table = run.ledger.to_dataframe()
    assert table.injection_norm[0] == pytest.approx(torch.stack(norms).mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("window", "previous", "gamma"),
    [
        (4, (10, 20), (16, 20)),
        (4, (10, 12), (10, 12)),
        (1, (3, 4), (3, 4)),
        ("step", (3, 9), (3, 9)),
    ],
)
def test_gamma(window: Any, previous: tuple[int, int], gamma: tuple[int, int]) -> None:
    assert StepMomentum(window=window).gamma(previous) == gamma


def test_which_starts_are_due() -> None:
    thinking, summary = (StepStart(0, 9, segment, (5, 9)) for segment in (THINKING, SUMMARY))
    assert [StepMomentum().is_due(s) for s in (thinking, summary)] == [True, False]
    assert all(StepMomentum(boundaries="all").is_due(s) for s in (thinking, summary))


class ReadRow:
    """A row, of which only this counts."""

    finished = False


@pytest.mark.usefixtures("unchecked")
def test_recent_values_keep_what_may_be_asked_for() -> None:
    values, whole = _RecentValues(), torch.arange(40.0).view(2, 20, 1, 1)
    one, other, third = ReadRow(), ReadRow(), ReadRow()

    def read(start: int, v: Tensor, rows: dict[ReadRow, int], needed: int) -> None:
        """A pass over columns from `start` on, after which rows need what follows `needed`."""
        at = SimpleNamespace(
            start=start,
            rows=tuple(rows),
            pads=tuple(rows.values()),
            segment=torch.zeros(len(rows), start + v.shape[1]),
        )
        values.begin(at, dict.fromkeys(rows, needed))
        values.read(3, v)

    for start, stop in ((0, 8), (8, 9), (9, 20)):
        read(start, whole[:, start:stop], {one: 0, other: 0}, needed=6)
        assert values.mean(3, one, (6, 8)).item() == 6.5
        assert values.mean(3, other, (6, 8)).item() == 26.5
    read(0, whole[:1, :4] + 200, {third: 0}, needed=0)  # a prompt that will join
    assert [held.starts for held in values._passes] == [[0, 0], [8, 8], [9, 9], [0]]
    one.finished = True  # and has left; the others stand further right
    read(25, whole[1:, :1] + 100, {other: 5, third: 21}, needed=19)
    assert values.mean(3, other, (19, 21)).item() == (39 + 120) / 2
    assert values.mean(3, third, (3, 4)).item() == 203.0
    read(26, whole[1:, :1], {other: 5, third: 21}, needed=19)
    assert [held.starts for held in values._passes] == [[9, 9], [0], [20, 4], [21, 5]]
    read(0, whole[:1, :3] + 100, {third: 0}, needed=0)  # run anew
    assert values.mean(3, third, (0, 3)).item() == 101.0


class TestSettings:
    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"alpha": math.inf}, "StepMomentum: expected a finite alpha, got inf"),
            ({"alpha": math.nan}, "expected a finite alpha, got nan"),
            ({"window": 0}, "expected window to be a number of tokens >= 1 or 'step', got 0"),
            ({"window": -1}, "got -1"),
            ({"window": 1.5}, "got 1.5"),
            ({"window": "all"}, "got 'all'"),
            ({"boundaries": "none"}, "expected boundaries in ['thinking', 'all'], got 'none'"),
            ({"layers": 1.5}, "layers=1.5: expected a fraction"),
        ],
    )
    def test_bad_ones(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            StepMomentum(**settings)

    def test_frozen_and_keyword_only(self) -> None:
        with pytest.raises(TypeError):
            StepMomentum(0.06)  # type: ignore[misc]
        with pytest.raises(AttributeError):
            StepMomentum().alpha = 0.2  # type: ignore[misc]

    def test_the_papers_defaults(self) -> None:
        assert StepMomentum() == StepMomentum(
            alpha=0.06, layers="deep", window=4, boundaries="thinking"
        )
        assert StepMomentum(alpha=0.0).is_neutral
        assert not StepMomentum(alpha=-0.1).is_neutral
