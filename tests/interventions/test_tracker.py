"""Where a forward pass stands: groups by hand, and labels that follow any way of running."""

import re
from typing import Any

import pytest
import torch
from helpers import Decoding, cached, encode, hooks_of, teacher_forced
from torch import Tensor

from stepflow_tl.errors import TrackingError
from stepflow_tl.interventions.position import PassPosition
from stepflow_tl.interventions.rerun import Replay
from stepflow_tl.interventions.tracker import Tracker
from stepflow_tl.models.hooked import at_hook_points
from stepflow_tl.models.sites import hook_name
from stepflow_tl.models.view import view
from stepflow_tl.traces.formats import THINK
from stepflow_tl.traces.reader import TraceReader
from stepflow_tl.traces.rows import PADDING, LabelBuffer, Row, Rows, publish
from stepflow_tl.traces.tokens import FRAME
from stepflow_tl.traces.trace import Trace


def here(segments: list[int], steps: list[int] | None = None, start: int = 0) -> PassPosition:
    return PassPosition(
        start=start,
        segment=torch.tensor([segments]),
        step=torch.tensor([steps or [0] * len(segments)]),
        step_starts=(),
        open_steps=(None,),
        reasoning_from=start,
    )


def letters(
    place: PassPosition, keys: int, window: int | None, bridge: Any = "prompt"
) -> list[str]:
    groups = place.groups(keys, window, bridge)
    assert torch.equal(groups.bridge_size, groups.bridge.sum(-1).float())
    assert torch.equal(groups.current_size, groups.current.sum(-1).float())
    assert not (groups.bridge & groups.current).any()
    return [
        "".join("B" if b else "S" if s else "." for b, s in zip(bs, ss, strict=True))
        for bs, ss in zip(groups.bridge[0], groups.current[0], strict=True)
    ]


class TestGroups:
    SEGMENTS = (0, 0, 1, 1, 2, 2)

    def test_a_whole_pass(self) -> None:
        rows = ["......", "......", "BBS...", "BBSS..", "..BBS.", "..BBSS"]
        assert letters(here(list(self.SEGMENTS)), 6, None) == rows

    def test_the_newest_query_of_a_cache(self) -> None:
        assert letters(here(list(self.SEGMENTS), start=5), 6, None) == ["..BBSS"]

    def test_a_window_hides_far_keys(self) -> None:
        rows = ["......", "......", ".BS...", "..SS..", "...BS.", "....SS"]
        assert letters(here(list(self.SEGMENTS)), 6, 2) == rows

    def test_a_sliding_cache_keeps_the_last_keys(self) -> None:
        assert letters(here(list(self.SEGMENTS), start=4), 4, 3) == ["BBS.", ".BSS"]
        assert letters(here(list(self.SEGMENTS), start=5), 2, 2) == ["SS"]

    def test_padding_is_in_no_group(self) -> None:
        segments = [PADDING, 0, 1, PADDING]
        assert letters(here(segments), 4, None) == ["....", "....", ".BS.", "...."]

    def test_without_frame_tokens(self) -> None:
        steps = [FRAME, 0, FRAME, 1, FRAME, 2]
        rows = ["......", "......", ".BS...", ".BSS..", "...BS.", "...BSS"]
        assert letters(here(list(self.SEGMENTS), steps), 6, None, "question") == rows

    def test_layers_that_agree_share_one_split(self) -> None:
        place = here(list(self.SEGMENTS))
        assert place.groups(6, None, "prompt") is place.groups(6, None, "prompt")
        assert place.groups(6, 2, "prompt") is not place.groups(6, None, "prompt")

    def test_the_thinking_is_no_bridge_where_there_is_none(self) -> None:
        assert letters(here([0, 2]), 2, None) == ["..", ".S"]


class Followed:
    """A tracker on a model, and where each forward pass stood."""

    def __init__(self, model: Any, **options: Any) -> None:
        self.tracker = Tracker(view(model), **options)
        self.model = model
        self.passes: list[PassPosition] = []

    def __enter__(self) -> "Followed":
        def note(pattern: Tensor, hook: Any) -> None:
            self.passes.append(self.tracker.position)

        hooks = at_hook_points([*self.tracker.hooks(), (hook_name("pattern", 1), note)])
        self.contexts = (self.tracker.watch(), self.model.hooks(fwd_hooks=hooks))
        for context in self.contexts:
            context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for context in reversed(self.contexts):
            context.__exit__(None, None, None)

    @property
    def last(self) -> PassPosition:
        return self.passes[-1]


