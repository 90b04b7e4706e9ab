"""The fused backend: the hook backend's scores, without its patterns."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import OTHER_KINDS, hooks_of, load_tiny, plain_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from stepflow_tl.interventions import StepFlow
from stepflow_tl.models.decoder import decoder_layers
from stepflow_tl.models.sites import hook_name
from stepflow_tl.models.view import view
from stepflow_tl.saliency import attention, probe, step_saliency, token_saliency
from stepflow_tl.traces.trace import Trace

TEXT = (
    "Tom has 3 pens.<think>He buys 4 more pens. So he has the sum. It is 7.</think>"
    "The sum is \\boxed{7}.\n\nThat is it."
)
RULES = ["attention_x_gradient", "signed", "gradient", "attention"]
ONE_LOSS = ["sequence", "summary", "answer"]
KINDS: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "llama": {},
    "gpt_oss": {},
    "qwen2_moe": {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1},
}


@pytest.fixture(scope="module")
def short(tokenizer: Any) -> Trace:
    """53 tokens, of which one step is a single token, and no tile of 16 ends at the last."""
    return Trace.from_text(tokenizer, TEXT)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def load(tiny_folder: Callable[..., Any], kind: str) -> Callable[[torch.dtype], Any]:
    loaded: dict[torch.dtype, Any] = {}
    folder = tiny_folder(kind, **KINDS[kind])

    def get(dtype: torch.dtype) -> Any:
        if dtype not in loaded:
            loaded[dtype] = load_tiny(folder, dtype)
        return loaded[dtype]

    return get


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a float64 model computes in float32 (norms, softmax) stays in float64."""
    to, softmax = Tensor.to, torch.nn.functional.softmax

    def wide_to(x: Tensor, *args: Any, **options: Any) -> Tensor:
        narrows = x.dtype == torch.float64 and torch.float32 in (*args, options.get("dtype"))
        return x if narrows else to(x, *args, **options)

    def wide_softmax(x: Tensor, dim: Any = None, dtype: Any = None, **options: Any) -> Tensor:
        dtype = None if x.dtype == torch.float64 else dtype
        return softmax(x, dim=dim, dtype=dtype, **options)

    monkeypatch.setattr(Tensor, "to", wide_to)
    monkeypatch.setattr(torch.nn.functional, "softmax", wide_softmax)


def gap(mine: Tensor, theirs: Tensor) -> float:
    return float((mine - theirs).abs().max() / theirs.abs().max())


