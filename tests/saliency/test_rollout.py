"""Attention rollout, against its formula written out on token maps."""

from typing import Any

import pytest
import torch

from stepflow_tl.errors import SettingError
from stepflow_tl.saliency import StepPooler, step_saliency, token_saliency
from stepflow_tl.traces.trace import Trace


def test_the_formula(gpt_oss: Any, trace: Trace) -> None:
    """Sinks take a share of each row: rows are divided by their sums."""
    patterns = token_saliency(gpt_oss, trace, rule="attention")
    pooler = StepPooler(trace.step_of_token, len(trace.steps), "share")
    rolled, expected = torch.eye(len(trace)), []
    for pattern in patterns:
        shares = pattern / pattern.sum(-1, keepdim=True)
        rolled = (0.5 * shares + 0.5 * torch.eye(len(trace))) @ rolled
        torch.testing.assert_close(rolled.sum(-1), torch.ones(len(trace)))
        expected.append(pooler(rolled))
    mine = step_saliency(gpt_oss, trace, rule="rollout")
    torch.testing.assert_close(mine.scores, torch.stack(expected))
    some = step_saliency(gpt_oss, trace, rule="rollout", layers=[0, 2])
    torch.testing.assert_close(some.scores, mine.scores[[0, 2]])


def test_what_means_nothing_to_it(gpt_oss: Any, trace: Trace) -> None:
    with pytest.raises(SettingError, match="objective means nothing to rule='rollout'"):
        step_saliency(gpt_oss, trace, rule="rollout", objective="sequence")
    with pytest.raises(SettingError, match="rule='rollout' scores steps, not tokens"):
        token_saliency(gpt_oss, trace, rule="rollout")
