"""Going on with a response that was begun, token for token."""

from typing import Any

import pytest
import torch

from stepflow_tl import Decoding, OddsEqualBridge, StepFlow, StepMomentum, generate, load_model
from stepflow_tl.errors import GenerationError
from stepflow_tl.tasks.word_problems import make_problem
from stepflow_tl.traces import Begun, Trace

FLOWS = [StepFlow(), StepFlow(OddsEqualBridge(layers="all"), StepMomentum(alpha=0.5, layers="all"))]


@pytest.fixture(scope="module")
def reasoner() -> Any:
    return load_model("reasoner", device="cpu")


@pytest.fixture(scope="module")
def questions() -> list[str]:
    return [make_problem(seed, seed + 1).question for seed in (1, 2, 3)]


def begun(trace: Trace, stop: int) -> Begun:
    return Begun(tuple(trace.token_ids[:stop].tolist()), trace.prompt_length)


@pytest.mark.parametrize("flow", FLOWS, ids=["plain", "under StepFlow"])
def test_greedy_goes_on_as_it_was(reasoner: Any, questions: list[str], flow: StepFlow) -> None:
    """Wherever it is cut: in a sentence, before a step, in the summary; alone and in a batch."""
    with flow.attach(reasoner):
        whole = generate(reasoner, questions, max_new_tokens=220)
        for trace in whole:
            thinking, summary = trace.steps_in("thinking"), trace.steps_in("summary")
            for stop in (trace.prompt_length, thinking[1].start, thinking[1].start + 7):
                again = generate(reasoner, begun(trace, stop), max_new_tokens=220)
                assert torch.equal(again.token_ids, trace.token_ids)
                assert again.steps == trace.steps
                assert again.prompt_length == trace.prompt_length
            late = generate(reasoner, begun(trace, summary[0].start + 3), max_new_tokens=220)
            assert torch.equal(late.token_ids, trace.token_ids) and late.answer == trace.answer
        mixed = [begun(t, t.steps_in("thinking")[1].start + n) for n, t in enumerate(whole)]
        batch = generate(reasoner, [*mixed, questions[0]], max_new_tokens=220, batch_size=3)
    for trace, again in zip([*whole, whole[0]], batch, strict=True):
        assert torch.equal(again.token_ids, trace.token_ids)
        assert again.steps == trace.steps


def test_what_is_said_of_it(reasoner: Any, questions: list[str]) -> None:
    trace = generate(reasoner, questions[0], max_new_tokens=220)
    again = generate(reasoner, begun(trace, trace.prompt_length + 5), max_new_tokens=9)
    assert len(again) == trace.prompt_length + 14
    assert again.metadata["given"] == 5
    assert again.metadata["question"] == questions[0]


def test_samples_differ_and_are_seeded(reasoner: Any, questions: list[str]) -> None:
    trace = generate(reasoner, questions[2], max_new_tokens=220)
    start = begun(trace, trace.steps_in("thinking")[1].start)
    settings = Decoding(max_new_tokens=60, temperature=1.5, seed=3)
    first = generate(reasoner, start, settings, samples=3)
    assert len({tuple(t.token_ids.tolist()) for t in first}) > 1
    again = generate(reasoner, start, settings, samples=3)
    assert all(torch.equal(a.token_ids, b.token_ids) for a, b in zip(first, again, strict=True))


def test_what_cannot_go_on(reasoner: Any, questions: list[str]) -> None:
    trace = generate(reasoner, questions[0], max_new_tokens=220)
    with pytest.raises(GenerationError, match="one whose given tokens hold its end"):
        generate(reasoner, begun(trace, len(trace)), max_new_tokens=5)
    with pytest.raises(GenerationError, match="expected a prompt of 1 to 4 tokens.* got prompt_l"):
        Begun((1, 2, 3, 4), 5)
