"""The rule "attention_x_value": norms of what values add, written out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import MODEL_KINDS

from stepflow_tl.models.sites import hook_name
from stepflow_tl.models.view import view
from stepflow_tl.saliency import token_saliency
from stepflow_tl.saliency.values import ValueNorms
from stepflow_tl.traces.trace import Trace


class _TwoHeads:
    """A model of two heads of one group, each with an output matrix of its own."""

    n_heads = 2
    weights = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[0.0, 0.0], [3.0, 4.0]]])

    @property
    def running(self) -> "_TwoHeads":
        return self

    def heads_to_residual(self, layer: int, z: torch.Tensor) -> torch.Tensor:
        return torch.einsum("rhd,hdm->rm", z, self.weights)


@pytest.mark.usefixtures("unchecked")
def test_by_hand() -> None:
    v = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [3.0, 2.0]]])
    norms = ValueNorms(_TwoHeads())(0, v)  # type: ignore[arg-type]
    assert norms.tolist() == [[[1.0, 2.0, 5.0], [0.0, 5.0, 10.0]]]


@pytest.mark.parametrize("kind", [*MODEL_KINDS, "gpt2", "phi3"])
def test_every_class_of_models(tiny: Callable[..., Any], trace: Trace, kind: str) -> None:
    model = tiny(kind)
    seen, names = view(model), [hook_name(site, 1) for site in ("v", "pattern")]
    _, cache = model.run_with_cache(trace.tokens, names_filter=lambda name: name in names)
    v, pattern = cache[names[0]][0], cache[names[1]][0]
    heads, size = pattern.shape[0], v.shape[-1]
    per_head = v.repeat_interleave(heads // v.shape[1], dim=1)
    norms = []
    for head in range(heads):
        alone = torch.zeros(len(trace), heads, size)
        alone[:, head] = per_head[:, head]
        norms.append(seen.heads_to_residual(1, alone).norm(dim=-1))
    expected = pattern * torch.stack(norms)[:, None]
    for chunk in (None, 13):
        mine = token_saliency(
            model, trace, rule="attention_x_value", layers=1, per_head=True, chunk=chunk
        )[0]
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-4)
