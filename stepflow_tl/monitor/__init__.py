"""The monitor: how information flows between steps, while they are written.

`Monitor` (`monitor`) reads attention and logits pass by pass (`live`), and says of each step that
is over what `measures` say of a finished trace's map; by `saliency`, where that is its rule, at one
backward chunk a step. `seen` keeps it, `line` draws the last of it while it goes on. `conditions`
act on it (``when=`` of an intervention), by what is `deciding` on a model.
"""

from stepflow_tl.monitor.conditions import When, chance, condition_of, measure, previous_step, step
from stepflow_tl.monitor.measures import MEASURES, confidence, entropy
from stepflow_tl.monitor.monitor import Monitor
from stepflow_tl.monitor.seen import Record, Seen

__all__ = [
    "MEASURES",
    "Monitor",
    "Record",
    "Seen",
    "When",
    "chance",
    "condition_of",
    "confidence",
    "entropy",
    "measure",
    "previous_step",
    "step",
]
