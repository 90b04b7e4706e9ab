from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from stepflow_tl import Trace, generate, load_model
from stepflow_tl.interventions import OddsEqualBridge, StepFlow
from stepflow_tl.tasks.strategies import (
    STRATEGIES,
    Attempt,
    BudgetForcing,
    ChainOfThought,
    Decoding,
    Plain,
    SelfConsistency,
    majority,
)
from stepflow_tl.tasks.word_problems import make_problem

QUESTIONS = ["Tom has 3 pens.", "He buys 4 more pens than that. What is the answer?"]
GREEDY = Decoding(max_new_tokens=8, chat=False, format="plain", batch_size=4)
SAMPLED = replace(GREEDY, temperature=1.0)
FLOW = StepFlow(OddsEqualBridge(tau_max=0.9, layers="all"))


def test_each_question_may_have_a_vote_of_its_own(model):
    strategy = SelfConsistency(k=2)
    asked = [[], []]
    (one, two) = strategy.solve(
        model,
        QUESTIONS,
        SAMPLED,
        same_answer=[lambda a, b: True, lambda a, b: False],
        read_answer=[lambda parts, seen=seen: seen.append(parts) or "x" for seen in asked],
    )
    assert [len(seen) for seen in asked] == [2, 2]
    assert (one.tied, two.tied) == (False, True)


def same(first: str, second: str) -> bool:
    return first.strip() == second.strip()


def answering(tokenizer, *answers: str | None) -> list[Trace]:
    """Traces that box these answers."""
    texts = [
        "Why?<think>So it is.</think>" + ("" if a is None else f"\\boxed{{{a}}} it is.")
        for a in answers
    ]
    return [Trace.from_text(tokenizer, f"{text} {i}") for i, text in enumerate(texts)]


def solve(strategy, model, decoding=GREEDY, questions=QUESTIONS, seed=0) -> list[Attempt]:
    return strategy.solve(model, questions, replace(decoding, seed=seed), same_answer=same)


def responses(attempts: list[Attempt]) -> list[list[int]]:
    return [a.trace.token_ids[a.trace.prompt_length :].tolist() for a in attempts]


@pytest.mark.parametrize(
    ("answers", "taken", "tied"),
    [
        (["7", "8", "7"], 0, False),
        (["8", "7", "7"], 1, False),
        (["7", "8"], 0, True),
        (["8", "7", "7", "8", "9"], 0, True),
        (["9", "8", "7", "7", "8"], 1, True),
        ([None, None, "7"], 2, False),
        ([None, "8", "7"], 1, True),
        ([None, None], 0, False),
        ([None], 0, False),
        (["7"], 0, False),
        (["8", "7", " 7 "], 1, False),
        (["", "7"], 1, False),
    ],
)
def test_the_majority_is_taken_and_ties_are_told(tokenizer, answers, taken, tied):
    traces = answering(tokenizer, *answers)
    trace, was_tied = majority(traces, same)
    assert trace is traces[taken]
    assert was_tied is tied


def test_answers_that_the_task_calls_equal_vote_together(tokenizer):
    traces = answering(tokenizer, "8", "7", "7.0")
    assert majority(traces, same) == (traces[0], True)
    assert majority(traces, lambda a, b: float(a) == float(b)) == (traces[1], False)


def test_plain_is_generate(qwen2):
    attempts = solve(Plain(), qwen2)
    traces = generate(qwen2, QUESTIONS, max_new_tokens=8, chat=False, format="plain")
    assert [attempt.trace for attempt in attempts] == traces
    assert all(attempt.traces == (attempt.trace,) for attempt in attempts)
    assert [attempt.tokens for attempt in attempts] == [8, 8]
    assert not any(attempt.tied for attempt in attempts)
    assert attempts[0].seconds == attempts[1].seconds > 0


def test_chain_of_thought_is_a_prompt(qwen2):
    attempts = solve(ChainOfThought(prompt="Go on."), qwen2)
    asked = [attempt.trace.metadata["question"] for attempt in attempts]
    assert asked == [f"{question} Go on." for question in QUESTIONS]
    assert responses(attempts) == responses(solve(Plain(), qwen2, questions=asked))


def test_self_consistency_counts_all_its_tokens(qwen2):
    strategy = SelfConsistency(k=3, temperature=1.0)
    attempts = solve(strategy, qwen2)
    assert [len(attempt.traces) for attempt in attempts] == [3, 3]
    for attempt in attempts:
        sizes = [len(trace) - trace.prompt_length for trace in attempt.traces]
        assert attempt.tokens == sum(sizes) > max(sizes)
        assert len({tuple(trace.token_ids.tolist()) for trace in attempt.traces}) == 3
    plain = generate(
        qwen2, QUESTIONS, samples=3, temperature=1.0, max_new_tokens=8, chat=False, format="plain"
    )
    assert [trace for attempt in attempts for trace in attempt.traces] == plain


def test_more_votes_than_a_batch_holds(qwen2):
    small, large = (
        solve(SelfConsistency(k=7), qwen2, replace(SAMPLED, batch_size=size), seed=3)
        for size in (2, 50)
    )
    assert [a.traces for a in small] == [a.traces for a in large]


def test_its_own_temperature_stands_above_the_decodings(qwen2):
    own = solve(SelfConsistency(k=2, temperature=0.5, top_p=0.9), qwen2, SAMPLED)
    assert own[0].trace.metadata["temperature"] == 0.5
    assert own[0].trace.metadata["top_p"] == 0.9
    given = solve(SelfConsistency(k=2), qwen2, replace(SAMPLED, top_p=0.8))
    assert given[0].trace.metadata["temperature"] == 1.0
    assert given[0].trace.metadata["top_p"] == 0.8


