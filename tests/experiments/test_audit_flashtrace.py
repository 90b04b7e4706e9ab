"""FlashTrace's rows of the audit, with a stand-in for the library where it is not installed."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from helpers import ROOT

from stepflow_tl.models.view import view


@pytest.fixture
def audit_flashtrace(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import audit_flashtrace

    yield audit_flashtrace
    sys.modules.pop("audit_flashtrace", None)


def stand_in(monkeypatch, prompt_tokens, length) -> None:
    """A library whose layer L brings L + 1 from each token before a span of the response."""

    class StandIn:
        def __init__(self, decoder, tokenizer) -> None:
            self.layers = decoder.config.num_hidden_layers

        def trace(self, *, prompt, target, output_span, method):
            assert method == "ifr-span"
            brought = torch.zeros(length + 3)  # longer than the text, as the library's may be
            brought[: len(prompt_tokens) + output_span[0]] = 1.0
            layers = [
                SimpleNamespace(e_attn_tokens=(layer + 1) * brought) for layer in range(self.layers)
            ]
            found = {"ifr": {"aggregate": SimpleNamespace(per_layer=layers)}}
            return SimpleNamespace(prompt_tokens=prompt_tokens, metadata=found)

    module = ModuleType("flashtrace")
    module.FlashTrace = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashtrace", module)


def test_tokens_are_summed_over_steps_in_each_layer(audit_flashtrace, monkeypatch, qwen2, trace):
    stand_in(monkeypatch, trace.token_texts[: trace.prompt_length], len(trace))
    scores = audit_flashtrace.flashtrace_scores(qwen2, trace)
    assert scores.shape == (view(qwen2).n_layers, len(trace.steps), len(trace.steps))
    response = [n for n, step in enumerate(trace.steps) if step.start >= trace.prompt_length]
    for number in range(len(trace.steps)):
        lengths = [len(step) for step in trace.steps[:number]] if number in response else []
        expected = torch.zeros(len(trace.steps))
        expected[: len(lengths)] = torch.tensor(lengths, dtype=torch.float)
        torch.testing.assert_close(scores[1, number], 2 * expected)


def test_a_trace_that_it_reads_otherwise_is_left_out(audit_flashtrace, monkeypatch, qwen2, trace):
    stand_in(monkeypatch, ["?"] * trace.prompt_length, len(trace))
    assert audit_flashtrace.flashtrace_scores(qwen2, trace) is None
