"""Matplotlib figures: maps and arcs of one trace, failure curves by layer, results of experiments.

These functions read results and never touch a model. Each draws into the axes or figure it is
given, or makes one; `save_figure` writes files that are byte-identical for equal data.
"""

from stepflow_tl.plots.ablations import PAPER_STRENGTHS, figure_layer_ablation, figure_strengths
from stepflow_tl.plots.comparisons import (
    PUBLISHED_NOTE,
    figure_accuracy,
    figure_arms,
    figure_strategies,
)
from stepflow_tl.plots.compute import figure_compute
from stepflow_tl.plots.curves import MEASURE_LABELS, figure_layer_curves
from stepflow_tl.plots.maps import (
    COLOR_MAP,
    SEGMENT_COLORS,
    figure_step_flow,
    figure_token_and_step_maps,
    plot_step_flow,
    plot_step_map,
    plot_token_map,
    saliency_label,
)
from stepflow_tl.plots.repair import (
    figure_difficulty_gain,
    figure_error_kinds,
    figure_repair_effect,
)
from stepflow_tl.plots.style import OUTCOME_COLORS, STYLE, save_figure

__all__ = [
    "COLOR_MAP",
    "MEASURE_LABELS",
    "OUTCOME_COLORS",
    "PAPER_STRENGTHS",
    "PUBLISHED_NOTE",
    "SEGMENT_COLORS",
    "STYLE",
    "figure_accuracy",
    "figure_arms",
    "figure_compute",
    "figure_difficulty_gain",
    "figure_error_kinds",
    "figure_layer_ablation",
    "figure_layer_curves",
    "figure_repair_effect",
    "figure_step_flow",
    "figure_strategies",
    "figure_strengths",
    "figure_token_and_step_maps",
    "plot_step_flow",
    "plot_step_map",
    "plot_token_map",
    "saliency_label",
    "save_figure",
]