def check(place: PassPosition, trace: Trace, row: int = 0, pads: int = 0) -> None:
    size = place.segment.shape[1] - pads
    assert place.segment[row, :pads].tolist() == [PADDING] * pads
    assert torch.equal(place.segment[row, pads:], trace.segment_of_token[:size])
    assert torch.equal(place.step[row, pads:], trace.step_of_token[:size])


@pytest.mark.parametrize("chunks", [[86], [28], [10, 40, 3]])
def test_labels_are_those_of_the_trace(model: Any, trace: Trace, chunks: list[int]) -> None:
    with Followed(model) as followed:
        cached(model, trace.tokens, chunks)
    for place in followed.passes:
        if place.segment.shape[1] >= trace.prompt_length:
            check(place, trace)
    starts = [s.position for place in followed.passes for s in place.step_starts]
    assert starts == [step.start for step in trace.steps[2:]]
    previous = [s.previous for place in followed.passes for s in place.step_starts]
    assert previous == [(step.start, step.stop) for step in trace.steps[1:-1]]
    assert [place.start for place in followed.passes][: len(chunks)] == [
        sum(chunks[:i]) for i in range(len(chunks))
    ]


def test_reasoning_is_seen(qwen2: Any, trace: Trace) -> None:
    with Followed(qwen2) as followed:
        cached(qwen2, trace.tokens, [20])
    reasoning = [place.reasoning for place in followed.passes]
    assert reasoning.index(True) == trace.thinking.start - 20 + 1
    assert all(reasoning[reasoning.index(True) :])


def rows_of(model: Any, batch: Tensor, lengths: list[int], pads: list[int]) -> Rows:
    """Rows that hold all of a batch, read as thinking after prompts of known lengths."""
    tokenizer = model.tokenizer
    ends = frozenset({tokenizer.eos_token_id})
    rows = Rows(
        [
            Row(TraceReader(tokenizer, THINK, prompt_length=length, end_ids=ends), pad)
            for length, pad in zip(lengths, pads, strict=True)
        ]
    )
    rows.push([row[pad:] for row, pad in zip(batch.tolist(), pads, strict=True)])
    return rows


class TestBatches:
    def batch(self, model: Any, traces: list[Trace]) -> tuple[Tensor, list[int]]:
        longest = max(len(one) for one in traces)
        pads = [longest - len(one) for one in traces]
        pad = model.tokenizer.pad_token_id
        rows = [torch.cat([torch.full((n,), pad), t.token_ids]) for n, t in zip(pads, traces)]  # noqa: B905
        return torch.stack(rows), pads

    @pytest.fixture
    def traces(self, tokenizer: Any, trace: Trace) -> list[Trace]:
        short = Trace.from_text(tokenizer, "Why?<think>Because it is so. So it is.</think>Yes.")
        return [short, trace]

    @pytest.mark.parametrize("chunks", [[86], [70], [20, 30]])
    @pytest.mark.parametrize("published", [False, True])
    def test_padding_is_seen_or_known(
        self, qwen2: Any, traces: list[Trace], chunks: list[int], published: bool
    ) -> None:
        batch, pads = self.batch(qwen2, traces)
        lengths = [one.prompt_length for one in traces]
        with Followed(qwen2) as followed:
            if published:
                with publish(qwen2, rows_of(qwen2, batch, lengths, pads)):
                    cached(qwen2, batch, chunks, pads)
            else:
                cached(qwen2, batch, chunks, pads)
        for row, (one, pad) in enumerate(zip(traces, pads, strict=True)):
            check(followed.last, one, row, pad)

    def test_what_follows_the_end_is_padding(self, qwen2: Any, trace: Trace) -> None:
        tokens = torch.cat([trace.tokens, torch.full((1, 3), 65)], dim=1)
        with Followed(qwen2) as followed:
            teacher_forced(qwen2, tokens)
        assert followed.last.segment[0, -4:].tolist() == [2, PADDING, PADDING, PADDING]
        assert followed.last.step[0, -4:].tolist() == [FRAME] * 4

    def test_a_row_that_has_ended_holds_nothing_back(self, qwen2: Any, trace: Trace) -> None:
        with Followed(qwen2) as followed:
            teacher_forced(qwen2, trace.tokens[:, :-1])
            last = trace.steps[-1]
            assert followed.last.open_steps == ((last.start, last.stop),)
            teacher_forced(qwen2, trace.tokens)
            assert followed.last.open_steps == (None,)

    def test_longer_prompts_that_begin_alike_are_other_prompts(
        self, qwen2: Any, tokenizer: Any
    ) -> None:
        ids = torch.tensor([encode(tokenizer, "Why? It is so because it has to be. So it is.")])
        with Followed(qwen2, format="plain") as followed:
            for length in (3, 8):
                with publish(qwen2, rows_of(qwen2, ids[:, : length + 2], [length], [0])):
                    teacher_forced(qwen2, ids[:, : length + 2])
        rows = rows_of(qwen2, ids[:, :10], [8], [0])
        with Followed(qwen2, format="plain") as fresh, publish(qwen2, rows):
            teacher_forced(qwen2, ids[:, :10])
        assert torch.equal(followed.last.segment, fresh.last.segment)
        assert torch.equal(followed.last.step, fresh.last.step)


