"""Shallow Lock-in and Deep Decay: what the step maps of a trace say, layer by layer.

All shares are read off row-normalized maps, so that neither the length of the trace nor the scale
of the loss decides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepflow_tl.analysis.intervals import clustered_difference
from stepflow_tl.analysis.labels import label_permutation_test
from stepflow_tl.errors import SettingError
from stepflow_tl.monitor.measures import OF_SHARES
from stepflow_tl.saliency.maps import StepMap

LOCK_IN = ("self_share", "neighbor_share", "question_share", "earlier_share", "lock_in")
DECAY = ("summary_on_thinking", "summary_on_summary", "summary_on_question", "half_life")
BLOCKS = ("final_block", "analysis_block", "final_heat_anomaly")
MEASURES = (*LOCK_IN, *DECAY, *BLOCKS)
NEEDS = {
    **dict.fromkeys(LOCK_IN, "three thinking steps"),
    **dict.fromkeys(DECAY, "a summary"),
    "half_life": "a summary, and thinking before it",
    "final_block": "a summary",
    "analysis_block": "thinking",
    "final_heat_anomaly": "a summary, and thinking before it",
}
"""What a trace must have for a measure to be defined."""


def diagnose(step_map: StepMap) -> pd.DataFrame:
    """The failure measures of one trace, a row per layer.

    Shallow Lock-in, as mean shares of a thinking step's saliency (paper section 3.3), over the
    thinking steps that have a neighbor and an earlier step:

    - ``self_share``: on the step itself;
    - ``neighbor_share``: on the step just before it;
    - ``question_share``: on the question;
    - ``earlier_share``: on all earlier thinking steps but the neighbor;
    - ``lock_in``: self + neighbor; near 1 where the rest is ignored.

    Deep Decay, as mean shares of a summary step's saliency:

    - ``summary_on_thinking``, ``summary_on_summary``, ``summary_on_question``;
    - ``half_life``: how many steps back from the summary hold half of its saliency on thinking
      (interpolated; small: only the last steps are seen).

    The authors' block measures, on the map as given (theirs are on unnormalized maps of
    ``pool="mean"``, causal zeros included):

    - ``final_block``: mean of M over summary x summary;
    - ``analysis_block``: mean of M over thinking x thinking;
    - ``final_heat_anomaly``: their ratio.

    Args:
        step_map: The map; a head axis is averaged away.

    Returns:
        Columns ``layer``, ``depth`` (0 to 1) and the measures; NaN where there are too few steps,
        and then ``attrs["undefined"]`` says of which measures, and why (`undefined_measures`).
    """
    step_map = step_map.mean_over_heads()
    segments = [step.segment for step in step_map.steps]
    raw = step_map.scores.double()
    shares = step_map.normalize("row").scores.double().abs()
    is_in = {
        name: torch.tensor([segment == name for segment in segments])
        for name in ("thinking", "summary")
    }
    third = is_in["thinking"].nonzero()[2:, 0].tolist()  # from there on, any share can be positive
    summary = is_in["summary"].nonzero()[:, 0].tolist()
    layers = np.array(step_map.layers)
    table = {"layer": layers, "depth": layers / max(1, step_map.n_layers - 1)}
    measures = {
        **_mean_over_steps(LOCK_IN, shares, segments, third),
        **_mean_over_steps(DECAY[:3], shares, segments, summary),
        "half_life": _half_life(shares[:, summary][:, :, is_in["thinking"]].mean(1).flip(-1)),
        **block_figures(raw, is_in["thinking"], is_in["summary"]),
    }
    found = pd.DataFrame(table | {name: values.numpy() for name, values in measures.items()})
    found.attrs["undefined"] = undefined_measures(step_map)
    return found


def undefined_measures(step_map: StepMap) -> dict[str, str]:
    """Which measures a map cannot have, and why: a plain answer has no summary, for one.

    Returns:
        A sentence part by measure: ``{"summary_on_thinking": "needs a summary, there is none"}``.
    """
    segments = [step.segment for step in step_map.steps]
    thinking, summary = segments.count("thinking"), segments.count("summary")
    reasons = {}
    for name, needed in NEEDS.items():
        if name in LOCK_IN and thinking < 3:
            reasons[name] = f"needs {needed}, there are {thinking}"
        elif "summary" in needed and not summary:
            reasons[name] = "needs a summary, there is none"
        elif "thinking" in needed and not thinking:
            reasons[name] = "needs thinking, there is none"
    return reasons


def _mean_over_steps(
    names: Sequence[str],
    shares: Float[Tensor, "layer query_step key_step"],
    segments: Sequence[str],
    rows: Sequence[int],
) -> dict[str, Float[Tensor, "layer"]]:
    """The mean of measures of single steps, over some of them; NaN over none."""
    found = {}
    for name in names:
        values = [OF_SHARES[name](shares[:, i, : i + 1], segments[: i + 1]) for i in rows]
        found[name] = _mean(torch.stack([*values], dim=1) if values else shares[:, 0, :0])
    return found


def _half_life(
    by_distance: Float[Tensor, "layer distance"],
) -> Float[Tensor, "layer"]:
    """Distance within which half of each row's mass lies; the first entry spans (0, 1]."""
    if by_distance.shape[1] == 0:
        return torch.full(by_distance.shape[:1], torch.nan, dtype=by_distance.dtype)
    total = by_distance.sum(-1, keepdim=True)
    reached = by_distance.cumsum(-1) / total
    at = (reached < 0.5).sum(-1, keepdim=True).clamp_max(by_distance.shape[1] - 1)
    inside = by_distance.gather(-1, at) / total
    before = reached.gather(-1, at) - inside
    return (at + (0.5 - before) / inside)[:, 0]


