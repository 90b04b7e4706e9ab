"""Token maps, step maps and the arcs of step-to-step flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Patch, Rectangle
from torch import Tensor

from stepflow_tl.models.layers import Band
from stepflow_tl.plots.style import STYLE, literal_lines
from stepflow_tl.saliency.maps import StepMap
from stepflow_tl.traces.trace import Segment, Step, Trace

SEGMENT_COLORS = {"question": "#3b6fb6", "thinking": "#e08a2e", "summary": "#3f9b5a"}
COLOR_MAP = "magma_r"
_GAMMA = 0.5  # color follows the square root, so that faint flow stays visible
_KIND_CHARACTERS = 18


def plot_step_map(
    step_map: StepMap,
    *,
    ax: Axes | None = None,
    title: str = "",
    vmax: float | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw a step map, averaged over its layers and heads.

    Args:
        step_map: The map; `StepMap.normalize("row")` makes rows comparable.
        ax: Where to; None for a new figure.
        title: Above the map.
        vmax: Value of the darkest color, to share a scale between maps.
        colorbar: Draw the labeled color scale.
    """
    scores = _mean_scores(step_map)
    ax = _axes(ax)
    norm = PowerNorm(_GAMMA, vmin=0.0, vmax=vmax or _top(scores))
    _draw_lower_triangle(ax, scores, norm)
    _mark_segments(ax, step_map.steps, len(step_map.steps))
    _number_steps(ax, step_map.steps)
    ax.set(title=literal_lines(title), xlabel="key step (source)", ylabel="query step (reader)")
    if colorbar:
        _color_scale(ax, norm, saliency_label(step_map))
    return ax


