"""Measures inseq on the same checkpoint and tokens; run by the Python of inseq's own environment.

inseq attributes target tokens one at a time: for each it runs the model over all tokens before it.
"saliency" keeps the gradient at each earlier token's input embedding, in all dimensions;
"attention" the attention on it in every layer and head, without a gradient. No score is a product
of attention and gradient, and none is pooled into steps. Only the last `--targets` tokens are
attributed, whose prefixes are the longest.
"""

from __future__ import annotations

import logging
from typing import Any

import inseq
import torch
from saliency_cost.measure import measured, report
from saliency_cost.peers import peer_options
from saliency_cost.workload import WARM_UP, load_huggingface, load_words, text_of, token_ids


def main() -> None:
    """Print one measurement as a JSON line."""
    options = peer_options()
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    words = load_words(options.checkpoint)
    model = load_huggingface(options.checkpoint, "eager")  # inseq's own choice
    for role in ("bos", "eos", "pad"):  # inseq wants all three; the trace holds none
        words.add_special_tokens({f"{role}_token": "w0"})
        setattr(model.config, f"{role}_token_id", 0)
    attributed = inseq.load_model(model, options.variant, tokenizer=words, device="cpu")
    _attribute(attributed, token_ids(WARM_UP, model.config.vocab_size), 1)
    ids = token_ids(options.tokens, model.config.vocab_size)
    facts = measured(lambda: _attribute(attributed, ids, options.targets))
    report({**facts, "targets": options.targets}, ("torch", "transformers", "inseq"))


def _attribute(model: Any, ids: list[int], targets: int) -> None:
    """Attribute the last tokens, each to all tokens before it."""
    out = model.attribute(
        text_of(ids[:-targets]), text_of(ids), show_progress=False, pretty_progress=False
    )
    made = out.sequence_attributions[0].target_attributions.shape
    if made[:2] != (len(ids), targets):
        raise RuntimeError(f"expected scores of {len(ids)} x {targets} tokens, got {list(made)}")


if __name__ == "__main__":
    main()
