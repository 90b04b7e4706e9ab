"""The monitor: measures of every step while a model decodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from stepflow_tl.errors import SettingError
from stepflow_tl.interventions.tracker import Tracker
from stepflow_tl.models.base import ARRIVAL, Model, ModelView, Place
from stepflow_tl.models.layers import LayerSpec, check_layer_spec, resolve_layers
from stepflow_tl.models.sites import Hook
from stepflow_tl.models.view import view
from stepflow_tl.monitor.line import LiveLine
from stepflow_tl.monitor.live import FinishedStep, LiveSteps, live_hooks, measured
from stepflow_tl.monitor.measures import MEASURES, OF_LOGITS, OF_SHARES
from stepflow_tl.monitor.saliency import LiveSaliency
from stepflow_tl.monitor.seen import Record, Seen
from stepflow_tl.saliency.pooling import FrameKeys
from stepflow_tl.traces.formats import Format
from stepflow_tl.traces.rows import Row
from stepflow_tl.traces.trace import Trace

MonitorRule = Literal["attention", "saliency"]


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """Measures of every step of thinking and summary, while the model decodes.

    Example::

        with Monitor(measures=("lock_in", "entropy"), layers="shallow").attach(model) as seen:
            trace = generate(model, question)
        seen.table(trace)

    Shares are those of ``step_saliency(model, trace, rule="attention")``, row by row: of each
    token's attention, averaged over heads, the share that falls on each step; then the mean over
    the step's tokens, scaled to a sum of one. Patterns are computed at the monitored layers alone.
    Nothing grows with a trace but what is recorded.

    Attributes:
        measures: Names of `stepflow_tl.monitor.MEASURES`: shares of steps at each layer
            ("question_share", "lock_in", ...), and what a step's tokens were drawn from
            ("entropy", "confidence", in nats, mean over tokens).
        layers: The layers whose attention is read.
        before: Whether patterns are read before other blocks of this package change them, rather
            than after; whichever of the blocks is the outer one.
        frame_keys: Whether the frame's keys are "in" a share's denominator, or "out".
        rule: Of shares: "attention", read as the model runs, or "saliency" (attention x gradient),
            for which each finished step is run once more, with one backward pass.
    """

    measures: Sequence[str] = ("question_share", "lock_in", "entropy", "confidence")
    layers: LayerSpec = "all"
    before: bool = False
    frame_keys: FrameKeys = "in"
    rule: MonitorRule = "attention"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SettingError: There is no such measure, none at all, or no such layers.
        """
        names = (self.measures,) if isinstance(self.measures, str) else tuple(self.measures)
        object.__setattr__(self, "measures", names)
        unknown = [name for name in names if name not in MEASURES]
        if unknown or not names:
            raise SettingError(
                f"expected measures out of {list(MEASURES)}, got {unknown or list(names)}"
            )
        if self.rule not in get_args(MonitorRule):
            raise SettingError(f"expected rule in {list(get_args(MonitorRule))}, got {self.rule!r}")
        if self.frame_keys not in ("in", "out"):
            raise SettingError(f"expected frame_keys 'in' or 'out', got {self.frame_keys!r}")
        check_layer_spec(self.layers)

    @contextmanager
    def attach(
        self,
        model: Model | ModelView,
        *,
        tokenizer: Any | None = None,
        format: str | Format = "auto",
        prompt_length: int | None = None,
        trace: Trace | None = None,
        show: bool = False,
    ) -> Iterator[Seen]:
        """Watch everything the model runs inside this block.

        Args:
            model: A `TransformerBridge`, a `HookedTransformer`, or a Hugging Face decoder.
            tokenizer: The tokenizer; None for ``model.tokenizer``.
            format: How the model writes its reasoning; `stepflow_tl.generate` knows by itself.
            prompt_length: Number of prompt tokens, as for `StepFlow.attach`.
            trace: A known trace, if its tokens are what the model will be run on.
            show: Whether a line that follows the last finished step is drawn, in a terminal or a
                notebook.

        Yields:
            What is seen.

        Raises:
            ValueError: The model has no such layer, or is a Hugging Face model without `tokenizer`,
                or one that cannot be followed. By the rule "saliency", when a step is over: a
                `StepFlow` is attached, too.
        """
        watched = view(model)
        layers = resolve_layers(self.layers, watched.n_layers)
        seen = Seen(layers, watched.n_layers)
        shares = [name for name in self.measures if name in OF_SHARES]
        by_gradient = self.rule == "saliency" and bool(shares)
        saliency = LiveSaliency(watched, layers, self.frame_keys) if by_gradient else None
        seen_layers = () if saliency is not None or not shares else layers
        live = LiveSteps(
            seen_layers,
            {name: OF_LOGITS[name] for name in self.measures if name in OF_LOGITS},
            self.frame_keys,
            lambda step: self._record(step, seen, saliency, line),
        )

        def over(row: Row) -> dict[str, float]:
            live.close(row)
            return {}

        tracker = Tracker(
            watched,
            trace=trace,
            format=format,
            prompt_length=prompt_length,
            tokenizer=tokenizer,
            report=over,
        )
        line = LiveLine() if show else None
        with ExitStack() as stack:
            if line is not None:
                stack.enter_context(line)
            stack.callback(live.close_all)
            if trace is None:
                stack.enter_context(tracker.watch())
            hooks = _hooks(tracker, live, seen_layers, seen._numbers)
            place: Place = "first" if self.before else "last"
            stack.enter_context(watched.hooks(hooks, lambda: _first_query(tracker), place))
            yield seen

    def _record(
        self,
        step: FinishedStep,
        seen: Seen,
        saliency: LiveSaliency | None,
        line: LiveLine | None,
    ) -> None:
        row = step.row
        if saliency is not None:
            step = replace(step, shares=saliency.shares(row, step.span))
        segments = seen._segments.setdefault(row, [])
        values = measured(self.measures, step, segments)
        number = seen._numbers[row]
        seen.records.append(Record(number, step.step, segments[-1], *step.span, values))
        if line is not None:
            line.follow(seen.records)


def _hooks(
    tracker: Tracker, live: LiveSteps, layers: Sequence[int], numbers: dict[Row, int]
) -> list[Hook]:
    def number(arrival: Any) -> None:
        for row in tracker.position.rows:
            numbers.setdefault(row, len(numbers))

    return [*tracker.hooks(), (ARRIVAL, number), *live_hooks(live, tracker, layers)]


def _first_query(tracker: Tracker) -> int | None:
    at = tracker.position
    return at.reasoning_from - at.start if at.reasoning else None
