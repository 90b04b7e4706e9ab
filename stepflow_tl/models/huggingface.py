"""The view of a plain Hugging Face decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from stepflow_tl.errors import ModelError
from stepflow_tl.models.base import FirstQuery, ModelView, Place, Seen
from stepflow_tl.models.context import context_length_of
from stepflow_tl.models.decoder import (
    attention_module,
    attention_window_of,
    decoder_layers,
    text_config,
)
from stepflow_tl.models.decoder_hooks import (
    DECODER_SITES,
    hooks_at_work,
    hooks_inside,
    only_hooks_inside,
)
from stepflow_tl.models.foreign_hooks import foreign_hooks
from stepflow_tl.models.hidden_keys import keys_hidden_inside
from stepflow_tl.models.running_batch import MovingBatch, RunningBatch
from stepflow_tl.models.sites import Hook

_OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "dense", "c_proj")  # in transformers' decoders


class HuggingFaceView(ModelView):
    """A plain Hugging Face decoder, with hook functions inside its own attention.

    Attributes:
        known_alone: Whether it was seen before that no hook of somebody else's is on it.
    """

    known_alone = False
    sites = frozenset(DECODER_SITES)

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return int(text_config(self.model).num_hidden_layers)

    @property
    def n_heads(self) -> int:
        """Number of query heads of a layer."""
        return int(text_config(self.model).num_attention_heads)

    @property
    def context_length(self) -> int | None:
        """What its configuration says, rotary scaling respected."""
        return context_length_of(text_config(self.model))

    @property
    def embedding(self) -> nn.Module:
        """The module that token ids enter first."""
        module: nn.Module = self.model.get_input_embeddings()
        return module

    @property
    def decoder(self) -> Any:
        """The model itself."""
        return self.model

    def attention_window(self, layer: int) -> int | None:
        """Number of keys a query of this layer sees at most, its own included; None for all."""
        return attention_window_of(text_config(self.model), layer)

    def logits(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
        """One forward pass without a cache."""
        logits: Tensor = self.model(tokens).logits
        return logits

    def run_cached(
        self,
        tokens: Int[Tensor, "batch new"],
        attention_mask: Int[Tensor, "batch pos"],
        cache: Any | None,
    ) -> tuple[Float[Tensor, "batch new vocab"], Any]:
        """One forward pass against a KV cache."""
        position = (attention_mask.cumsum(-1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
        output = self.model(
            input_ids=tokens,
            attention_mask=attention_mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        )
        return output.logits, output.past_key_values

    @property
    def rows_may_move(self) -> bool:
        """Whether its cache is one of keys and values alone, and nobody else's hooks look on."""
        from stepflow_tl.models.kv_cache import roomy_cache

        looked_at = not self.known_alone and foreign_hooks(self.model)
        return not looked_at and roomy_cache(self.model, 1) is not None

    def new_batch(self, pads: Sequence[int], stops: Sequence[int], rows: int) -> RunningBatch:
        """A batch that is about to be decoded, whose rows move if there are more to come."""
        from stepflow_tl.models.kv_cache import roomy_cache

        cache = roomy_cache(self.model, rows) if rows else None
        if cache is None:
            return super().new_batch(pads, stops, rows)
        return MovingBatch(self.model, cache, pads, self.device)

    @contextmanager
    def bare(self) -> Iterator[HuggingFaceView]:
        """Itself."""
        yield self

    @contextmanager
    def hooks(
        self,
        hooks: Sequence[Hook],
        first_query: FirstQuery = lambda: 0,
        place: Place = "in turn",
    ) -> Iterator[None]:
        """Inside, its layers run these hook functions, after those at work already."""
        with hooks_inside(self.model, hooks, first_query, place), self._showing_logits(hooks):
            yield

    @property
    def output(self) -> nn.Module:
        """The model itself."""
        module: nn.Module = self.model
        return module

    def keys_hidden(self, seen: Seen) -> AbstractContextManager[None]:
        """Inside, queries see no keys but these, in all layers and heads."""
        return keys_hidden_inside(self.model, seen)

    @contextmanager
    def only_hooks(self, hooks: Sequence[Hook]) -> Iterator[None]:
        """Inside, its layers run these hook functions and no others of this package."""
        with only_hooks_inside(self.model, hooks), self._showing_logits(hooks):
            yield

    def hooks_on(self) -> list[str]:
        """Names of the hook points at which functions are at work inside."""
        return hooks_at_work(self.model)

    def _no_tokenizer(self) -> str:
        return (
            "expected tokenizer=... beside a plain Hugging Face model, or model.tokenizer set, got "
            f"neither with {type(self.model).__name__}, which has no tokenizer: set "
            "model.tokenizer, or pass tokenizer="
        )

    def _given_name(self) -> str:
        return str(self.model.name_or_path or type(self.model).__name__)

    def _output_projection(self, layer: int) -> Any:
        attention = attention_module(decoder_layers(self.model)[layer])
        names = [name for name in _OUTPUT_PROJECTIONS if hasattr(attention, name)]
        if not names:
            raise ModelError(
                f"expected the output projection of {type(attention).__name__} to be one of "
                f"{list(_OUTPUT_PROJECTIONS)}: attach to a TransformerBridge (load_model)"
            )
        return getattr(attention, names[0])
