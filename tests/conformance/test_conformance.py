"""What must hold on every architecture: one test a column of the documents' table."""

import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, QUESTION, Architecture, Built
from helpers import cached, decode, encode, teacher_forced
from recount import counted, plain_pattern
from torch import Tensor
from verified import COLUMNS

from stepflow_tl.decoding.generation import generate
from stepflow_tl.decoding.settings import Decoding
from stepflow_tl.interventions import InterventionWarning, OddsEqualBridge, StepFlow, StepMomentum
from stepflow_tl.models.layers import resolve_layers
from stepflow_tl.models.sites import hook_name
from stepflow_tl.models.view import view
from stepflow_tl.saliency import token_saliency
from stepflow_tl.traces.chat import prompt_token_ids
from stepflow_tl.traces.formats import question_span
from stepflow_tl.traces.templates import template_of
from stepflow_tl.traces.tokens import FRAME
from stepflow_tl.traces.trace import Trace

FLOW = StepFlow(
    OddsEqualBridge(tau_max=0.9, layers=(0, 1)), StepMomentum(alpha=0.7, layers=(1, 2, 3))
)
EXACT = dict(atol=0.0, rtol=0.0)
NEAR = dict(atol=5e-4, rtol=5e-4)
QUESTIONS = ("Why?", "Why is it so, and how?", "Why is it?", "How?", "Who has it, and why?")
SHORT = 25  # tokens of the response whose scores are differenced

close = torch.testing.assert_close


@pytest.fixture(scope="session", params=ARCHITECTURES, ids=lambda a: a.name)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return request.param


