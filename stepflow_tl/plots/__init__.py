"""Matplotlib figures: token and step maps, step-flow arcs, failure curves by layer.

These functions read results and never touch a model. Each draws into the axes or figure it is
given, or makes one; `save_figure` writes files that are byte-identical for equal data.
"""

from stepflow_tl.plots.comparisons import figure_accuracy
from stepflow_tl.plots.curves import CURVES, figure_layer_curves
from stepflow_tl.plots.maps import (
    COLOUR_MAP,
    SEGMENT_COLOURS,
    figure_step_flow,
    figure_token_and_step_maps,
    plot_step_flow,
    plot_step_map,
    plot_token_map,
    saliency_label,
)
from stepflow_tl.plots.style import OUTCOME_COLOURS, STYLE, save_figure

__all__ = [
    "COLOUR_MAP",
    "CURVES",
    "OUTCOME_COLOURS",
    "SEGMENT_COLOURS",
    "STYLE",
    "figure_accuracy",
    "figure_layer_curves",
    "figure_step_flow",
    "figure_token_and_step_maps",
    "plot_step_flow",
    "plot_step_map",
    "plot_token_map",
    "saliency_label",
    "save_figure",
]
