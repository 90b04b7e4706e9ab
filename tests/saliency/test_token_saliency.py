"""Token scores: the authors' numbers, T backward passes, and a model left as it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers import MODEL_KINDS, Golden, hooks_of, load_tiny
from torch import Tensor

from stepflow_tl.errors import ModelError
from stepflow_tl.interventions import OddsEqualBridge, StepFlow, StepMomentum
from stepflow_tl.models.sites import hook_name
from stepflow_tl.saliency import step_saliency, token_saliency
from stepflow_tl.traces.trace import Trace

TEXT = (
    "Tom has 3 pens.<think>He buys 4 more pens. So he has the sum. It is 7.</think>"
    "The sum is \\boxed{7}.\n\nThat is it."
)
RULES = ["attention_x_gradient", "signed", "gradient", "attention"]
FLOW = StepFlow(OddsEqualBridge(tau_max=0.9, layers=(0, 1)), StepMomentum(alpha=0.7, layers=(1, 3)))


@pytest.fixture(scope="module")
def short(tokenizer: Any) -> Trace:
    """Longer than GPT-OSS's window, short enough for a backward pass per token."""
    return Trace.from_text(tokenizer, TEXT)


def row_by_row(model: Any, trace: Trace, losses: str = "token") -> tuple[Tensor, Tensor]:
    """Patterns and their gradients [layer, head, query, key]; L_t's own gradient for row t."""
    patterns: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[..., Tensor]:
        def hook_fn(pattern: Tensor, hook: Any) -> Tensor:
            patterns[layer] = pattern.clone()
            return patterns[layer]

        return hook_fn

    count = int(model.cfg.n_layers)
    hooks = [(hook_name("embed"), lambda x, hook: x.detach().requires_grad_())]
    hooks += [(hook_name("pattern", layer), keep(layer)) for layer in range(count)]
    with model.hooks(fwd_hooks=hooks):
        logits = model(trace.tokens, return_type="logits")
    said, following = logits[0, :-1].double(), trace.token_ids[1:, None]
    loss = -said.log_softmax(-1).gather(1, following)[:, 0]
    if losses in ("logit", "margin"):
        loss = said.gather(1, following)[:, 0]
    if losses == "margin":
        loss = loss - said.scatter(1, following, -torch.inf).amax(-1)
    kept = [patterns[layer] for layer in range(count)]
    a = torch.cat(kept).detach()
    g = torch.zeros_like(a)
    if losses != "sequence":
        for t in range(len(trace) - 1):
            rows = torch.autograd.grad(loss[t], kept, retain_graph=True)
            g[:, :, t] = torch.cat(rows)[:, :, t]
    else:
        g = torch.cat(torch.autograd.grad(loss.mean(), kept))
    return a, g


def scores(a: Tensor, g: Tensor, rule: str) -> Tensor:
    return {
        "attention_x_gradient": (a * g).abs(),
        "signed": a * g,
        "gradient": g.abs() * (a > 0),  # zero where a key is not seen
        "attention": a,
    }[rule]


def close(mine: Tensor, theirs: Tensor, tolerance: float) -> None:
    error = (mine - theirs).abs().max() / theirs.abs().max()
    assert error < tolerance, f"{error:.2e} of the maximum"


def test_the_authors_scores(
    golden: Golden, golden_model: Callable[[str], Any], golden_name: str
) -> None:
    model = golden_model(golden_name)
    ids = golden.facts["prompt_ids"] + golden.facts["response_ids"]
    trace = Trace.from_token_ids(model, ids, prompt_length=len(golden.facts["prompt_ids"]))
    mine, theirs = token_saliency(model, trace, objective="sequence"), golden.saliency[golden_name]
    for layer in range(len(theirs)):
        close(mine[layer], theirs[layer], 1e-5)


