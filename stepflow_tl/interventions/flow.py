"""StepFlow: interventions that act together, attached to a model or given as plain hooks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from stepflow_tl.errors import InterventionWarning, ModelError, SettingError, WrongTypeError
from stepflow_tl.interventions.attached import attached_to, flows_on
from stepflow_tl.interventions.base import Intervention
from stepflow_tl.interventions.conditions import Decisions, refuse_others, run_ahead
from stepflow_tl.interventions.gradient_momentum import GradientMomentum
from stepflow_tl.interventions.ledger import Ledger
from stepflow_tl.interventions.odds_equal_bridge import OddsEqualBridge
from stepflow_tl.interventions.step_momentum import StepMomentum
from stepflow_tl.interventions.tracker import Tracker
from stepflow_tl.interventions.uniform_prior_bridge import UniformPriorBridge
from stepflow_tl.interventions.wiring import first_query, hooks_of, names_of
from stepflow_tl.models.base import Model, ModelView
from stepflow_tl.models.hooked import at_hook_points
from stepflow_tl.models.sites import Hook
from stepflow_tl.models.view import view
from stepflow_tl.text import one_line
from stepflow_tl.traces.formats import Format, named_format
from stepflow_tl.traces.trace import Trace

PRESETS = ("paper", "release", "digest")


@dataclass
class Run:
    """What attached interventions have done so far.

    Attributes:
        ledger: Counts per intervention and layer.
        forwards: Number of forward passes seen.
        actions: How often any of the interventions acted.
        extra_tokens: Tokens that interventions ran through the model beside the caller's, forward
            and backward.
        decisions: What the interventions' conditions (`when`) decided, step by step.
    """

    ledger: Ledger
    decisions: Decisions
    _tracker: Tracker
    _actions: tuple[tuple[str, str], ...]

    @property
    def forwards(self) -> int:
        """Number of forward passes seen."""
        return self._tracker.forwards

    @property
    def extra_tokens(self) -> int:
        """Tokens that interventions ran through the model beside the caller's, both ways."""
        return int(sum(self.ledger.total(name, "extra_tokens") for name, _ in self._actions))

    @property
    def actions(self) -> int:
        """How often any of the interventions acted: rows changed, and injections."""
        return int(sum(self.ledger.total(name, column) for name, column in self._actions))

    def actions_on(self, trace: Trace) -> float:
        """How often they acted on one trace that was generated meanwhile."""
        said = trace.metadata.get("ledger", {})
        return sum((said.get(f"{name}.{column}", 0.0) for name, column in self._actions), start=0.0)

    def extra_tokens_of(self, trace: Trace) -> float:
        """Tokens that they ran for one trace beside the caller's, both ways."""
        said = trace.metadata.get("ledger", {})
        return sum((said.get(f"{name}.extra_tokens", 0.0) for name, _ in self._actions), start=0.0)

    @property
    def actions_on_none(self) -> float:
        """How often they acted, as far as their ledger does not say on which trace."""
        return sum(
            (self.ledger.of_no_row(name, column) for name, column in self._actions), start=0.0
        )