class TestKnownTraces:
    def test_a_published_trace_needs_no_reading(self, qwen2: Any, tokenizer: Any) -> None:
        ids = encode(tokenizer, "Why? It is so because it has to be. So it is.")
        known = Trace.from_token_ids(tokenizer, ids, prompt_length=3, format="plain")
        with Followed(qwen2) as followed, publish(qwen2, known):
            cached(qwen2, known.tokens, [5, 2])
        check(followed.last, known)
        assert [len(place.step_starts) for place in followed.passes].count(1) == 1

    def test_a_model_without_tokenizer(
        self, monkeypatch: pytest.MonkeyPatch, qwen2: Any, trace: Trace
    ) -> None:
        monkeypatch.setattr(qwen2, "tokenizer", None)
        tracker = Tracker(view(qwen2), trace=trace)
        with torch.no_grad():
            qwen2.run_with_hooks(trace.tokens, fwd_hooks=at_hook_points(tracker.hooks()))
        check(tracker.position, trace)

    def test_embeddings_in_place_of_tokens_suffice(self, qwen2: Any, trace: Trace) -> None:
        """A known trace is followed by its length alone."""
        tracker = Tracker(view(qwen2), trace=trace)
        with torch.no_grad():
            qwen2.run_with_hooks(
                torch.zeros_like(trace.tokens), fwd_hooks=at_hook_points(tracker.hooks())
            )
        check(tracker.position, trace)


class TestReplay:
    """A part of one row, run again by itself, stands where it stood."""

    @pytest.mark.parametrize("pads", [0, 5])
    def test_each_part_as_in_cached_decoding(self, qwen2: Any, trace: Trace, pads: int) -> None:
        pad = torch.full((1, pads), qwen2.tokenizer.pad_token_id)
        chunks = [40, 7, 20, 19]
        with Followed(qwen2) as alone:
            cached(qwen2, trace.tokens, chunks)
        with Followed(qwen2) as padded:
            cached(qwen2, torch.cat([pad, trace.tokens], dim=1), [40], [pads])
        (row,) = padded.tracker.rows
        assert (row.pads, row.token_ids) == (pads, trace.token_ids.tolist())
        replay = Replay(row, torch.device("cpu"))
        for place, chunk in zip(alone.passes, chunks, strict=True):
            replay.move(place.start, place.start + chunk)
            again = replay.position
            assert torch.equal(again.segment, place.segment)
            assert torch.equal(
                again.step[:, trace.prompt_length :], place.step[:, trace.prompt_length :]
            )
            assert (again.start, again.reasoning) == (place.start, place.reasoning)
            assert again.step_starts == place.step_starts
            if place is not alone.passes[-1]:  # the end of the trace holds no step open
                assert again.open_steps == place.open_steps

    def test_before_the_first_step(self, qwen2: Any, trace: Trace) -> None:
        with Followed(qwen2) as followed:
            teacher_forced(qwen2, trace.tokens)
        replay = Replay(followed.tracker.rows[0], torch.device("cpu"))
        with pytest.raises(TrackingError):
            _ = replay.position
        replay.move(0, trace.question.stop)
        assert (replay.position.open_steps, replay.position.reasoning) == ((None,), False)

    def test_a_known_traces_tokens(self, qwen2: Any, trace: Trace) -> None:
        tracker = Tracker(view(qwen2), trace=trace)
        with torch.no_grad():
            qwen2.run_with_hooks(trace.tokens[:, :50], fwd_hooks=at_hook_points(tracker.hooks()))
        assert tracker.rows[0].token_ids == trace.token_ids[:50].tolist()


