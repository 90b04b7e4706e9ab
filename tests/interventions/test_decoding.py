"""StepFlow while decoding: caches, chunks, padded batches, windows, and ways to lose the way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flows import EXACT, FLOW, FLOWS, MANY_AND_FEW, NEAR, close
from helpers import (
    MODEL_KINDS,
    TRANSCRIPT,
    Decoding,
    Readings,
    cached,
    hooks_of,
    teacher_forced,
)
from torch import Tensor

from stepflow_tl.errors import TrackingError
from stepflow_tl.interventions import StepFlow
from stepflow_tl.models.loading import load_model
from stepflow_tl.models.view import view
from stepflow_tl.traces.trace import Trace


@pytest.mark.parametrize("name", FLOWS)
class TestDecoding:
    """Whatever way the tokens come in, the logits are those of one teacher-forced pass."""

    @pytest.fixture
    def expected(self, model: Any, trace: Trace, name: str) -> Tensor:
        with FLOWS[name].attach(model):
            return teacher_forced(model, trace.tokens)

    def test_a_known_trace(self, model: Any, trace: Trace, name: str, expected: Tensor) -> None:
        hooks = FLOWS[name].fwd_hooks(model, trace)
        with torch.no_grad():
            for _ in range(2):
                close(model.run_with_hooks(trace.tokens, fwd_hooks=hooks), expected, **EXACT)
            prefix = model.run_with_hooks(trace.tokens[:, :50], fwd_hooks=hooks)
        close(prefix, expected[:, :50], **NEAR)

    def test_a_known_trace_in_chunks_and_batches(
        self, model: Any, trace: Trace, name: str, expected: Tensor
    ) -> None:
        with model.hooks(fwd_hooks=FLOWS[name].fwd_hooks(model, trace)):
            logits = cached(model, trace.tokens.expand(2, -1), [33, 12, 35])
        for row in logits:
            close(row, expected[0], **NEAR)

    @pytest.mark.parametrize("chunks", [[28, 32], [1, 1, 34, 1, 1, 40], [5, 30, 7, 20, 22], [86]])
    def test_a_cache(
        self, model: Any, trace: Trace, name: str, expected: Tensor, chunks: list[int]
    ) -> None:
        with FLOWS[name].attach(model) as run:
            close(cached(model, trace.tokens, chunks), expected, **NEAR)
        assert run.forwards == len(chunks) + len(trace) - sum(chunks)

    def test_no_cache_and_growing(
        self, model: Any, trace: Trace, name: str, expected: Tensor
    ) -> None:
        with FLOWS[name].attach(model):
            for size in (20, *range(33, 38), 60, 86):
                logits = teacher_forced(model, trace.tokens[:, :size])
                close(logits, expected[:, :size], **NEAR)

    @pytest.mark.slow
    def test_one_run_after_another(
        self, model: Any, trace: Trace, others: list[Trace], name: str, expected: Tensor
    ) -> None:
        with FLOWS[name].attach(model):
            cached(model, trace.tokens[:, :60], [28, 30])
            cached(model, others[0].tokens, [9, 20])
            close(cached(model, trace.tokens, [30, 4, 50]), expected, **NEAR)
            close(teacher_forced(model, trace.tokens), expected, **EXACT)

    @pytest.mark.parametrize("chunks", [[86], [28, 8, 40], [40, 5, 1, 1, 35]])
    @pytest.mark.slow
    def test_a_left_padded_batch(
        self, model: Any, trace: Trace, others: list[Trace], name: str, chunks: list[int]
    ) -> None:
        traces = [others[0], trace, *others[1:]]
        flow = FLOWS[name]
        alone = []
        with flow.attach(model):
            for one in traces:
                alone.append(teacher_forced(model, one.tokens))
        pads = [len(trace) - len(one) for one in traces]
        pad = model.tokenizer.pad_token_id
        batch = torch.stack(
            [
                torch.cat([torch.full((n,), pad), one.token_ids])
                for n, one in zip(pads, traces, strict=True)
            ]
        )
        with flow.attach(model):
            logits = cached(model, batch, chunks, pads)
        for row, pad_count, own in zip(logits, pads, alone, strict=True):
            close(row[pad_count:], own[0], **NEAR)


@pytest.mark.parametrize("how", ["TransformerLens", "uncached", "Hugging Face"])
@pytest.mark.parametrize("kind", ["qwen2", "gpt_oss"])
def test_anyones_generation_is_followed(
    tiny: Callable[..., Any], trace: Trace, kind: str, how: str
) -> None:
    model, prompt = tiny(kind), trace.tokens[:, :50]
    with FLOW.attach(model), torch.no_grad():
        if how == "Hugging Face":
            tokens = model.original_model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=8,
                do_sample=False,
                eos_token_id=None,
            )
        else:
            tokens = model.generate(
                prompt,
                max_new_tokens=8,
                do_sample=False,
                stop_at_eos=False,
                use_past_kv_cache=how != "uncached",
                return_type="tokens",
                verbose=False,
            )
    with FLOW.attach(model):
        greedy = teacher_forced(model, tokens)[:, 49:-1].argmax(-1)
    assert torch.equal(tokens[:, 50:], greedy)


def test_token_by_token(model: Any, trace: Trace) -> None:
    with FLOW.attach(model):
        expected = teacher_forced(model, trace.tokens)
    with FLOW.attach(model):
        close(cached(model, trace.tokens, []), expected, **NEAR)


@pytest.mark.parametrize("kind", ["qwen2_moe", "qwen2"])
@pytest.mark.slow
def test_windows_that_begin_above(tiny_folder: Callable[..., Any], trace: Trace, kind: str) -> None:
    model = load_model(
        tiny_folder(kind, sliding_window=6, use_sliding_window=True, max_window_layers=2)
    )
    for flow in FLOWS.values():
        with flow.attach(model):
            expected = teacher_forced(model, trace.tokens)
        with flow.attach(model):
            close(cached(model, trace.tokens, [28, 9, 40]), expected, **NEAR)


@pytest.mark.parametrize("window", [2, 3, 86, 100])
def test_windows_of_any_size(tiny_folder: Callable[..., Any], trace: Trace, window: int) -> None:
    model = load_model(tiny_folder("gpt_oss", sliding_window=window))
    with FLOW.attach(model):
        expected = teacher_forced(model, trace.tokens)
    with FLOW.attach(model):
        close(cached(model, trace.tokens, [28, 9, 40]), expected, **NEAR)


@pytest.mark.skipif("hooked" not in MODEL_KINDS, reason="TransformerLens 4 has one model class")
def test_both_model_classes_agree(tiny: Callable[..., Any], trace: Trace) -> None:
    for flow in FLOWS.values():
        results = []
        for kind in ("qwen2", "hooked"):
            with flow.attach(tiny(kind)) as run:
                logits = teacher_forced(tiny(kind), trace.tokens)
            results.append((logits, run.ledger.to_dataframe()))
        (one, ledger), (other, other_ledger) = results
        close(one, other, **NEAR)
        assert ledger.injections.tolist() == other_ledger.injections.tolist()
        assert ledger.rows_seen.tolist() == other_ledger.rows_seen.tolist()


@pytest.mark.parametrize("name", ["both", "digest"])
def test_compatibility_mode_acts_once(
    tiny_folder: Callable[..., Any], trace: Trace, name: str
) -> None:
    folder = tiny_folder("qwen2")
    plain, compatible = load_model(folder), load_model(folder)
    compatible.enable_compatibility_mode(no_processing=True)
    results = []
    for model in (plain, compatible):
        with FLOWS[name].attach(model) as run:
            results.append((teacher_forced(model, trace.tokens), run.ledger.to_dataframe()))
    close(results[0][0], results[1][0], **NEAR)
    assert results[0][1].injections.tolist() == results[1][1].injections.tolist()
    assert results[0][1].rows_seen.tolist() == results[1][1].rows_seen.tolist()


def test_half_precision(tiny: Callable[..., Any], trace: Trace) -> None:
    model = tiny("qwen2", torch.bfloat16)
    with FLOW.attach(model):
        logits = teacher_forced(model, trace.tokens)
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


@pytest.mark.parametrize("flow", MANY_AND_FEW)
@pytest.mark.slow
def test_the_host_reads_the_ids_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, model: Any, trace: Trace, flow: StepFlow
) -> None:
    """Once per forward pass, whatever the layers and interventions."""
    counts = []
    for attached in (flow, StepFlow()):
        with attached.attach(model), Readings(monkeypatch) as readings:
            cached(model, trace.tokens.expand(2, -1), [28])
        counts.append(readings.count)
    assert counts[0] - counts[1] == 1 + len(trace) - 28


class TestLosingTheWay:
    """What a tracker cannot follow is refused, not mislabeled."""

    def test_attached_in_the_middle_of_decoding(self, model: Any, trace: Trace) -> None:
        decoding = Decoding(model, [0])
        decoding(trace.tokens[:, :40])
        message = "41 keys from 1 new tokens, but 0 earlier tokens were seen: attach before"
        if view(model).attention_window(0) is not None:
            message = message.replace("41", "8")
        with pytest.raises(TrackingError, match=message), FLOW.attach(model):
            decoding(trace.tokens[:, 40:41])
        assert not any(hooks_of(model).values())

    def test_another_batch_size(self, qwen2: Any, trace: Trace) -> None:
        decoding = Decoding(qwen2, [0])
        message = "expected a batch of 1 rows, got 2"
        with pytest.raises(TrackingError, match=message), FLOW.attach(qwen2):
            decoding(trace.tokens[:, :30])
            decoding.cache.batch_repeat_interleave(2)
            decoding.pads = torch.tensor([0, 0])
            decoding(trace.tokens[:, 30:31].expand(2, -1))

    def test_more_tokens_than_the_known_trace(self, model: Any, trace: Trace) -> None:
        longer = torch.cat([trace.tokens, trace.tokens], dim=1)
        message = "expected the hooks to run on the 86 tokens of the trace .* got more"
        with pytest.raises(TrackingError, match=message):
            model.run_with_hooks(longer, fwd_hooks=FLOW.fwd_hooks(model, trace))
        assert not any(hooks_of(model).values())

    def test_a_trace_inside_the_question(self, model: Any, trace: Trace) -> None:
        ids = trace.token_ids[: trace.question.stop]
        inside = Trace.from_token_ids(model, ids, prompt_length=len(ids), strict=False)
        plain = teacher_forced(model, inside.tokens)
        with torch.no_grad():
            hooked = model.run_with_hooks(inside.tokens, fwd_hooks=FLOW.fwd_hooks(model, inside))
        close(hooked, plain, **EXACT)

    def test_text_after_the_end_token_is_treated_alike(self, model: Any, tokenizer: Any) -> None:
        trace = Trace.from_text(tokenizer, TRANSCRIPT + "And so on, with more of that.")
        with FLOW.attach(model):
            attached = teacher_forced(model, trace.tokens)
        with torch.no_grad():
            known = model.run_with_hooks(trace.tokens, fwd_hooks=FLOW.fwd_hooks(model, trace))
        close(known, attached, **EXACT)

    def test_ids_beyond_the_vocabulary_are_no_texts_concern(
        self, tiny_folder: Callable[..., Any], trace: Trace
    ) -> None:
        model = load_model(tiny_folder("qwen2", vocab_size=400))
        tokens = trace.tokens.clone()
        tokens[0, 40] = 399
        with FLOW.attach(model):
            assert teacher_forced(model, tokens).isfinite().all()
