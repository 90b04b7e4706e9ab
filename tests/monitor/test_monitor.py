"""What a monitor sees while a model runs is what the finished trace's map says afterwards."""

from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np
import pytest
import torch
from helpers import cached, hooks_of, plain_model, run_in_parts
from rich.console import Console

from stepflow_tl import Decoding, diagnose, generate, load_model, step_saliency
from stepflow_tl.errors import SettingError
from stepflow_tl.interventions import GradientMomentum, OddsEqualBridge, StepFlow, StepMomentum
from stepflow_tl.models.view import view
from stepflow_tl.monitor import MEASURES, Monitor, Seen, confidence, entropy
from stepflow_tl.monitor.line import LiveLine, line_of
from stepflow_tl.monitor.measures import OF_LOGITS, OF_SHARES
from stepflow_tl.tasks.word_problems import make_problem
from stepflow_tl.traces.trace import Trace

ALL = Monitor(measures=MEASURES)


@torch.no_grad()
def afterwards(model: Any, trace: Trace, step: int, **options: Any) -> dict[str, np.ndarray]:
    """Every measure of a step, by layer, from the map and the logits of the finished trace."""
    maps = step_saliency(model, trace, rule="attention", **options).normalize("row")
    logits = view(model).logits(trace.tokens)[0].double()
    span = maps.steps[step]
    shares = maps.scores[:, step, : step + 1].double()
    segments = [one.segment for one in maps.steps[: step + 1]]
    found = {name: measure(shares, segments).numpy() for name, measure in OF_SHARES.items()}
    for name, measure in OF_LOGITS.items():
        drawn = measure(logits[span.start - 1 : span.stop - 1]).mean()
        found[name] = np.full(len(maps.layers), float(drawn))
    return found


def assert_as_afterwards(model: Any, seen: Seen, trace: Trace, **options: Any) -> None:
    table = seen.table(trace)
    written = [s.index for s in trace.steps if s.segment != "question"]
    assert sorted(set(table["step"])) == written
    for number in written:
        lines = table[table["step"] == number]
        step = trace.steps[number]
        assert set(lines["segment"]) == {step.segment}
        assert set(lines["start"]) == {step.start}
        for name, value in afterwards(model, trace, number, **options).items():
            np.testing.assert_allclose(
                lines[name], value, rtol=1e-4, atol=1e-5, equal_nan=True, err_msg=f"{number} {name}"
            )


def test_one_pass_over_a_known_trace(model: Any, trace: Trace) -> None:
    with ALL.attach(model, trace=trace) as seen:
        view(model).logits(trace.tokens)
    assert_as_afterwards(model, seen, trace)


@pytest.mark.parametrize("chunks", [[5], [40, 1, 7]])
def test_a_prefill_in_chunks_then_token_by_token(
    model: Any, trace: Trace, chunks: list[int]
) -> None:
    with ALL.attach(model) as seen:
        cached(model, trace.tokens, chunks)
    assert_as_afterwards(model, seen, trace)


def test_rows_of_a_padded_batch(qwen2: Any, trace: Trace, others: list[Trace]) -> None:
    rows = [trace, *others[:2]]
    width = max(map(len, rows))
    pads = [width - len(row) for row in rows]
    pad_id = qwen2.tokenizer.pad_token_id
    batch = torch.tensor(
        [[pad_id] * n + row.token_ids.tolist() for n, row in zip(pads, rows, strict=True)]
    )
    with ALL.attach(qwen2) as seen:
        cached(qwen2, batch, [width - 30], pads)
    for row in rows[:2]:
        assert_as_afterwards(qwen2, seen, row)


@pytest.mark.parametrize("frame_keys", ["in", "out"])
def test_the_frame_may_be_left_out(qwen2: Any, trace: Trace, frame_keys: Any) -> None:
    with Monitor(measures=MEASURES, frame_keys=frame_keys).attach(qwen2, trace=trace) as seen:
        view(qwen2).logits(trace.tokens)
    assert_as_afterwards(qwen2, seen, trace, frame_keys=frame_keys)


@pytest.fixture(scope="module")
def reasoner() -> Any:
    return load_model("reasoner", device="cpu")


QUESTIONS = [make_problem(n, difficulty).question for n, difficulty in enumerate((3, 5, 2))]


def test_rows_that_leave_and_join_while_decoding(reasoner: Any) -> None:
    with ALL.attach(reasoner) as seen:
        traces = generate(reasoner, QUESTIONS, Decoding(batch_size=2, max_new_tokens=250))
    assert sorted(seen.table(trace)["trace"].iloc[0] for trace in traces) == [0, 1, 2]
    for trace in traces:
        assert trace.ended
        assert_as_afterwards(reasoner, seen, trace)


def test_means_over_steps_are_the_diagnosis(reasoner: Any) -> None:
    with Monitor(measures=("lock_in", "summary_on_thinking")).attach(reasoner) as seen:
        trace = generate(reasoner, QUESTIONS[1], Decoding(max_new_tokens=250))
    means = seen.table().groupby("layer")[["lock_in", "summary_on_thinking"]].mean()
    expected = diagnose(step_saliency(reasoner, trace, rule="attention")).set_index("layer")
    for name in means.columns:
        np.testing.assert_allclose(means[name], expected[name], rtol=1e-4)


