"""Measures flashtrace on the same checkpoint and tokens; run by its own environment's Python.

flashtrace follows information flow routes: how near each token's attention output lies to the sum
it enters, from one forward pass, without a gradient. It explains the generated tokens by all tokens
before them with ONE score per token (a vector over the trace, after one hop through the thinking),
not a map of steps against steps. "kept" holds the attention of all layers, its default;
"recomputed" computes one layer's at a time again, its option for less memory.
"""

from __future__ import annotations

from typing import Any

import torch
from flashtrace import FlashTrace
from saliency_cost.measure import measured, report
from saliency_cost.peers import peer_options
from saliency_cost.workload import (
    WARM_UP,
    Spans,
    load_huggingface,
    load_words,
    text_of,
    token_ids,
)


def main() -> None:
    """Print one measurement as a JSON line."""
    options = peer_options()
    torch.set_num_threads(options.threads)
    recompute = options.variant == "recomputed"
    model = load_huggingface(options.checkpoint, "sdpa" if recompute else "eager")
    tracer = FlashTrace(model, load_words(options.checkpoint), recompute_attention=recompute)
    _trace(tracer, token_ids(WARM_UP, model.config.vocab_size))
    ids = token_ids(options.tokens, model.config.vocab_size)
    report(measured(lambda: _trace(tracer, ids)), ("torch", "transformers", "flashtrace"))


def _trace(tracer: Any, ids: list[int]) -> None:
    """Explain the summary, through the thinking."""
    spans = Spans.of(len(ids))
    start = spans.question[1]
    result = tracer.trace(
        prompt=text_of(ids[:start]),
        target=text_of(ids[start:]),
        reasoning_span=(0, spans.thinking[1] - 1 - start),
        output_span=(spans.summary[0] - start, spans.summary[1] - 1 - start),
        hops=1,
    )
    made = len(result.prompt_tokens) + len(result.generation_tokens)
    if made != len(ids):
        raise RuntimeError(f"expected {len(ids)} tokens, flashtrace read {made}")


if __name__ == "__main__":
    main()
