"""Step-Saliency: attention x gradient, pooled into step-to-step maps, layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl.layers import LayerSpec, resolve_layers
from stepflow_tl.models import model_name, n_layers
from stepflow_tl.saliency.hooked import hooked_scores
from stepflow_tl.saliency.maps import StepMap, StepMapError
from stepflow_tl.saliency.pooling import Diagonal, Pool, StepPooler
from stepflow_tl.saliency.rules import Objective, Rule, check_choice
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

    Whatever interventions and hooks are attached to the model act in it, too.

    Args:
        model: A `TransformerBridge` or `HookedTransformer`.
        trace: The trace; its own tokens are run, nothing is encoded again.
        rule: "attention_x_gradient" |A G|, "signed" A G, "gradient" |G|, or "attention" A.
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
        ValueError: A setting is unknown, the trace has no step, or no token to predict.
        FloatingPointError: A score is NaN or infinite; the layer is named.
    """
    for name, value, choices in (("pool", pool, Pool), ("diagonal", diagonal, Diagonal)):
        check_choice(name, value, choices)
    if not trace.steps:
        raise ValueError(f"step_saliency needs at least one step, got {trace!r}")
    pooler = StepPooler(trace.step_of_token, len(trace.steps), pool, diagonal)
    wanted = resolve_layers(layers, n_layers(model))
    maps: dict[int, Tensor] = {}

    def sink(layer: int, scores: Float[Tensor, "head query key"]) -> None:
        maps[layer] = _finite(pooler(scores if per_head else scores.mean(0)).cpu(), layer)

    _run(model, trace, rule, objective, wanted, sink)
    return StepMap(
        scores=torch.stack([maps[layer] for layer in wanted]),
        layers=wanted,
        n_layers=n_layers(model),
        steps=trace.steps,
        settings={
            "rule": rule,
            "objective": objective,
            "pool": pool,
            "diagonal": diagonal,
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
    wanted = resolve_layers(layers, n_layers(model))
    maps: dict[int, Tensor] = {}

    def sink(layer: int, scores: Float[Tensor, "head query key"]) -> None:
        maps[layer] = _finite((scores if per_head else scores.mean(0)).cpu(), layer)

    _run(model, trace, rule, objective, wanted, sink)
    return torch.stack([maps[layer] for layer in wanted])


def _run(
    model: Any,
    trace: Trace,
    rule: Rule,
    objective: Objective,
    layers: tuple[int, ...],
    sink: Any,
) -> None:
    check_choice("rule", rule, Rule)
    check_choice("objective", objective, Objective)
    hooked_scores(model, trace, rule=rule, objective=objective, layers=layers, sink=sink)


def _finite(scores: Tensor, layer: int) -> Tensor:
    if not scores.isfinite().all():
        place = (~scores.isfinite()).nonzero()[0].tolist()
        raise FloatingPointError(
            f"saliency at layer {layer} is NaN or infinite at {place} ([..., query, key]); check "
            "the weights, or try a wider dtype"
        )
    return scores