class TestParity:
    """Largest difference from the hook backend, over the largest score."""

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("chunk", [None, 7, 16])
    @pytest.mark.slow
    def test_each_rows_own_loss(
        self, load: Callable[..., Any], short: Trace, exact: None, rule: str, chunk: int | None
    ) -> None:
        model = load(torch.float64)
        theirs = token_saliency(model, short, rule=rule, per_head=True, backend="hooks")
        mine = token_saliency(model, short, rule=rule, per_head=True, backend="fused", chunk=chunk)
        assert mine.dtype == torch.float64
        assert gap(mine, theirs) < 1e-10

    @pytest.mark.parametrize("rule", RULES[:3])
    @pytest.mark.parametrize("objective", ONE_LOSS)
    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_one_loss(
        self,
        load: Callable[..., Any],
        short: Trace,
        exact: None,
        rule: str,
        objective: str,
        checkpointing: bool,
    ) -> None:
        model = load(torch.float64)
        options = {"rule": rule, "objective": objective, "per_head": True}
        theirs = token_saliency(model, short, backend="hooks", **options)
        mine = token_saliency(model, short, backend="fused", checkpointing=checkpointing, **options)
        assert gap(mine, theirs) < 1e-10

    @pytest.mark.parametrize("objective", ["token", *ONE_LOSS])
    @pytest.mark.parametrize("rule", RULES)
    def test_single_precision(
        self, load: Callable[..., Any], short: Trace, rule: str, objective: str
    ) -> None:
        model = load(torch.float32)
        options = {"rule": rule, "objective": objective}
        theirs = token_saliency(model, short, backend="hooks", **options)
        mine = token_saliency(model, short, backend="fused", **options)
        assert gap(mine, theirs) < 1e-5
        assert torch.equal(mine, mine.tril())

    @pytest.mark.parametrize("per_head", [False, True])
    @pytest.mark.parametrize("pool", ["mean", "sum"])
    def test_step_maps(
        self, load: Callable[..., Any], short: Trace, exact: None, per_head: bool, pool: str
    ) -> None:
        model = load(torch.float64)
        options = {"per_head": per_head, "pool": pool}
        theirs = step_saliency(model, short, backend="hooks", **options)
        mine = step_saliency(model, short, backend="fused", chunk=10, **options)
        assert gap(mine.scores, theirs.scores) < 1e-10
        assert mine.settings == {**theirs.settings, "backend": "fused"}

    def test_chosen_layers_score_as_all_do(self, load: Callable[..., Any], short: Trace) -> None:
        model = load(torch.float32)
        for objective in ("token", "sequence"):
            whole = token_saliency(model, short, backend="fused", objective=objective)
            some = token_saliency(
                model, short, backend="fused", objective=objective, layers=[-1, 1]
            )
            assert gap(some, whole[[1, 3]]) < 1e-6

    def test_a_plain_model_scores_as_its_bridge(
        self, tiny_folder: Callable[..., Any], kind: str, short: Trace
    ) -> None:
        folder = tiny_folder(kind, **KINDS[kind])
        plain = AutoModelForCausalLM.from_pretrained(folder)
        mine = step_saliency(plain, short)
        theirs = step_saliency(load_tiny(folder), short, backend="hooks")
        assert mine.settings["backend"] == "fused"
        assert mine.n_layers == theirs.n_layers
        assert gap(mine.scores, theirs.scores) < 1e-5

    def test_half_precision(self, load: Callable[..., Any], short: Trace) -> None:
        wide = step_saliency(load(torch.float32), short, backend="fused").scores
        half = step_saliency(load(torch.bfloat16), short, backend="fused")
        assert half.settings["dtype"] == "bfloat16"
        assert gap(half.scores, wide) < 0.3  # a bfloat16 has 8 bits, and the model is random


@pytest.mark.parametrize("kind", OTHER_KINDS)
class TestOtherArchitectures:
    """Against what transformers itself gives: eager patterns and their gradients, row by row."""

    def by_autograd(self, model: Any, trace: Trace, objective: str) -> Tensor:
        embedded = model.get_input_embeddings()(trace.tokens).detach().requires_grad_()
        out = model(inputs_embeds=embedded, output_attentions=True, use_cache=False)
        log_probs = out.logits[0, :-1].log_softmax(-1)
        losses = -log_probs.gather(1, trace.token_ids[1:, None])[:, 0]
        patterns = torch.stack([pattern[0] for pattern in out.attentions])
        if objective == "sequence":
            gradients = torch.stack(torch.autograd.grad(losses.mean(), out.attentions))[:, 0]
            return (patterns * gradients).abs().mean(1)
        scores = torch.zeros_like(patterns[:, 0])
        for t, loss in enumerate(losses):
            rows = torch.stack(torch.autograd.grad(loss, out.attentions, retain_graph=True))[:, 0]
            scores[:, t] = (patterns * rows).abs().mean(1)[:, t]
        return scores

    @pytest.mark.parametrize("objective", ["token", "sequence"])
    def test_agrees_with_autograd(
        self, tokenizer: Any, short: Trace, kind: str, objective: str
    ) -> None:
        model = plain_model(kind, tokenizer)
        theirs = self.by_autograd(model, short, objective).detach()
        options = {"chunk": 17} if objective == "token" else {"checkpointing": True}
        mine = token_saliency(model, short, objective=objective, **options)
        assert gap(mine, theirs) < 1e-5


