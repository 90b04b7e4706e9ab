"""The demo as one page to click through: planted failure, its map, the repair, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from stepflow_tl.cli.demo_failure import HEALTHY, REPAIR, Found, Told
from stepflow_tl.saliency.maps import StepMap
from stepflow_tl.traces.trace import Trace
from stepflow_tl.views import Contents, Reader, Reading

HOW = (
    "Each line opens two texts beside their step maps: a row shows where a step draws from. "
    "Click a step, or press the arrow keys."
)
LOCKED, REPAIRED = "locked in", "locked in, repaired"
MAP = "saliency"


def story(
    found: Found,
    sentences: Sequence[str],
    pair: Mapping[str, tuple[Trace, StepMap]],
    paper: Mapping[str, Any],
) -> Contents:
    """The page.

    Args:
        found: What was found of the failure that was trained in.
        sentences: What became of it, and of the paper's repair where nothing was planted.
        pair: Where nothing was planted, a trace that is right and one that is wrong, with maps.
        paper: A line of the demo's table: the paper's repair where nothing was planted.
    """
    chapters: list[tuple[dict[str, Any], Reader]] = []

    def chapter(what: str, before: Reading, after: Reading, told: str) -> None:
        line = {"chapter": what, "before": before.name, "after": after.name, "right": told}
        chapters.append((line, Reader(before, after, what)))

    right = {line["model"]: float(line["accuracy"]) for _, line in found.accuracy.iterrows()}
    if found.told:
        healthy, locked, repaired = (found.told[name] for name in (HEALTHY, LOCKED, REPAIRED))
        chapter(
            "1. The failure in the maps: one text, read by both models",
            _reading("the reasoner", healthy, healthy.shared),
            _reading("locked in, same text", healthy, locked.shared),
            "switch on the difference",
        )
        chapter(
            "2. The failure in the answers: what each of them writes",
            _reading("the reasoner", healthy, healthy.own),
            _reading("locked in", locked, locked.own),
            f"{right[HEALTHY]:.3f} to {right[LOCKED]:.3f}",
        )
        chapter(
            f"3. The repair: {REPAIR.interventions[0].name} where the failure is",
            _reading("locked in", locked, locked.own),
            _reading("repaired", repaired, repaired.own, found.ledger),
            f"{right[LOCKED]:.3f} to {right[REPAIRED]:.3f}",
        )
    if pair:
        before, after = (
            Reading(
                trace=trace,
                maps={MAP: made},
                name=f"a {name} answer",
                facts={"correct": name == "correct"},
            )
            for name, (trace, made) in pair.items()
        )
        chapter(
            "4. Nothing planted: two answers to problems of one kind, and the paper's repair",
            before,
            after,
            f"{paper['baseline']:.3f} to {paper['StepFlow']:.3f}",
        )
    told = [HOW, *sentences]
    rows = pd.DataFrame([line for line, _ in chapters])
    readers = [reader for _, reader in chapters]
    return Contents(rows, readers, "A failure planted, seen and repaired", told)


def _reading(name: str, told: Told, made: StepMap, ledger: pd.DataFrame | None = None) -> Reading:
    return Reading(
        trace=told.trace,
        maps={MAP: made},
        name=name,
        ledger=ledger,
        facts={"correct": told.is_right},
    )