@pytest.mark.parametrize("kind", MODEL_KINDS)
@pytest.mark.parametrize("attached", [False, True], ids=["plain", "under StepFlow"])
class TestAgainstBackwardPasses:
    """In float64; the softmax alone stays in float32 where the model keeps it there."""

    @contextmanager
    def flow(self, model: Any, attached: bool) -> Iterator[None]:
        if not attached:
            yield
            return
        with FLOW.attach(model) as run:
            yield
        assert run.ledger.total("OddsEqualBridge", "rows_changed") > 0
        assert run.ledger.total("StepMomentum", "injections") > 0

    def test_each_rows_own_loss(
        self, tiny: Callable[..., Any], short: Trace, kind: str, attached: bool
    ) -> None:
        model = tiny(kind, torch.float64)
        with self.flow(model, attached):
            a, g = row_by_row(model, short)
            for rule in RULES:
                mine = token_saliency(model, short, rule=rule, per_head=True, backend="hooks")
                assert mine.dtype == torch.float64
                close(mine, scores(a, g, rule), 1e-9)

    @pytest.mark.parametrize("objective", ["logit", "margin"])
    def test_each_rows_own_logit(
        self, tiny: Callable[..., Any], short: Trace, kind: str, attached: bool, objective: str
    ) -> None:
        model = tiny(kind, torch.float64)
        with self.flow(model, attached):
            a, g = row_by_row(model, short, objective)
            mine = token_saliency(model, short, objective=objective, per_head=True, backend="hooks")
        close(mine, scores(a, g, "attention_x_gradient"), 1e-9)

    def test_one_loss(
        self, tiny: Callable[..., Any], short: Trace, kind: str, attached: bool
    ) -> None:
        model = tiny(kind, torch.float64)
        with self.flow(model, attached):
            a, g = row_by_row(model, short, "sequence")
            mine = token_saliency(
                model, short, objective="sequence", per_head=True, backend="hooks"
            )
        close(mine, scores(a, g, "attention_x_gradient"), 1e-9)


@pytest.mark.parametrize("kind", ["phi3", "gpt2", "gpt_neox"])
def test_one_projection_for_query_key_and_value(
    tiny: Callable[..., Any], short: Trace, kind: str
) -> None:
    """Whose bridge shows queries and keys before the rotary embedding only."""
    model = tiny(kind, torch.float64)
    theirs = scores(*row_by_row(model, short), "signed")
    for chunk in (None, 17):
        mine = token_saliency(
            model, short, rule="signed", per_head=True, chunk=chunk, backend="hooks"
        )
        close(mine, theirs, 1e-9)


def test_longer_rotations(tiny_folder: Callable[..., Any], short: Trace) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "short_factor": [1.0, 1.5],
        "long_factor": [2.0, 3.0],
        "original_max_position_embeddings": 256,
    }
    folder = tiny_folder("phi3", original_max_position_embeddings=256, rope_parameters=rope)
    model = load_tiny(folder, dtype=torch.float64)
    assert model.original_model.model.rotary_emb.attention_scaling > 1.05
    close(
        token_saliency(model, short, per_head=True, backend="hooks"),
        scores(*row_by_row(model, short), "attention_x_gradient"),
        1e-9,
    )


def test_latent_attention_shows_no_queries_and_keys(tiny: Callable[..., Any], short: Trace) -> None:
    message = (
        r"expected the attention of layer 0 to show its queries and keys at "
        r"blocks.0.attn.hook_rot_q and .*, got no such pair from a MLA\w*: pass backend='fused'"
    )
    model = tiny("deepseek_v3")
    with pytest.raises(ModelError, match=message):
        token_saliency(model, short, backend="hooks")
    assert token_saliency(model, short, backend="hooks", objective="sequence").abs().sum() > 0


@pytest.mark.parametrize("kind", ["qwen2_moe"])
def test_experts_and_windows_together(
    tiny_folder: Callable[..., Any], short: Trace, kind: str
) -> None:
    model = load_tiny(
        tiny_folder(kind, sliding_window=6, use_sliding_window=True, max_window_layers=1),
        dtype=torch.float64,
    )
    close(
        token_saliency(model, short, per_head=True, backend="hooks"),
        scores(*row_by_row(model, short), "attention_x_gradient"),
        1e-9,
    )