def test_a_longer_trace_than_a_tile(tiny: Callable[..., Any], tokenizer: Any) -> None:
    """Several tiles of keys, ragged last ones, windows that end inside a tile."""
    text = "Tom has 3 pens.<think>" + "So he has 4 more pens. " * 90 + "</think>It is 7."
    trace = Trace.from_text(tokenizer, text)
    assert len(trace) > 700
    for kind in ("qwen2", "gpt_oss"):
        model = tiny(kind)
        for objective in ("token", "sequence"):
            options = {"objective": objective, "rule": "signed"}
            theirs = token_saliency(model, trace, backend="hooks", **options)
            mine = token_saliency(model, trace, backend="fused", **options)
            assert gap(mine, theirs) < 1e-5


@pytest.mark.parametrize("kind", ["qwen2", "gpt_oss", "hooked"])
class TestHooksInChunks:
    """The hook backend against a KV cache, chunk by chunk."""

    @pytest.fixture
    def chunked(self, kind: str, tiny: Callable[..., Any]) -> Any:
        if kind == "hooked":
            pytest.importorskip("transformer_lens.HookedTransformer")
        return tiny(kind)

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("chunk", [9, 52])
    def test_scores_as_in_one_piece(
        self, chunked: Any, short: Trace, rule: str, chunk: int
    ) -> None:
        whole = token_saliency(chunked, short, rule=rule, per_head=True, backend="hooks")
        parts = token_saliency(
            chunked, short, rule=rule, per_head=True, backend="hooks", chunk=chunk
        )
        assert gap(parts, whole) < 1e-5

    def test_under_stepflow(self, chunked: Any, short: Trace) -> None:
        with StepFlow.paper().attach(chunked):
            whole = step_saliency(chunked, short)
            parts = step_saliency(chunked, short, chunk=11)
        assert gap(parts.scores, whole.scores) < 1e-5
        assert gap(step_saliency(chunked, short).scores, whole.scores) > 1e-3


class _LargestTensor(TorchDispatchMode):
    """Watches the number of elements of every tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for item in made if isinstance(made, tuple | list) else [made]:
            if isinstance(item, Tensor):
                self.largest = max(self.largest, item.untyped_storage().nbytes() // 4)
        return made


class TestMemory:
    """Counted by the largest tensor alive, not by the clock or the operating system."""

    def largest(self, model: Any, tokenizer: Any, length: int, **options: Any) -> int:
        ids = [i % 300 for i in range(length)]
        trace = Trace.from_token_ids(tokenizer, ids, prompt_length=40, strict=False)
        step_saliency(model, trace, **options)  # the first run checks the model
        with _LargestTensor() as watch:
            step_saliency(model, trace, **options)
        return watch.largest

    @pytest.mark.parametrize(
        "options",
        [
            {"objective": "token"},
            {"objective": "sequence"},
            {"objective": "sequence", "checkpointing": True},
            {"rule": "attention"},
        ],
        ids=["token", "sequence", "checkpointing", "attention"],
    )
    @pytest.mark.parametrize("kind", ["qwen2", "gpt_oss"])
    @pytest.mark.slow
    def test_nothing_square_is_made(
        self, tiny: Callable[..., Any], tokenizer: Any, kind: str, options: dict[str, Any]
    ) -> None:
        model = tiny(kind)
        short, long = (
            self.largest(model, tokenizer, n, backend="fused", **options) for n in (700, 2800)
        )
        assert long <= 4.2 * short, f"{short} and {long} elements"  # linear: 4; square: 16
        assert long < 2800 * 512

    @pytest.mark.slow
    def test_chunks_bound_the_graph(self, tiny: Callable[..., Any], tokenizer: Any) -> None:
        """All that grows with the trace is the store of keys and values, and the scores' sums."""
        model = tiny("qwen2")
        for chunk in (64, 128):
            grown = [
                self.largest(model, tokenizer, n, backend="fused", chunk=chunk) for n in (400, 1600)
            ]
            assert grown[1] <= 4.2 * grown[0]
        rows = self.largest(model, tokenizer, 700, backend="hooks", chunk=64)
        whole = self.largest(model, tokenizer, 700, backend="hooks", chunk=700)
        assert rows <= 4 * 64 * 700 * 1.1
        assert whole >= 4 * 700 * 700


