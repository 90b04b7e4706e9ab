"""Whether fused attention gives a model's own logits, seen on the first tokens of a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepflow_tl.models.base import ModelView
from stepflow_tl.models.precision import widened
from stepflow_tl.saliency.fused import fused_logits
from stepflow_tl.saliency.hooked import own_tokens
from stepflow_tl.traces.trace import Trace

_TOKENS = 8
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}  # of a token's largest logit; else 5e-2
_AS_NEAR = 0.75  # share of the tokens, in half precision, where rounding may choose other experts
_OWN_ROUNDING = 4  # times the gap that the model has with itself
_MOST = 0.25  # above this a gap is no rounding

_alike: WeakSet[Any] = WeakSet()


def difference(view: ModelView, trace: Trace) -> str | None:
    """How the logits of a trace's first tokens would differ; None where they would not.

    A gap may be rounding. A model that rounds coarsely, or is deep, has one with itself, too: it
    is measured where each number of the embedding is moved by one unit in the last place.

    A model whose own logits are NaN is let through: scoring says where its numbers break.

    Args:
        view: A Hugging Face decoder, or a bridge around one; a model is compared once.
        trace: The trace: its tokens are some that the model was made for, as the first ids of its
            vocabulary need not be.
    """
    decoder: Any = view.decoder
    if decoder in _alike:
        return None
    tokens = own_tokens(view, trace)[:, :_TOKENS]
    try:
        mine, own = fused_logits(view, tokens), _own_logits(view, tokens)
    except Exception as error:
        return f"its attention could not be run ({type(error).__name__}: {error})"
    if own.isnan().any():
        return None
    logits = f"its logits of {tokens.shape[1]} tokens would"
    gap = _gap(mine, own)
    if gap != gap:
        return f"{logits} be NaN, and the model's own are not"
    allowed = _TOLERANCE.get(own.dtype, 5e-2)
    if gap > allowed:
        with _embedding_nudged(decoder, torch.finfo(own.dtype).eps):
            rounding = _gap(_own_logits(view, tokens), own)
        allowed = max(allowed, min(_MOST, _OWN_ROUNDING * rounding))
    if gap > allowed:
        return f"{logits} differ from the model's own by {gap:.0e}"
    _alike.add(decoder)
    return None


def _own_logits(view: ModelView, tokens: Int[Tensor, "1 pos"]) -> Float[Tensor, "1 pos vocab"]:
    with torch.no_grad():
        return view.logits(tokens)


def _gap(mine: Float[Tensor, "1 pos vocab"], own: Float[Tensor, "1 pos vocab"]) -> float:
    """The largest of the tokens' gaps, but for a few in half precision.

    A token's gap is that of its logits, over its largest logit; infinities alike are none.
    """
    share = 1.0 if own.dtype in _TOLERANCE else _AS_NEAR
    mine, own = widened(mine.to(own.device)), widened(own)
    apart = (mine - own).masked_fill(mine == own, 0.0).abs().amax(-1)
    largest = own.masked_fill(own.isinf(), 0.0).abs().amax(-1)
    return float((apart / largest.clamp_min(torch.finfo(own.dtype).tiny)).quantile(share))


@contextmanager
def _embedding_nudged(original: Any, by: float) -> Iterator[None]:
    """Inside, each number of the embedding is larger or smaller by this share of itself."""

    def nudge(module: Any, args: Any, embedded: Tensor) -> Tensor:
        signs = torch.randint(0, 2, embedded.shape, generator=torch.Generator().manual_seed(0))
        return embedded * (1.0 + by * (2 * signs - 1)).to(embedded)

    handle = original.get_input_embeddings().register_forward_hook(nudge)
    try:
        yield
    finally:
        handle.remove()
