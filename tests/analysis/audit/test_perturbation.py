"""RISE and MAS by hand, and deletion curves against one run for each set."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_knock_out import hidden_by_hand

from stepflow_tl.analysis.audit import knock_out, perturbation
from stepflow_tl.analysis.audit.perturbation import (
    area,
    deletion_curves,
    falls,
    hops_of,
    mismatch,
)
from stepflow_tl.errors import NonFiniteError, SettingError, StepMapError
from stepflow_tl.saliency import StepMap, step_saliency
from stepflow_tl.traces.trace import Trace


class TestByHand:
    def test_a_falling_curve(self) -> None:
        """-1, -3, -2, -5: 1, 1/2, 3/4, 0, of which the rise is cut."""
        falling = falls(np.array([-1.0, -3.0, -2.0, -5.0]))
        assert falling.tolist() == [1.0, 0.5, 0.5, 0.0]
        assert area(falling) == pytest.approx((0.75 + 0.5 + 0.25) / 3)

    def test_nothing_to_lose(self) -> None:
        assert np.isnan(falls(np.array([-2.0, -1.0]))).all()

    def test_a_map_that_keeps_its_word(self) -> None:
        """It promised 3/4 and 1/4, and so it fell: the mismatch is the curve itself."""
        falling = np.array([1.0, 0.25, 0.0])
        assert mismatch(falling, np.array([3.0, 1.0])).tolist() == falling.tolist()

    def test_one_that_does_not(self) -> None:
        """It promised an even fall: [1, 1/4, 0] + [0, 1/4, 0]."""
        assert mismatch(np.array([1.0, 0.25, 0.0]), np.ones(2)).tolist() == [1.0, 0.5, 0.0]


def test_curves_are_runs_with_keys_hidden(qwen2: Any, trace: Trace) -> None:
    span = trace.answer_span
    orders = {"one": [0, 2, 1], "other": [2, 0, 3]}
    curves = deletion_curves(qwen2, trace, orders, span, batch_size=3)
    rows = torch.arange(span[0] - 1, span[1] - 1)
    for name, order in orders.items():
        for count in range(len(order) + 1):
            said = hidden_by_hand(qwen2, trace, order[:count])
            expected = float(said[rows, trace.token_ids[span[0] : span[1]]].sum())
            assert curves[name][count] == pytest.approx(expected, abs=1e-4)


def test_the_order_of_the_truth_falls_fastest(qwen2: Any, trace: Trace) -> None:
    """A map made of what hiding does, against its reverse."""
    done = knock_out(qwen2, trace)
    drop = (-done.answer).nan_to_num(0.0)
    base = step_saliency(qwen2, trace, rule="attention", pool="share")
    target = int(trace.step_of_token[trace.answer_span[0]])

    def planted(values: torch.Tensor) -> StepMap:
        scores = torch.zeros_like(base.scores)
        scores[:, target] = values.float()
        return StepMap(**{**vars(base), "scores": scores})

    shifted = drop - drop.min() + 1e-3
    maps = {"truth": planted(shifted), "reverse": planted(shifted.max() - shifted + 1e-3)}
    table = perturbation(qwen2, trace, maps).set_index("rule")
    if table["rise"].notna().all():
        assert table.loc["truth", "rise"] <= table.loc["reverse", "rise"]
    assert table["steps"].tolist() == [target, target]


def test_rules_and_hops(qwen2: Any, trace: Trace) -> None:
    share = step_saliency(qwen2, trace, pool="share")
    maps = {"share": share, "hops": hops_of(share)}
    for hide in ("keys", "tokens"):
        table = perturbation(qwen2, trace, maps, hide=hide)
        assert table["rule"].tolist() == ["share", "hops"]


def test_what_does_not_fit(qwen2: Any, trace: Trace, others: list[Trace]) -> None:
    share = step_saliency(qwen2, trace, pool="share")
    with pytest.raises(StepMapError, match="expected a boxed answer"):
        perturbation(qwen2, others[0], {"share": share})
    with pytest.raises(StepMapError, match="expected a map of the trace's 7 steps, got one of 4"):
        wrong = step_saliency(qwen2, others[0], pool="share")
        perturbation(qwen2, trace, {"share": wrong})
    moved = tuple(replace(step, start=step.start + 1) for step in share.steps)
    with pytest.raises(StepMapError, match="expected a map of this trace, whose step 0 has"):
        perturbation(qwen2, trace, {"share": replace(share, steps=moved)})
    holed = replace(share, scores=share.scores.clone().fill_(torch.nan))
    with pytest.raises(NonFiniteError, match="got NaN or infinity: 'share'"):
        perturbation(qwen2, trace, {"share": holed})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hide": "foo"}, "expected hide in .* got 'foo'"),
        ({"answer": (30, 30)}, "expected answer=.start, stop. within the 86 tokens, got .30, 30"),
        ({"answer": (-3, -1)}, "within the 86 tokens, got"),
        ({"answer": (80, 99)}, "within the 86 tokens, got"),
        ({"batch_size": 0}, "expected batch_size >= 1, got 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_settings(qwen2: Any, trace: Trace, settings: dict[str, Any], message: str) -> None:
    share = step_saliency(qwen2, trace)
    with pytest.raises(SettingError, match=message):
        perturbation(qwen2, trace, {"share": share}, **settings)
    with pytest.raises(SettingError, match="expected at least one map"):
        perturbation(qwen2, trace, {})


def test_batches_do_not_matter_where_the_answer_follows_the_hidden_step(
    qwen2: Any, trace: Trace
) -> None:
    """Nothing hidden alone in a batch: all of the answer's tokens count all the same."""
    step = trace.steps_in("summary")[-1]
    orders = {"latest first": list(range(step.index - 1, -1, -1))}
    span = (step.start, step.stop)
    alone, *others = (
        deletion_curves(qwen2, trace, orders, span, batch_size=size)["latest first"]
        for size in (1, 2, 8)
    )
    for curve in others:
        np.testing.assert_allclose(curve, alone, atol=1e-4)
