"""Scores that are NaN or infinite: where they are, and where the model's own numbers break."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stepflow_tl.errors import NonFiniteError
from stepflow_tl.models.base import ModelView
from stepflow_tl.models.decoder import decoder_layers
from stepflow_tl.models.precision import WIDER
from stepflow_tl.models.sites import Hook, hook_name
from stepflow_tl.traces.rows import publish
from stepflow_tl.traces.trace import Trace

_EMBEDDING = -1


class NonFinite:
    """The lowest position at which each layer's residual stream is not finite."""

    def __init__(self) -> None:
        self._found: dict[int, int] = {}

    def note(self, layer: int, stream: Tensor) -> None:
        """Look at what leaves a layer, [batch, pos, d_model]."""
        bad = (~stream.detach().isfinite()).any(-1).any(0).nonzero()
        if len(bad):
            self._found.setdefault(layer, int(bad[0, 0]))

    def first(self) -> tuple[int, int] | None:
        """The first layer that is not finite, and where; None where all are."""
        return min(self._found.items(), default=None)


def non_finite(trace: Trace, layer: int, position: int) -> NonFiniteError:
    """The error for a row of scores."""
    return NonFiniteError(
        f"saliency at layer {layer} is NaN or infinite at query position {position} "
        f"({_place(trace, position)})"
    )


def diagnosed(
    error: NonFiniteError, view: ModelView, trace: Trace, run: Callable[[], object], *, inside: bool
) -> NonFiniteError:
    """The error with what the model's own forward pass says of it.

    Args:
        error: What was raised while scoring.
        view: The model.
        trace: The trace.
        run: Runs the model over the trace once more.
        inside: Look at the layers of the Hugging Face decoder, not at hook points.
    """
    found = NonFinite()
    try:
        with torch.no_grad(), publish(view.model, trace), _watched(view, found, inside):
            run()
    except RuntimeError as reason:  # no memory for another pass: the first error is enough
        said = f"the forward pass could not be looked at ({type(reason).__name__})"
        return NonFiniteError(f"{error}; {said}; {_hint(view)}")
    first = found.first()
    if first is None:
        said = "the forward pass is finite, so that the gradient overflows"
    else:
        layer, position = first
        where = "from the embedding on" if layer == _EMBEDDING else f"from layer {layer} on"
        said = f"the forward pass itself is not finite {where}, at position {position}"
    return NonFiniteError(f"{error}; {said}; {_hint(view)}")


def _hint(view: ModelView) -> str:
    half = view.dtype == torch.float16
    return WIDER if half else "check the weights, or try a wider dtype"


def _place(trace: Trace, position: int) -> str:
    number = int(trace.step_of_token[position])
    return f"step {number}" if number >= 0 else "in no step"


@contextmanager
def _watched(view: ModelView, found: NonFinite, inside: bool) -> Iterator[None]:
    if not inside:

        def at(layer: int) -> Callable[..., None]:
            return lambda stream, hook: found.note(layer, stream)

        hooks: list[Hook] = [(hook_name("embed"), at(_EMBEDDING))]
        hooks += [(hook_name("resid_post", layer), at(layer)) for layer in range(view.n_layers)]
        with view.hooks(hooks):
            yield
        return

    def after(layer: int) -> Callable[..., None]:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            found.note(layer, output if isinstance(output, Tensor) else output[0])

        return look

    layers = decoder_layers(view.decoder)

    def before(module: nn.Module, args: Any, options: dict[str, Any]) -> None:
        found.note(_EMBEDDING, args[0] if args else options["hidden_states"])

    handles = [layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [layer.register_forward_hook(after(index)) for index, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
