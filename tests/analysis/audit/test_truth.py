"""Truths: a word problem's own graph, other people's labels."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from stepflow_tl.analysis.audit import (
    dependencies,
    impact_truth,
    knock_out,
    knock_out_truth,
    labeled_dependencies,
    with_premises,
)
from stepflow_tl.errors import StepMapError
from stepflow_tl.models import load_tokenizer
from stepflow_tl.tasks.word_problems import Problem, grade, make_problem
from stepflow_tl.traces.trace import Trace


@pytest.fixture(scope="module")
def tokenizer_of_reasoner() -> Any:
    return load_tokenizer("reasoner")


def solved(tokenizer: Any, problem: Problem, response: str | None = None) -> Trace:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": problem.question}], tokenize=False, add_generation_prompt=True
    )
    said = problem.response if response is None else response
    return Trace.from_text(tokenizer, prompt + said, prompt=prompt)


@pytest.mark.parametrize("seed", range(4))
def test_the_graph_of_a_problem(tokenizer_of_reasoner: Any, seed: int) -> None:
    problem = make_problem(seed, 4)
    plain = solved(tokenizer_of_reasoner, problem)
    trace = with_premises(plain, problem)
    texts = [step.text for step in trace.steps]
    count = len(problem.premises)
    assert texts[1 : count + 1] == [premise.text for premise in problem.premises]
    assert [step.index for step in trace.steps] == list(range(len(trace.steps)))
    on = plain.step_of_token >= 0
    assert torch.equal(trace.step_of_token >= 0, on)
    truths = dependencies(trace, problem, grade(problem, trace.response))
    thinking = trace.steps_in("thinking")
    for step, solution in zip(thinking, problem.solution, strict=True):
        row = truths["premise"].values[step.index].nonzero()[:, 0].tolist()
        assert row == [1 + solution.premise]
        assert truths["premise"].known[step.index].sum() == count
        used = truths["earlier step"].values[step.index].nonzero()[:, 0].tolist()
        assert used == sorted(thinking[other].index for other in solution.uses)


def test_from_an_error_on_nothing_is_known(tokenizer_of_reasoner: Any) -> None:
    problem = make_problem(1, 4)
    sentences = [step.text for step in problem.solution]
    sentences[2] = sentences[2].replace(" for ", " for Not")
    wrong = problem.response.replace(problem.thinking, " ".join(sentences))
    trace = with_premises(solved(tokenizer_of_reasoner, problem, wrong), problem)
    verdict = grade(problem, trace.response)
    assert verdict.error_step == 2
    truth = dependencies(trace, problem, verdict)["premise"]
    known = truth.known.any(-1).nonzero()[:, 0].tolist()
    assert known == [step.index for step in trace.steps_in("thinking")[:2]]


def test_another_problem_is_refused(tokenizer_of_reasoner: Any) -> None:
    trace = solved(tokenizer_of_reasoner, make_problem(1, 4))
    with pytest.raises(StepMapError, match="expected a trace of the problem"):
        with_premises(trace, make_problem(2, 4))


def test_labels_of_others(trace: Trace) -> None:
    """Their numbers are not the trace's: here one less."""
    labels = [{}] * 1 + [
        {"chunk_idx": n, "depends_on": depends}
        for n, depends in enumerate([[], ["0"], ["0", "1", "7", "x"], ["3"]])
    ]
    steps = tuple(
        replace(step, labels=labels[step.index] if step.index < len(labels) else {})
        for step in trace.steps
    )
    truth = labeled_dependencies(replace(trace, steps=steps))
    assert truth.values.nonzero().tolist() == [[2, 1], [3, 1], [3, 2]]
    assert truth.known.nonzero().tolist() == [[2, 1], [3, 1], [3, 2], [4, 1], [4, 2], [4, 3]]
    with pytest.raises(StepMapError, match="labels chunk_idx and depends_on, got none"):
        labeled_dependencies(trace)
    impacts = [
        {
            "source_chunk_idx": 0,
            "target_impacts": [
                {"target_chunk_idx": 2, "importance_score": 0.5},
                {"target_chunk_idx": 3, "importance_score": None},
                {"target_chunk_idx": 99, "importance_score": 1.0},
            ],
        }
    ]
    theirs = impact_truth(replace(trace, steps=steps), impacts)
    assert theirs.known.nonzero().tolist() == [[3, 1]]
    assert theirs.values[3, 1] == 0.5
    with pytest.raises(StepMapError, match="impacts of the trace's own steps, got none"):
        impact_truth(trace, impacts)


def test_knock_out_as_a_truth(qwen2: Any, trace: Trace) -> None:
    truth = knock_out_truth(knock_out(qwen2, trace))
    count = len(trace.steps)
    assert truth.known.sum() == count * (count - 1) / 2
    alone = knock_out_truth(knock_out(qwen2, trace), question=False)
    assert not alone.known[:, 0].any()


def test_labels_of_any_shape(trace: Trace) -> None:
    """One number in place of a list, and what is none at all."""
    labels = [{"chunk_idx": n} for n in range(len(trace.steps))]
    labels[0]["chunk_idx"] = None
    labels[3]["depends_on"] = "1"
    labels[4]["depends_on"] = ["--3", None, "2", 99]
    steps = tuple(replace(s, labels=x) for s, x in zip(trace.steps, labels, strict=True))
    known = labeled_dependencies(replace(trace, steps=steps))
    assert known.values.nonzero().tolist() == [[3, 1], [4, 2]]
    impacts = [{"source_chunk_idx": 1, "target_impacts": [{"target_chunk_idx": 3}]}, {}]
    with pytest.raises(StepMapError, match="got none"):
        impact_truth(replace(trace, steps=steps), impacts)
