"""The methods compared, each a function of a model and a trace.

In every one the parameters are frozen and the graph starts at the embeddings. (Code that people
write by hand seldom does so; with trainable parameters "naive" and "run_with_cache" would need the
parameters' gradients on top.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from saliency_cost.workload import load_huggingface, touched
from stepflow_tl import Trace, load_model, step_saliency
from stepflow_tl.saliency import StepPooler


@dataclass(frozen=True)
class Method:
    """A way to run a trace, and the model it runs on.

    Attributes:
        run: From model and trace to whatever it makes.
        model: "sdpa" or "eager", a plain Hugging Face model with that attention; or "bridge", a
            `TransformerBridge`.
    """

    run: Callable[[Any, Trace], Any]
    model: Literal["sdpa", "eager", "bridge"] = "sdpa"

    def load(self, folder: Path) -> Any:
        """The checkpoint as the model that this method runs on."""
        if self.model == "bridge":
            plain = load_huggingface(folder)
            return touched(load_model(folder, device="cpu", hf_model=plain))
        return load_huggingface(folder, self.model)


def forward_backward(model: Any, trace: Trace) -> None:
    """The baseline: the mean next-token loss and its gradient at the embeddings, nothing kept."""
    embedded = model.get_input_embeddings()(trace.tokens).detach().requires_grad_()
    model(inputs_embeds=embedded, labels=trace.tokens, use_cache=False).loss.backward()


def naive(model: Any, trace: Trace) -> Tensor:
    """Every layer's attention and its gradient kept, |A G| pooled afterwards (the authors' way)."""
    embedded = model.get_input_embeddings()(trace.tokens).detach().requires_grad_()
    out = model(
        inputs_embeds=embedded, labels=trace.tokens, output_attentions=True, use_cache=False
    )
    for attention in out.attentions:
        attention.retain_grad()
    out.loss.backward()
    pool = _pooler(trace)
    return torch.stack([pool(_influence(a.detach(), a.grad)) for a in out.attentions])


def run_with_cache(bridge: Any, trace: Trace) -> Tensor:
    """TransformerLens's own: all patterns and their gradients in one cache, pooled afterwards."""
    with bridge.hooks(fwd_hooks=[("hook_embed", lambda x, hook: x.detach().requires_grad_())]):
        _, cache = bridge.run_with_cache(
            trace.tokens,
            return_type="loss",
            incl_bwd=True,
            names_filter=lambda name: name.endswith("attn.hook_pattern"),
        )
    pool = _pooler(trace)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(bridge.cfg.n_layers)]
    return torch.stack([pool(_influence(cache[name], cache[f"{name}_grad"])) for name in names])


def _influence(
    attention: Float[Tensor, "1 head query key"], gradient: Float[Tensor, "1 head query key"]
) -> Float[Tensor, "query key"]:
    return (attention * gradient).abs().mean(1)[0]


def _pooler(trace: Trace) -> StepPooler:
    return StepPooler(trace.step_of_token, len(trace.steps))


def ours(**settings: Any) -> Callable[[Any, Trace], Tensor]:
    """`step_saliency` with these settings, pooled as the other methods pool."""
    return lambda model, trace: step_saliency(model, trace, pool="mean", **settings).scores


METHODS = {
    "forward + backward": Method(forward_backward),
    "naive": Method(naive, "eager"),
    "run_with_cache": Method(run_with_cache, "bridge"),
    "hooks": Method(ours(objective="sequence", backend="hooks"), "bridge"),
    "hooks, streamed": Method(ours(objective="token", backend="hooks"), "bridge"),
    "fused": Method(ours(objective="sequence", backend="fused")),
    "fused + checkpoint": Method(ours(objective="sequence", backend="fused", checkpointing=True)),
    "streamed": Method(ours(objective="token", backend="fused")),
}
