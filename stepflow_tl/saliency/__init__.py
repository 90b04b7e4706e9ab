"""Step-Saliency: attention x gradient, pooled into step-to-step maps, layer by layer."""

from __future__ import annotations

from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl.layers import LayerSpec, resolve_layers
from stepflow_tl.models import model_name, n_layers
from stepflow_tl.saliency.hooked import hooked_scores
from stepflow_tl.saliency.jacobian import jacobian_scores
from stepflow_tl.saliency.maps import StepMap, StepMapError
from stepflow_tl.saliency.pooling import Diagonal, Pool, StepPooler
from stepflow_tl.saliency.rules import Objective, Rule, TokenRule, check_choice
from stepflow_tl.trace import Trace
from stepflow_tl.version import __version__

__all__ = [
    "Diagonal",
    "Objective",
    "Pool",
    "Rule",
    "StepMap",
    "StepMapError",
    "StepPooler",
    "step_saliency",
    "token_saliency",
]


def step_saliency(
    model: Any,
    trace: Trace,
    *,
    rule: Rule = "attention_x_gradient",
    objective: Objective = "token",
    pool: Pool = "mean",
    diagonal: Diagonal = "causal",
    layers: LayerSpec = "all",
    per_head: bool = False,
) -> StepMap:
    """Step-to-step saliency of a trace (paper section 3, Eqs. 1 and 2).

    ::

        I[l, t, k] = mean_h |A[l, h, t, k] * dL_t / dA[l, h, t, k]|            (1)
        M[l, i, j] = mean_{t in step i, k in step j} I[l, t, k]                (2)

    Whatever interventions and hooks are attached to the model act in it, too. For the rule
    "jacobian" see `stepflow_tl.saliency.jacobian`.

    Args:
        model: A `TransformerBridge` or `HookedTransformer`.
        trace: The trace; its own tokens are run, nothing is encoded again.
        rule: "attention_x_gradient" |A G|, "signed" A G, "gradient" |G|, "attention" A; or
            "jacobian", how the logits of a step change with the hidden states of another (the
            digest's variant; it knows neither heads nor losses, and leaves no choice of
            `objective`, `pool` and `diagonal`).
        objective: "token", the paper's L_t for each row; or one loss: the mean over "sequence"
            (the authors' code), "summary" or "answer".
        pool: "mean" over a block (paper), or its "sum".
        diagonal: "causal": a diagonal block's mean is over its pairs k <= t; "full": causal zeros
            included (the authors' code).
        layers: Layers to map.
        per_head: Keep the heads apart.

    Returns:
        The map, scores [layer, query_step, key_step], or with `per_head` [layer, head, query_step,
        key_step]. Scores of one mean loss fall with the length of the trace; those of "token" do
        not.

    Raises:
        ValueError: A setting is unknown or means nothing to the rule, the trace has no step, or no
            token to predict.
        FloatingPointError: A score is NaN or infinite; the layer is named.
    """
    for name, value, choices in (
        ("rule", rule, Rule),
        ("objective", objective, Objective),
        ("pool", pool, Pool),
        ("diagonal", diagonal, Diagonal),
    ):
        check_choice(name, value, choices)
    if not trace.steps:
        raise ValueError(f"step_saliency needs at least one step, got {trace!r}")
    wanted = resolve_layers(layers, n_layers(model))
    maps: dict[int, Tensor] = {}
    made: dict[str, Any] = {"rule": rule}
    if rule == "jacobian":
        _refuse_token_settings(objective, pool, diagonal, per_head)
        made["normalized"] = "row"
        for layer, scores in jacobian_scores(model, trace, wanted).items():
            maps[layer] = _finite(scores.cpu(), layer)
    else:
        made |= {"objective": objective, "pool": pool, "diagonal": diagonal}
        pooler = StepPooler(trace.step_of_token, len(trace.steps), pool, diagonal)

        def sink(layer: int, scores: Float[Tensor, "head query key"]) -> None:
            maps[layer] = _finite(pooler(scores if per_head else scores.mean(0)).cpu(), layer)

        hooked_scores(model, trace, rule=rule, objective=objective, layers=wanted, sink=sink)
    return StepMap(
        scores=torch.stack([maps[layer] for layer in wanted]),
        layers=wanted,
        n_layers=n_layers(model),
        steps=trace.steps,
        settings={
            **made,
            "model": model_name(model),
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
            "version": __version__,
        },
    )


def token_saliency(
    model: Any,
    trace: Trace,
    *,
    rule: Rule = "attention_x_gradient",
    objective: Objective = "token",
    layers: LayerSpec = "all",
    per_head: bool = False,
) -> Float[Tensor, "layer *head query key"]:
    """Token-to-token saliency (Eq. 1), unpooled: memory grows with the square of the trace.

    Args and errors are those of `step_saliency`.

    Returns:
        Scores [layer, query, key], or with `per_head` [layer, head, query, key], on the CPU.
    """
    if rule == "jacobian":
        raise ValueError(
            "rule='jacobian' scores steps, not tokens: expected step_saliency, or here a rule in "
            f"{list(get_args(TokenRule))}"
        )
    check_choice("rule", rule, TokenRule)
    check_choice("objective", objective, Objective)
    wanted = resolve_layers(layers, n_layers(model))
    maps: dict[int, Tensor] = {}

    def sink(layer: int, scores: Float[Tensor, "head query key"]) -> None:
        maps[layer] = _finite((scores if per_head else scores.mean(0)).cpu(), layer)

    hooked_scores(model, trace, rule=rule, objective=objective, layers=wanted, sink=sink)
    return torch.stack([maps[layer] for layer in wanted])


def _refuse_token_settings(
    objective: Objective, pool: Pool, diagonal: Diagonal, per_head: bool
) -> None:
    """The Jacobian knows no heads, no loss and no token scores to pool."""
    for name, value, default in (
        ("objective", objective, "token"),
        ("pool", pool, "mean"),
        ("diagonal", diagonal, "causal"),
        ("per_head", per_head, False),
    ):
        if value != default:
            raise ValueError(
                f"{name} means nothing to rule='jacobian', which differentiates logits by whole "
                f"hidden states: expected its default {default!r}, got {value!r}"
            )


def _finite(scores: Tensor, layer: int) -> Tensor:
    if not scores.isfinite().all():
        place = (~scores.isfinite()).nonzero()[0].tolist()
        raise FloatingPointError(
            f"saliency at layer {layer} is NaN or infinite at {place} ([..., query, key]); check "
            "the weights, or try a wider dtype"
        )
    return scores
