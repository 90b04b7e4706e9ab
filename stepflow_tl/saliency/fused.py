"""Step-Saliency inside the attention of a Hugging Face decoder: no pattern is ever kept.

An attention function of our own runs in every layer: forward it is fused attention that keeps each
row's log-sum-exp; backward it goes over the layer in tiles, and has every score at hand on its way
(`stepflow_tl.saliency.tiles`). The graph begins at the lowest layer that is asked for, and logits
are made a few rows at a time.

For the objective "token" (and "logit", "margin") rows are independent given the keys and values of
earlier tokens: the trace is run in chunks of queries against a store of keys and values without
gradients, with one chunk's graph alive at a time. For one loss the trace is run whole;
`checkpointing` keeps only each layer's input, and runs the layer again in the backward pass.
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

from stepflow_tl.models.base import ModelView
from stepflow_tl.models.decoder import attention_function, decoder_layers, text_config
from stepflow_tl.saliency.attention import KeyValues, ScoringAttention
from stepflow_tl.saliency.collect import Collector
from stepflow_tl.saliency.plan import Plan
from stepflow_tl.saliency.rules import needs_gradient, objective_gradient
from stepflow_tl.saliency.tiles import Keys, Values
from stepflow_tl.traces.trace import Trace

_LOGITS_AT_ONCE = 1 << 24


def fused_scores(
    view: ModelView,
    trace: Trace,
    plan: Plan,
    collector: Collector,
    *,
    scored: Callable[[int, range], None] = lambda layer, queries: None,
) -> None:
    """Score a trace whole, for one loss: one forward and one backward pass.

    Args:
        view: A Hugging Face decoder, or a bridge around one.
        trace: The trace.
        plan: How it is scored; its objective is one loss.
        collector: Where scores go.
        scored: Told each layer whose scores are complete.
    """
    attention = ScoringAttention(view, plan.rule, collector, scored)
    with _decoder(view, attention, plan.checkpointing) as run:
        hidden = run(trace.token_ids, range(len(trace)))
        _backward(view, hidden, trace, range(len(trace)), plan)


def streamed_scores(
    view: ModelView,
    trace: Trace,
    plan: Plan,
    collector: Collector | None,
    *,
    scored: Callable[[int, range], None] = lambda layer, queries: None,
    stored: Iterable[Sequence[tuple[Keys, Values]]] = (),
    chunk_done: Callable[[range, Sequence[KeyValues]], None] = lambda queries, stores: None,
    next_query: int = 0,
) -> None:
    """Score a trace by each row's own objective (or without gradient), in chunks of queries.

    Args:
        view: A Hugging Face decoder, or a bridge around one.
        trace: The trace.
        plan: How it is scored.
        collector: Where scores go; None to keep keys and values alone.
        scored: Told each layer whose scores of the present chunk are complete.
        stored: Keys and values of each layer in the chunks before `next_query`.
        chunk_done: Told each chunk that is complete, and the keys and values of all layers.
        next_query: Chunks before this query are not run.
    """
    stores = [KeyValues(view.attention_window(layer), len(trace)) for layer in range(view.n_layers)]
    for chunk in stored:
        for store, (keys, values) in zip(stores, chunk, strict=True):
            store.append(keys, values)
    attention = ScoringAttention(view, plan.rule, collector, scored, stores)
    with _decoder(view, attention) as run:
        for queries in plan.chunks:
            if queries.start < next_query:
                continue
            hidden = run(trace.token_ids, queries)
            if plan.needs_gradient:
                _backward(view, hidden, trace, queries, plan)
            chunk_done(queries, stores)


def fused_states(view: ModelView, tokens: Int[Tensor, "1 pos"]) -> Float[Tensor, "1 pos d_model"]:
    """Last hidden states of the model with fused attention, without a gradient."""
    with _decoder(view, ScoringAttention(view, "attention", None)) as run:
        return run(tokens[0], range(tokens.shape[1]))


def fused_logits(view: ModelView, tokens: Int[Tensor, "1 pos"]) -> Float[Tensor, "1 pos vocab"]:
    """Logits of the model with fused attention, to be compared with its own."""
    with torch.inference_mode(False), torch.no_grad():
        return _unembedding(view)(fused_states(view, tokens))


def _unembedding(view: ModelView) -> Callable[[Tensor], Tensor]:
    decoder: Any = view.decoder
    unembed: Callable[[Tensor], Tensor] = decoder.get_output_embeddings()
    return unembed


def _backward(
    view: ModelView,
    hidden: Float[Tensor, "1 query d_model"],
    trace: Trace,
    queries: range,
    plan: Plan,
) -> None:
    """Backward pass from the last hidden states of some queries."""
    vocabulary = int(text_config(view.decoder).vocab_size)
    rows = slice(queries.start, queries.stop)
    gradient = objective_gradient(
        hidden.detach()[0],
        _unembedding(view),
        trace.token_ids.roll(-1)[rows],
        plan.weights[rows],
        rows_at_once=max(16, _LOGITS_AT_ONCE // vocabulary),
        objective=plan.objective,
    )
    torch.autograd.backward(hidden, gradient[None])


@contextmanager
def _decoder(
    view: ModelView, attention: ScoringAttention, checkpointing: bool = False
) -> Iterator[Callable[[Tensor, range], Tensor]]:
    """The decoder with our attention in it: from some queries to their last hidden states."""
    model: Any = view.decoder
    decoder, device = model.get_decoder(), view.device
    graph = needs_gradient(attention.rule)

    def run(token_ids: Int[Tensor, "pos"], queries: range) -> Float[Tensor, "1 query d_model"]:
        attention.queries = queries
        hidden: Tensor = decoder(
            input_ids=token_ids[None, queries.start : queries.stop].to(device, copy=True),
            position_ids=torch.arange(queries.start, queries.stop, device=device)[None],
            use_cache=False,
        ).last_hidden_state
        return hidden

    layers = decoder_layers(model)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(graph))
        stack.enter_context(view.frozen())
        stack.enter_context(view.bare())
        stack.enter_context(attention_function(model, attention))
        if graph:
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
