"""Step-Saliency: attention x gradient, pooled into step-to-step maps, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl.errors import NonFiniteError, SettingError, StepMapError
from stepflow_tl.models.base import Model, ModelView
from stepflow_tl.models.layers import LayerSpec, resolve_layers
from stepflow_tl.models.memory import out_of_memory_as
from stepflow_tl.models.view import view
from stepflow_tl.saliency.backends import score
from stepflow_tl.saliency.collect import Collector, StepShares, StepSums, TokenMaps
from stepflow_tl.saliency.jacobian import jacobian_scores
from stepflow_tl.saliency.maps import StepMap
from stepflow_tl.saliency.plan import Backend, Plan
from stepflow_tl.saliency.planning import plan_scores
from stepflow_tl.saliency.pooling import Diagonal, FrameKeys, Pool, StepPooler
from stepflow_tl.saliency.rollout import rollout_scores
from stepflow_tl.saliency.rules import Objective, Rule, TokenRule, check_choice
from stepflow_tl.traces.trace import Trace
from stepflow_tl.version import __version__


def step_saliency(
    model: Model | ModelView,
    trace: Trace,
    *,
    rule: Rule = "attention_x_gradient",
    objective: Objective = "token",
    pool: Pool = "share",
    diagonal: Diagonal = "causal",
    frame_keys: FrameKeys = "in",
    layers: LayerSpec = "all",
    per_head: bool = False,
    backend: Backend = "auto",
    chunk: int | None = None,
    checkpointing: bool = False,
    work_file: str | Path | None = None,
    progress: bool = False,
) -> StepMap:
    """Step-to-step saliency of a trace (paper section 3, Eq. 1, pooled by shares).

    ::

        I[l, t, k] = mean_h |A[l, h, t, k] * dL_t / dA[l, h, t, k]|                       (1)
        M[l, i, j] = mean_{t in step i} sum_{k in step j} I[l, t, k] / sum_{k <= t} I[l, t, k]

    The paper's Eq. 2 is ``pool="mean"``. It is not the default: with it the same scores hardly find
    what a step uses, since a few tokens of great loss outweigh all others (docs/audits.md).

    Whatever interventions and hooks are attached to the model act in it, too. What each rule is
    worth can be measured: `stepflow_tl.analysis.audit`.

    Args:
        model: A `TransformerBridge` or `HookedTransformer`; for the fused backend also a plain
            Hugging Face decoder.
        trace: The trace; its own tokens are run, nothing is encoded again.
        rule: "attention_x_gradient" |A G|, "signed" A G, "gradient" |G|, "attention" A,
            "attention_x_value" (`stepflow_tl.saliency.values`). Two rules score steps in a way of
            their own, and leave no choice of what follows but `layers`: "jacobian", how the logits
            of a step change with the hidden states of another (the digest's variant,
            `stepflow_tl.saliency.jacobian`), and "rollout" (`stepflow_tl.saliency.rollout`, with
            the patterns of all layers in memory).
        objective: "token", the paper's L_t for each row; the "logit" of the token that follows, or
            its "margin" over the runner-up, which do not vanish where the model is certain; or one
            loss: the mean over "sequence" (the authors' code), "summary" or "answer".
        pool: "share": the mean over a step's tokens of the share of each token's scores that lies
            on the other step, where a token of little loss counts as much as any; the "mean" over a
            block (paper, Eq. 2), or its "sum". For shares heads are averaged before; token rows
            without any score are left out, and counted in ``settings["zero_rows"]``, layer by
            layer. Signed scores have no shares: name another pool.
        diagonal: "causal": a diagonal block's mean is over its pairs k <= t; "full": causal zeros
            included (the authors' code). For pool="mean" alone.
        frame_keys: For pool="share": "in", a share is of the token's whole row; "out", of what lies
            on steps, so that every row of the map sums to one.
        layers: Layers to map.
        per_head: Keep the heads apart.
        backend: "hooks": through TransformerLens's hook points, on any model and under any hooks,
            with every pattern in memory. "fused": inside the attention of a Hugging Face decoder,
            which keeps no pattern; refused under hooks and where attention is of another kind.
            "auto": "fused" where it can, else "hooks"; for "attention" alone from 1,024 tokens on.
            The map's ``settings["backend"]`` says which it was, and the log why it was not fused.
        chunk: Queries that are scored together, for "token" (or "attention" alone), whose rows are
            independent given earlier keys and values: memory grows with the chunk, hardly with
            the trace. None: 512 for "fused"; for "hooks" what keeps the patterns of a chunk
            within half a gigabyte, but the whole trace where hooks are attached.
        checkpointing: Keep only each layer's input and run the layer again in the backward pass,
            for "fused" and one loss.
        work_file: A file to write the scores to while they are computed. A run that was stopped
            goes on with it at the chunk where it stopped (for one loss: begins anew).
        progress: Show a progress bar.

    Returns:
        The map, scores [layer, query_step, key_step], or with `per_head` [layer, head, query_step,
        key_step]. Scores of one mean loss fall with the length of the trace; those of "token" do
        not.

    Raises:
        ValueError: A setting is unknown or means nothing to the rule or the backend, the backend
            cannot score the model, the trace has no step, or no token to predict.
        WorkFileError: The work file is of another run, or no work file.
        StepMapError: A score is NaN or infinite (a FloatingPointError, too; layer, query position
            and where the forward pass breaks are named), memory does not suffice (what would
            fit is said), or the layers of a quantized model give no gradient.
    """
    for name, value, choices in (
        ("rule", rule, Rule),
        ("objective", objective, Objective),
        ("pool", pool, Pool),
        ("diagonal", diagonal, Diagonal),
        ("frame_keys", frame_keys, FrameKeys),
        ("backend", backend, Backend),
    ):
        check_choice(name, value, choices)
    if not trace.steps:
        raise SettingError(f"step_saliency needs at least one step, got {trace!r}")
    seen = view(model)
    _refuse_too_long(seen, trace)
    wanted = resolve_layers(layers, seen.n_layers)
    made: dict[str, Any] = {"rule": rule}
    if rule == "jacobian" or rule == "rollout":
        _refuse_token_settings(
            rule,
            objective=(objective, "token"),
            pool=(pool, "share"),
            diagonal=(diagonal, "causal"),
            frame_keys=(frame_keys, "in"),
            per_head=(per_head, False),
            backend=(backend, "auto"),
            chunk=(chunk, None),
            checkpointing=(checkpointing, False),
            work_file=(work_file, None),
        )
        if rule == "jacobian":
            made["normalized"] = "row"
        with out_of_memory_as(StepMapError, lambda: _no_smaller(rule, trace)):
            if rule == "jacobian":
                scores = jacobian_scores(seen, trace, wanted)
            else:
                patterns = token_saliency(
                    seen, trace, rule="attention", layers=range(max(wanted) + 1)
                )
                scores = rollout_scores(dict(enumerate(patterns)), trace, wanted)
    else:
        if pool == "share" and rule == "signed":
            raise SettingError(
                "expected pool='mean' or 'sum' for rule='signed', or a rule without signs: shares "
                "are of sums, in which signs cancel; got pool='share'"
            )
        for name, value, default, needed in (
            ("diagonal", diagonal, "causal", "mean"),
            ("frame_keys", frame_keys, "in", "share"),
        ):
            if value != default and pool != needed:
                raise SettingError(
                    f"expected pool={needed!r} for {name}={value!r}, got pool={pool!r}"
                )
        plan = plan_scores(
            seen,
            trace,
            wanted,
            rule=rule,
            objective=objective,
            backend=backend,
            chunk=chunk,
            checkpointing=checkpointing,
        )
        kind = partial(StepShares, frame_keys=frame_keys) if pool == "share" else StepSums
        sums = _collect(kind, seen, trace, plan, per_head, work_file, progress)
        made |= {"objective": objective, "pool": pool, "diagonal": diagonal}
        made["backend"] = plan.backend
        if isinstance(sums, StepShares):
            made |= {"frame_keys": frame_keys, "zero_rows": [sums.zero_rows(n) for n in wanted]}
        pooler = StepPooler(trace.step_of_token, len(trace.steps), pool, diagonal)
        scores = {layer: pooler.of_sums(sums.result(layer)) for layer in wanted}
    return StepMap(
        scores=torch.stack([_finite(scores[layer].cpu(), layer) for layer in wanted]),
        layers=wanted,
        n_layers=seen.n_layers,
        steps=trace.steps,
        settings={
            **made,
            "model": seen.name,
            "dtype": str(seen.dtype).removeprefix("torch."),
            "version": __version__,
        },
    )


def token_saliency(
    model: Model | ModelView,
    trace: Trace,
    *,
    rule: Rule = "attention_x_gradient",
    objective: Objective = "token",
    layers: LayerSpec = "all",
    per_head: bool = False,
    backend: Backend = "auto",
    chunk: int | None = None,
    checkpointing: bool = False,
) -> Float[Tensor, "layer *head query key"]:
    """Token-to-token saliency (Eq. 1), unpooled: memory grows with the square of the trace.

    Args and errors are those of `step_saliency`.

    Returns:
        Scores [layer, query, key], or with `per_head` [layer, head, query, key], on the CPU.
    """
    if rule == "jacobian" or rule == "rollout":
        raise SettingError(
            f"rule={rule!r} scores steps, not tokens: expected step_saliency, or here a rule in "
            f"{list(get_args(TokenRule))}"
        )
    check_choice("rule", rule, TokenRule)
    check_choice("objective", objective, Objective)
    check_choice("backend", backend, Backend)
    seen = view(model)
    _refuse_too_long(seen, trace)
    plan = plan_scores(
        seen,
        trace,
        resolve_layers(layers, seen.n_layers),
        rule=rule,
        objective=objective,
        backend=backend,
        chunk=chunk,
        checkpointing=checkpointing,
    )
    maps = _collect(TokenMaps, seen, trace, plan, per_head)
    return torch.stack([_finite(maps.result(layer), layer) for layer in plan.layers])


def _collect(
    kind: Callable[..., Collector],
    seen: ModelView,
    trace: Trace,
    plan: Plan,
    per_head: bool,
    work_file: str | Path | None = None,
    progress: bool = False,
) -> Collector:
    """The collected scores of the planned layers."""
    collector = kind(
        trace,
        plan.layers,
        heads=seen.n_heads,
        per_head=per_head,
        dtype=torch.float64 if seen.dtype == torch.float64 else torch.float32,
        device="cpu" if kind is TokenMaps else seen.device,
        gain=plan.gain,
    )
    score(seen, trace, plan, collector, work_file=work_file, progress=progress)
    return collector


def _refuse_token_settings(rule: str, **settings: tuple[Any, Any]) -> None:
    """Neither the Jacobian nor rollout knows heads, losses or token scores to pool."""
    for name, (value, default) in settings.items():
        if value != default:
            raise SettingError(
                f"{name} means nothing to rule={rule!r}, which scores steps in a way of its own: "
                f"expected its default {default!r}, got {value!r}"
            )


def _refuse_too_long(seen: ModelView, trace: Trace) -> None:
    """Refuse a trace that the model was not made for.

    Raises:
        StepMapError: It is longer than the model's context.
    """
    limit = seen.context_length
    if limit is not None and len(trace) > limit:
        raise StepMapError(
            f"expected a trace within the {limit} positions of the model's context, got "
            f"{len(trace)} tokens, a prompt of {trace.prompt_length} among them"
        )


def _finite(scores: Tensor, layer: int) -> Tensor:
    if not scores.isfinite().all():
        place = (~scores.isfinite()).nonzero()[0].tolist()
        raise NonFiniteError(
            f"expected numbers, but saliency at layer {layer} is NaN or infinite at {place} "
            "([..., query, key]); check the weights, or try a wider dtype"
        )
    return scores


def _no_smaller(rule: str, trace: Trace) -> str:
    return (
        f"expected what the whole trace needs to fit, got {len(trace)} tokens with "
        f"rule={rule!r}; try a model in dtype='bfloat16', a shorter trace, or another rule with a "
        "chunk=..."
    )