@pytest.mark.parametrize("monitor_outside", [True, False])
def test_it_reads_what_interventions_leave_or_what_they_found(
    qwen2: Any, trace: Trace, monitor_outside: bool
) -> None:
    flow = StepFlow(OddsEqualBridge(tau_max=0.6, layers="all"))
    after = Monitor(measures="question_share")
    before = Monitor(measures="question_share", before=True)
    with (
        (after if monitor_outside else flow).attach(qwen2) as first,
        (flow if monitor_outside else after).attach(qwen2) as second,
        before.attach(qwen2) as found,
    ):
        cached(qwen2, trace.tokens, [5])
    left = first if monitor_outside else second
    share_left, share_found = (s.table().set_index(["step", "layer"]) for s in (left, found))
    gained = share_left["question_share"] - share_found["question_share"]
    assert gained.loc[1, 0] > 1e-3
    with flow.attach(qwen2):
        expected = step_saliency(qwen2, trace, rule="attention").normalize("row")
    np.testing.assert_allclose(
        share_left.loc[1, "question_share"], expected.scores[:, 1, 0], rtol=1e-4
    )


def test_passes_inside_passes_are_not_taken_for_the_callers(qwen2: Any, trace: Trace) -> None:
    flow = StepFlow(GradientMomentum(step_size=1e-9), StepMomentum(alpha=1e-9))
    with ALL.attach(qwen2) as seen, flow.attach(qwen2):
        cached(qwen2, trace.tokens, [5])
    assert_as_afterwards(qwen2, seen, trace)


def test_it_leaves_no_hook_behind(qwen2: Any, trace: Trace) -> None:
    before = hooks_of(qwen2), len(qwen2.original_model._forward_hooks)
    with pytest.raises(RuntimeError, match="stopped"), ALL.attach(qwen2) as seen:
        view(qwen2).logits(trace.tokens)
        raise RuntimeError("stopped")
    assert (hooks_of(qwen2), len(qwen2.original_model._forward_hooks)) == before
    assert len(seen.records) == len(trace.steps) - 1


def test_patterns_are_read_at_the_monitored_layers_alone(qwen2: Any, trace: Trace) -> None:
    with Monitor(measures="lock_in", layers=(1, -1)).attach(qwen2, trace=trace) as seen:
        view(qwen2).logits(trace.tokens)
    assert sorted(set(seen.table()["layer"])) == [1, 3]
    with Monitor(measures="entropy").attach(qwen2, trace=trace) as seen:
        assert not any(name.startswith("blocks.1") for name in view(qwen2).hooks_on())
        view(qwen2).logits(trace.tokens)
    assert seen.table()["entropy"].notna().all()


def test_uncertainties_by_hand() -> None:
    logits = torch.tensor([0.5, 0.25, 0.25]).log()
    assert float(entropy(logits)) == pytest.approx(1.5 * np.log(2))
    assert float(confidence(logits)) == pytest.approx(5 / 3 * np.log(2))
    peaked = torch.full((40,), -50.0).index_fill(0, torch.tensor([3]), 0.0)
    assert float(confidence(peaked)) == pytest.approx(50 * 19 / 20, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"measures": "locked_in"}, "expected measures out of .*got .'locked_in'"),
        ({"measures": ()}, "expected measures out of"),
        ({"frame_keys": "maybe"}, "expected frame_keys 'in' or 'out', got 'maybe'"),
        ({"layers": "bottom"}, "layers='bottom'"),
        ({"rule": "rollout"}, "expected rule in .'attention', 'saliency'., got 'rollout'"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    settings: dict[str, Any], expected: str, unchecked: None
) -> None:
    with pytest.raises(SettingError, match=expected):
        Monitor(**settings)


def test_a_trace_that_was_not_seen_is_refused(qwen2: Any, trace: Trace) -> None:
    with ALL.attach(qwen2) as seen:
        pass
    assert seen.table().empty
    with pytest.raises(SettingError, match="expected a trace that was decoded while"):
        seen.table(trace)


def test_the_picture_of_a_measure(qwen2: Any, trace: Trace) -> None:
    with Monitor(measures=("lock_in", "entropy")).attach(qwen2, trace=trace) as seen:
        with pytest.raises(SettingError, match="expected at least one step that is over, got none"):
            seen.plot()
        view(qwen2).logits(trace.tokens)
    by_layer, line = seen.plot(), seen.plot("entropy")
    assert by_layer.images[0].get_array().shape == (4, len(trace.steps) - 1)
    assert len(line.lines[0].get_xdata()) == len(trace.steps) - 1
    with pytest.raises(SettingError, match="expected a measure out of .* got 'mood'"):
        seen.plot("mood")


SALIENCY = Monitor(measures=("lock_in", "question_share", "entropy"), rule="saliency")


