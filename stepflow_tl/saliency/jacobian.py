"""Saliency of steps as a normalized Jacobian: logits by hidden states (the digest's variant).

With z_t the logits of row t, x the tokens and h[l] the residual stream after layer l::

    y_i = sum_{t in step i} z_t[x_{t+1}]                            target logit of step i
    J[l, i, j] = || d y_i / d h[l, tokens of j] ||                  over tokens and d_model
    M[l, i, j] = J[l, i, j] / sum_{j' <= i} J[l, i, j']

The target is what the rows of step i say of the tokens that truly follow: the same rows whose
losses L_t the other rules differentiate, so that all rules' maps have the same queries, and
nothing of a later step is in it but the one token x_{t+1} that the last row is asked for. (The
trace's last token is asked for nothing.) A logit, not a loss: it knows no competitors, and does
not vanish where the model is certain.

The norm is Frobenius's; it grows with the number of tokens of j, as a step's influence does. Each
row is a share of the step's own total over the steps j <= i; hidden states of frame tokens are in
no step and drop out. In the last layer nothing reaches another row any more: M is the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepflow_tl.errors import StepMapError
from stepflow_tl.models.base import ModelView
from stepflow_tl.models.precision import widened
from stepflow_tl.models.sites import Hook, hook_name
from stepflow_tl.models.weights import let_gradients_through
from stepflow_tl.saliency.hooked import own_tokens, start_graph
from stepflow_tl.saliency.rules import objective_weights
from stepflow_tl.traces.rows import publish
from stepflow_tl.traces.trace import Trace


def jacobian_scores(
    view: ModelView, trace: Trace, layers: Sequence[int]
) -> dict[int, Float[Tensor, "query_step key_step"]]:
    """The normalized Jacobian of each layer: one forward pass, one backward pass per step.

    Each backward pass gives a row of every layer. A row whose target does not depend on any step
    (a last step of one token, which nothing follows) is zero.

    Raises:
        ValueError: The trace has no token to predict.
    """
    objective_weights(trace, "token")  # refuses a trace without a next token
    let_gradients_through(view.model, StepMapError)
    tokens = own_tokens(view, trace)
    streams: dict[int, Float[Tensor, "1 pos d_model"]] = {}

    def keep(layer: int) -> Callable[..., Tensor]:
        def hook_fn(stream: Tensor, hook: Any) -> Tensor:
            streams[layer] = stream.view_as(stream)
            return streams[layer]

        return hook_fn

    hooks: list[Hook] = [(hook_name("embed"), start_graph)]
    hooks += [(hook_name("resid_post", layer), keep(layer)) for layer in layers]
    with (
        publish(view.model, trace),
        view.frozen(),
        torch.inference_mode(False),
        torch.enable_grad(),
        view.hooks(hooks),
    ):
        targets = _target_logits(view.logits(tokens), tokens, trace)
        kept = [streams[layer] for layer in layers]
        rows: list[list[Tensor]] = [[] for _ in layers]
        for step, target in zip(trace.steps, targets, strict=True):
            gradients = torch.autograd.grad(target, kept, retain_graph=True)
            for row, gradient in zip(rows, gradients, strict=True):
                row.append(_norms(gradient[0], trace, step.index))
    maps = (torch.stack(row) for row in rows)
    return {layer: _shares(norms) for layer, norms in zip(layers, maps, strict=True)}


def _target_logits(
    logits: Float[Tensor, "1 pos vocab"], tokens: Int[Tensor, "1 pos"], trace: Trace
) -> list[Float[Tensor, ""]]:
    """y_i of each step: the sum over its rows of the logit of the token that follows."""
    following = tokens[0, 1:, None].to(logits.device)
    chosen = logits[0, :-1].gather(1, following)[:, 0]
    return [chosen[step.start : step.stop].sum() for step in trace.steps]


def _norms(
    gradient: Float[Tensor, "pos d_model"], trace: Trace, query_step: int
) -> Float[Tensor, "key_step"]:
    """Norm of a gradient over the tokens of each step, in float32 or wider."""
    exact = widened(gradient)
    norms = [exact[step.start : step.stop].norm() for step in trace.steps[: query_step + 1]]
    later = exact.new_zeros(len(trace.steps) - len(norms))
    return torch.cat([torch.stack(norms), later])


def _shares(
    norms: Float[Tensor, "query_step key_step"],
) -> Float[Tensor, "query_step key_step"]:
    total = norms.sum(-1, keepdim=True)
    return torch.where(total == 0, torch.zeros_like(norms), norms / total)
