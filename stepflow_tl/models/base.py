"""What everything above asks of a model, whatever class it is of."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stepflow_tl.errors import ModelError
from stepflow_tl.models.foreign_hooks import own_hooks
from stepflow_tl.models.precision import DTYPES
from stepflow_tl.models.running_batch import FixedBatch, RunningBatch
from stepflow_tl.models.sites import Hook, Site
from stepflow_tl.models.weights import weights_in_order
from stepflow_tl.reasoner import WEIGHTS


@runtime_checkable
class Model(Protocol):
    """A `TransformerBridge`, a `HookedTransformer`, or a plain Hugging Face decoder."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Its parameters, as of any module of torch's."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it."""


class Arrival(NamedTuple):
    """A forward pass that has reached the first layer.

    Attributes:
        batch: Number of rows.
        queries: Number of new positions.
        device: Where the first layer works.
        keys: Number of keys that it attends to; None where the cache says `past`.
        past: Number of positions in the cache; None where only `keys` are seen.
        cache: The cache itself, where it is at hand.
    """

    batch: int
    queries: int
    device: torch.device
    keys: int | None = None
    past: int | None = None
    cache: Any = None


Seen = Callable[[int, int], Bool[Tensor, "row 1 query key"]]
"""Of a pass with so many queries and keys, the last ones so far: which keys each query may see."""

FirstQuery = Callable[[], int | None]
"""Of a pass, the first query whose pattern hook functions want to see; None for none of them."""

Place = Literal["first", "in turn", "last"]
"""Where hook functions stand among this package's others: before all, in order, or after all."""

ARRIVAL = "arrival"
"""In place of a hook point's name: the function is told each `Arrival`, before hooks there."""

LOGITS = "logits"
"""In place of a hook point's name: the function sees logits, of all positions or the last."""


