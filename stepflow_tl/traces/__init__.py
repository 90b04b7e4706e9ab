"""Traces: a response is read once, token by token, into segments and steps.

A prompt is rendered (`chat`, `templates`). The response goes through one reader (`reader`): text
comes token by token (`tokens`), models write their reasoning in some way (`formats`), and a step
begins where a rule (`cutters`; the careful one is `sentences`, with `fragments` and `protected`;
what a rule is: `cutting`) or somebody else (`cuts`) says. What is read becomes a `Trace` (`trace`)
with its thinking and answer (`parts`, `answers`). While a model runs, the readers of a batch are
its `rows`.
"""

from stepflow_tl.errors import TraceError, TrackingError
from stepflow_tl.traces.answers import ResponseParts
from stepflow_tl.traces.chat import Begun, Chat
from stepflow_tl.traces.formats import Format
from stepflow_tl.traces.reader import TraceReader, read_response
from stepflow_tl.traces.rows import Rows
from stepflow_tl.traces.trace import Segment, Step, Trace

__all__ = [
    "Begun",
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
