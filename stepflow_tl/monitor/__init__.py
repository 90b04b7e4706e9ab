"""The monitor: how information flows between steps, while they are written.

`Monitor` (`monitor`) reads attention and logits pass by pass (`live`), and says of each step that
is over what `measures` say of a finished trace's map.
"""

from stepflow_tl.monitor.measures import confidence, entropy
from stepflow_tl.monitor.monitor import MEASURES, Monitor, Record, Seen

__all__ = ["MEASURES", "Monitor", "Record", "Seen", "confidence", "entropy"]