def block_figures(
    scores: Float[Tensor, "layer query_step key_step"],
    thinking: Bool[Tensor, "step"],
    summary: Bool[Tensor, "step"],
) -> dict[str, Float[Tensor, "layer"]]:
    """The authors' three measures: means over whole square blocks, causal zeros included."""
    final = _mean(scores[:, summary][:, :, summary].flatten(1))
    analysis = _mean(scores[:, thinking][:, :, thinking].flatten(1))
    return {
        "final_block": final,
        "analysis_block": analysis,
        "final_heat_anomaly": final / analysis,
    }


def _mean(values: Float[Tensor, "layer item"]) -> Float[Tensor, "layer"]:
    return values.mean(-1)  # NaN where there is nothing


def compare_groups(
    diagnoses: Sequence[pd.DataFrame],
    *,
    correct: Sequence[bool],
    problems: Sequence[int | str],
    strata: Sequence[int | str] | None = None,
    seed: int = 0,
    resamples: int = 2_000,
) -> pd.DataFrame:
    """Compare the measures of correct and wrong traces, layer by layer.

    Args:
        diagnoses: `diagnose` of each trace, all with the same layers.
        correct: Whether each trace is correct.
        problems: The problem each trace answers: the cluster of bootstrap and permutations.
        strata: What the tests hold fixed, such as each problem's difficulty, which else drives both
            measures and outcomes; by default all traces form one stratum.
        seed: Of the bootstrap and of the permutations.
        resamples: Number of bootstrap samples, and of permutations.

    Returns:
        A row per layer and measure: ``layer, depth, measure``, and for ``correct``, ``wrong`` and
        ``difference`` (correct minus wrong) the value with ``_low`` and ``_high``, its 95%
        percentile interval; ``n_correct, n_wrong``. Then, with labels permuted within strata:
        ``difference_within``, correct minus wrong within strata (without strata, and with one trace
        per problem, the plain ``difference``); its ``p_value``; and the same corrected for the
        layers of its measure, ``p_holm`` (Holm 1979) and ``p_max`` (largest |t| of the layers).
        Several traces of a problem keep their labels together: problems of a stratum with equally
        many traces exchange theirs, and each set is shuffled within its problem; with the problems
        as ``strata``, only the latter.

    Raises:
        ValueError: The sequences differ in length, a group is empty, or a problem lies in several
            strata.
    """
    if not len(diagnoses) == len(correct) == len(problems):
        raise SettingError(
            f"expected as many diagnoses as labels and problems, got {len(diagnoses)}, "
            f"{len(correct)} and {len(problems)}"
        )
    first = np.asarray(correct, dtype=bool)
    if first.all() or not first.any():
        raise SettingError(
            f"expected traces of both kinds, got {int(first.sum())} correct and "
            f"{int((~first).sum())} wrong"
        )
    if strata is not None and len(strata) != len(problems):
        raise SettingError(f"expected {len(problems)} strata, one per trace, got {len(strata)}")
    clusters = pd.factorize(pd.Series(list(problems)).astype(str))[0]
    levels = np.zeros_like(clusters)
    if strata is not None:
        levels = pd.factorize(pd.Series(list(strata)).astype(str))[0]
    values = np.stack([table[list(MEASURES)].to_numpy().ravel() for table in diagnoses])
    groups = clustered_difference(values, first, clusters, seed=seed, resamples=resamples)
    template = diagnoses[0]
    families = np.tile(np.arange(len(MEASURES)), len(template))
    tests = label_permutation_test(
        values, first, clusters, levels, families, seed=seed, resamples=resamples
    )
    result = pd.DataFrame(
        {
            "layer": np.repeat(template["layer"].to_numpy(), len(MEASURES)),
            "depth": np.repeat(template["depth"].to_numpy(), len(MEASURES)),
            "measure": list(MEASURES) * len(template),
        }
    )
    for name, (value, low, high) in zip(("correct", "wrong", "difference"), groups, strict=True):
        result[name], result[f"{name}_low"], result[f"{name}_high"] = value, low, high
    return result.assign(
        n_correct=int(first.sum()),
        n_wrong=int((~first).sum()),
        difference_within=tests.difference,
        p_value=tests.p_value,
        p_holm=tests.p_holm,
        p_max=tests.p_max,
    )