class TestScores:
    @pytest.mark.parametrize("objective", ["token", "sequence", "summary", "answer"])
    @pytest.mark.parametrize("rule", RULES)
    def test_zero_above_the_diagonal(
        self, model: Any, short: Trace, rule: str, objective: str
    ) -> None:
        found = token_saliency(model, short, rule=rule, objective=objective)
        assert found.shape == (4, len(short), len(short))
        assert torch.equal(found, found.tril())
        assert found.abs().sum() > 0
        pooled = step_saliency(model, short, rule=rule, objective=objective, pool="mean").scores
        assert torch.equal(pooled, pooled.tril())

    def test_heads_average_to_the_map(self, model: Any, short: Trace) -> None:
        whole = step_saliency(model, short, pool="mean")
        heads = step_saliency(model, short, pool="mean", per_head=True)
        assert heads.scores.shape == (4, 4, len(short.steps), len(short.steps))
        torch.testing.assert_close(heads.mean_over_heads().scores, whole.scores)

    def test_sum_pooling_conserves_the_total(self, model: Any, short: Trace) -> None:
        tokens = token_saliency(model, short)
        on = short.step_of_token >= 0
        pooled = step_saliency(model, short, pool="sum").scores
        torch.testing.assert_close(pooled.sum((1, 2)), tokens[:, on][:, :, on].sum((1, 2)))

    def test_mean_pooling_by_hand(self, qwen2: Any, short: Trace) -> None:
        tokens = token_saliency(qwen2, short)
        pooled = step_saliency(qwen2, short, pool="mean").scores
        for i, query in enumerate(short.steps):
            for j, key in enumerate(short.steps[:i]):
                block = tokens[:, query.start : query.stop, key.start : key.stop]
                torch.testing.assert_close(pooled[:, i, j], block.mean((1, 2)))

    def test_chosen_layers_score_as_all_do(self, model: Any, short: Trace) -> None:
        whole = token_saliency(model, short)
        some = token_saliency(model, short, layers=[-1, 1])
        assert torch.equal(some, whole[[1, 3]])

    def test_a_windows_far_keys_score_nothing(self, gpt_oss: Any, short: Trace) -> None:
        found = token_saliency(gpt_oss, short, rule="gradient")
        far = torch.ones(len(short), len(short)).tril(-8).bool()
        assert found[0][far].count_nonzero() == 0
        assert found[1][far].count_nonzero() > 0

    def test_rows_outside_the_answer_do_not_matter_to_its_last_layer(
        self, qwen2: Any, short: Trace
    ) -> None:
        start, stop = short.answer_span or (0, 0)
        last = token_saliency(qwen2, short, objective="answer", layers=-1)[0]
        rows = last.abs().sum(1).nonzero()[:, 0].tolist()
        assert rows == list(range(start - 1, stop - 1))

    def test_a_prefix_scores_as_in_the_whole(self, qwen2: Any, short: Trace) -> None:
        n = 30
        prefix = Trace.from_token_ids(qwen2, short.token_ids[:n])
        whole = token_saliency(qwen2, short)[:, : n - 1, : n - 1]
        part = token_saliency(qwen2, prefix)[:, : n - 1, : n - 1]
        torch.testing.assert_close(part, whole, atol=1e-5, rtol=1e-3)

    def test_half_precision(self, tiny: Callable[..., Any], short: Trace) -> None:
        half = step_saliency(tiny("qwen2", torch.bfloat16), short)
        assert half.scores.isfinite().all()
        assert half.settings["dtype"] == "bfloat16"