class ModelView(ABC):
    """One view of a model: facts, forward passes, hooks.

    Attributes:
        model: The model.
        sites: Of the class: where hook functions can go.
    """

    sites: ClassVar[frozenset[Site]]

    def __init__(self, model: Any) -> None:
        self.model = model

    def __eq__(self, other: object) -> bool:
        """Whether it is a view of the same model."""
        return isinstance(other, ModelView) and self.model is other.model

    def __hash__(self) -> int:
        """Of the model."""
        return id(self.model)

    # facts

    @property
    def name(self) -> str:
        """Its name, for records: the last part of the path of a local folder or file."""
        name = self._given_name()
        if Path(name) == WEIGHTS:
            return "reasoner"
        return Path(name).name if Path(name).exists() else name

    @property
    @abstractmethod
    def n_layers(self) -> int:
        """Number of layers."""

    @property
    @abstractmethod
    def n_heads(self) -> int:
        """Number of query heads of a layer."""

    @property
    @abstractmethod
    def context_length(self) -> int | None:
        """Number of positions that it may be run on; None where nothing limits it."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer.

        Raises:
            ModelError: It has none.
        """
        if not self.has_tokenizer:
            raise ModelError(self._no_tokenizer())
        return self.model.tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether it brings a tokenizer."""
        return getattr(self.model, "tokenizer", None) is not None

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Ids that end a response by the model's generation settings."""
        settings = getattr(self.decoder, "generation_config", None)
        configured = getattr(settings, "eos_token_id", None)
        ids = configured if isinstance(configured, list) else [configured]
        return frozenset(i for i in ids if i is not None)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of its first parameter."""
        parameter: nn.Parameter = next(self.model.parameters())
        return parameter.dtype

    @property
    def is_exact(self) -> bool:
        """Whether all parameters are float32 or wider: a row's batch hardly changes its text."""
        return all(p.dtype in (torch.float32, torch.float64) for p in self.model.parameters())

    @property
    def device(self) -> torch.device:
        """Where token ids go: what the embedding works on, wherever its weights are kept."""
        embedding = self.embedding
        for module in (embedding, getattr(embedding, "original_component", None)):
            at = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
            if at is not None:
                return torch.device(at)
        return next(embedding.parameters()).device

    @property
    def padding_takes_positions(self) -> bool:
        """Whether a padded batch may not be wider than the model's context."""
        return False

    @property
    @abstractmethod
    def embedding(self) -> nn.Module:
        """The module that token ids enter first."""

    @property
    @abstractmethod
    def decoder(self) -> Any | None:
        """The Hugging Face model that it is, or that is inside; None for none."""

    def weights_hash(self) -> str:
        """SHA-256 over the names, types, shapes and bytes of all parameters: 16 hex digits.

        Of a quantized model also over whatever else its layers save: scales, code books.
        """
        digest = hashlib.sha256()
        for name, tensor in weights_in_order(self.model):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            data: Any = tensor.flatten().view(torch.uint8).numpy()
            digest.update(data)
        return digest.hexdigest()[:16]

    @abstractmethod
    def attention_window(self, layer: int) -> int | None:
        """Number of keys a query of this layer sees at most, its own included; None for all."""

    # forward passes

    @abstractmethod
    def logits(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
        """One forward pass without a cache."""

    @abstractmethod
    def run_cached(
        self,
        tokens: Int[Tensor, "batch new"],
        attention_mask: Int[Tensor, "batch pos"],
        cache: Any | None,
    ) -> tuple[Float[Tensor, "batch new vocab"], Any]:
        """One forward pass against a KV cache.

        Args:
            tokens: The new tokens.
            attention_mask: 1 for real tokens, over all positions so far.
            cache: What the last call returned; None to begin.

        Returns:
            Logits of the new tokens, and the cache to pass on.
        """

    def decode(
        self,
        tokens: Int[Tensor, "batch new"],
        attention_mask: Int[Tensor, "batch pos"],
        cache: Any | None,
    ) -> tuple[Float[Tensor, "batch vocab"], Any]:
        """One forward pass of cached decoding: `run_cached`, of which only the last logits count.

        Args:
            tokens: The new tokens: the left-padded prompts first, then one token a row.
            attention_mask: 1 for real tokens, over all positions so far.
            cache: What the last call returned; None to begin.

        Returns:
            Logits that predict the next token, and the cache to pass on.
        """
        logits, cache = self.run_cached(tokens, attention_mask, cache)
        return logits[:, -1], cache

    def detach(self, cache: Any) -> None:
        """Cut the keys and values of a KV cache off the graph that computed them."""
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys.detach(), layer.values.detach()

    def repeated(self, cache: Any, rows: int) -> Any:
        """The KV cache of one row as that of so many; the one given is used up."""
        cache.batch_repeat_interleave(rows)
        return cache

    def heads_to_residual(
        self, layer: int, z: Float[Tensor, "rows head d_head"]
    ) -> Float[Tensor, "rows d_model"]:
        """What per-head outputs add to the residual stream: z W_O, summed over heads, no bias."""
        projection = self._output_projection(layer)
        flat = z.flatten(1)
        dtype = getattr(getattr(projection, "weight", None), "dtype", flat.dtype)
        flat = flat.to(dtype) if dtype in DTYPES.values() else flat  # else the weights are packed
        result: Tensor = projection(flat) - projection(torch.zeros_like(flat))
        return result

    @property
    def running(self) -> ModelView:
        """The view of what runs at present: itself, or the decoder inside while that is bare."""
        return self

    @contextmanager
    def for_decoding(self, probe: Int[Tensor, "1 pos"]) -> Iterator[ModelView]:
        """Inside, the view to decode with: the quickest that gives this model's logits.

        Whatever `hooks` and `watch_tokens` of this view have put on the model acts there, too.

        Args:
            probe: Some tokens, on which logits are compared where there is a choice.
        """
        yield self

    @property
    def rows_may_move(self) -> bool:
        """Whether rows of a batch may leave, and others join, while it is decoded."""
        return False

    def new_batch(self, pads: Sequence[int], stops: Sequence[int], rows: int) -> RunningBatch:
        """A batch that is about to be decoded.

        Args:
            pads: Number of padding tokens of each row.
            stops: For each row, the column after its last possible one.
            rows: Number of rows that there may be, where `rows_may_move`; 0 for rows that keep
                their places.
        """
        return FixedBatch(self, pads, stops, self.device)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No parameter takes a gradient inside; afterwards each is as it was."""
        flags = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        try:
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    def bare(self) -> AbstractContextManager[ModelView]:
        """Inside, the plain Hugging Face decoder, with its own modules in place of all bridges.

        Raises:
            ModelError: There is none.
        """
        raise ModelError(
            f"expected a model around a Hugging Face decoder, got a {type(self.model).__name__}"
        )

    # hooks

    @abstractmethod
    def hooks(
        self,
        hooks: Sequence[Hook],
        first_query: FirstQuery = lambda: 0,
        place: Place = "in turn",
    ) -> AbstractContextManager[None]:
        """Inside, the model runs these hook functions, after those that live on it already.

        Args:
            hooks: Pairs of a hook's name, or `ARRIVAL` or `LOGITS`, and its function.
            first_query: Where patterns are computed on demand, the queries from which they are.
            place: "first" before whatever else is at a hook point now; "last" after whatever this
                package puts there, later blocks included.

        Raises:
            ModelError: A hook is at a site that this class of models does not have.
        """

    @abstractmethod
    def keys_hidden(self, seen: Seen) -> AbstractContextManager[None]:
        """Inside, queries see no keys but these, in all layers and heads.

        A key that is not seen has a score of minus infinity before the softmax.

        Args:
            seen: Of a pass with so many queries and keys, both the last ones so far, which keys
                each query may see, [row, 1, query, key].
        """

    @abstractmethod
    def only_hooks(self, hooks: Sequence[Hook]) -> AbstractContextManager[None]:
        """Inside, the model runs these hook functions and no others, whatever lives on it.

        For a forward pass inside a forward pass: hooks of the outer one (trackers, caches,
        saliency) must not take the inner one for theirs. On leaving every hook is back in its
        place. Hooks on other modules than TransformerLens's hook points, the embedding and the
        `output` stay.
        """

    @abstractmethod
    def hooks_on(self) -> list[str]:
        """Names of the hook points that carry hooks, and "embed" for a tracker.

        Hooks on other modules than TransformerLens's hook points and the embedding are not seen.
        """

    @contextmanager
    def watch_tokens(self, see: Callable[[Int[Tensor, "batch new"]], None]) -> Iterator[None]:
        """Inside, token ids are seen on their way into the embedding."""
        handle = self.embedding.register_forward_pre_hook(
            lambda _, args, kwargs: see((args or tuple(kwargs.values()))[0]), with_kwargs=True
        )
        try:
            with own_hooks([handle.id]):
                yield
        finally:
            handle.remove()

    @property
    @abstractmethod
    def output(self) -> nn.Module:
        """The module that gives the logits."""

    @contextmanager
    def _showing_logits(self, hooks: Sequence[Hook]) -> Iterator[None]:
        """Inside, functions at `LOGITS` see the logits of each forward pass."""
        handles = [
            self.output.register_forward_hook(partial(self._show_logits, see))
            for name, see in hooks
            if name == LOGITS
        ]
        try:
            with own_hooks([handle.id for handle in handles]):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _show_logits(self, see: Any, module: nn.Module, args: Any, given: Any) -> None:
        see(self._logits_of(given))

    def _logits_of(self, given: Any) -> Float[Tensor, "batch pos vocab"]:
        """The logits in what `output` gives."""
        logits: Tensor = given[0] if isinstance(given, tuple) else given.logits
        return logits

    def score_scale(self, layer: int) -> float:
        """Factor between q . k and the attention scores of a layer."""
        raise self.no_queries_and_keys(layer)

    def score_softcap(self, layer: int) -> float | None:
        """Bound of a layer's soft-capped attention scores; None where they are not capped."""
        raise self.no_queries_and_keys(layer)

    def query_key_sites(self, layer: int) -> tuple[Site, ...]:
        """Sites at which a layer shows what its scores are made of: queries, keys, rotations.

        Queries and keys after the rotary embedding; or those before it, with the cosines and sines
        of the embedding, where query, key and value are one projection and the bridge shows no
        others.

        Raises:
            ModelError: It shows neither.
        """
        raise self.no_queries_and_keys(layer)

    def no_queries_and_keys(self, layer: int) -> ModelError:
        """The error for a layer that does not show what its scores are made of."""
        return ModelError(
            f"expected a TransformerLens model, whose layer {layer} has hook points at its scores, "
            f"got a {type(self.model).__name__}"
        )

    def _no_tokenizer(self) -> str:
        return (
            "the model has no tokenizer: set model.tokenizer, load it with one, or pass tokenizer= "
            "where that is taken"
        )

    @abstractmethod
    def _given_name(self) -> str: ...

    @abstractmethod
    def _output_projection(self, layer: int) -> Any: ...
