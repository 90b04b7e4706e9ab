"""Asking once which class a model is of; `stepflow_tl.models.base` has the answers."""

from __future__ import annotations

from functools import cache

from stepflow_tl.errors import ModelError
from stepflow_tl.models.base import ModelView
from stepflow_tl.models.bridge import BridgeView
from stepflow_tl.models.hooked import HookedView
from stepflow_tl.models.huggingface import HuggingFaceView
from stepflow_tl.version import check_versions

_check_versions = cache(check_versions)  # once is enough


def view(model: object) -> ModelView:
    """The view of a model; asked once, where a model enters this package.

    Args:
        model: A `TransformerBridge`, a `HookedTransformer`, a Hugging Face decoder, or a view.

    Raises:
        ModelError: It is none of these.
        ImportError: torch, transformers or transformer-lens is of a version that is not supported.
    """
    if isinstance(model, ModelView):
        return model
    _check_versions()
    if hasattr(model, "original_model"):
        return BridgeView(model)
    if hasattr(model, "hook_dict"):
        return HookedView(model)
    if hasattr(model, "config") and hasattr(model, "get_input_embeddings"):
        return HuggingFaceView(model)
    raise ModelError(
        "expected a TransformerBridge, a HookedTransformer or a Hugging Face decoder, got "
        f"{type(model).__name__}: load one with stepflow_tl.load_model"
    )
