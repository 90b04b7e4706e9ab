"""Traces: a response is read once, token by token, into segments and steps.

A prompt is rendered (`chat`, `templates`), the response goes through one reader (`reader`), which
knows how models write their reasoning (`formats`) and where a step begins (`cutters`, or somebody
else's `cuts`); what is read becomes a `Trace` (`trace`) with its answer (`answers`). While a model
runs, the readers of a batch are its `rows`.
"""

from stepflow_tl.errors import TraceError, TrackingError
from stepflow_tl.traces.answers import ResponseParts
from stepflow_tl.traces.chat import Chat
from stepflow_tl.traces.formats import Format
from stepflow_tl.traces.reader import TraceReader, read_response
from stepflow_tl.traces.rows import Rows
from stepflow_tl.traces.trace import Segment, Step, Trace

__all__ = [
    "Chat",
    "Format",
    "ResponseParts",
    "Rows",
    "Segment",
    "Step",
    "Trace",
    "TraceError",
    "TraceReader",
    "TrackingError",
    "read_response",
]
