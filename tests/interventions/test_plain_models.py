"""StepFlow inside plain Hugging Face models: the logits of the hook path, whatever drives them."""

import gc
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flows import EXACT, FLOW, FLOWS, MANY_AND_FEW, NEAR, OEB, SMI, UPB, close
from helpers import Readings, load_tiny, teacher_forced
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    DynamicCache,
    StaticCache,
)

from stepflow_tl.decoding.generation import generate
from stepflow_tl.errors import ModelError, TrackingError
from stepflow_tl.interventions import StepFlow
from stepflow_tl.models import decoder_hooks
from stepflow_tl.traces.chat import prompt_token_ids
from stepflow_tl.traces.trace import Trace

WINDOWS = {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 2}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen2": ("qwen2", "sdpa", {}),
    "qwen2-eager": ("qwen2", "eager", {}),
    "llama": ("llama", "sdpa", {}),
    "gpt_oss": ("gpt_oss", "eager", {}),
    "qwen2_moe": ("qwen2_moe", "sdpa", WINDOWS),
}


def plain_from(folder: Path, implementation: str, dtype: torch.dtype = torch.float32) -> Any:
    """A checkpoint as the plain Hugging Face model, in evaluation mode."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=implementation
    )
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model.eval()


@pytest.fixture(scope="module")
def pair(tiny_folder: Callable[..., Path]) -> Callable[[str], tuple[Any, Any]]:
    """A bridge and a plain model of one checkpoint, loaded once."""
    loaded: dict[str, tuple[Any, Any]] = {}

    def get(case: str) -> tuple[Any, Any]:
        if case not in loaded:
            kind, implementation, changes = CASES[case]
            folder = tiny_folder(kind, **changes)
            loaded[case] = load_tiny(folder), plain_from(folder, implementation)
        return loaded[case]

    return get


@pytest.fixture(params=CASES)
def both(request: pytest.FixtureRequest, pair: Callable[[str], Any]) -> tuple[Any, Any]:
    return pair(request.param)


@pytest.fixture
def plain(pair: Callable[[str], Any]) -> Any:
    return pair("qwen2")[1]


@torch.no_grad()
def run_chunks(
    model: Any,
    tokens: Tensor,
    chunks: list[int],
    *,
    static: bool = False,
    pads: list[int] | None = None,
) -> Tensor:
    """Logits of cached decoding: a prefill in chunks of the given sizes, then token by token."""
    cache = StaticCache(config=model.config, max_cache_len=tokens.shape[1] + 9) if static else None
    first = torch.tensor(pads or [0] * tokens.shape[0])[:, None]
    sizes = chunks + [1] * (tokens.shape[1] - sum(chunks))
    logits, length = [], 0
    for new in tokens.split(sizes, dim=1):
        length += new.shape[1]
        mask = (torch.arange(length) >= first).long()
        out = model(new, attention_mask=mask, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits)
    return torch.cat(logits, dim=1)


@torch.no_grad()
def one_pass(model: Any, tokens: Tensor) -> Tensor:
    return model(tokens, use_cache=False).logits


def hook_count(model: Any) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("name", FLOWS)
def test_logits_are_those_of_the_hook_path(
    both: tuple[Any, Any], tokenizer: Any, trace: Trace, name: str
) -> None:
    bridge, model = both
    flow = FLOWS[name]
    with flow.attach(bridge) as run:
        expected = teacher_forced(bridge, trace.tokens)
    table = run.ledger.to_dataframe()
    ways = (([86], False), ([28, 32], False), ([5, 30, 7, 20, 22], False), ([28, 32], True))
    for chunks, static in ways:
        with flow.attach(model, tokenizer=tokenizer) as run:
            logits = run_chunks(model, trace.tokens, chunks, static=static)
        close(logits, expected, **NEAR)
        mine = run.ledger.to_dataframe()
        for column in ("rows_seen", "injections"):
            assert mine[column].tolist() == table[column].tolist()
        assert mine.rows_changed.sub(table.rows_changed).abs().max() <= 2


def test_without_a_cache_and_growing(both: tuple[Any, Any], tokenizer: Any, trace: Trace) -> None:
    bridge, model = both
    with FLOW.attach(bridge):
        expected = teacher_forced(bridge, trace.tokens)
    with FLOW.attach(model, tokenizer=tokenizer):
        for size in (20, 33, 34, 60, 86, 86):
            close(one_pass(model, trace.tokens[:, :size]), expected[:, :size], **NEAR)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("chunks", [[86], [28, 8, 40], [40]])
@pytest.mark.slow
def test_a_left_padded_batch(
    both: tuple[Any, Any],
    tokenizer: Any,
    trace: Trace,
    others: list[Trace],
    chunks: list[int],
    static: bool,
) -> None:
    bridge, model = both
    traces = [others[0], trace, others[1]]
    pads = [len(trace) - len(one) for one in traces]
    batch = torch.stack(
        [
            torch.cat([torch.full((n,), tokenizer.pad_token_id), one.token_ids])
            for n, one in zip(pads, traces, strict=True)
        ]
    )
    with FLOW.attach(model, tokenizer=tokenizer):
        logits = run_chunks(model, batch, chunks, static=static, pads=pads)
    for row, pad, one in zip(logits, pads, traces, strict=True):
        with FLOW.attach(bridge):
            close(row[pad:], teacher_forced(bridge, one.tokens)[0], **NEAR)


@pytest.mark.filterwarnings("ignore:.*StepMomentum.*never fired")
@pytest.mark.parametrize("settings", [{}, {"cache_implementation": "static"}, {"use_cache": False}])
@pytest.mark.slow
def test_its_own_generation_is_ours_on_the_bridge(
    both: tuple[Any, Any], settings: dict[str, Any]
) -> None:
    bridge, model = both
    tokenizer = bridge.tokenizer
    question = "Tom has 3 pens. He buys 4 more.<think>"
    prompt = torch.tensor([prompt_token_ids(tokenizer, question, chat=False)])
    with FLOW.attach(bridge):
        expected = generate(bridge, question, chat=False, max_new_tokens=25)
    with FLOW.attach(model, tokenizer=tokenizer, prompt_length=prompt.shape[1]) as run:
        tokens = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=25,
            do_sample=False,
            **settings,
        )
    assert tokens[0].tolist() == expected.token_ids.tolist()
    assert run.forwards == tokens.shape[1] - prompt.shape[1] > 1
    assert run.ledger.total("OddsEqualBridge", "rows_changed") > 0


def test_float64_is_exact_any_way_it_is_run(
    tiny_folder: Callable[..., Path], tokenizer: Any, trace: Trace
) -> None:
    model = plain_from(tiny_folder("qwen2_moe", **WINDOWS), "sdpa", torch.float64)
    with StepFlow(OEB, SMI, UPB).attach(model, tokenizer=tokenizer):
        expected = one_pass(model, trace.tokens)
        for chunks in ([28, 9, 40], [28]):
            for static in (False, True):
                logits = run_chunks(model, trace.tokens, chunks, static=static)
                close(logits, expected, atol=1e-10, rtol=0.0)


def test_half_precision(tiny_folder: Callable[..., Path], tokenizer: Any, trace: Trace) -> None:
    model = plain_from(tiny_folder("gpt_oss"), "eager", torch.bfloat16)
    with FLOW.attach(model, tokenizer=tokenizer):
        logits = one_pass(model, trace.tokens)
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


def test_gradients_are_those_of_the_hook_path(
    both: tuple[Any, Any], tokenizer: Any, trace: Trace
) -> None:
    bridge, model = both
    gradients = []
    for one, options in ((bridge, {}), (model, {"tokenizer": tokenizer})):
        weight = one.embed.weight if one is bridge else one.get_input_embeddings().weight
        with FLOW.attach(one, **options):
            out = one(trace.tokens)
        logits = out if one is bridge else out.logits
        loss = logits.float().log_softmax(-1)[0, -1, 5]
        gradients.append(torch.autograd.grad(loss, weight)[0])
    scale = gradients[0].abs().max()
    close(gradients[1] / scale, gradients[0] / scale, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*never fired")
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("flow", MANY_AND_FEW)
@pytest.mark.slow
def test_the_host_reads_ids_and_lengths_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
    plain: Any,
    tokenizer: Any,
    trace: Trace,
    flow: StepFlow,
    static: bool,
) -> None:
    """Once per forward pass, whatever the layers and interventions."""
    counts = []
    for attached in (flow, StepFlow()):
        with attached.attach(plain, tokenizer=tokenizer), Readings(monkeypatch) as readings:
            run_chunks(plain, trace.tokens.expand(2, -1), [28], static=static)
        counts.append(readings.count)
    decoded = len(trace) - 28
    lengths = decoded if static else 0  # a static cache's length is a tensor, once it is filled
    assert counts[0] - counts[1] == 1 + decoded + lengths


class TestTiles:
    """Patterns are computed where a bridge may act, some queries at a time."""

    @pytest.fixture
    def sizes(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Numbers of queries whose patterns were computed at once."""
        seen: list[int] = []
        whole = decoder_hooks.attend_through

        def counted(functions: Any, query: Tensor, *rest: Any, **options: Any) -> Tensor:
            seen.append(query.shape[2])
            return whole(functions, query, *rest, **options)

        monkeypatch.setattr(decoder_hooks, "attend_through", counted)
        return seen

    def test_their_size_changes_nothing(
        self, monkeypatch: pytest.MonkeyPatch, plain: Any, tokenizer: Any, trace: Trace
    ) -> None:
        with FLOW.attach(plain, tokenizer=tokenizer):
            expected = one_pass(plain, trace.tokens)
        monkeypatch.setattr(decoder_hooks, "_TILE", 7)
        with FLOW.attach(plain, tokenizer=tokenizer):
            close(one_pass(plain, trace.tokens), expected, atol=1e-5, rtol=1e-5)

    def test_no_pattern_of_a_prompt(
        self, sizes: list[int], plain: Any, tokenizer: Any, trace: Trace
    ) -> None:
        thinking = int((trace.segment_of_token > 0).int().argmax())
        with StepFlow(OEB).attach(plain, tokenizer=tokenizer):
            one_pass(plain, trace.tokens[:, :thinking])
            assert sizes == []
            one_pass(plain, trace.tokens)
        assert sizes == [len(trace) - thinking] * 2

    @pytest.mark.filterwarnings("ignore:.*never fired")
    def test_rows_before_are_bit_identical(self, plain: Any, tokenizer: Any, trace: Trace) -> None:
        expected = one_pass(plain, trace.tokens[:, :20])
        with FLOW.attach(plain, tokenizer=tokenizer):
            close(one_pass(plain, trace.tokens[:, :20]), expected, **EXACT)

    def test_none_where_momentum_alone_acts(
        self, sizes: list[int], plain: Any, tokenizer: Any, trace: Trace
    ) -> None:
        with StepFlow(SMI).attach(plain, tokenizer=tokenizer):
            one_pass(plain, trace.tokens)
        assert sizes == []

    def test_the_pattern_by_hand(self) -> None:
        """Two query heads on one key head; a sink as large as the first score."""
        query = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
        key = torch.tensor([0.0, 1.0]).log1p().view(1, 1, 2, 1)  # scores 0, q log 2
        seen: list[Tensor] = []
        z = decoder_hooks.attend_through(
            [lambda pattern, hook: seen.append(pattern)],
            query,
            key,
            torch.tensor([1.0, 10.0]).view(1, 1, 2, 1),
            None,
            scaling=1.0,
            s_aux=torch.zeros(2),
        )
        close(seen[0], torch.tensor([[1 / 4, 2 / 4], [1 / 6, 4 / 6]]).view(1, 2, 1, 2))
        close(z, torch.tensor([5.25, 41 / 6]).view(1, 1, 2, 1))

    def test_dropout_is_the_models(self) -> None:
        seen: list[Tensor] = []
        ones = torch.ones(1, 1, 50, 1)
        decoder_hooks.attend_through(
            [lambda pattern, hook: seen.append(pattern)],
            ones[:, :, :1],
            ones,
            ones,
            None,
            dropout=0.5,
        )
        close(seen[0].unique(), torch.tensor([0.0, 0.04]))

    def test_scores_may_be_capped(self) -> None:
        query, key = torch.full((1, 1, 1, 1), 100.0), torch.tensor([0.0, 1.0]).view(1, 1, 2, 1)
        z = decoder_hooks.attend_through([], query, key, key, None, softcap=1.0)
        close(z, torch.tensor(1.0).sigmoid().view(1, 1, 1, 1))


