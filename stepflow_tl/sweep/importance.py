"""What rollouts say of a step: resampling and forced importance, with intervals.

With a[i] the share of right answers of the rollouts from place i (before step i), and P[i] their
distribution over answers::

    importance of step i = a[i + 1] - a[i],     KL(P[i] || P[i + 1])

so that a step after which more answers are right is above zero (thought-anchors' resampling
accuracy and KL; of its counterfactual accuracy the sign is the other way). An answer that is
missing on the right costs as much as the smoothing lets it: add a half to each count, or as
thought-anchors 1e-9 to each share, where it costs some 20 nats times its share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd

from stepflow_tl.analysis import proportion
from stepflow_tl.errors import SettingError
from stepflow_tl.sweep.resampling import Resampling, place_of

Smoothing = Literal["half", "thought-anchors"]
_THEIRS = 1e-9


def importance(
    rows: pd.DataFrame, task: Resampling | None = None, *, smoothing: Smoothing = "half"
) -> pd.DataFrame:
    """Importance of each step of each trace, of one arm of a sweep over `Resampling`.

    Args:
        rows: What `Sweep.run` returned: a row per place and seed.
        task: The places that must be there; None where rows tell of whole traces.
        smoothing: Of the distributions of answers, before they are compared.

    Returns:
        A row per place: ``problem, step``; ``n`` rollouts and their ``accuracy`` with Wilson's
        interval; and of the step that begins there ``importance`` with the 95% interval of a
        difference of two proportions that rests on Wilson's (Newcombe 1998, method 10), and ``kl``
        in nats. NaN at the last place, where no step begins.

    Raises:
        SettingError: There are no rows, rows of several arms, a place is missing, or the places of
            a trace have other numbers of rollouts.
    """
    if smoothing not in get_args(Smoothing):
        raise SettingError(f"expected smoothing in {list(get_args(Smoothing))}, got {smoothing!r}")
    arms = [] if rows.empty else sorted(set(rows["arm"]))
    if len(arms) != 1:
        raise SettingError(f"expected rows of one arm, got {arms or 'none'}")
    if rows["correct"].isna().any():
        raise SettingError("expected rollouts that were graded, got one without a verdict")
    missing = set() if task is None else {item.key for item in task.items} - set(rows["problem"])
    if missing:
        raise SettingError(
            f"expected every place of the task, got none of {min(missing)!r} and "
            f"{len(missing) - 1} others: run the sweep to its end"
        )
    places = [place_of(key) for key in rows["problem"]]
    table = rows.assign(item=[item for item, _ in places], place=[place for _, place in places])
    lines = []
    for item, mine in table.groupby("item", sort=False):
        by_place = {int(part["place"].iloc[0]): part for _, part in mine.groupby("place")}
        if sorted(by_place) != list(range(len(by_place))):
            raise SettingError(
                f"expected every place of {item!r}, got {sorted(by_place)}: run the sweep to its "
                "end"
            )
        counts = sorted({len(part) for part in by_place.values()})
        if len(counts) > 1:
            raise SettingError(
                f"expected as many rollouts from every place of {item!r}, got {counts}: run the "
                "sweep to its end"
            )
        for place, here in sorted(by_place.items()):
            right, n = int(here["correct"].sum()), len(here)
            value, low, high = proportion(right, n)
            line = {"problem": item, "step": place, "n": n, "accuracy": value}
            line |= {"accuracy_low": low, "accuracy_high": high}
            after = by_place.get(place + 1)
            lines.append(line | _step(here, after, smoothing))
    return pd.DataFrame(lines)


def _step(
    here: pd.DataFrame,
    after: pd.DataFrame | None,
    smoothing: Smoothing,
) -> dict[str, float]:
    """Importance of the step between two places."""
    names = ("importance", "importance_low", "importance_high", "kl")
    if after is None:
        return dict.fromkeys(names, float("nan"))
    first, second = (proportion(int(x["correct"].sum()), len(x)) for x in (here, after))
    gained = second.value - first.value
    low = gained - np.hypot(second.value - second.low, first.high - first.value)
    high = gained + np.hypot(second.high - second.value, first.value - first.low)
    kl = answer_divergence(list(here["answer"]), list(after["answer"]), smoothing)
    return dict(zip(names, (gained, float(low), float(high), kl), strict=True))


def answer_divergence(
    here: Sequence[object], after: Sequence[object], smoothing: Smoothing = "half"
) -> float:
    """KL(P here || P after) of answers, in nats; no answer is an answer of its own."""
    answers = sorted({_said(answer) for answer in (*here, *after)})
    counts = [
        np.array([sum(_said(x) == answer for x in some) for answer in answers], dtype=float)
        for some in (here, after)
    ]
    if smoothing == "half":
        p, q = ((count + 0.5) / (count + 0.5).sum() for count in counts)
    else:
        p, q = (count / count.sum() + _THEIRS for count in counts)
    return float((p * np.log(p / q)).sum())


def _said(answer: object) -> str:
    return "" if answer is None or answer != answer else str(answer).strip()