class TestChoosing:
    def test_short_traces_are_fused_where_that_is_faster(self, qwen2: Any, short: Trace) -> None:
        assert step_saliency(qwen2, short).settings["backend"] == "fused"
        alone = step_saliency(qwen2, short, rule="attention")
        assert alone.settings["backend"] == "hooks"

    def test_long_traces_are_fused(
        self, qwen2: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        ids = [i % 300 for i in range(1024)]
        trace = Trace.from_token_ids(tokenizer, ids, prompt_length=40, strict=False)
        assert step_saliency(qwen2, trace).settings["backend"] == "fused"
        assert "backend=fused" in repr(step_saliency(qwen2, trace))
        with model_hooks(qwen2, (hook_name("resid_pre", 1), lambda resid, hook: None)):
            caplog.set_level("INFO")
            assert step_saliency(qwen2, trace, chunk=64).settings["backend"] == "hooks"
            assert "1024 tokens goes through hooks: hooks live on it, at blocks.1" in caplog.text

    def test_hooks_are_not_overlooked(self, qwen2: Any, short: Trace) -> None:
        hook = (hook_name("pattern", 2), lambda pattern, hook: None)
        with (
            model_hooks(qwen2, hook),
            pytest.raises(ValueError, match=r"blocks\.2\.attn\.hook_pattern.*backend='hooks'"),
        ):
            step_saliency(qwen2, short, backend="fused")

    def test_a_plain_model_has_no_hooks(
        self, tiny_folder: Callable[..., Any], short: Trace
    ) -> None:
        plain = AutoModelForCausalLM.from_pretrained(tiny_folder("qwen2"))
        with pytest.raises(ValueError, match="expected a TransformerLens model.*load_model"):
            step_saliency(plain, short, backend="hooks")

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"attn_logit_softcapping": 30.0}, "soft-caps.*attn_logit_softcapping"),
            ({"layer_types": ["full_attention", "chunked_attention"] * 2}, "chunked_attention"),
            ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rotary"),
        ],
    )
    def test_other_attention_is_refused_by_name(
        self,
        tiny_folder: Callable[..., Any],
        short: Trace,
        changes: dict[str, Any],
        reason: str,
    ) -> None:
        model = load_tiny(tiny_folder("llama"))
        for name, value in changes.items():
            setattr(model.original_model.config, name, value)
        with pytest.raises(ValueError, match=f"{reason}.*use backend='hooks'"):
            step_saliency(model, short, backend="fused")

    @pytest.mark.parametrize(
        ("kind", "reason"),
        [
            ("gemma2", "Gemma2ForCausalLM soft-caps its scores or logits"),
            ("cohere", "logits of 8 tokens would differ"),
            ("bloom", "BloomForCausalLM does not attend through.*ALiBi"),
            ("falcon_mamba", "FalconMambaForCausalLM does not attend through"),
        ],
    )
    def test_other_models_are_refused_by_name(
        self, tokenizer: Any, short: Trace, kind: str, reason: str
    ) -> None:
        model = plain_model(kind, tokenizer, logit_scale=0.5 if kind == "cohere" else None)
        with pytest.raises(ValueError, match=reason):
            step_saliency(model, short)

    def test_a_model_in_training_is_refused(self, tokenizer: Any, short: Trace) -> None:
        """Dropout would be drawn, and transformers' own checkpointing run layers twice."""
        with pytest.raises(ValueError, match=r"in training mode; call model\.eval\(\)"):
            step_saliency(plain_model("qwen3", tokenizer).train(), short)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_model_that_would_differ_is_refused(
        self,
        tiny_folder: Callable[..., Any],
        short: Trace,
        monkeypatch: pytest.MonkeyPatch,
        dtype: torch.dtype,
    ) -> None:
        model = load_tiny(tiny_folder("llama"), dtype)
        head = model.original_model.get_output_embeddings()
        monkeypatch.setattr(
            model.original_model, "get_output_embeddings", lambda: lambda x: 0.5 * head(x)
        )
        with pytest.raises(ValueError, match="logits of 8 tokens would differ.*5e-01"):
            step_saliency(model, short, backend="fused")

    def test_logits_that_would_be_nan_are_refused(
        self, tiny_folder: Callable[..., Any], short: Trace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = load_tiny(tiny_folder("llama"))
        head = model.original_model.get_output_embeddings()
        monkeypatch.setattr(
            model.original_model, "get_output_embeddings", lambda: lambda x: torch.nan * head(x)
        )
        with pytest.raises(ValueError, match="logits of 8 tokens would be NaN.*model's own are"):
            step_saliency(model, short, backend="fused")

    def test_rounding_is_no_difference(self, tokenizer: Any, short: Trace) -> None:
        """In bfloat16, tokens that were never trained may attend by rounding alone."""
        model = _untrained_first_tokens(tokenizer).to(torch.bfloat16)
        untrained = Trace.from_token_ids(tokenizer, range(8), prompt_length=4, strict=False)
        with pytest.raises(ValueError, match="logits of 8 tokens would differ"):
            step_saliency(model, untrained)
        assert min(short.token_ids) >= 8
        assert step_saliency(model, short).scores.isfinite().all()

    @pytest.mark.parametrize(("share", "alike"), [(0.01, True), (0.06, True), (0.3, False)])
    def test_a_gap_within_the_models_own_rounding(
        self,
        tokenizer: Any,
        short: Trace,
        monkeypatch: pytest.MonkeyPatch,
        share: float,
        alike: bool,
    ) -> None:
        model = plain_model("qwen3", tokenizer).to(torch.bfloat16)
        fused = probe.fused_logits
        monkeypatch.setattr(probe, "fused_logits", lambda *args: (1 + share) * fused(*args))
        assert (probe.difference(view(model), short) is None) == alike

    def test_a_hooked_transformer_is_refused(self, tiny: Callable[..., Any], short: Trace) -> None:
        pytest.importorskip("transformer_lens.HookedTransformer")
        with pytest.raises(ValueError, match="HookedTransformer has no Hugging Face attention"):
            step_saliency(tiny("hooked"), short, backend="fused")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"chunk": 0}, "expected chunk >= 1"),
            ({"chunk": 8, "objective": "sequence"}, "expected chunk >= 1, for objective='token'"),
            ({"checkpointing": True}, "checkpointing is for backend='fused' and one loss"),
            ({"backend": "eager"}, "expected backend in"),
            ({"rule": "jacobian", "chunk": 8}, "chunk means nothing to rule='jacobian'"),
        ],
    )
    def test_settings_that_mean_nothing(
        self,
        qwen2: Any,
        short: Trace,
        unchecked: None,
        options: dict[str, Any],
        message: str,
    ) -> None:
        with pytest.raises(ValueError, match=message):
            step_saliency(qwen2, short, **options)

    def test_one_token_is_nothing_to_predict(self, qwen2: Any, tokenizer: Any) -> None:
        trace = Trace.from_token_ids(tokenizer, [40], strict=False)
        with pytest.raises(ValueError, match="expected >= 2 tokens, got 1|at least one step"):
            step_saliency(qwen2, trace, backend="fused")


