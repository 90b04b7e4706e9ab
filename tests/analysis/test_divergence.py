"""How far flows move predictions: against whole passes in float64, and strengths that are known."""

import pandas as pd
import pytest
import torch

from stepflow_tl import OddsEqualBridge, StepFlow, StepMomentum
from stepflow_tl.analysis import (
    calibrate_divergence,
    token_divergence,
    token_divergences,
)
from stepflow_tl.errors import InterventionWarning, SettingError
from stepflow_tl.interventions import UniformPriorBridge
from stepflow_tl.models.view import view

BOTH = StepFlow(OddsEqualBridge(tau_max=0.9, layers="all"), StepMomentum(alpha=2.0, layers="all"))


class _Everywhere(UniformPriorBridge):
    """Flattens every row, those of the question among them."""

    reasoning_only = False

    def edit(self, pattern, at):
        flat = pattern.sqrt()
        return flat / flat.sum(-1, keepdim=True), {"rows_changed": 1}


EVERYWHERE = StepFlow(_Everywhere(layers="all"))


@torch.no_grad()
def log_probabilities(model, trace, flow):
    """Of every row, of one pass over the whole trace."""
    hooks = flow.fwd_hooks(model, trace) if flow.interventions else []
    logits = model.run_with_hooks(trace.tokens, return_type="logits", fwd_hooks=hooks)
    return logits[0].double().log_softmax(-1)


def by_hand(model, trace, flow, tokens):
    p, q = (log_probabilities(model, trace, one) for one in (StepFlow(), flow))
    kl, change, nll = [], [], []
    for token in tokens:
        row, said = token - 1, int(trace.token_ids[token])
        kl.append(sum(float(a.exp() * (a - b)) for a, b in zip(p[row], q[row], strict=True)))
        change.append(float(p[row, said] - q[row, said]))
        nll.append(-float(p[row, said]))
    return kl, change, nll


@pytest.mark.parametrize("flow", [BOTH, EVERYWHERE], ids=["spares the question", "everywhere"])
def test_divergence_is_that_of_whole_passes_by_hand(model, trace, flow):
    tokens = range(trace.prompt_length, len(trace))
    found = token_divergence(model, trace, flow, chunk=16)
    kl, change, nll = by_hand(model, trace, flow, tokens)
    assert found.positions == tokens
    assert found.kl.tolist() == pytest.approx(kl, abs=2e-5, rel=1e-3)
    assert found.nll.tolist() == pytest.approx(nll, abs=1e-4)
    assert found.nll_change.tolist() == pytest.approx(change, abs=1e-4)
    assert found.mean_kl == pytest.approx(sum(kl) / len(kl), rel=1e-3)
    assert found.mean_kl > 0.01 and found.worst_kl > found.mean_kl
    assert not view(model).hooks_on()


def test_some_rows_are_those_of_all(qwen2, trace):
    whole = token_divergence(qwen2, trace, BOTH)
    some = range(trace.prompt_length + 5, trace.prompt_length + 9)
    part = token_divergence(qwen2, trace, BOTH, rows=some)
    assert part.positions == some
    torch.testing.assert_close(part.kl, whole.kl[5:9], rtol=1e-3, atol=1e-6)
    early = token_divergence(qwen2, trace, BOTH, rows=range(1, 5))
    assert early.kl.tolist() == early.nll_change.tolist() == [0.0] * 4
    assert token_divergence(qwen2, trace, EVERYWHERE, rows=range(1, 5)).mean_kl > 0


@pytest.mark.parametrize(
    "flow", [StepFlow(), StepFlow(OddsEqualBridge(tau_max=0.0), StepMomentum(alpha=0.0))]
)
def test_an_empty_flow_moves_nothing(model, trace, flow):
    found = token_divergence(model, trace, flow)
    assert not found.kl.any() and not found.nll_change.any()
    assert (found.nll > 0).all()


def test_flows_of_one_trace_are_told_by_name(qwen2, trace):
    flows = {"both": BOTH, "none": StepFlow(), 3: StepFlow(OddsEqualBridge(tau_max=0.9))}
    found = token_divergences(qwen2, trace, flows)
    assert list(found) == ["both", "none", 3]
    assert found["both"].kl.equal(token_divergence(qwen2, trace, BOTH).kl)


def test_what_is_attached_beforehand_acts_in_both(qwen2, trace):
    with BOTH.attach(qwen2):
        found = token_divergence(qwen2, trace, StepFlow())
    assert not found.kl.any()
    alone = token_divergence(qwen2, trace, BOTH)
    torch.testing.assert_close(found.nll, alone.nll + alone.nll_change, rtol=1e-4, atol=1e-4)