class TestLeaving:
    @pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
    def test_the_model_is_as_it_was(
        self, both: tuple[Any, Any], tokenizer: Any, trace: Trace, error: type | None
    ) -> None:
        model = both[1]
        expected, before = one_pass(model, trace.tokens), model.config._attn_implementation

        def fail(*_: Any) -> None:
            raise error("stop")

        try:
            with FLOW.attach(model, tokenizer=tokenizer):
                assert hook_count(model)
                if error is not None:
                    model.lm_head.register_forward_pre_hook(fail)
                one_pass(model, trace.tokens)
        except BaseException as raised:
            assert type(raised) is error
        model.lm_head._forward_pre_hooks.clear()
        assert hook_count(model) == 0
        assert model.config._attn_implementation == before
        close(one_pass(model, trace.tokens), expected, **EXACT)

    def test_neutral_strengths_change_nothing(
        self, both: tuple[Any, Any], tokenizer: Any, trace: Trace
    ) -> None:
        expected = one_pass(both[1], trace.tokens)
        with StepFlow().attach(both[1], tokenizer=tokenizer):
            close(one_pass(both[1], trace.tokens), expected, **EXACT)

    def test_one_run_after_another(
        self, plain: Any, tokenizer: Any, trace: Trace, others: list[Trace]
    ) -> None:
        cache = StaticCache(config=plain.config, max_cache_len=100)
        with FLOW.attach(plain, tokenizer=tokenizer), torch.no_grad():
            expected = one_pass(plain, trace.tokens)
            for one in (others[0], trace):
                cache.reset()
                for new in one.tokens.split(30, dim=1):
                    out = plain(new, past_key_values=cache)
            close(out.logits, expected[:, -out.logits.shape[1] :], **NEAR)