def _untrained_first_tokens(tokenizer: Any) -> Any:
    """A Llama that keeps a direction apart for eight tokens, which its keys all but agree in."""
    model = plain_model("llama", tokenizer, initializer_range=0.15)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        odd = torch.nn.functional.normalize(torch.randn(32, generator=random), dim=0)

        def deaf(weight: Tensor) -> None:
            weight -= (weight @ odd)[:, None] * odd

        tokens = model.get_input_embeddings().weight.normal_(generator=random)
        deaf(tokens)
        tokens[:8] = 10 * odd + 0.3 * torch.randn(8, 32, generator=random)
        deaf(model.lm_head.weight)
        for layer in model.model.layers:
            block = layer.self_attn
            for projection in (block.q_proj, block.k_proj, block.v_proj):
                deaf(projection.weight)
            for projection in (block.q_proj, block.k_proj):
                projection.weight[3::4] += 8 * odd  # where rotary positions turn least
            block.v_proj.weight *= 5
            for writer in (block.o_proj, layer.mlp.down_proj):
                writer.weight -= odd[:, None] * (odd @ writer.weight)
    return model


def model_hooks(model: Any, *hooks: tuple[str, Any]) -> Any:
    return model.hooks(fwd_hooks=list(hooks))


class TestTheModelIsLeftAsItWas:
    @pytest.fixture
    def state(self, qwen2: Any) -> Iterator[None]:
        def seen() -> list[Any]:
            original = qwen2.original_model
            return [
                hooks_of(qwen2),
                original.config._attn_implementation,
                [type(child) for layer in decoder_layers(original) for child in layer.children()],
                ["forward" in layer.__dict__ for layer in decoder_layers(original)],
                [len(layer._forward_pre_hooks) for layer in decoder_layers(original)],
                [parameter.requires_grad for parameter in qwen2.parameters()],
                torch.is_grad_enabled(),
            ]

        before = seen()
        yield
        assert seen() == before

    @pytest.mark.parametrize("options", [{}, {"objective": "sequence", "checkpointing": True}])
    def test_after_a_run(
        self, qwen2: Any, short: Trace, state: None, options: dict[str, Any]
    ) -> None:
        step_saliency(qwen2, short, backend="fused", **options)

    @pytest.mark.parametrize("options", [{}, {"objective": "sequence", "checkpointing": True}])
    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    @pytest.mark.parametrize("when", [1, 5])
    def test_after_an_exception(
        self,
        qwen2: Any,
        short: Trace,
        state: None,
        monkeypatch: pytest.MonkeyPatch,
        options: dict[str, Any],
        error: type[BaseException],
        when: int,
    ) -> None:
        step_saliency(qwen2, short, backend="fused")
        calls = {"left": when}
        attend = attention.attend

        def failing(*args: Any) -> Any:
            calls["left"] -= 1
            if not calls["left"]:
                raise error("stop")
            return attend(*args)

        monkeypatch.setattr(attention, "attend", failing)
        with pytest.raises(error):
            step_saliency(qwen2, short, backend="fused", chunk=None if options else 20, **options)

    def test_where_gradients_are_off(self, qwen2: Any, short: Trace) -> None:
        expected = token_saliency(qwen2, short, backend="fused")
        with torch.no_grad():
            assert torch.equal(token_saliency(qwen2, short, backend="fused"), expected)
        with torch.inference_mode():
            again = Trace.from_token_ids(qwen2, short.token_ids.clone())
            assert torch.equal(token_saliency(qwen2, again, backend="fused"), expected)

    @pytest.mark.parametrize("compared", [False, True])
    def test_nan_is_named(
        self, tiny_folder: Callable[..., Any], short: Trace, compared: bool
    ) -> None:
        model = load_tiny(tiny_folder("qwen2"))
        if compared:
            step_saliency(model, short, backend="fused")
        with torch.no_grad():
            model.original_model.get_input_embeddings().weight[short.token_ids[5]] = float("nan")
        with pytest.raises(FloatingPointError, match="from the embedding on, at position 5"):
            step_saliency(model, short, backend="fused")
