"""Matplotlib figures: maps and arcs of one trace, measures by layer, results of experiments.

These functions read results and never touch a model. A step map or a table comes in, and is drawn
into the axes or figure that is given, or one that is made; `save_figure` writes files that are
byte-identical for equal data. In reading order:

* ``style``: colors and fonts, text that is never markup, files;
* ``labels``, ``segments``: steps named by their words, and by the segment that they lie in;
* ``map_parts``, ``maps``, ``flow``: step maps and token maps, and arcs between steps;
* ``marks``: points with intervals, for ``curves``, ``comparisons``, ``ablations``, ``compute``,
  ``repair`` and ``contrasts``, which draw the tables of experiments; ``monitor`` draws what was
  seen while decoding; ``audits`` what maps see, ``planted`` what failures cost that were put there,
  ``failure`` one of them on a page, ``closed_loop`` what diagnosis leads to, ``triggered`` what
  acting at times brings;
* ``notebook``: CircuitsVis views, offline and safe.
"""

from stepflow_tl.plots.ablations import PAPER_STRENGTHS, figure_layer_ablation, figure_strengths
from stepflow_tl.plots.audits import figure_audit
from stepflow_tl.plots.closed_loop import figure_closed_loop
from stepflow_tl.plots.comparisons import (
    PUBLISHED_NOTE,
    figure_accuracy,
    figure_arms,
    figure_strategies,
)
from stepflow_tl.plots.compute import figure_compute
from stepflow_tl.plots.contrasts import figure_contrasts, figure_controlled
from stepflow_tl.plots.curves import MEASURE_LABELS, figure_layer_curves
from stepflow_tl.plots.failure import figure_failure
from stepflow_tl.plots.flow import figure_step_flow, plot_step_flow
from stepflow_tl.plots.map_parts import COLOR_MAP, saliency_label
from stepflow_tl.plots.maps import (
    figure_step_maps,
    figure_token_and_step_maps,
    plot_step_map,
    plot_token_map,
)
from stepflow_tl.plots.monitor import plot_monitor
from stepflow_tl.plots.planted import figure_planted
from stepflow_tl.plots.repair import (
    figure_difficulty_gain,
    figure_error_kinds,
    figure_repair_effect,
)
from stepflow_tl.plots.segments import SEGMENT_COLORS, SEGMENT_MARKERS
from stepflow_tl.plots.style import OUTCOME_COLORS, STYLE, read_facts, save_figure
from stepflow_tl.plots.triggered import figure_triggered

__all__ = [
    "COLOR_MAP",
    "MEASURE_LABELS",
    "OUTCOME_COLORS",
    "PAPER_STRENGTHS",
    "PUBLISHED_NOTE",
    "SEGMENT_COLORS",
    "SEGMENT_MARKERS",
    "STYLE",
    "figure_accuracy",
    "figure_arms",
    "figure_audit",
    "figure_closed_loop",
    "figure_compute",
    "figure_contrasts",
    "figure_controlled",
    "figure_difficulty_gain",
    "figure_error_kinds",
    "figure_failure",
    "figure_layer_ablation",
    "figure_layer_curves",
    "figure_planted",
    "figure_repair_effect",
    "figure_step_flow",
    "figure_step_maps",
    "figure_strategies",
    "figure_strengths",
    "figure_token_and_step_maps",
    "figure_triggered",
    "plot_monitor",
    "plot_step_flow",
    "plot_step_map",
    "plot_token_map",
    "read_facts",
    "saliency_label",
    "save_figure",
]