class TestRefusals:
    def refused(self, model: Any, message: str, flow: StepFlow = FLOW, **options: Any) -> None:
        before = hook_count(model), model.config._attn_implementation
        with pytest.raises(ModelError, match=re.escape(message)), flow.attach(model, **options):
            raise AssertionError("attached")
        assert (hook_count(model), model.config._attn_implementation) == before

    def test_no_tokenizer(self, plain: Any) -> None:
        message = "expected tokenizer=... beside a plain Hugging Face model, or model.tokenizer"
        self.refused(plain, message)

    def test_beam_search(self, plain: Any, tokenizer: Any, trace: Trace) -> None:
        """Its rows change places in the cache, where no hook sees it."""
        ids = trace.tokens[:, :40]
        ask = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
        with (
            pytest.raises(
                TrackingError, match=r"rows are exchanged \(beam search\?\).*num_beams=1"
            ),
            FLOW.attach(plain, tokenizer=tokenizer),
        ):
            plain.generate(ids, num_beams=3, **ask)
        assert plain.generate(ids, num_beams=3, **ask).shape[0] == 1

    def test_no_guard_outlives_the_block(self, plain: Any, tokenizer: Any, trace: Trace) -> None:
        cache = DynamicCache(config=plain.config)
        with FLOW.attach(plain, tokenizer=tokenizer), torch.no_grad():
            plain(trace.tokens.expand(2, -1), past_key_values=cache)
            with pytest.raises(TrackingError, match="rows are exchanged"):
                cache.batch_select_indices(torch.tensor([0]))
        cache.batch_select_indices(torch.tensor([0]))
        assert cache.layers[0].keys.shape[0] == 1

    def test_caches_are_not_kept(self, plain: Any, tokenizer: Any, trace: Trace) -> None:
        with FLOW.attach(plain, tokenizer=tokenizer), torch.no_grad():
            held = weakref.ref(plain(trace.tokens).past_key_values)
            gc.collect()
            assert held() is None

    def test_other_attention(
        self, monkeypatch: pytest.MonkeyPatch, plain: Any, tokenizer: Any
    ) -> None:
        monkeypatch.setattr(plain.config, "_attn_implementation_internal", "flash_attention_2")
        message = "expected attention implementation 'sdpa' or 'eager', got 'flash_attention_2'"
        self.refused(plain, message, tokenizer=tokenizer)

    def test_a_bridges_own_model(self, qwen2: Any, tokenizer: Any) -> None:
        message = "this Qwen2ForCausalLM is inside a TransformerBridge: attach to the bridge"
        self.refused(qwen2.original_model, message, tokenizer=tokenizer)

    def test_no_decoder(self, tokenizer: Any) -> None:
        size = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8}
        model = BertLMHeadModel(
            BertConfig(vocab_size=400, num_hidden_layers=4, is_decoder=True, **size)
        )
        message = "through transformers' AttentionInterface, got BertLMHeadModel"
        self.refused(model, message, tokenizer=tokenizer)

    def test_plain_hooks(self, plain: Any, trace: Trace) -> None:
        message = "got Qwen2ForCausalLM, which takes no TransformerLens hooks: use StepFlow.attach("
        with pytest.raises(ModelError, match=re.escape(message)):
            FLOW.fwd_hooks(plain, trace)

    def test_attached_in_the_middle_of_decoding(
        self, both: tuple[Any, Any], tokenizer: Any, trace: Trace
    ) -> None:
        model = both[1]
        with torch.no_grad():
            cache = model(trace.tokens[:, :40], use_cache=True).past_key_values
        message = "the cache holds 40 tokens, but 0 earlier tokens were seen: attach before"
        with (
            pytest.raises(TrackingError, match=message),
            FLOW.attach(model, tokenizer=tokenizer),
        ):
            model(trace.tokens[:, 40:41], past_key_values=cache)
        assert hook_count(model) == 0

    def test_embeddings_in_place_of_tokens(self, plain: Any, tokenizer: Any, trace: Trace) -> None:
        embedded = plain.get_input_embeddings()(trace.tokens)
        message = "no forward pass has reached the first attention"
        with pytest.raises(TrackingError, match=message), FLOW.attach(plain, tokenizer=tokenizer):
            plain(inputs_embeds=embedded)


def test_a_tokenizer_in_place_of_the_models_own(
    monkeypatch: pytest.MonkeyPatch, qwen2: Any, trace: Trace
) -> None:
    tokenizer = qwen2.tokenizer
    with FLOW.attach(qwen2):
        expected = teacher_forced(qwen2, trace.tokens)
    monkeypatch.setattr(qwen2, "tokenizer", None)
    with FLOW.attach(qwen2, tokenizer=tokenizer):
        close(teacher_forced(qwen2, trace.tokens), expected, **EXACT)
