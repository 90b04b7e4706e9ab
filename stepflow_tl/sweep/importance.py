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
from stepflow_tl.sweep.resampling import place_of

Smoothing = Literal["half", "thought-anchors"]
_THEIRS = 1e-9


def importance(
    rows: pd.DataFrame, *, smoothing: Smoothing = "half", seed: int = 0, resamples: int = 2_000
) -> pd.DataFrame:
    """Importance of each step of each trace, of one arm of a sweep over `Resampling`.

    Args:
        rows: What `Sweep.run` returned: a row per place and seed.
        smoothing: Of the distributions of answers, before they are compared.
        seed: Of the bootstrap over rollouts.
        resamples: Number of bootstrap samples.

    Returns:
        A row per place: ``problem, step``; ``n`` rollouts and their ``accuracy`` with Wilson's
        interval; and of the step that begins there ``importance`` with a percentile interval from
        drawing rollouts of both places, and ``kl`` in nats. NaN at the last place, where no step
        begins.

    Raises:
        SettingError: There are no rows, rows of several arms, or a place is missing.
    """
    if smoothing not in get_args(Smoothing):
        raise SettingError(f"expected smoothing in {list(get_args(Smoothing))}, got {smoothing!r}")
    if rows.empty or rows["arm"].nunique() != 1:
        raise SettingError(f"expected rows of one arm, got {sorted(set(rows['arm'])) or 'none'}")
    places = [place_of(key) for key in rows["problem"]]
    table = rows.assign(item=[item for item, _ in places], place=[place for _, place in places])
    generator, lines = np.random.default_rng(seed), []
    for item, mine in table.groupby("item", sort=False):
        by_place = {int(part["place"].iloc[0]): part for _, part in mine.groupby("place")}
        if sorted(by_place) != list(range(len(by_place))):
            raise SettingError(
                f"expected every place of {item!r}, got {sorted(by_place)}: run the sweep to its "
                "end"
            )
        for place, here in sorted(by_place.items()):
            right, n = int(here["correct"].sum()), len(here)
            value, low, high = proportion(right, n)
            line = {"problem": item, "step": place, "n": n, "accuracy": value}
            line |= {"accuracy_low": low, "accuracy_high": high}
            after = by_place.get(place + 1)
            lines.append(line | _step(here, after, smoothing, generator, resamples))
    return pd.DataFrame(lines)


def _step(
    here: pd.DataFrame,
    after: pd.DataFrame | None,
    smoothing: Smoothing,
    generator: np.random.Generator,
    resamples: int,
) -> dict[str, float]:
    """Importance of the step between two places."""
    names = ("importance", "importance_low", "importance_high", "kl")
    if after is None:
        return dict.fromkeys(names, float("nan"))
    first, second = (x["correct"].to_numpy(dtype=float) for x in (here, after))
    drawn = [generator.binomial(len(x), x.mean(), resamples) / len(x) for x in (first, second)]
    low, high = np.quantile(drawn[1] - drawn[0], [0.025, 0.975])
    kl = answer_divergence(list(here["answer"]), list(after["answer"]), smoothing)
    return dict(zip(names, (second.mean() - first.mean(), low, high, kl), strict=True))


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
