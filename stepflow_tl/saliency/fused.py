"""Step-Saliency inside the attention of a Hugging Face decoder: no pattern is ever kept.

An attention function of our own runs in every layer: forward it is fused attention that keeps each
row's log-sum-exp; backward it goes over the layer in tiles, and has every score at hand on its way
(`stepflow_tl.saliency.tiles`). The graph begins at the lowest layer that is asked for, and logits
are made a few rows at a time.

For the objective "token" rows are independent given the keys and values of earlier tokens: the
trace is run in chunks of queries against a store of keys and values without gradients, with one
chunk's graph alive at a time. For one loss the trace is run whole; `checkpointing` keeps only each
layer's input, and runs the layer again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stepflow_tl.models.huggingface import (
    attention_function,
    decoder_layers,
    huggingface_model,
    original_attention,
    text_config,
)
from stepflow_tl.models.view import attention_window, input_device, n_layers
from stepflow_tl.saliency.attention import KeyValues, ScoringAttention
from stepflow_tl.saliency.collect import Collector
from stepflow_tl.saliency.hooked import frozen
from stepflow_tl.saliency.rules import Objective, TokenRule, loss_gradient, objective_weights
from stepflow_tl.saliency.tiles import Keys, Values
from stepflow_tl.traces.trace import Trace

_LOGITS_AT_ONCE = 1 << 24


def fused_scores(
    model: Any,
    trace: Trace,
    *,
    rule: TokenRule,
    objective: Objective,
    collector: Collector,
    checkpointing: bool = False,
    scored: Callable[[int, range], None] = lambda layer, queries: None,
) -> None:
    """Score a trace whole, for one loss: one forward and one backward pass.

    Args:
        model: A Hugging Face decoder, or a bridge around one.
        trace: The trace.
        rule: How A and G give a score.
        objective: The loss; not "token".
        collector: Where scores go.
        checkpointing: Keep each layer's input alone, and run the layer again backwards.
        scored: Told each layer whose scores are complete.
    """
    attention = ScoringAttention(model, rule, collector, scored)
    with _decoder(model, attention, checkpointing) as run:
        hidden = run(trace.token_ids, range(len(trace)))
        weights = objective_weights(trace, objective) * collector.gain
        _backward(model, hidden, trace, range(len(trace)), weights)


def streamed_scores(
    model: Any,
    trace: Trace,
    *,
    rule: TokenRule,
    collector: Collector,
    chunks: Iterable[range],
    scored: Callable[[int, range], None] = lambda layer, queries: None,
    stored: Iterable[Sequence[tuple[Keys, Values]]] = (),
    chunk_done: Callable[[range, Sequence[KeyValues]], None] = lambda queries, stores: None,
) -> None:
    """Score a trace by each row's own loss (or by attention alone), in chunks of queries.

    Args:
        model: A Hugging Face decoder, or a bridge around one.
        trace: The trace.
        rule: How A and G give a score.
        collector: Where scores go.
        chunks: The queries of each chunk, without a gap, up to the last position.
        scored: Told each layer whose scores of the present chunk are complete.
        stored: Keys and values of each layer in the chunks before the first of `chunks`.
        chunk_done: Told each chunk that is complete, and the keys and values of all layers.
    """
    weights = objective_weights(trace, "token") * collector.gain
    stores = [
        KeyValues(attention_window(model, layer), len(trace)) for layer in range(n_layers(model))
    ]
    for chunk in stored:
        for store, (keys, values) in zip(stores, chunk, strict=True):
            store.append(keys, values)
    attention = ScoringAttention(model, rule, collector, scored, stores)
    with _decoder(model, attention) as run:
        for queries in chunks:
            hidden = run(trace.token_ids, queries)
            if rule != "attention":
                _backward(model, hidden, trace, queries, weights)
            chunk_done(queries, stores)


def fused_states(model: Any, tokens: Int[Tensor, "1 pos"]) -> Float[Tensor, "1 pos d_model"]:
    """Last hidden states of the model with fused attention, without a gradient."""
    with _decoder(model, ScoringAttention(model, "attention", None)) as run:
        return run(tokens[0], range(tokens.shape[1]))


def fused_logits(model: Any, tokens: Int[Tensor, "1 pos"]) -> Float[Tensor, "1 pos vocab"]:
    """Logits of the model with fused attention, to be compared with its own."""
    with torch.inference_mode(False), torch.no_grad():
        return _unembedding(model)(fused_states(model, tokens))


def _unembedding(model: Any) -> Callable[[Tensor], Tensor]:
    original: Any = huggingface_model(model)
    unembed: Callable[[Tensor], Tensor] = original.get_output_embeddings()
    return unembed


def _backward(
    model: Any,
    hidden: Float[Tensor, "1 query d_model"],
    trace: Trace,
    queries: range,
    weights: Float[Tensor, "pos"],
) -> None:
    """Backward pass from the last hidden states of some queries."""
    vocabulary = int(text_config(huggingface_model(model)).vocab_size)
    rows = slice(queries.start, queries.stop)
    gradient = loss_gradient(
        hidden.detach()[0],
        _unembedding(model),
        trace.token_ids.roll(-1)[rows],
        weights[rows],
        rows_at_once=max(16, _LOGITS_AT_ONCE // vocabulary),
    )
    torch.autograd.backward(hidden, gradient[None])


@contextmanager
def _decoder(
    model: Any, attention: ScoringAttention, checkpointing: bool = False
) -> Iterator[Callable[[Tensor, range], Tensor]]:
    """The decoder with our attention in it: from some queries to their last hidden states."""
    original: Any = huggingface_model(model)
    decoder = original.get_decoder()
    device = input_device(model)
    needs_gradient = attention.rule != "attention"

    def run(token_ids: Int[Tensor, "pos"], queries: range) -> Float[Tensor, "1 query d_model"]:
        attention.queries = queries
        hidden: Tensor = decoder(
            input_ids=token_ids[None, queries.start : queries.stop].to(device, copy=True),
            position_ids=torch.arange(queries.start, queries.stop, device=device)[None],
            use_cache=False,
        ).last_hidden_state
        return hidden

    layers = decoder_layers(original)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(needs_gradient))
        stack.enter_context(frozen(model))
        stack.enter_context(original_attention(model))
        stack.enter_context(attention_function(original, attention))
        if needs_gradient:
            stack.enter_context(_graph_from(layers[attention.lowest]))
        if checkpointing:
            stack.enter_context(_checkpointed(layers[attention.lowest :]))
        yield run


@contextmanager
def _graph_from(layer: nn.Module) -> Iterator[None]:
    """Inside, the graph begins at what enters this decoder layer."""

    def start(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (args[0].detach().requires_grad_(), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach().requires_grad_()}

    handle = layer.register_forward_pre_hook(start, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _checkpointed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, these layers keep their input alone, and run again in the backward pass."""
    before = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = partial(
                checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
            )
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            layer.__dict__.pop("forward", None)
            if forward is not None:
                layer.forward = forward
