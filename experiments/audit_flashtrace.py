"""FlashTrace's information flow routes as maps of our traces, where it is installed.

    pip install flashtrace    # 0.1.1; brings spacy and wordfreq

Each step of a response is its output span, once; what it says of each layer's attention, token by
token, is summed over steps. It tokenizes texts itself, and so traces that it would read as other
tokens are left out. AT2, the other rule of that kind, scores with weights that are trained for one
model and published for none of ours.
"""

from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl import Trace
from stepflow_tl.models.view import view

NAME = "FlashTrace"


def installed() -> bool:
    """Whether its rows can be computed here."""
    return find_spec("flashtrace") is not None


def flashtrace_scores(
    model: Any, trace: Trace
) -> Float[Tensor, "layer query_step key_step"] | None:
    """The map of a trace; rows of the question are zero. None where it reads other tokens."""
    from flashtrace import FlashTrace

    decoder, tokenizer = view(model).decoder, view(model).tokenizer
    assert decoder is not None
    start = trace.prompt_length
    prompt, response = (
        tokenizer.decode(part) for part in (trace.token_ids[:start], trace.token_ids[start:])
    )
    tracer = FlashTrace(decoder, tokenizer)
    on_steps = torch.zeros(len(trace), len(trace.steps))
    for number, step in enumerate(trace.steps):
        on_steps[step.start : step.stop, number] = 1.0
    scores = torch.zeros(view(model).n_layers, len(trace.steps), len(trace.steps))
    with view(model).bare():
        for number, step in enumerate(trace.steps):
            if step.start < start:
                continue
            span = (step.start - start, step.stop - 1 - start)
            found = tracer.trace(
                prompt=prompt, target=response, output_span=span, method="ifr-span"
            )
            if list(found.prompt_tokens) != list(trace.token_texts[:start]):
                return None
            for layer, one in enumerate(found.metadata["ifr"]["aggregate"].per_layer):
                scores[layer, number] = one.e_attn_tokens[: len(trace)].float().cpu() @ on_steps
    return scores.tril()
