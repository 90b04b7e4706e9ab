"""What a page shows of one trace, and the facts that it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl.analysis.diagnostics import DECAY, LOCK_IN, diagnose
from stepflow_tl.errors import SettingError, StepMapError
from stepflow_tl.interventions.flow import Run
from stepflow_tl.models.layers import LayerSpec, resolve_layers
from stepflow_tl.saliency.maps import StepMap
from stepflow_tl.traces.trace import Step, Trace
from stepflow_tl.views.audits import known_audit
from stepflow_tl.views.mathematics import runs_of
from stepflow_tl.views.packing import packed_scores

BANDS: tuple[LayerSpec, ...] = ("shallow", "middle", "deep", "all")
_SHARES = (*LOCK_IN, *DECAY[:3])
"""Measures of `diagnose` that are shares, and so have one axis."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One trace, and all that is known of it.

    Attributes:
        trace: The trace; None where maps are all there is, whose steps are shown then.
        maps: Maps of its steps, by the name of their rule or measure: saliency, attention,
            ``knock_out(model, trace).as_map()``. With ``per_head=True``, heads are kept for
            `head_layers` only.
        values: A number per step, by name: receiver scores, imported importance; NaN for none.
        token_scores: A number per token of the trace, which shades the text of its steps.
        head_layers: Layers whose heads can be chosen.
        fired: Steps at which an intervention acted.
        ledger: What interventions did: ``run.ledger.to_dataframe()``.
        audits: By the name of a map, what is known of its rule: lines of text. Of the package's own
            rules and settings that were audited, what was found stands there by itself.
        facts: What else stands at the head of the page: ``{"answer": "12", "correct": True}``.
        name: What the page calls it.
    """

    trace: Trace | None = None
    maps: Mapping[str, StepMap] = field(default_factory=dict)
    values: Mapping[str, pd.Series | Mapping[int, float] | Sequence[float]] = field(
        default_factory=dict
    )
    token_scores: Float[Tensor, "pos"] | None = None
    head_layers: Sequence[int] = ()
    fired: Iterable[int] = ()
    ledger: pd.DataFrame | None = None
    audits: Mapping[str, Sequence[str]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    name: str = "trace"

    @classmethod
    def of_run(cls, run: Run, trace: Trace, **known: Any) -> Reading:
        """A trace that was decoded under a `StepFlow`, with what it did.

        Args:
            run: What ``flow.attach`` gave: its ledger is shown, over all that it ran, and steps
                that its conditions opened are flagged, with the scores that opened them.
            trace: The trace.
            known: What else is known: the other attributes.
        """
        lines = run.decisions.table(trace)
        opened = lines[lines["open"].astype(bool)] if len(lines) else lines
        scores = {
            f"{name} (before the step)": lines.drop_duplicates("step").set_index("step")[name]
            for name in lines.columns[5:]
        }
        return cls(
            trace=trace,
            fired=[int(step) for step in opened["step"]],
            ledger=run.ledger.to_dataframe(),
            values={**scores, **known.pop("values", {})},
            **known,
        )

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps that maps are between."""
        if self.trace is not None:
            return self.trace.steps
        return next((one.steps for one in self.maps.values()), ())

    def described(self) -> dict[str, Any]:
        """All of it as JSON-able facts, but for the maps' numbers (`packed`).

        Raises:
            StepMapError: A map is of other steps.
            SettingError: Values or token scores are not one per step or token; an audit is of no
                map; there is neither a trace nor a map.
        """
        self._check()
        trace = self.trace
        facts = dict(self.facts)
        if trace is not None:
            facts = {**_known(trace), **facts}
        return {
            "name": self.name,
            "facts": [[name, shown(value)] for name, value in facts.items()],
            "items": list(self._items()),
            "values": {name: self._per_step(name) for name in self.values},
            "fired": sorted({int(step) for step in self.fired}),
            "ledger": _table(self.ledger),
            "maps": [self._of_map(name) for name in self.maps],
        }

    def packed(self, name: str) -> str:
        """The numbers of a map, as the page carries them."""
        return packed_scores(torch.stack([plane for _, _, plane in self._planes(name)]))

    def _check(self) -> None:
        if self.trace is None and not self.maps:
            raise SettingError("expected a trace or a map to show, got neither")
        for name, one in self.maps.items():
            if [s.text for s in one.steps] != [s.text for s in self.steps]:
                raise StepMapError(
                    f"expected maps of the same {len(self.steps)} steps, got map {name!r} of "
                    f"{len(one.steps)} others"
                )
        unknown = [name for name in self.audits if name not in self.maps]
        if unknown:
            raise SettingError(
                f"expected audits of the maps {list(self.maps)}, got audits of {unknown}"
            )
        wrong = [step for step in self.fired if not 0 <= step < len(self.steps)]
        if wrong:
            raise SettingError(
                f"expected fired steps from 0 to {len(self.steps) - 1}, got {wrong[0]}"
            )
        scores, size = self.token_scores, 0 if self.trace is None else len(self.trace)
        if scores is not None and tuple(scores.shape) != (size,):
            raise SettingError(
                f"expected a token score for each of the trace's {size} tokens, got "
                f"{list(scores.shape)}"
            )

    def _items(self) -> Iterable[dict[str, Any]]:
        """Steps, and the frame between them, in the order of the text."""
        end = 0
        for step in self.steps:
            if self.trace is not None and step.start > end:
                yield {"frame": self._text(end, step.start)}
            end = step.stop
            item: dict[str, Any] = {"step": step.index, "segment": step.segment}
            item["runs"] = runs_of(step.text.strip())
            item["length"] = len(step)
            if step.labels:
                item["labels"] = {name: shown(value) for name, value in step.labels.items()}
            if self.trace is not None and self.token_scores is not None:
                span = slice(step.start, step.stop)
                most = float(self.token_scores.abs().max()) or 1.0
                shades = (self.token_scores[span].double() / most).nan_to_num(0.0)
                item["tokens"] = [
                    [text, round(float(shade), 3)]
                    for text, shade in zip(self.trace.token_texts[span], shades, strict=True)
                ]
            yield item
        if self.trace is not None and end < len(self.trace):
            yield {"frame": self._text(end, len(self.trace))}

    def _text(self, start: int, stop: int) -> str:
        assert self.trace is not None
        return "".join(self.trace.token_texts[start:stop])

    def _per_step(self, name: str) -> list[float | None]:
        given = self.values[name]
        if isinstance(given, (pd.Series, Mapping)):
            by_step = {int(str(step)): float(value) for step, value in given.items()}
        else:
            by_step = dict(enumerate(map(float, given)))
        if not by_step.keys() <= set(range(len(self.steps))):
            raise SettingError(
                f"expected values {name!r} of steps from 0 to {len(self.steps) - 1}, got "
                f"{len(by_step)} values up to step {max(by_step)}"
            )
        values = [by_step.get(step, np.nan) for step in range(len(self.steps))]
        return [float(value) if np.isfinite(value) else None for value in values]

    def _planes(self, name: str) -> Iterable[tuple[int, int | None, Tensor]]:
        """Layer, head (None for their mean) and scores of each matrix of a map."""
        given = self.maps[name]
        for layer, scores in zip(given.layers, given.mean_over_heads().scores, strict=True):
            yield layer, None, scores
        if given.per_head:
            for layer, heads in zip(given.layers, given.scores, strict=True):
                if layer in self.head_layers:
                    for head, scores in enumerate(heads):
                        yield layer, head, scores

    def _of_map(self, name: str) -> dict[str, Any]:
        given = self.maps[name]
        named = BANDS if given.n_layers >= len(BANDS) else ("all",)
        bands = {band: resolve_layers(band, given.n_layers) for band in named}
        inside = {
            band: [layer for layer in layers if layer in given.layers]
            for band, layers in bands.items()
        }
        signed = bool((given.scores < 0).any())
        return {
            "name": name,
            "settings": [[key, shown(value)] for key, value in given.settings.items()],
            "layers": list(given.layers),
            "bands": {band: layers for band, layers in inside.items() if layers},
            "planes": [[layer, head] for layer, head, _ in self._planes(name)],
            "signed": signed,
            "measures": {} if signed or len(given.layers) < 2 else _measures(given),
            "audit": list(self.audits.get(name, known_audit(given.settings))),
        }


def _measures(given: StepMap) -> dict[str, list[float | None]]:
    """Those of `diagnose` that are shares and defined somewhere, by layer."""
    table = diagnose(given)
    return {
        name: [float(value) if np.isfinite(value) else None for value in table[name]]
        for name in _SHARES
        if table[name].notna().any()
    }


def _known(trace: Trace) -> dict[str, Any]:
    """What a trace says of itself, for the head of the page."""
    known = {name: trace.metadata[name] for name in ("model", "seed") if name in trace.metadata}
    known["format"] = trace.format_name
    known["tokens"] = len(trace)
    known["answer"] = trace.answer
    if not trace.ended:
        known["ended"] = "no: decoding was cut"
    return known


def _table(table: pd.DataFrame | None) -> dict[str, Any] | None:
    if table is None:
        return None
    rows = [[shown(value) for value in row] for row in table.itertuples(index=False)]
    return {"columns": [str(name) for name in table.columns], "rows": rows}


def shown(value: Any) -> str:
    """A fact as text."""
    if isinstance(value, bool) or not isinstance(value, (float, np.floating)):
        return "none" if value is None else str(value)
    return f"{value:.4g}"
