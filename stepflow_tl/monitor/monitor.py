"""The monitor: measures of every step while a model decodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import pandas as pd
from torch import Tensor

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
from stepflow_tl.saliency.pooling import FrameKeys
from stepflow_tl.traces.formats import Format
from stepflow_tl.traces.rows import Row
from stepflow_tl.traces.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MonitorRule = Literal["attention", "saliency"]

PLOTS = "stepflow_tl.plots"  # a higher floor

PLACES = ("trace", "step", "segment", "start", "stop", "layer")
"""Columns of a monitor's table that are no measures."""


@dataclass(frozen=True)
class Record:
    """What was measured of one step.

    Attributes:
        trace: Number of the row it is of, in the order in which they were seen.
        step: Its number among the trace's steps.
        segment: "thinking" or "summary".
        start: Its first token.
        stop: The one after its last.
        values: By measure: a number per monitored layer, or one for all.
    """

    trace: int
    step: int
    segment: str
    start: int
    stop: int
    values: dict[str, Tensor | float]


@dataclass
class Seen:
    """What a monitor has seen so far; it grows while the model runs.

    Attributes:
        layers: The monitored layers.
        n_layers: Number of layers of the model.
        records: One for each step that is over, in the order in which they ended.
    """

    layers: tuple[int, ...]
    n_layers: int
    records: list[Record] = field(default_factory=list)
    _numbers: dict[Row, int] = field(default_factory=dict, repr=False)
    _segments: dict[Row, list[str]] = field(default_factory=dict, repr=False)

    def table(self, trace: Trace | int | None = None) -> pd.DataFrame:
        """A row per step and layer.

        Args:
            trace: Only the steps of this trace, or of the one of this number.

        Returns:
            Columns ``trace, step, segment, start, stop, layer`` and the measures; what is read off
            logits is the same at all layers.

        Raises:
            SettingError: The trace was not seen.
        """
        number = self._number_of(trace)
        rows = [
            {
                "trace": record.trace,
                "step": record.step,
                "segment": record.segment,
                "start": record.start,
                "stop": record.stop,
                "layer": layer,
                **{
                    name: float(value[index]) if isinstance(value, Tensor) else value
                    for name, value in record.values.items()
                },
            }
            for record in self.records
            if number is None or record.trace == number
            for index, layer in enumerate(self.layers)
        ]
        found = pd.DataFrame(rows, columns=None if rows else list(PLACES))
        return found.sort_values(["trace", "step", "layer"], ignore_index=True)

    def by_step(self, trace: Trace | int | None = None) -> dict[str, pd.Series]:
        """Each measure by step, its mean over the monitored layers: what a reader shows.

        Args:
            trace: The trace, or its number; None where one alone was seen.

        Raises:
            SettingError: The trace was not seen, or there are several.
        """
        table = self.table(trace)
        if table["trace"].nunique() > 1:
            raise SettingError(
                f"expected one of the {table['trace'].nunique()} traces seen, got None"
            )
        measures = [name for name in table.columns if name not in PLACES]
        return {name: table.groupby("step")[name].mean() for name in measures}

    def plot(self, measure: str | None = None, ax: Axes | None = None, **options: Any) -> Axes:
        """Draw a measure by step: `stepflow_tl.plots.plot_monitor`."""
        return cast("Axes", import_module(PLOTS).plot_monitor(self, measure, ax=ax, **options))

    def _number_of(self, trace: Trace | int | None) -> int | None:
        if trace is None or isinstance(trace, int):
            return trace
        ids = trace.token_ids.tolist()
        for row, number in self._numbers.items():
            if row.token_ids[: len(ids)] == ids:
                return number
        raise SettingError(
            f"expected a trace that was decoded while the monitor was attached, got one of "
            f"{len(trace)} tokens that none of its {len(self._numbers)} rows begins with"
        )


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