def plot_token_map(
    scores: Float[Tensor, "query key"],
    trace: Trace,
    *,
    ax: Axes | None = None,
    title: str = "",
    vmax: float | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw a token map, rows normalized to sum to one, segments marked, steps outlined.

    Args:
        scores: Token scores of one layer, or a mean over layers.
        trace: The trace they belong to.
        ax: Where to; None for a new figure.
        title: Above the map.
        vmax: Value of the darkest color, to share a scale between maps.
        colorbar: Draw the labeled color scale.
    """
    ax = _axes(ax)
    values = _row_shares(scores)
    norm = PowerNorm(_GAMMA, vmin=0.0, vmax=vmax or _top(values))
    _draw_lower_triangle(ax, values, norm)
    _mark_segments(ax, trace.segments, len(trace))
    for step in trace.steps:
        corner = (step.start - 0.5, step.start - 0.5)
        ax.add_patch(Rectangle(corner, len(step), len(step), fill=False, lw=0.5, ec="#5577aa"))
    ax.set(title=literal_lines(title), xlabel="key token", ylabel="query token")
    if colorbar:
        _color_scale(ax, norm, "share of the reader's saliency")
    return ax


def plot_step_flow(
    step_map: StepMap,
    *,
    ax: Axes | None = None,
    title: str = "",
    strongest: int = 2,
    least_share: float = 0.05,
) -> Axes:
    """Draw step-to-step flow as arcs over the line of steps.

    Each query step receives arcs from its strongest sources other than itself; width and opacity
    follow the share of the query step's saliency, color the source's segment.

    Args:
        step_map: The map; its rows are normalized here, its layers averaged.
        ax: Where to; None for a new figure.
        title: Above the arcs.
        strongest: Arcs per query step.
        least_share: Shares below this draw no arc.
    """
    shares = step_map.mean_over_heads().normalize("row").scores.double().abs().mean(0).numpy()
    ax = _axes(ax)
    count = len(step_map.steps)
    for query in range(1, count):
        for key in np.argsort(shares[query, :query])[::-1][:strongest]:
            share = float(shares[query, key])
            if share < least_share:
                continue
            ax.add_patch(
                Arc(
                    ((query + key) / 2, 0),
                    query - key,
                    1.6 * (query - key) / max(1, count - 1) + 0.12,
                    theta1=0,
                    theta2=180,
                    lw=0.5 + 6 * share,
                    alpha=min(1.0, 0.25 + 1.2 * share),
                    color=SEGMENT_COLORS[step_map.steps[key].segment],
                )
            )
    colors = [SEGMENT_COLORS[step.segment] for step in step_map.steps]
    ax.scatter(range(count), np.zeros(count), c=colors, s=28, zorder=3)
    _number_steps(ax, step_map.steps, x_only=True)
    ax.set(
        title=literal_lines(title),
        xlim=(-0.7, count - 0.3),
        ylim=(-0.06, 0.98),
        yticks=[],
        xlabel="step",
    )
    ax.spines["left"].set_visible(False)
    return ax


def figure_token_and_step_maps(
    examples: Mapping[str, tuple[Float[Tensor, "query key"], Trace, StepMap]],
) -> Figure:
    """Token map beside step map, one row per example (the paper's Figure 1).

    Args:
        examples: For each row's title, its token map, trace and step map.
    """
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(examples), 2, figsize=(11.5, 5.1 * len(examples)), squeeze=False
        )
        tokens = max(_top(_row_shares(scores)) for scores, _, _ in examples.values())
        steps = max(_top(_mean_scores(m.normalize("row"))) for _, _, m in examples.values())
        for row, (name, (scores, trace, step_map)) in zip(axes, examples.items(), strict=True):
            plot_token_map(scores, trace, ax=row[0], title=f"{name}: tokens", vmax=tokens)
            plot_step_map(step_map.normalize("row"), ax=row[1], title=f"{name}: steps", vmax=steps)
        _segment_legend(figure)
    return figure


def figure_step_flow(examples: Mapping[str, StepMap]) -> Figure:
    """Shallow and deep step maps with step-flow arcs (the paper's Figure 2).

    Args:
        examples: For each pair of rows' title, a map of all layers.
    """
    bands: tuple[Band, ...] = ("shallow", "deep")
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            2 * len(examples),
            2,
            figsize=(11.5, 7.2 * len(examples)),
            gridspec_kw={"height_ratios": [2.6, 1] * len(examples)},
            squeeze=False,
        )
        parts = {
            (name, band): step_map.band(band).normalize("row")
            for name, step_map in examples.items()
            for band in bands
        }
        vmax = max(_top(_mean_scores(part)) for part in parts.values())
        for i, name in enumerate(examples):
            for j, band in enumerate(bands):
                part = parts[name, band]
                layers = part.settings["band_layers"]
                title = f"{name}, {band} layers {layers[0]}-{layers[-1]}"
                plot_step_map(part, ax=axes[2 * i, j], title=title, vmax=vmax)
                plot_step_flow(part, ax=axes[2 * i + 1, j])
        _segment_legend(figure)
    return figure


def saliency_label(step_map: StepMap) -> str:
    """What the colors of a map show."""
    if step_map.settings.get("normalized") == "row":
        return "share of the reader's saliency"
    return "saliency"


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    with mpl.rc_context(STYLE):
        return plt.subplots(figsize=(6.0, 5.2))[1]


def _mean_scores(step_map: StepMap) -> Float[np.ndarray, "query key"]:
    scores: np.ndarray = step_map.mean_over_heads().scores.double().abs().mean(0).numpy()
    return scores


def _row_shares(scores: Float[Tensor, "query key"]) -> Float[np.ndarray, "query key"]:
    values = scores.double().abs()
    shares: np.ndarray = (values / values.sum(-1, keepdim=True).clamp_min(1e-300)).numpy()
    return shares


def _top(values: np.ndarray) -> float:
    """Value of the darkest color: the 99.5th percentile of what flows between, not within."""
    between = np.abs(np.tril(values, -1))
    positive = between[np.isfinite(between) & (between > 0)]
    return float(np.quantile(positive, 0.995)) if positive.size else 1.0


def _draw_lower_triangle(ax: Axes, values: np.ndarray, norm: PowerNorm) -> None:
    above = np.triu(np.ones_like(values, dtype=bool), 1)
    ax.imshow(np.ma.array(values, mask=above), cmap=COLOR_MAP, norm=norm, interpolation="nearest")


def _mark_segments(ax: Axes, spans: Sequence[Step | Segment], count: int) -> None:
    """A colored strip along both axes, and lines where a segment ends."""
    for i, span in enumerate(spans):
        is_step = isinstance(span, Step)
        name = span.segment if isinstance(span, Step) else span.name
        start, size = (i, 1) if is_step else (span.start, len(span))
        width = 0.02 * count
        color = SEGMENT_COLORS[name]
        strip: dict[str, Any] = {"color": color, "lw": 0, "clip_on": False}
        ax.add_patch(Rectangle((start - 0.5, count - 0.5), size, width, **strip))
        ax.add_patch(Rectangle((-0.5 - width, start - 0.5), width, size, **strip))
        following = spans[i + 1] if i + 1 < len(spans) else None
        ends = isinstance(following, Step) and following.segment != name
        if size and (ends or (following is not None and not is_step)):
            for line in (ax.axhline, ax.axvline):
                line(start + size - 0.5, color="#777777", lw=0.6, ls=":")
    ax.tick_params(length=0, pad=6)
    ax.tick_params(axis="y", pad=10)
    for side in ax.spines.values():
        side.set_visible(False)


def _number_steps(ax: Axes, steps: Sequence[Step], *, x_only: bool = False) -> None:
    """Number the steps, those that read with their kind, where labels say it."""
    every = max(1, -(-len(steps) // 16))
    ticks = list(range(0, len(steps), every))
    ax.set_xticks(ticks)
    if not x_only:
        kinds = [str(steps[i].labels.get("kind", ""))[:_KIND_CHARACTERS] for i in ticks]
        names = [f"{kind} {i}".strip() for kind, i in zip(kinds, ticks, strict=True)]
        ax.set_yticks(ticks, [literal_lines(name) for name in names])


def _color_scale(ax: Axes, norm: PowerNorm, label: str) -> None:
    figure = ax.get_figure()
    assert figure is not None
    bar = figure.colorbar(
        ScalarMappable(norm, COLOR_MAP), ax=ax, shrink=0.8, extend="max", aspect=25
    )
    bar.set_label(label)
    bar.outline.set_visible(False)


def _segment_legend(figure: Figure) -> None:
    figure.legend(
        handles=[Patch(color=color, label=name) for name, color in SEGMENT_COLORS.items()],
        loc="outside upper center",
        ncols=3,
        frameon=False,
    )