def test_an_intervention_that_never_fired_says_so(qwen2, others):
    silent = StepFlow(StepMomentum(alpha=1.0, boundaries="thinking"))
    one_step = others[0]
    with pytest.warns(InterventionWarning, match="never fired"):
        token_divergence(qwen2, one_step, silent, rows=range(1, one_step.prompt_length + 2))


@pytest.mark.parametrize("rows", [range(0, 3), range(4, 4), range(1, 10_000), range(1, 9, 2)])
def test_rows_that_nothing_predicts_are_refused(qwen2, trace, rows):
    with pytest.raises(
        SettingError,
        match=f"expected positions of some tokens from 1 .* got {rows}".replace("(", r"\(").replace(
            ")", r"\)"
        ),
    ):
        token_divergence(qwen2, trace, BOTH, rows=rows)


def test_a_trace_without_a_response_is_refused(qwen2, others):
    with pytest.raises(SettingError, match="got a trace without a response"):
        token_divergence(qwen2, others[2], BOTH)
    with pytest.raises(SettingError, match="expected a chunk of at least one position, got 0"):
        token_divergence(qwen2, others[0], BOTH, chunk=0)


def momentum(strength):
    return StepFlow(StepMomentum(alpha=strength, layers="all"))


@pytest.mark.parametrize("of", ["mean", "worst"])
def test_calibration_finds_a_strength_that_is_known(qwen2, trace, others, of):
    traces = [trace, others[1]]
    kl = torch.cat([token_divergence(qwen2, one, momentum(0.37)).kl for one in traces])
    largest = kl.sort(descending=True).values[: -(-len(kl) // 20)]
    target = float(kl.mean() if of == "mean" else largest.mean())
    found = calibrate_divergence(
        qwen2, traces, momentum, target_kl=target, high=2.0, of=of, tolerance=1e-3
    )
    assert found.strength == pytest.approx(0.37, rel=2e-3)
    assert found.kl == pytest.approx(target, rel=1e-3)
    assert found.tried["strength"].tolist()[:2] == [0.0, 2.0]
    assert found.tried.iloc[-1].tolist() == [found.strength, found.kl]
    assert len(found.tried) < 16


def test_calibration_forgets_what_it_cannot_keep(qwen2, trace, monkeypatch):
    settings = {"target_kl": 0.01, "high": 2.0}
    kept = calibrate_divergence(qwen2, [trace, trace], momentum, **settings)
    monkeypatch.setattr("stepflow_tl.analysis.divergence._KEPT", 0)
    again = calibrate_divergence(qwen2, [trace, trace], momentum, **settings)
    pd.testing.assert_frame_equal(kept.tried, again.tried)


def test_a_target_out_of_reach_is_said(qwen2, trace):
    with pytest.raises(
        SettingError,
        match=r"target_kl that strengths from 0 to 0.1 reach, got 9, where KL goes from 0 to 0\.\d",
    ):
        calibrate_divergence(qwen2, [trace], momentum, target_kl=9.0, high=0.1)


def test_a_strength_that_the_flow_refuses_is_said_as_such(qwen2, trace):
    def bridge(strength):
        return StepFlow(OddsEqualBridge(tau_max=strength, layers="all"))

    message = "strengths that the flow can be made with, got 2: .*tau_max"
    with pytest.raises(SettingError, match=message):
        calibrate_divergence(qwen2, [trace], bridge, target_kl=0.01, high=2.0)


def test_a_leap_is_said(qwen2, trace):
    def leaping(strength):
        return momentum(0.0 if strength < 0.3 else 3.0)

    with pytest.raises(SettingError, match=r"got KL 0 at 0\.(2|3)\S* and \S+ at 0\.3\S* after 12"):
        calibrate_divergence(qwen2, [trace], leaping, target_kl=0.01, most=12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_kl": 0.0}, "expected target_kl > 0"),
        ({"target_kl": 0.1, "low": 1.0}, "low < high"),
        ({"target_kl": 0.1, "tolerance": 0.0}, "a tolerance between 0 and 1, got .* and 0"),
        ({"target_kl": 0.1, "of": "median"}, "expected of= in .*'worst'.* got 'median'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(qwen2, trace, settings, message, unchecked):
    with pytest.raises(SettingError, match=message):
        calibrate_divergence(qwen2, [trace], momentum, **settings)


def test_no_traces_are_refused(qwen2):
    with pytest.raises(SettingError, match="expected held-out traces to calibrate on, got none"):
        calibrate_divergence(qwen2, [], momentum, target_kl=0.1)