class TestTheModelIsLeftAsItWas:
    @pytest.fixture
    def flags(self, model: Any) -> Iterator[list[bool]]:
        parameters = list(model.parameters())
        before = [parameter.requires_grad for parameter in parameters]
        for number, parameter in enumerate(parameters):
            parameter.requires_grad_(number % 2 == 0)
        yield [number % 2 == 0 for number in range(len(parameters))]
        for parameter, flag in zip(parameters, before, strict=True):
            parameter.requires_grad_(flag)

    def test_after_a_run(self, model: Any, short: Trace, flags: list[bool]) -> None:
        hooks = hooks_of(model)
        step_saliency(model, short)
        assert hooks_of(model) == hooks
        assert [parameter.requires_grad for parameter in model.parameters()] == flags
        assert all(parameter.grad is None for parameter in model.parameters())

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_after_an_exception(
        self, model: Any, short: Trace, flags: list[bool], error: type[BaseException]
    ) -> None:
        def fail(x: Tensor, hook: Any) -> None:
            raise error("stop")

        hooks = hooks_of(model)
        with model.hooks(fwd_hooks=[(hook_name("z", 2), fail)]), pytest.raises(error):
            step_saliency(model, short)
        assert hooks_of(model) == hooks
        assert [parameter.requires_grad for parameter in model.parameters()] == flags

    def test_where_gradients_are_off(self, qwen2: Any, short: Trace) -> None:
        expected = token_saliency(qwen2, short)
        with torch.no_grad():
            assert torch.equal(token_saliency(qwen2, short), expected)
            assert not torch.is_grad_enabled()

    def test_where_inference_mode_is_on(self, qwen2: Any, short: Trace) -> None:
        expected = token_saliency(qwen2, short)
        with torch.inference_mode():
            again = Trace.from_token_ids(qwen2, short.token_ids.clone())
            assert torch.equal(token_saliency(qwen2, again), expected)

    def test_a_users_gradients_stay(self, qwen2: Any, short: Trace) -> None:
        weight = next(qwen2.parameters())
        weight.grad = torch.ones_like(weight)
        token_saliency(qwen2, short)
        assert torch.equal(weight.grad, torch.ones_like(weight))
        weight.grad = None


class TestErrors:
    def test_nan_weights_name_the_layer(
        self, tiny_folder: Callable[..., Any], short: Trace
    ) -> None:
        model = load_tiny(tiny_folder("qwen2"))
        with torch.no_grad():
            model.blocks[2].attn.q.weight.fill_(float("nan"))
        with pytest.raises(FloatingPointError, match=r"saliency at layer \d is NaN or infinite"):
            step_saliency(model, short)
        with pytest.raises(FloatingPointError, match="saliency at layer 2"):
            step_saliency(model, short, rule="attention", layers=[2])
        assert not any(hooks_of(model).values())

    def test_one_token(self, qwen2: Any) -> None:
        trace = Trace.from_token_ids(qwen2, [70], prompt_length=1, format="plain")
        with pytest.raises(ValueError, match=r"a next token to predict: expected >= 2.*got 1"):
            step_saliency(qwen2, trace)

    def test_no_answer(self, qwen2: Any, tokenizer: Any) -> None:
        trace = Trace.from_text(tokenizer, "Why?<think>Because.")
        with pytest.raises(ValueError, match=r"'answer' needs a boxed answer in .* found none"):
            step_saliency(qwen2, trace, objective="answer")
        with pytest.raises(ValueError, match=r"'summary' needs a summary, found none in Trace"):
            step_saliency(qwen2, trace, objective="summary")

    def test_no_step(self, qwen2: Any) -> None:
        ids = [qwen2.tokenizer.eos_token_id] * 3
        trace = Trace.from_token_ids(qwen2, ids, prompt_length=1, format="plain")
        with pytest.raises(ValueError, match="needs at least one step, got Trace"):
            step_saliency(qwen2, trace)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("name", "choice"),
        [
            ("rule", "attention_x_gradient"),
            ("objective", "token"),
            ("pool", "mean"),
            ("diagonal", "causal"),
        ],
    )
    def test_unknown_settings(self, qwen2: Any, short: Trace, name: str, choice: str) -> None:
        message = rf"expected {name} in \['{choice}'.*got 'other'"
        with pytest.raises(ValueError, match=message):
            step_saliency(qwen2, short, **{name: "other"})

    def test_unknown_layers(self, qwen2: Any, short: Trace) -> None:
        with pytest.raises(ValueError, match="names layer 4, but the model has 4 layers"):
            step_saliency(qwen2, short, layers=4)