class TestPasses:
    """What a forward pass costs, and its parts."""

    def test_only_new_labels_are_copied(
        self, monkeypatch: pytest.MonkeyPatch, qwen2: Any, trace: Trace
    ) -> None:
        copied: list[int] = []
        storages: set[int] = set()
        write = LabelBuffer.write

        def counted(buffer: LabelBuffer, rows: Any, first: int, stop: int) -> None:
            write(buffer, rows, first, stop)
            copied.append(buffer.segment.shape[1] - first)
            storages.add(buffer.segment.data_ptr())

        monkeypatch.setattr(LabelBuffer, "write", counted)
        with Followed(qwen2) as followed:
            cached(qwen2, trace.tokens.expand(2, -1), [10])
        check(followed.last, trace, row=1)
        assert copied[0] == 10
        more = [size for size in copied[1:] if size != 1]
        assert len(more) == 1, "once, where the question is known to have ended"
        assert len(storages) == 3  # room for 20, 42, 86 positions

    @pytest.mark.parametrize("mode", [True, False])
    def test_a_sequence_may_go_on_in_another_mode(
        self, qwen2: Any, trace: Trace, mode: bool
    ) -> None:
        with Followed(qwen2) as followed:
            for size, inference in ((40, mode), (50, not mode), (86, mode)):
                with torch.inference_mode(inference):
                    qwen2(trace.tokens[:, :size])
        check(followed.last, trace)

    def test_a_part_is_a_chunk(self, qwen2: Any, trace: Trace) -> None:
        with Followed(qwen2) as whole:
            teacher_forced(qwen2, trace.tokens)
        with Followed(qwen2) as chunked:
            cached(qwen2, trace.tokens, [20, 30, 36])
        assert whole.last.part(0, 86) is whole.last
        for chunk in chunked.passes:
            first, stop = chunk.start, chunk.segment.shape[1]
            part = whole.last.part(first, stop)
            assert torch.equal(part.segment, chunk.segment)
            assert part.step_starts == chunk.step_starts
            assert (part.start, part.reasoning_from) == (first, chunk.reasoning_from)
            assert part.reasoning == chunk.reasoning == (stop > 35)
            rows = [row[:stop] for row in letters(whole.last, 86, 5)[first:stop]]
            assert letters(part, stop, 5) == rows


class TestErrors:
    def test_nothing_was_run(self, model: Any) -> None:
        with pytest.raises(TrackingError, match="no forward pass has reached the first attention"):
            _ = Tracker(view(model)).position

    def test_a_stopped_pass_does_not_move_on(self, model: Any, trace: Trace) -> None:
        with Followed(model) as followed, torch.no_grad():
            model.run_with_hooks(trace.tokens, fwd_hooks=[], stop_at_layer=0)
            with pytest.raises(TrackingError):
                _ = followed.tracker.position
            teacher_forced(model, trace.tokens)
        check(followed.last, trace)

    def test_an_earlier_prompts_cache(self, model: Any, trace: Trace) -> None:
        decoding = Decoding(model, [0])
        with Followed(model):
            decoding(trace.tokens[:, :5])
            teacher_forced(model, trace.tokens[:, 1:4])
            keys = 5 + 1 if view(model).attention_window(0) is None else 6
            message = f"layer 0 attends to {keys} keys from 1 new tokens, but 3 earlier tokens"
            with pytest.raises(TrackingError, match=re.escape(message)):
                decoding(trace.tokens[:, 5:6])
        assert not any(hooks_of(model).values())
