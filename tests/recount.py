"""The ledger of the Odds-Equal Bridge, counted by hand on the patterns of a plain run."""

from typing import Any

import torch
from torch import Tensor

from stepflow_tl.models.sites import hook_name
from stepflow_tl.traces.trace import Trace


def plain_pattern(model: Any, trace: Trace, layer: int) -> Tensor:
    """A layer's pattern [head, query, key] without interventions."""
    seen: list[Tensor] = []
    look = [(hook_name("pattern", layer), lambda x, hook: seen.append(x[0].clone()))]
    with torch.no_grad():
        model.run_with_hooks(trace.tokens, fwd_hooks=look)
    return seen[0].double()


def counted(pattern: Tensor, trace: Trace, window: int | None, tau_max: float) -> tuple[int, float]:
    """Rows below their target, and the mean share of the bridge, by paper Eq. (6), row by row."""
    segments, changed, shares = trace.segment_of_token, 0, []
    for t in range(trace.thinking.start, len(trace)):
        first = 0 if window is None else max(0, t - window + 1)
        keys = torch.arange(first, t + 1)
        bridge = keys[segments[keys] == segments[t] - 1]
        current = keys[segments[keys] == segments[t]]
        tau = min((len(bridge) / (len(bridge) + len(current))) ** 0.5, tau_max)
        for row in pattern[:, t]:
            on_bridge = float(row[bridge].sum() / row.sum())
            available = on_bridge + float(row[current].sum() / row.sum())
            shares.append(on_bridge)
            changed += len(bridge) > 0 and on_bridge < min(tau, available - 1e-6)
    return changed, sum(shares) / len(shares)
