"""The closed loop: diagnose, choose where and how strongly, repair, measure again.

What is chosen is chosen on held-out problems, and what is reported is reported on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from stepflow_tl.analysis import compare
from stepflow_tl.analysis.bands import AccusedBand, Against, accuse_band
from stepflow_tl.analysis.diagnostics import diagnose
from stepflow_tl.decoding.settings import Decoding
from stepflow_tl.errors import SettingError
from stepflow_tl.interventions import OddsEqualBridge, StepFlow
from stepflow_tl.models.base import Model
from stepflow_tl.models.loading import load_model
from stepflow_tl.models.view import view
from stepflow_tl.saliency import step_saliency
from stepflow_tl.sweep.grid import BASELINE, Grid
from stepflow_tl.sweep.sweep import Sweep
from stepflow_tl.sweep.work import trace_of
from stepflow_tl.tasks import Task

TAU_MAX = (0.05, 0.15, 0.3)
AS_IT_IS = "as it is"
REPAIRED = "repaired"


@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """What was found, chosen and reached.

    Attributes:
        band: The layers that the diagnosis accuses, with its evidence.
        tried: A row per strength on the held-out problems, as `compare` gives it, the best first.
        flow: What was chosen; nothing where no strength was better than none there.
        outcome: The chosen repair against the model as it is, on the reported problems; None where
            nothing was chosen.
        measured: The measure that accused the band, over its layers, on the reported problems:
            mean and number of traces, as it is and repaired.
    """

    band: AccusedBand
    tried: pd.DataFrame
    flow: StepFlow
    outcome: pd.DataFrame | None
    measured: pd.DataFrame


def closed_loop(
    held_out: Task,
    reported: Task,
    folder: str | Path,
    *,
    model: Model | str | Path = "reasoner",
    base: StepFlow | None = None,
    reference: Model | None = None,
    against: Against = "nothing",
    measure: str = "lock_in",
    layers: Sequence[int] | None = None,
    width: int | None = None,
    tau_max: Sequence[float] = TAU_MAX,
    maps: int = 60,
    decoding: Decoding | None = None,
    progress: bool = False,
) -> ClosedLoop:
    """Diagnose a model, choose a repair, and measure it on other problems.

    1. The held-out problems are answered, and step maps of the answers (row shares) are diagnosed.
    2. The window of layers is accused where the measure is worst (`accuse_band`).
    3. The Odds-Equal Bridge is tried there at each strength, on the held-out problems; the most
       accurate is chosen, and nothing if the model is as accurate without.
    4. The reported problems are answered with it and without, and their maps diagnosed again.

    Args:
        held_out: Problems to choose on.
        reported: Other problems, to report on.
        folder: Where the sweeps' stores are kept; a stopped run goes on there.
        model: A loaded model, a name or a folder.
        base: What is attached to the model all the while: a failure that was planted.
        reference: For against="reference": a healthy model (for a planted failure the model itself,
            without `base`), which is run on the same traces.
        against: What a layer's measure is compared with.
        measure: The measure that accuses.
        layers: Layers to repair in place of those that the diagnosis accuses.
        width: Number of layers that are accused; None for a quarter of them.
        tau_max: Strengths to choose from.
        maps: Number of traces that are diagnosed at most.
        decoding: How problems are answered.
        progress: Show progress bars.

    Raises:
        SettingError: The two sets share a problem, or no trace can be diagnosed.
        StoreError: A store holds results of something else.
    """
    _apart(held_out, reported)
    loaded = load_model(model) if isinstance(model, (str, Path)) else model
    count = view(loaded).n_layers
    flow = StepFlow() if base is None else base
    work = _Work(loaded, flow, Path(folder), decoding or Decoding(), maps, progress)
    first = work.answered(held_out, "held-out", {})
    looked = work.diagnosed(first, flow)
    healthy = None if reference is None else work.diagnosed(first, StepFlow(), reference)
    band = accuse_band(
        looked,
        width=max(1, round(count / 4)) if width is None else width,
        measure=measure,
        against=against,
        reference=healthy,
        correct=[bool(x) for x in first["correct"].head(len(looked))],
    )
    where = band.layers if layers is None else tuple(layers)
    repairs = {f"tau_max = {tau:g}": _bridge(tau, where) for tau in tau_max}
    tried = compare(
        work.answered(held_out, "held-out", repairs), baseline=work.unrepaired
    ).sort_values("accuracy", ascending=False, kind="stable")
    best = tried.iloc[0]
    better = float(best["difference"]) > 0
    chosen = repairs[str(best["arm"])] if better else StepFlow()
    asked = {REPAIRED: chosen} if better else {}
    after = work.answered(reported, "reported", asked)
    outcome = compare(after, baseline=work.unrepaired) if better else None
    return ClosedLoop(
        band=band,
        tried=tried.reset_index(drop=True),
        flow=chosen,
        outcome=outcome,
        measured=work.measured(after, chosen, measure, where),
    )


class _Work:
    """Sweeps and maps of one model under what is attached all the while."""

    def __init__(
        self,
        model: Any,
        base: StepFlow,
        folder: Path,
        decoding: Decoding,
        maps: int,
        progress: bool,
    ) -> None:
        self._model, self._base, self._folder = model, base, folder
        self._decoding, self._maps, self._progress = decoding, maps, progress
        self.unrepaired = AS_IT_IS if base.interventions else BASELINE
        folder.mkdir(parents=True, exist_ok=True)

    def answered(self, task: Task, name: str, repairs: dict[str, StepFlow]) -> pd.DataFrame:
        """Rows of the model as it is, and under each repair."""
        settings = {self.unrepaired: self._base} | {
            label: self._with(repair) for label, repair in repairs.items()
        }
        described = Sweep(task, Grid.of(settings), model=self._model, decoding=self._decoding)
        store = self._folder / f"{name}-{task.digest}.sqlite"
        rows = described.run(store, progress=self._progress)
        return rows[rows["arm"].isin(list(settings))]

    def diagnosed(
        self, rows: pd.DataFrame, flow: StepFlow, model: Any | None = None
    ) -> list[pd.DataFrame]:
        """Diagnoses of the first traces of the model as it is."""
        mine = rows[rows["arm"] == self.unrepaired].head(self._maps)
        return [self._look(row, flow, model) for row in self._bar(mine)]

    def measured(
        self, rows: pd.DataFrame, chosen: StepFlow, measure: str, layers: Sequence[int]
    ) -> pd.DataFrame:
        """The measure over some layers, as it is and repaired, each on its own answers."""
        lines = []
        for label, flow in ((self.unrepaired, self._base), (REPAIRED, self._with(chosen))):
            mine = rows[rows["arm"] == label].head(self._maps)
            found = [self._look(row, flow, None) for row in self._bar(mine)]
            values = [t[t["layer"].isin(layers)][measure].mean() for t in found]
            known = pd.Series(values, dtype=float).dropna()
            if len(known):
                lines.append(
                    {
                        "arm": label,
                        "measure": measure,
                        "value": known.mean(),
                        "standard_error": known.sem(),
                        "n": len(known),
                    }
                )
        return pd.DataFrame(lines)

    def _with(self, repair: StepFlow) -> StepFlow:
        return StepFlow(*self._base.interventions, *repair.interventions)

    def _look(self, row: pd.Series, flow: StepFlow, model: Any | None) -> pd.DataFrame:
        trace = trace_of(self._model, row)
        asked = self._model if model is None else model
        with flow.attach(asked):
            return diagnose(step_saliency(asked, trace, pool="share"))

    def _bar(self, rows: pd.DataFrame) -> Any:
        each = (row for _, row in rows.iterrows())
        return tqdm(each, total=len(rows), unit="map", disable=not self._progress)


def _bridge(tau_max: float, layers: tuple[int, ...]) -> StepFlow:
    return StepFlow(OddsEqualBridge(tau_max=tau_max, layers=layers, keys="question"))


def _apart(held_out: Task, reported: Task) -> None:
    shared = {item.key for item in held_out.items} & {item.key for item in reported.items}
    if shared:
        raise SettingError(
            f"expected held-out problems that are not reported on, got {len(shared)} in both"
        )