@dataclass(frozen=True, init=False)
class StepFlow:
    """Interventions that act together, in any order (two on one pattern: in the order given).

    Example::

        flow = StepFlow(OddsEqualBridge(tau_max=0.15), StepMomentum(alpha=0.06))
        with flow.attach(model) as run:
            repaired = generate(model, question)
        run.ledger

    Attributes:
        interventions: The interventions; two of one kind may work on different layers, but for
            `GradientMomentum`.
    """

    interventions: tuple[Intervention, ...]

    def __init__(self, *interventions: Intervention) -> None:
        for item in interventions:
            if not isinstance(item, Intervention):
                raise WrongTypeError(
                    f"StepFlow takes interventions such as OddsEqualBridge() and StepMomentum(), "
                    f"got {item!r}"
                )
        if sum(isinstance(item, GradientMomentum) for item in interventions) > 1:
            raise SettingError(
                "StepFlow takes at most one GradientMomentum, whose gradients would else miss "
                f"what the other injects: give one of them all layers, got {interventions!r}"
            )
        object.__setattr__(self, "interventions", interventions)

    @classmethod
    def preset(cls, name: str) -> StepFlow:
        """The settings of this name: "paper", "release" or "digest".

        Raises:
            SettingError: There is no such preset.
        """
        if name not in PRESETS:
            raise SettingError(f"no preset {name!r}: expected one of {list(PRESETS)}")
        made: StepFlow = getattr(cls, name)()
        return made

    @classmethod
    def paper(cls) -> StepFlow:
        """The paper's settings (Table 8): OEB on the bottom quarter, SMI on the top quarter."""
        return cls(OddsEqualBridge(), StepMomentum())

    @classmethod
    def release(cls) -> StepFlow:
        """The authors' code as released, with its scripts' defaults.

        The pending step start is consumed by the first deep layer that sees it, so that one
        momentum layer is ever injected, and alpha is 0.2. (Its bridge ran on layers 0-8 of
        GPT-OSS-20B's 24: the bottom 0.375.)
        """
        return cls(OddsEqualBridge(layers=0.375), StepMomentum(alpha=0.2, layers="deep-onset"))

    @classmethod
    def digest(cls) -> StepFlow:
        """The variants that the news digest of the paper describes, in place of OEB and SMI."""
        return cls(UniformPriorBridge(), GradientMomentum())

    def fwd_hooks(
        self,
        model: Model,
        trace: Trace,
        *,
        ledger: Ledger | None = None,
        decisions: Decisions | None = None,
    ) -> list[Hook]:
        """Hooks for running the model on a known trace, as TransformerLens takes them.

        Args:
            model: The model they will run in.
            trace: The trace whose tokens (or a prefix of them) the model will be run on, whole
                or in chunks against a KV cache, in every row of the batch.
            ledger: Where to write what they do.
            decisions: Those of an earlier run, such as ``run.decisions``, which conditions repeat;
                what it does not say is decided on a run of the trace of its own, step by step.

        Returns:
            Pairs of hook name and hook function, for ``model.run_with_hooks(trace.tokens,
            fwd_hooks=...)`` and ``model.hooks(fwd_hooks=...)``.

        Raises:
            ValueError: An intervention names a layer that the model does not have, or the model is
                a plain Hugging Face model, which has no hooks.
        """
        seen = view(model)
        if "attn_scores" not in seen.sites:
            raise ModelError(
                f"expected a TransformerBridge or HookedTransformer, got {type(model).__name__}, "
                "which takes no TransformerLens hooks: use StepFlow.attach(model, tokenizer=...)"
            )
        tracker, ledger = Tracker(seen, trace=trace), Ledger() if ledger is None else ledger
        if any(item.when is not None for item in self.interventions):
            decisions = self.decide(model, trace, decisions=decisions)
            self._refuse_closed(decisions, trace)
        hooks = hooks_of(self.interventions, seen, tracker, ledger, Decisions(decisions))
        return at_hook_points([*tracker.hooks(), *hooks])

    @contextmanager
    def attach(
        self,
        model: Model | ModelView,
        *,
        tokenizer: Any | None = None,
        format: str | Format = "auto",
        prompt_length: int | None = None,
        decisions: Decisions | None = None,
    ) -> Iterator[Run]:
        """Intervene in everything the model runs inside this block.

        The model is as it was when the block is left, whatever was raised inside.

        A plain Hugging Face model decodes with its own attention (SDPA where it has it) and any
        cache of its own; only the rows that a bridge may change are computed here::

            model = AutoModelForCausalLM.from_pretrained(name, device_map="auto")
            with StepFlow.paper().attach(model, tokenizer=tokenizer) as run:
                model.generate(**inputs, max_new_tokens=4096)

        Rows of the batch must keep their places: no beam search. Such a model is not compiled:
        with a static cache on a GPU pass ``disable_compile=True`` to ``generate``. Blocks nest on
        every class of models; the outer one acts first.

        Args:
            model: A `TransformerBridge`, a `HookedTransformer`, or a Hugging Face decoder whose
                attention goes through transformers' ``AttentionInterface``.
            tokenizer: The tokenizer; None for ``model.tokenizer``.
            format: How the model writes its reasoning; `stepflow_tl.generate` knows by itself.
            prompt_length: Number of prompt tokens, where neither `stepflow_tl.generate` drives the
                model nor an opening delimiter shows where the thinking begins.
            decisions: Those of an earlier run, which conditions repeat where tokens are the same.

        Yields:
            The run, with its ledger.

        Raises:
            ValueError: An intervention names a layer that the model does not have, or the model is
                a Hugging Face model without `tokenizer`, or one that cannot be followed.

        Warns:
            InterventionWarning: On leaving, for each intervention that never fired.
        """
        self._refuse_impossible(named_format(format))
        seen, ledger, decided = view(model), Ledger(), Decisions(decisions)
        tracker = Tracker(
            seen,
            format=format,
            prompt_length=prompt_length,
            tokenizer=tokenizer,
            report=ledger.of_row,
        )
        run = Run(ledger, decided, tracker, self._actions())
        hooks = hooks_of(self.interventions, seen, tracker, ledger, decided)
        if not hooks:
            yield run
            return
        wanted = partial(first_query, self.interventions, tracker)
        every = [*tracker.hooks(), *hooks]
        with attached_to(seen), tracker.watch(), seen.hooks(every, wanted):
            yield run
        for message in self._silences(run):
            warnings.warn(message, InterventionWarning, stacklevel=3)

    def decide(
        self, model: Model | ModelView, trace: Trace, *, decisions: Decisions | None = None
    ) -> Decisions:
        """What the conditions decide of a trace's steps, on a run of it, step by step.

        Args:
            model: The model.
            trace: The trace.
            decisions: Those of an earlier run, which are repeated.

        Raises:
            SettingError: Another flow is attached to the model, of which such a run knows nothing.
        """
        made = Decisions(decisions)
        refuse_others(flows_on(view(model)))
        run_ahead(
            view(model),
            trace,
            lambda follower: hooks_of(self.interventions, view(model), follower, Ledger(), made),
        )
        return made

    def preview(
        self, model: Model | ModelView, trace: Trace, *, decisions: Decisions | None = None
    ) -> pd.DataFrame:
        """The steps of a trace in which interventions would act.

        Args:
            model: The model.
            trace: The trace, on which conditions are decided as by `decide`.
            decisions: Those of an earlier run, which are repeated.

        Returns:
            Columns ``intervention, step, segment, text`` and the scores that decided; an
            intervention without a condition has all steps of thinking and summary.
        """
        made = self.decide(model, trace, decisions=decisions)
        opened = {(one.intervention, one.step): one.scores for one in made if one.is_open}
        lines = []
        for item, name in zip(self.interventions, names_of(self.interventions), strict=True):
            for one in trace.steps:
                if one.segment == "question" or item.is_neutral:
                    continue
                if item.when is None or (name, one.index) in opened:
                    where = {"intervention": name, "step": one.index, "segment": one.segment}
                    scores = opened.get((name, one.index), {})
                    lines.append({**where, "text": one_line(one.text), **scores})
        columns = ["intervention", "step", "segment", "text"]
        return pd.DataFrame(lines, columns=None if lines else columns)

    def _refuse_impossible(self, form: Format) -> None:
        """Refuse conditions that can hold in no response of a format."""
        for item in self.interventions:
            why = None if item.when is None else item.when.never(form)
            if why is not None:
                raise SettingError(
                    f"expected {item.name} to have a condition that can hold in the format "
                    f"{form.name!r}, got {item.when!r}: {why}"
                )

    def _refuse_closed(self, decisions: Decisions, trace: Trace) -> None:
        """Refuse conditions on steps and texts that no step of a known trace meets."""
        for item, name in zip(self.interventions, names_of(self.interventions), strict=True):
            if item.when is None or item.when.is_measured or item.is_neutral:
                continue
            if not any(one.is_open for one in decisions if one.intervention == name):
                raise SettingError(
                    f"expected {item.name} to have a condition that some step of the trace meets, "
                    f"got {item.when!r}, which holds in none of the steps of {trace!r}"
                )

    def _actions(self) -> tuple[tuple[str, str], ...]:
        """Name in the ledger and column that counts actions, of each intervention."""
        fired = (item.fired for item in self.interventions)
        return tuple(zip(names_of(self.interventions), fired, strict=True))

    def _silences(self, run: Run) -> Iterator[str]:
        """What to say of each intervention that never fired."""
        for item, name in zip(self.interventions, names_of(self.interventions), strict=True):
            if not run.forwards or item.is_neutral or run.ledger.total(name, item.fired):
                continue
            made = [one for one in run.decisions if one.intervention == name]
            if item.when is not None and not any(one.is_open for one in made):
                yield f"{item!r} never acted: its condition, {item.when!r}, held in none of " + (
                    f"{len(made)} steps"
                )
                continue
            rows = int(run.ledger.total(name, "rows_seen"))
            yield f"{item!r} never fired in {run.forwards} forward passes" + (
                f": none of {rows} attention rows of thinking and summary needed a change"
                if rows
                else "; if steps of thinking were expected, check the format and the prompt"
            )
