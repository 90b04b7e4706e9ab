"""Conditions are decided once for each step, from what is over, and alike however it is run."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import cached, hooks_of, run_in_parts
from transformers import AutoModelForCausalLM

from stepflow_tl import Decoding, generate, load_model, step_saliency
from stepflow_tl.analysis import token_divergence
from stepflow_tl.analysis.teacher import divergence
from stepflow_tl.errors import InterventionWarning, SettingError, WrongTypeError
from stepflow_tl.interventions import OddsEqualBridge, PlantedLockIn, StepFlow, StepMomentum
from stepflow_tl.models.view import view
from stepflow_tl.monitor import (
    Monitor,
    When,
    chance,
    condition_of,
    measure,
    previous_step,
    step,
)
from stepflow_tl.reasoner import WEIGHTS
from stepflow_tl.tasks.word_problems import make_problem
from stepflow_tl.traces.trace import Trace
from stepflow_tl.views import Reading

QUESTIONS = [make_problem(n, difficulty).question for n, difficulty in enumerate((3, 6, 2))]
LOCKED = measure("lock_in", layers=(3, 4, 5)).above(0.45)


def bridge(when: When | None) -> OddsEqualBridge:
    return OddsEqualBridge(tau_max=0.4, layers=(3, 4, 5), when=when)


@pytest.fixture(scope="module")
def reasoner() -> Any:
    return load_model("reasoner", device="cpu")


@pytest.fixture(scope="module")
def decoded(reasoner: Any) -> tuple[Trace, Any]:
    """A trace that was decoded under a condition that opens and closes, and its run."""
    with StepFlow(bridge(LOCKED)).attach(reasoner) as run:
        trace = generate(reasoner, QUESTIONS[1], Decoding(max_new_tokens=250))
    said = run.decisions.table()["open"]
    assert 0 < said.sum() < len(said)
    return trace, run


def opened(table: pd.DataFrame) -> dict[int, bool]:
    return dict(zip(table["step"], table["open"], strict=True))


def test_a_decision_rests_on_the_step_before(reasoner: Any, decoded: tuple[Trace, Any]) -> None:
    trace, run = decoded
    watch = Monitor(measures="lock_in", layers=(3, 4, 5), before=True)
    flow = StepFlow(bridge(LOCKED))
    with watch.attach(reasoner, trace=trace) as seen, flow.attach(reasoner):
        cached(reasoner, trace.tokens[:, :-1], [trace.prompt_length])
    scores = seen.table(0).groupby("step")["lock_in"].mean()
    for one in run.decisions:
        if one.step - 1 in scores:
            score = scores[one.step - 1]
            assert one.scores["lock_in"] == pytest.approx(score, rel=1e-4, nan_ok=True)
            assert one.is_open == (score > 0.45)
        assert trace.steps[one.step].start == one.start


def test_decided_step_by_step_and_replayed_it_is_the_same(
    reasoner: Any, decoded: tuple[Trace, Any]
) -> None:
    trace, run = decoded
    flow = StepFlow(bridge(LOCKED))
    expected = opened(run.decisions.table(trace))
    assert opened(flow.decide(reasoner, trace).table()) == expected
    with flow.attach(reasoner) as whole:
        at_once = step_saliency(reasoner, trace, rule="attention", backend="hooks")
    assert opened(whole.decisions.table()) == expected
    with flow.attach(reasoner, decisions=run.decisions) as again:
        replayed = step_saliency(reasoner, trace, rule="attention", backend="hooks")
    assert opened(again.decisions.table()) == expected
    torch.testing.assert_close(at_once.scores, replayed.scores)
    hooks = flow.fwd_hooks(reasoner, trace, decisions=run.decisions)
    one_pass = reasoner.run_with_hooks(trace.tokens, fwd_hooks=hooks)
    with flow.attach(reasoner):
        by_token = cached(reasoner, trace.tokens, [trace.prompt_length])
    torch.testing.assert_close(one_pass, by_token, rtol=1e-3, atol=1e-3)
    unrecorded = reasoner.run_with_hooks(trace.tokens, fwd_hooks=flow.fwd_hooks(reasoner, trace))
    torch.testing.assert_close(one_pass, unrecorded)


@pytest.mark.parametrize("chunk", [64, 10_000])
@torch.no_grad()
def test_teacher_forced_through_the_decoder_inside_it_is_the_same(
    reasoner: Any, decoded: tuple[Trace, Any], chunk: int
) -> None:
    trace, run = decoded
    flow = StepFlow(bridge(LOCKED))
    moved = token_divergence(reasoner, trace, flow, chunk=chunk)
    hooks = flow.fwd_hooks(reasoner, trace, decisions=run.decisions)
    before, after = (
        reasoner.run_with_hooks(trace.tokens, fwd_hooks=given)[0].double().log_softmax(-1)
        for given in ([], hooks)
    )
    kl = divergence(before, after)[moved.positions[0] - 1 : -1]
    assert float(kl.max()) > 1e-4
    torch.testing.assert_close(moved.kl, kl, rtol=1e-2, atol=1e-6)


def test_recorded_decisions_are_taken_as_they_are(
    reasoner: Any, decoded: tuple[Trace, Any]
) -> None:
    trace, run = decoded
    other = StepFlow(bridge(step("thinking", number=0)))
    made = other.decide(reasoner, trace, decisions=run.decisions)
    assert opened(made.table()) == opened(run.decisions.table(trace))


def test_closed_steps_are_left_bit_for_bit(reasoner: Any, decoded: tuple[Trace, Any]) -> None:
    trace, _ = decoded
    seen: dict[str, torch.Tensor] = {}
    second = trace.steps_in("thinking")[2]
    flow = StepFlow(bridge(step("thinking", number=2)), StepMomentum(when=step("summary")))

    def look(pattern: torch.Tensor, hook: Any) -> None:
        seen[hook.name] = pattern.clone()

    name = "blocks.3.attn.hook_pattern"
    reasoner.run_with_hooks(trace.tokens, fwd_hooks=[(name, look)])
    plain = seen[name]
    hooks = [*flow.fwd_hooks(reasoner, trace), (name, look)]
    reasoner.run_with_hooks(trace.tokens, fwd_hooks=hooks)
    differs = (plain != seen[name]).flatten(1, 1).any(-1).any(1)[0].nonzero()[:, 0].tolist()
    following = next(s.start for s in trace.steps if s.index == second.index + 1)
    assert differs
    assert set(differs) <= set(range(second.start, following))


@pytest.mark.parametrize("name", ["lock_in", "question_share", "entropy", "confidence"])
def test_every_kind_of_measure_decides_alike_in_a_batch_and_alone(reasoner: Any, name: str) -> None:
    with Monitor(measures=name, layers=(1, 4)).attach(reasoner) as warm:
        generate(reasoner, QUESTIONS, Decoding(max_new_tokens=250))
    when = measure(name, layers=(1, 4)).above_percentile(60.0, of=warm, hold=1)
    flow = StepFlow(bridge(when), StepMomentum(when=~when))
    with flow.attach(reasoner) as run:
        traces = generate(reasoner, QUESTIONS, Decoding(batch_size=2, max_new_tokens=250))
    for trace in traces:
        lines = run.decisions.table(trace)
        assert len(lines) == 2 * sum(s.segment != "question" for s in trace.steps)
        alone = flow.decide(reasoner, trace).table()
        keys = ["intervention", "step", "start", "open"]
        pd.testing.assert_frame_equal(
            lines[keys].sort_values(keys[:2], ignore_index=True),
            alone[keys].sort_values(keys[:2], ignore_index=True),
        )


def test_on_other_models(model: Any, trace: Trace) -> None:
    flow = StepFlow(OddsEqualBridge(tau_max=0.9, layers="all", when=measure("entropy").above(0.0)))
    with flow.attach(model) as run:
        cached(model, trace.tokens, [trace.prompt_length])
    with flow.attach(model) as whole:
        view(model).logits(trace.tokens)
    assert opened(run.decisions.table()) == opened(whole.decisions.table())
    first, *rest = run.decisions.table()["open"]
    assert not first
    assert all(rest)


def test_holding_on(reasoner: Any, decoded: tuple[Trace, Any]) -> None:
    trace, _ = decoded
    held = StepFlow(bridge(measure("lock_in", layers=(3, 4, 5)).above(0.45, hold=2)))
    table = held.decide(reasoner, trace).table()
    scores = table["lock_in"].tolist()
    for number, is_open in enumerate(table["open"]):
        assert is_open == any(score > 0.45 for score in scores[max(0, number - 2) : number + 1])


def test_texts_numbers_and_their_combinations(reasoner: Any, decoded: tuple[Trace, Any]) -> None:
    trace, _ = decoded
    written = [s for s in trace.steps if s.segment != "question"]
    words = "Then|first"
    after = [False, *("then" in s.text.lower() or "first" in s.text.lower() for s in written[:-1])]
    thinking = [s.segment == "thinking" for s in written]

    def said(when: When) -> list[bool]:
        return StepFlow(bridge(when)).decide(reasoner, trace).table()["open"].tolist()

    assert any(after)
    assert said(previous_step(matches=words)) == after
    assert said(step("thinking")) == thinking
    assert said(~step("thinking")) == [not one for one in thinking]
    both = [a and b for a, b in zip(after, thinking, strict=True)]
    assert said(previous_step(matches=words) & step("thinking")) == both
    either = [a or not b for a, b in zip(after, thinking, strict=True)]
    assert said(previous_step(matches=words) | step("summary")) == either
    assert said(step("thinking", number=(1, 3))).count(True) == 2


def test_chance_draws_each_step_alike_however_it_is_run(
    reasoner: Any, decoded: tuple[Trace, Any]
) -> None:
    trace, _ = decoded
    number = sum(s.segment != "question" for s in trace.steps)
    drawn = []
    for seed in range(40):
        flow = StepFlow(bridge(chance(0.3, seed)))
        drawn.append(flow.decide(reasoner, trace).table()["open"].tolist())
    assert np.mean(drawn) == pytest.approx(0.3, abs=4 * (0.21 / 40 / number) ** 0.5)
    with StepFlow(bridge(chance(0.3, 7))).attach(reasoner) as run:
        cached(reasoner, trace.tokens, [trace.prompt_length])
    assert run.decisions.table()["open"].tolist() == drawn[7]


def test_conditions_see_a_planted_failure_and_not_the_repair(
    reasoner: Any, decoded: tuple[Trace, Any]
) -> None:
    trace, _ = decoded
    failure = PlantedLockIn(strength=0.9, layers=(3, 4, 5), when=step(number=range(2, 5)))
    watch = Monitor(measures="lock_in", layers=(3, 4, 5))
    with watch.attach(reasoner, trace=trace) as seen, StepFlow(failure).attach(reasoner):
        cached(reasoner, trace.tokens[:, :-1], [trace.prompt_length])
    scores = seen.table(0).groupby("step")["lock_in"].mean()
    for tau_max in (0.05, 0.9):
        repair = OddsEqualBridge(tau_max=tau_max, layers=(3, 4, 5), when=LOCKED)
        made = StepFlow(failure, repair).decide(reasoner, trace)
        third = next(one for one in made if one.intervention == "OddsEqualBridge" and one.step == 4)
        assert third.scores["lock_in"] == pytest.approx(scores[3], rel=1e-4)


def test_a_condition_that_never_held_is_told(reasoner: Any, decoded: tuple[Trace, Any]) -> None:
    trace, _ = decoded
    flow = StepFlow(bridge(previous_step(matches="no such word")))
    said = r"never acted: its condition, PreviousStep\(matches='no such word'\), held in none of 10"
    with pytest.warns(InterventionWarning, match=said), flow.attach(reasoner):
        view(reasoner).logits(trace.tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with StepFlow(bridge(step("thinking"))).attach(reasoner):
            view(reasoner).logits(trace.tokens)


def test_no_hook_is_left(reasoner: Any, decoded: tuple[Trace, Any]) -> None:
    before = hooks_of(reasoner)
    with pytest.raises(RuntimeError), StepFlow(bridge(LOCKED)).attach(reasoner):
        view(reasoner).logits(decoded[0].tokens)
        raise RuntimeError
    assert hooks_of(reasoner) == before


CONDITIONS = [
    measure("lock_in").above(0.4, hold=1),
    measure("entropy", layers="shallow").below(2.5),
    measure("question_share", layers=(1, 2)).below(0.1),
    step("thinking"),
    step(number=range(2, 5)),
    previous_step(matches=r"wait|but"),
    chance(0.25, seed=3),
    step("thinking") & ~previous_step(matches="x") | measure("confidence").above(3.0),
]


@pytest.mark.parametrize("when", CONDITIONS, ids=repr)
def test_descriptions_and_back(when: When) -> None:
    assert condition_of(when.to_dict()) == when
    assert hash(when) == hash(condition_of(when.to_dict()))


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"measure": "lock_in"},
        {"measure": "lock_in", "above": 0.4, "below": 0.5},
        {"measure": "lock_in", "above": "high"},
        {"measure": "lock_in", "above": 0.4, "hodl": 1},
        {"step": {"segement": "thinking"}},
        {"all": []},
        {"previous_step": "wait"},
        {"unless": {}},
    ],
)
def test_what_describes_no_condition_is_refused(said: Any) -> None:
    with pytest.raises(SettingError, match="expected a condition such as .* got "):
        condition_of(said)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: measure("mood"), "expected a measure out of .* got 'mood'"),
        (lambda: measure("lock_in").above(1.4), "a threshold from 0 to 1 for 'lock_in'.* got 1.4"),
        (lambda: measure("entropy").above(float("nan")), "a finite threshold"),
        (lambda: measure("lock_in").above(0.4, hold=-1), "hold >= 0, got 0.4 and -1"),
        (lambda: measure("lock_in", layers="bottom").above(0.4), "layers='bottom'"),
        (lambda: step("question"), "segment 'thinking' or 'summary', got 'question'"),
        (lambda: step(number=()), "numbers of steps in their segment, from 0, got"),
        (lambda: step(number=-1), "numbers of steps in their segment, from 0, got"),
        (lambda: chance(0.0), "a rate above 0, at most 1, and a seed from 0, got 0.0 and 0"),
        (lambda: chance(0.5, seed=-1), "got 0.5 and -1"),
        (lambda: previous_step(matches="("), "a regular expression as matches"),
        (lambda: previous_step(matches=""), "matches that say something"),
    ],
)
def test_what_can_never_hold_is_refused(make: Any, message: str, unchecked: None) -> None:
    with pytest.raises(SettingError, match=message):
        make()


def test_a_percentile_of_what_was_not_seen_is_refused(qwen2: Any, trace: Trace) -> None:
    with Monitor(measures="lock_in", layers=(1,)).attach(qwen2, trace=trace) as seen:
        view(qwen2).logits(trace.tokens)
    assert measure("lock_in", layers=(1,)).below_percentile(50.0, of=seen).side == "below"
    for name, layers in (("lock_in", (2,)), ("entropy", (1,))):
        with pytest.raises(SettingError, match="expected warm-up steps with"):
            measure(name, layers=layers).above_percentile(50.0, of=seen)
    with pytest.raises(SettingError, match="expected a percentile from 0 to 100, got 101"):
        measure("lock_in", layers=(1,)).above_percentile(101.0, of=seen)


def test_a_percentile_of_traces_themselves_says_how(trace: Trace, unchecked: None) -> None:
    of: Any = [trace]
    with pytest.raises(WrongTypeError, match=r"expected of= what a Monitor saw .* got list"):
        measure("lock_in").above_percentile(90.0, of=of)


def test_a_preview_lists_where_it_would_act(reasoner: Any, decoded: tuple[Trace, Any]) -> None:
    trace, run = decoded
    flow = StepFlow(bridge(LOCKED), StepMomentum(alpha=0.0), StepMomentum(layers=(7,)))
    table = flow.preview(reasoner, trace, decisions=run.decisions)
    said = run.decisions.table()
    mine = table[table["intervention"] == "OddsEqualBridge"]
    assert mine["step"].tolist() == said[said["open"]]["step"].tolist()
    assert mine["lock_in"].tolist() == said[said["open"]]["lock_in"].tolist()
    assert mine["text"].iloc[0] == " ".join(trace.steps[mine["step"].iloc[0]].text.split())
    always = table[table["intervention"] == "StepMomentum-2"]["step"].tolist()
    assert always == [s.index for s in trace.steps if s.segment != "question"]


def test_the_ledger_counts_decisions_and_openings(
    reasoner: Any, decoded: tuple[Trace, Any]
) -> None:
    _, run = decoded
    table = run.ledger.to_dataframe().set_index("layer")
    said = run.decisions.table()["open"]
    assert table.loc[3, "decisions"] == len(said)
    assert table.loc[3, "openings"] == said.sum()
    assert table.loc[[4, 5], "decisions"].sum() == 0


def test_what_can_hold_nowhere_is_refused_by_name(
    reasoner: Any, decoded: tuple[Trace, Any]
) -> None:
    message = "expected OddsEqualBridge .* format 'plain', got .*: its responses have no summary"
    for when in (
        step("summary") & previous_step(matches="x"),
        measure("summary_on_thinking").above(0.5),
    ):
        flow = StepFlow(bridge(when))
        with pytest.raises(SettingError, match=message), flow.attach(reasoner, format="plain"):
            pass
    flow = StepFlow(bridge(measure("lock_in", layers=(30,)).above(0.5)))
    with pytest.raises(SettingError, match="30"), flow.attach(reasoner):
        pass
    flow = StepFlow(bridge(step("thinking", number=99)))
    with pytest.raises(SettingError, match="holds in none of the steps of Trace"):
        flow.fwd_hooks(reasoner, decoded[0])


def test_a_plain_hugging_face_decoder(reasoner: Any, decoded: tuple[Trace, Any]) -> None:
    trace, run = decoded
    decoder, flow = AutoModelForCausalLM.from_pretrained(WEIGHTS), StepFlow(bridge(LOCKED))
    with flow.attach(decoder, tokenizer=reasoner.tokenizer) as other:
        run_in_parts(decoder, trace.tokens, trace.prompt_length)
    assert opened(other.decisions.table(trace)) == opened(run.decisions.table(trace))
    openings = other.ledger.total("OddsEqualBridge", "openings")
    assert openings == other.decisions.table()["open"].sum()


def test_deciding_by_itself_beside_another_flow_is_refused(
    reasoner: Any, decoded: tuple[Trace, Any]
) -> None:
    trace, run = decoded
    flow, other = StepFlow(bridge(LOCKED)), StepFlow(StepMomentum(alpha=0.01))
    message = "expected recorded decisions .* got 1 other attached flow, which"
    with (
        pytest.raises(SettingError, match=message),
        other.attach(reasoner),
        flow.attach(reasoner),
    ):
        view(reasoner).logits(trace.tokens)
    with pytest.raises(SettingError, match=message), other.attach(reasoner):
        flow.fwd_hooks(reasoner, trace)
    with other.attach(reasoner), flow.attach(reasoner, decisions=run.decisions) as again:
        view(reasoner).logits(trace.tokens)
    assert opened(again.decisions.table()) == opened(run.decisions.table(trace))
    assert len(flow.decide(reasoner, trace)) == len(run.decisions.table(trace))


def test_a_reading_of_a_run_flags_the_opened_steps(
    reasoner: Any, decoded: tuple[Trace, Any]
) -> None:
    trace, run = decoded
    table = run.decisions.table(trace)
    said = Reading.of_run(run, trace, values={"mine": {1: 1.0}}).described()
    assert said["fired"] == table[table["open"]]["step"].tolist()
    assert said["values"]["lock_in (before the step)"][1] is None
    assert said["values"]["mine"][1] == 1.0
    assert "openings" in said["ledger"]["columns"]
