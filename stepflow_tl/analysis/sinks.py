"""Attention sinks: how much of a response's attention goes to tokens that say nothing."""

from __future__ import annotations

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl.errors import StepMapError
from stepflow_tl.traces.tokens import FRAME
from stepflow_tl.traces.trace import Trace

SHARES = ("first_token", "frame", "question", "thinking", "summary")
"""Where attention goes; of a row they sum to one."""


def sink_shares(attention: Float[Tensor, "layer query key"], trace: Trace) -> pd.DataFrame:
    """Mean shares of the attention of a response's tokens, a row per layer.

    ``first_token`` is the sink of most models; ``frame`` all other tokens of no step: chat
    template, delimiters, end token; ``question``, ``thinking`` and ``summary`` the steps. A row of
    the pattern is divided by its sum, which attention sinks (GPT-OSS) take below one.

    Args:
        attention: The patterns, averaged over heads: ``token_saliency(model, trace,
            rule="attention")``.
        trace: Their trace; its tokens after the prompt are the queries.

    Raises:
        StepMapError: The patterns are of another trace, or it has no response.
    """
    size = len(trace)
    if attention.shape[1:] != (size, size):
        raise StepMapError(
            f"expected patterns of the trace's {size} tokens, got {list(attention.shape)}"
        )
    if trace.prompt_length >= size:
        raise StepMapError(f"expected a response after the {size} tokens of the prompt, got none")
    rows = attention[:, trace.prompt_length :].double()
    rows = rows / rows.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    kind = torch.where(trace.step_of_token == FRAME, 1, trace.segment_of_token + 2)
    kind[0] = 0
    shares = {
        name: rows[..., kind == number].sum(-1).mean(-1).tolist()
        for number, name in enumerate(SHARES)
    }
    return pd.DataFrame({"layer": range(len(rows)), **shares})