def assert_as_streamed(model: Any, seen: Seen, trace: Trace) -> None:
    maps = step_saliency(model, trace).normalize("row")
    table = seen.table(trace)
    assert sorted(set(table["step"])) == [s.index for s in trace.steps if s.segment != "question"]
    for number, lines in table.groupby("step"):
        shares = maps.scores[:, number, : number + 1].double()
        segments = [one.segment for one in maps.steps[: number + 1]]
        for name in ("lock_in", "question_share"):
            expected = OF_SHARES[name](shares, segments).numpy()
            np.testing.assert_allclose(lines[name], expected, atol=2e-5, equal_nan=True)


def test_saliency_of_a_finished_step_is_the_streamed_maps_row(reasoner: Any) -> None:
    with SALIENCY.attach(reasoner) as seen:
        traces = generate(reasoner, QUESTIONS, Decoding(batch_size=2, max_new_tokens=250))
    for trace in traces:
        assert_as_streamed(reasoner, seen, trace)


def test_saliency_of_a_known_trace_in_one_pass_or_many(qwen2: Any, trace: Trace) -> None:
    with SALIENCY.attach(qwen2, trace=trace) as seen:
        view(qwen2).logits(trace.tokens)
    assert_as_streamed(qwen2, seen, trace)
    with SALIENCY.attach(qwen2, trace=trace) as again:
        cached(qwen2, trace.tokens, [5])
    assert_as_streamed(qwen2, again, trace)


def test_saliency_beside_an_intervention_is_refused(qwen2: Any, trace: Trace) -> None:
    flow = StepFlow(OddsEqualBridge(tau_max=0.6, layers="all"))
    with (
        pytest.raises(SettingError, match="no StepFlow beside a monitor of rule .saliency.* got 1"),
        SALIENCY.attach(qwen2),
        flow.attach(qwen2),
    ):
        cached(qwen2, trace.tokens, [5])
    assert not any(hooks_of(qwen2).values())


def test_a_plain_hugging_face_decoder(tokenizer: Any, trace: Trace) -> None:
    decoder = plain_model("qwen2", tokenizer)
    with ALL.attach(decoder, tokenizer=tokenizer) as seen:
        run_in_parts(decoder, trace.tokens, 5)
    decoder.tokenizer = tokenizer
    assert_as_afterwards(decoder, seen, trace)
    with SALIENCY.attach(decoder) as by_gradient:
        run_in_parts(decoder, trace.tokens, 5)
    assert_as_streamed(decoder, by_gradient, trace)
    flow = StepFlow(OddsEqualBridge(tau_max=0.6, layers="all"))
    shares = Monitor(measures="question_share")
    with (
        replace(shares, before=True).attach(decoder) as found,
        flow.attach(decoder),
        shares.attach(decoder) as left,
    ):
        run_in_parts(decoder, trace.tokens, 5)
    gained = left.by_step()["question_share"] - found.by_step()["question_share"]
    assert gained.loc[1] > 1e-3


def test_each_measure_by_step(reasoner: Any) -> None:
    with Monitor(measures=("lock_in", "entropy")).attach(reasoner) as seen:
        traces = generate(reasoner, QUESTIONS[:2], Decoding(max_new_tokens=250))
    found = seen.by_step(traces[1])
    table = seen.table(traces[1])
    for name in ("lock_in", "entropy"):
        for number, value in found[name].items():
            mean = table[table["step"] == number][name].mean()
            assert value == pytest.approx(mean, nan_ok=True)
    with pytest.raises(SettingError, match="expected one of the 2 traces seen, got None"):
        seen.by_step()


def test_a_line_follows_the_last_step(qwen2: Any, trace: Trace, monkeypatch: Any) -> None:
    drawn = StringIO()
    console = Console(file=drawn, force_terminal=True, width=120)
    monkeypatch.setattr("stepflow_tl.monitor.line.Console", lambda: console)
    with ALL.attach(qwen2, trace=trace, show=True) as seen:
        view(qwen2).logits(trace.tokens)
    last = seen.records[-1]
    assert f"trace 0  step {last.step} ({last.segment})" in drawn.getvalue()
    lines = [line_of(seen.records[:n]) for n in range(1, len(seen.records) + 1)]
    assert "self_share █ " in lines[0]
    assert "lock_in -" in lines[0]
    assert "entropy" in lines[-1]


def test_in_a_notebook_the_line_is_one_output(qwen2: Any, trace: Trace, monkeypatch: Any) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, one: Any) -> None:
            shown.append(one.data)

    def display(one: Any, display_id: bool) -> Handle:
        assert display_id
        shown.append(one.data)
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    line = LiveLine(Console(force_jupyter=True))
    monkeypatch.setattr("stepflow_tl.monitor.monitor.LiveLine", lambda: line)
    with ALL.attach(qwen2, trace=trace, show=True) as seen:
        view(qwen2).logits(trace.tokens)
    assert shown == [line_of(seen.records[: n + 1]) for n in range(len(seen.records))]