@pytest.fixture(scope="session")
def built(architecture: Architecture, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(architecture, tmp_path_factory.mktemp("conformance") / architecture.kind)


@pytest.fixture(scope="session")
def expected(built: Built) -> tuple[Tensor, Any]:
    """Logits of one pass under StepFlow, and its ledger."""
    with FLOW.attach(built.bridge) as run:
        logits = teacher_forced(built.bridge, built.trace.tokens)
    table = run.ledger.to_dataframe()
    assert (table.rows_changed + table.injections > 0).all()
    plain = teacher_forced(built.bridge, built.trace.tokens)
    assert (logits - plain).abs().max() > 1e-2 * plain.abs().max()
    return logits, table


def test_logits(built: Built) -> None:
    """`load_model` gives the Hugging Face model, of the configuration that is meant."""
    bridge, plain, architecture = built.bridge, built.plain("eager"), built.architecture
    with torch.no_grad():
        theirs = plain(built.trace.tokens, use_cache=False).logits
    close(teacher_forced(bridge, built.trace.tokens), theirs, **NEAR)
    assert tuple(view(bridge).attention_window(i) for i in range(4)) == architecture.windows
    tied = plain.get_input_embeddings().weight is plain.get_output_embeddings().weight
    assert tied == architecture.settings.get("tie_word_embeddings", False)
    text = "".join(built.trace.token_texts)
    assert encode(bridge.tokenizer, text) == encode(built.tokenizer, text)


def test_cache(built: Built, expected: tuple[Tensor, Any]) -> None:
    """Decoding under StepFlow against a KV cache gives the logits of one pass."""
    trace, (logits, table) = built.trace, expected
    with torch.no_grad():
        hooks = FLOW.fwd_hooks(built.bridge, trace)
        known = built.bridge.run_with_hooks(trace.tokens, fwd_hooks=hooks)
    close(known, logits, **NEAR)
    for chunks in ([trace.prompt_length], [7, trace.prompt_length, 12], []):
        with FLOW.attach(built.bridge) as run:
            close(cached(built.bridge, trace.tokens, chunks), logits, **NEAR)
        mine = run.ledger.to_dataframe()
        assert mine.rows_seen.tolist() == table.rows_seen.tolist()
        assert mine.injections.tolist() == table.injections.tolist()


def test_batch(built: Built, expected: tuple[Tensor, Any]) -> None:
    """A left-padded batch gives what its rows give alone."""
    bridge, trace = built.bridge, built.trace
    other = built.trace_of("Why is it so?", len(trace) - 31)
    with FLOW.attach(bridge):
        alone = teacher_forced(bridge, other.tokens)
    pads = [len(trace) - len(other), 0]
    padding = torch.full((pads[0],), built.tokenizer.pad_token_id)
    batch = torch.stack([torch.cat([padding, other.token_ids]), trace.token_ids])
    for chunks in ([len(trace)], [trace.prompt_length]):
        with FLOW.attach(bridge):
            logits = cached(bridge, batch, chunks, pads)
        close(logits[0, pads[0] :], alone[0], **NEAR)
        close(logits[1], expected[0][0], **NEAR)


def test_decoding(
    built: Built, record_property: Callable[[str, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Decoding without bridges, where rows leave and join, writes what the bridge itself writes."""
    bridge = built.bridge
    prompts = [prompt_token_ids(built.tokenizer, question) for question in QUESTIONS]
    decoding = Decoding(max_new_tokens=14, batch_size=2, format="think")

    def written() -> list[list[int]]:
        with FLOW.attach(bridge, format="think"):
            return [trace.token_ids.tolist() for trace in generate(bridge, prompts, decoding)]

    caplog.set_level("DEBUG", "stepflow_tl.models.bridge")
    mine = written()
    through = [
        record.message for record in caplog.records if "through its bridge" in record.message
    ]
    looking = bridge.embed.register_forward_hook(lambda *passed: None)
    try:
        assert written() == mine
    finally:
        looking.remove()
    if through:
        record_property("note", f"decoded {through[0].partition(' ')[2]}")


def test_saliency(built: Built, record_property: Callable[[str, str], None]) -> None:
    """Scores through hooks are those inside the attention, and finite differences of L_t."""
    model, trace = built.wide_bridge, built.trace_of(QUESTION, built.trace.prompt_length + SHORT)
    hooked = token_saliency(model, trace, rule="signed", per_head=True, backend="hooks")
    in_chunks = token_saliency(
        model, trace, rule="signed", per_head=True, backend="hooks", chunk=29
    )
    close(in_chunks, hooked, atol=1e-5 * float(hooked.abs().max()), rtol=0.0)
    objectives = ("token", "sequence")
    if built.architecture.length_dependent:
        with pytest.raises(ValueError, match="changes with the length of what is run"):
            token_saliency(model, trace, backend="fused")
        record_property(
            "note", "inside the attention for one loss only: rotations change with length"
        )
        objectives = ("sequence",)
    for objective in objectives:
        options = {"rule": "signed", "per_head": True, "objective": objective}
        theirs = token_saliency(model, trace, backend="hooks", **options)
        mine = token_saliency(model, trace, backend="fused", **options)
        close(mine, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=0.0)
    for place in places(hooked):
        difference = differenced(model, trace, *place)
        close(hooked[place], difference, atol=1e-3 * float(hooked.abs().max()), rtol=1e-2)


def places(scores: Tensor) -> list[tuple[int, int, int, int]]:
    """Where each layer scores most: (layer, head, query, key) before and on the diagonal."""
    found = []
    for layer, kind in product(range(len(scores)), ("before", "on")):
        own = torch.eye(scores.shape[-1], dtype=torch.bool)
        kept = scores[layer].abs().masked_fill(own if kind == "before" else ~own, 0.0)
        head, query, key = torch.unravel_index(kept.argmax(), kept.shape)
        found.append((layer, int(head), int(query), int(key)))
    return found


def differenced(model: Any, trace: Trace, layer: int, head: int, query: int, key: int) -> Tensor:
    """A * dL_t/dA of one entry of a pattern, by moving it alone: the row is not normalized anew."""
    step, weight, losses = 1e-3, [], []
    for sign in (1.0, -1.0):

        def move(pattern: Tensor, hook: Any, by: float = sign * step) -> Tensor:
            moved = pattern.clone()
            weight.append(moved[0, head, query, key].clone())
            moved[0, head, query, key] += by
            return moved

        with torch.no_grad():
            logits = model.run_with_hooks(
                trace.tokens, fwd_hooks=[(hook_name("pattern", layer), move)]
            )
        losses.append(-logits[0, query].double().log_softmax(-1)[trace.token_ids[query + 1]])
    return weight[0] * (losses[0] - losses[1]) / (2 * step)


def test_bands(built: Built) -> None:
    """Bands are quarters, and what acts on one leaves the layers before it as they are."""
    model, trace = built.bridge, built.trace
    assert [resolve_layers(b, view(model).n_layers) for b in ("shallow", "deep")] == [(0,), (3,)]
    assert [resolve_layers(b, 28) for b in ("shallow", "deep")] == [
        tuple(range(7)),
        tuple(range(21, 28)),
    ]
    plain = residuals(model, trace, StepFlow())
    for layer in (0, 2, 3):
        bridge = OddsEqualBridge(tau_max=0.9, layers=layer)
        momentum = StepMomentum(alpha=0.7, layers=layer)
        for flow in (StepFlow(bridge), StepFlow(momentum)):
            streams = zip(residuals(model, trace, flow), plain, strict=True)
            changed = [not torch.equal(mine, theirs) for mine, theirs in streams]
            assert changed == [i >= layer for i in range(4)]
    layers = {
        item.name: run_layers(model, trace, StepFlow(item))
        for item in StepFlow.paper().interventions
    }
    assert layers == {"OddsEqualBridge": [0], "StepMomentum": [3]}


def residuals(model: Any, trace: Trace, flow: StepFlow) -> list[Tensor]:
    """The stream after each layer."""
    seen: dict[str, Tensor] = {}
    look = [
        (hook_name("resid_post", i), lambda x, hook: seen.update({hook.name: x.clone()}))
        for i in range(4)
    ]
    with flow.attach(model), torch.no_grad():
        model.run_with_hooks(trace.tokens, fwd_hooks=look)
    return list(seen.values())


def run_layers(model: Any, trace: Trace, flow: StepFlow) -> list[int]:
    """The layers that a ledger names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterventionWarning)
        with flow.attach(model) as run:
            teacher_forced(model, trace.tokens)
    return run.ledger.to_dataframe().layer.tolist()


def test_template(built: Built) -> None:
    """The question is the user's words; what the template opens is frame; thinking comes after."""
    trace, tokenizer, template = built.trace, built.tokenizer, built.architecture.template
    prompt_ids = prompt_token_ids(tokenizer, QUESTION)
    prompt = decode(tokenizer, prompt_ids)
    assert prompt == template.begin + template.user + QUESTION + template.reply
    assert prompt[slice(*question_span(prompt))] == QUESTION
    assert trace.steps[0].text.strip() == QUESTION
    assert trace.steps[0].segment == "question"
    framed = trace.step_of_token[: trace.prompt_length] == FRAME
    assert int((~framed).sum()) == len(trace.steps[0])
    if template.opens_thinking:
        assert trace.thinking.start == trace.prompt_length
    else:
        assert trace.thinking.start > trace.prompt_length
    thinking = [step.text.strip() for step in trace.steps_in("thinking")]
    assert thinking == [
        "Tom starts with 3 pens.",
        "Then he has 4 more pens.",
        "So the sum is 7 pens.",
        "Good.",
    ]
    summary = [step.text.strip() for step in trace.steps_in("summary")]
    assert summary == ["Tom has \\boxed{7} pens.", "That is the answer."]
    assert trace.answer == "7"
    assert trace.ended
    made = generate(built.bridge, QUESTION, max_new_tokens=3)
    assert made.token_ids[: made.prompt_length].tolist() == prompt_ids
    assert made.steps[0].text.strip() == QUESTION
    plain = "Tom has 3 pens with him. So it is 7 in all."
    spoken = Trace.from_token_ids(
        tokenizer,
        prompt_ids + encode(tokenizer, plain),
        prompt_length=len(prompt_ids),
        format="auto" if not template.opens_thinking else "plain",
    )
    assert spoken.format_name == (
        "plain" if template.opens_thinking else template_of(tokenizer).form.name
    )
    assert "".join(step.text for step in spoken.steps_in("thinking")) == plain


def test_ledger(built: Built, expected: tuple[Tensor, Any]) -> None:
    """Rows seen and changed are those counted on the patterns; injections those of the steps."""
    model, trace, table = built.bridge, built.trace, expected[1]
    table = table.set_index(["intervention", "layer"])
    rows = (len(trace.thinking) + len(trace.summary)) * view(model).n_heads
    assert (table.loc["OddsEqualBridge"].rows_seen == rows).all()
    boundaries = len(trace.steps_in("thinking")) - 1
    assert table.loc["StepMomentum"].injections.tolist() == [boundaries] * 3
    for layer in range(4):
        pattern = plain_pattern(model, trace, layer)
        if built.architecture.sinks:
            assert float(pattern.sum(-1).min()) < 0.99
        flow = StepFlow(OddsEqualBridge(tau_max=0.9, layers=layer))
        with flow.attach(model) as run:
            teacher_forced(model, trace.tokens)
        changed, before = counted(pattern, trace, built.architecture.windows[layer], 0.9)
        row = run.ledger.to_dataframe().iloc[0]
        assert row.rows_changed == changed
        assert 0 < changed < rows
        assert row.bridge_mass_before == pytest.approx(before, rel=1e-4)
        assert row.bridge_mass_after > row.bridge_mass_before


def test_plain(built: Built, expected: tuple[Tensor, Any]) -> None:
    """StepFlow inside the plain Hugging Face model gives the logits of the hook path."""
    logits, table = expected
    implementations = ["eager"] if built.architecture.sinks else ["eager", "sdpa"]
    for implementation in implementations:
        model = built.plain(implementation)
        with FLOW.attach(model, tokenizer=built.tokenizer) as run, torch.no_grad():
            mine = model(built.trace.tokens, use_cache=False).logits
        close(mine, logits, **NEAR)
        with FLOW.attach(model, tokenizer=built.tokenizer) as run, torch.no_grad():
            start = built.trace.prompt_length
            out = model(built.trace.tokens[:, :start], use_cache=True)
            parts = [out.logits]
            for token in built.trace.tokens[:, start:].split(1, dim=1):
                out = model(token, past_key_values=out.past_key_values, use_cache=True)
                parts.append(out.logits)
        close(torch.cat(parts, dim=1), logits, **NEAR)
        theirs = run.ledger.to_dataframe()
        assert theirs.rows_seen.tolist() == table.rows_seen.tolist()
        assert theirs.injections.tolist() == table.injections.tolist()


def test_every_column_has_a_check() -> None:
    assert [name for name in COLUMNS if f"test_{name}" not in globals()] == []
