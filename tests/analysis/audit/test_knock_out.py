"""Hiding steps: against scores of minus infinity written out, on every class of models."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import MODEL_KINDS, hooks_of, load_tiny
from torch import Tensor
from transformers import AutoModelForCausalLM

from stepflow_tl.analysis.audit import hiding, knock_out
from stepflow_tl.analysis.teacher import divergence
from stepflow_tl.errors import NonFiniteError, SettingError, StepMapError
from stepflow_tl.interventions import PlantedLockIn, StepFlow
from stepflow_tl.models.sites import hook_name
from stepflow_tl.models.view import view
from stepflow_tl.traces.trace import Trace


def hidden_by_hand(model: Any, trace: Trace, steps: list[int]) -> Tensor:
    """Log-probabilities [pos, vocab] where these steps are hidden."""

    def hide(scores: Tensor, hook: Any) -> Tensor:
        query = torch.arange(scores.shape[2])[:, None]
        key = torch.arange(scores.shape[3])
        for step in (trace.steps[number] for number in steps):
            away = (query >= step.stop) & (key >= step.start) & (key < step.stop)
            scores = scores.masked_fill(away, torch.finfo(scores.dtype).min)
        return scores

    hooks = [(hook_name("attn_scores", n), hide) for n in range(view(model).n_layers)]
    with torch.no_grad():
        logits = model.run_with_hooks(trace.tokens, fwd_hooks=hooks, return_type="logits")
    return logits[0].double().log_softmax(-1)


def by_hand(model: Any, trace: Trace, temperature: float = 1.0) -> Tensor:
    """KL of every pair of steps, in float64."""
    with torch.no_grad():
        base = model(trace.tokens, return_type="logits")[0].double() / temperature
    base = base.log_softmax(-1)
    found = torch.zeros(len(trace.steps), len(trace.steps), dtype=torch.float64)
    for step in trace.steps:
        other = (hidden_by_hand(model, trace, [step.index]) / temperature).log_softmax(-1)
        kl = (base.exp() * (base - other)).sum(-1)
        for later in trace.steps[step.index + 1 :]:
            found[later.index, step.index] = kl[later.start : later.stop].mean()
    return found


def test_a_divergence_by_hand() -> None:
    """KL((1/2, 1/2) || (1/4, 3/4)) = ln(2) / 2 + ln(2/3) / 2."""
    base = torch.tensor([[[0.5, 0.5]]]).log()
    other = torch.tensor([[[0.25, 0.75]]]).log()
    expected = 0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log()
    assert float(divergence(base, other)) == pytest.approx(float(expected))
    assert float(divergence(base, base)) == 0.0


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_every_class_of_models(tiny: Callable[..., Any], trace: Trace, kind: str) -> None:
    """Windows and sinks included; in one batch, in many, and a few queries at a time."""
    model = tiny(kind)
    expected = by_hand(model, trace)
    assert expected.max() > 1e-4
    for batch_size in (1, 3, 100):
        found = knock_out(model, trace, batch_size=batch_size)
        torch.testing.assert_close(found.kl, expected, atol=2e-6, rtol=2e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hiding, "_LOGITS_AT_ONCE", 5 * 4 * 400)
        few = knock_out(model, trace, batch_size=3)
    torch.testing.assert_close(few.kl, expected, atol=2e-6, rtol=2e-3)
    assert not any(hooks_of(model).values())


def test_the_answer(qwen2: Any, trace: Trace) -> None:
    start, stop = trace.answer_span
    with torch.no_grad():
        base = qwen2(trace.tokens)[0].double().log_softmax(-1)
    rows = torch.arange(start - 1, stop - 1)
    found = knock_out(qwen2, trace)
    for step in trace.steps:
        if step.stop > start:
            assert found.answer[step.index].isnan()
            continue
        other = hidden_by_hand(qwen2, trace, [step.index])
        change = (other - base)[rows, trace.token_ids[start:stop]].sum()
        assert float(found.answer[step.index]) == pytest.approx(float(change), abs=1e-5)
    span = (start, start + 1)
    assert knock_out(qwen2, trace, answer=span).settings["answer"] == [start, start + 1]


def test_their_variant(qwen2: Any, trace: Trace) -> None:
    found = knock_out(qwen2, trace, temperature=0.6, average="log_kl")
    with torch.no_grad():
        base = (qwen2(trace.tokens)[0].double() / 0.6).log_softmax(-1)
    other = (hidden_by_hand(qwen2, trace, [1]) / 0.6).log_softmax(-1)
    logs = ((base.exp() * (base - other)).sum(-1).clamp_min(0) + 1e-9).log()
    step = trace.steps[2]
    expected = float(logs[step.start : step.stop].mean())
    assert float(found.kl[2, 1]) == pytest.approx(expected, abs=0.05)
    assert found.kl[1, 2] == -torch.inf
    assert found.as_map().scores.isfinite().all()


def test_a_plain_decoder(
    tiny: Callable[..., Any], tiny_folder: Callable[..., Any], trace: Trace, tokenizer: Any
) -> None:
    expected = by_hand(tiny("qwen2"), trace)
    for attention in ("sdpa", "eager"):
        plain = AutoModelForCausalLM.from_pretrained(
            tiny_folder("qwen2"), dtype=torch.float32, attn_implementation=attention
        ).eval()
        found = knock_out(plain, trace)
        torch.testing.assert_close(found.kl, expected, atol=2e-6, rtol=2e-3)
        plain.tokenizer = tokenizer
        with StepFlow(PlantedLockIn(layers="all")).attach(plain):
            under = knock_out(plain, trace)
        assert (under.kl - expected).abs().max() > 1e-5


def test_under_an_intervention(qwen2: Any, trace: Trace) -> None:
    """The base is the model under it, too."""
    flow = StepFlow(PlantedLockIn(strength=0.9, layers="all"))
    with flow.attach(qwen2):
        expected = by_hand(qwen2, trace)
        found = knock_out(qwen2, trace)
    torch.testing.assert_close(found.kl, expected, atol=2e-6, rtol=2e-3)
    assert (found.kl - by_hand(qwen2, trace)).abs().max() > 1e-4


def test_tokens_in_place_of_keys(qwen2: Any, trace: Trace) -> None:
    found = knock_out(qwen2, trace, hide="tokens")
    step, later = trace.steps[1], trace.steps[3]
    changed = trace.tokens.clone()
    changed[0, step.start : step.stop] = hiding.pad_token_id(view(qwen2))
    with torch.no_grad():
        base, other = (qwen2(x)[0].double().log_softmax(-1) for x in (trace.tokens, changed))
    kl = (base.exp() * (base - other)).sum(-1)[later.start : later.stop].mean()
    assert float(found.kl[3, 1]) == pytest.approx(float(kl), rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "expected temperature above 0, got 0.0"),
        ({"average": "mean"}, "expected average in .* got 'mean'"),
        ({"hide": "all"}, "expected hide in .* got 'all'"),
        ({"batch_size": 0}, "expected batch_size >= 1, got 0"),
        ({"answer": (0, 2)}, r"expected answer=\(start, stop\) within"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_settings(qwen2: Any, trace: Trace, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        knock_out(qwen2, trace, **settings)


def test_a_trace_of_one_step(qwen2: Any, trace: Trace) -> None:
    head = trace.prompt_length
    short = Trace.from_token_ids(qwen2, trace.token_ids[:head], prompt_length=head, strict=False)
    with pytest.raises(StepMapError, match="at least two steps"):
        knock_out(qwen2, short)


def test_logits_that_are_no_numbers_are_no_zeros(tiny_folder: Any, trace: Trace) -> None:
    model = load_tiny(tiny_folder("qwen2"))
    with torch.no_grad():
        model.original_model.lm_head.weight[3] = torch.nan
    with pytest.raises(NonFiniteError, match="got NaN at the queries"):
        knock_out(model, trace)