@pytest.mark.parametrize(
    "strategy", [Plain(), ChainOfThought(), SelfConsistency(k=2, temperature=1.0)]
)
def test_each_works_under_a_stepflow(qwen2, strategy):
    plain = solve(strategy, qwen2)
    with FLOW.attach(qwen2) as run:
        repaired = solve(strategy, qwen2)
    assert run.actions > 0
    assert responses(repaired) != responses(plain)
    assert responses(solve(strategy, qwen2)) == responses(plain)


def test_a_budget_under_a_stepflow():
    model = load_model("reasoner")
    decoding, strategy = Decoding(max_new_tokens=30), BudgetForcing(most=10)
    asked = [make_problem(1, 1).question]
    with StepFlow(OddsEqualBridge(tau_max=0.9, layers="all")).attach(model) as run:
        (attempt,) = solve(strategy, model, decoding, asked)
    assert run.actions > 0
    (close,) = model.tokenizer("</think>", add_special_tokens=False)["input_ids"]
    ids = attempt.trace.token_ids[attempt.trace.prompt_length :].tolist()
    assert close in ids[10:13] and close not in ids[:10]
    assert attempt.tokens == len(ids)
    (plain,) = solve(strategy, model, decoding, asked)
    assert responses([plain]) != responses([attempt])


def test_seeds_matter_where_it_draws(qwen2):
    strategies = [Plain(), ChainOfThought(), BudgetForcing(most=3), SelfConsistency(k=2)]
    assert [strategy.draws(GREEDY) for strategy in strategies] == [False, False, False, True]
    assert all(strategy.draws(SAMPLED) for strategy in strategies)
    first, again, other = (solve(Plain(), qwen2, SAMPLED, seed=s) for s in (1, 1, 2))
    assert responses(first) == responses(again) != responses(other)


def test_labels_name_what_is_not_the_default():
    assert [
        Plain().label,
        ChainOfThought().label,
        ChainOfThought(prompt="Go.").label,
        SelfConsistency(k=4).label,
        SelfConsistency(k=4, temperature=0.7).label,
        BudgetForcing(least=10, most=20).label,
    ] == [
        "plain",
        "chain_of_thought",
        "chain_of_thought(prompt=Go.)",
        "self_consistency(k=4)",
        "self_consistency(k=4, temperature=0.7)",
        "budget_forcing(least=10, most=20)",
    ]
    assert list(STRATEGIES) == ["plain", "chain_of_thought", "self_consistency", "budget_forcing"]
    assert SelfConsistency(k=4).traces_per_answer == 4


def test_whole_numbers_are_the_same_settings(unchecked):
    assert repr(Decoding(temperature=1, top_p=1)) == repr(Decoding(temperature=1.0, top_p=1.0))
    own = SelfConsistency(k=2, temperature=1, top_p=1)
    assert own.label == SelfConsistency(k=2, temperature=1.0, top_p=1.0).label


def test_strategies_are_frozen():
    with pytest.raises(FrozenInstanceError):
        SelfConsistency(k=2).k = 3
    assert hash(Decoding()) == hash(Decoding())


def test_what_solve_refuses_is_refused_before(qwen2):
    for refuse in (SelfConsistency(k=2).check, lambda d: solve(SelfConsistency(k=2), qwen2, d)):
        with pytest.raises(ValueError, match=r"expected SelfConsistency\(temperature=...\) or"):
            refuse(GREEDY)
    SelfConsistency(k=2).check(SAMPLED)
    SelfConsistency(k=2, temperature=1.0).check(GREEDY)
    forcing = BudgetForcing(most=3)
    forcing.check(GREEDY)
    with pytest.raises(ValueError, match="format 'plain' has none"):
        forcing.check(GREEDY, qwen2)
    with pytest.raises(ValueError, match="format 'plain' has none"):
        solve(forcing, qwen2)
    forcing.check(replace(GREEDY, format="think"), qwen2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelfConsistency(k=0), "k >= 1, got 0"),
        (lambda: SelfConsistency(k=2, temperature=0.0), "temperature > 0, got 0.0"),
        (lambda: SelfConsistency(k=2, temperature=float("nan")), "temperature > 0, got nan"),
        (lambda: SelfConsistency(k=2, temperature=float("inf")), "temperature >= 0, got inf"),
        (lambda: SelfConsistency(k=2, top_p=1.5), r"top_p in \(0, 1\], got 1.5"),
        (lambda: BudgetForcing(), "expected least >= 1 or most, got neither"),
        (lambda: BudgetForcing(wait="Hm"), "got neither"),
        (lambda: BudgetForcing(least=3, most=2), "got least=3, most=2"),
        (lambda: BudgetForcing(most=3, wait=""), "wait to be some text"),
        (lambda: Decoding(max_new_tokens=0), "expected max_new_tokens >= 1, got 0"),
        (lambda: Decoding(batch_size=0), "expected batch_size >= 1, got 0"),
        (lambda: Decoding(temperature=-1.0), "temperature >= 0, got -1"),
        (lambda: Decoding(temperature=float("nan")), "temperature >= 0, got nan"),
        (lambda: Decoding(top_p=0.0), r"top_p in \(0, 1\], got 0"),
        (lambda: Decoding(format="magic"), "unknown format 'magic': expected 'auto', one of"),
    ],
)
def test_bad_settings_are_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_forward_passes_are_tokens(qwen2):
    """Each token of a trace is one forward pass of its sequence, the first the prompt's own."""
    passes = []
    handle = qwen2.embed.register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0].shape))
    try:
        (attempt,) = solve(SelfConsistency(k=1, temperature=1.0), qwen2, questions=QUESTIONS[:1])
    finally:
        handle.remove()
    assert attempt.tokens == len(passes)
    assert passes[1:] == [torch.Size([1, 1])] * (len(passes) - 1)
