"""Other people's transcripts as traces, and back.

`read_transcripts` reads files one response at a time (`files`), as rows of lm-evaluation-harness
(`lm_eval`), lighteval (`lighteval`), Inspect (`inspect_logs`), chat completions (`openai`), folders
of thought-anchors (`thought_anchors`), or prompt and response (`lines`): each gives a `Transcript`
(`transcript`), which `as_trace` (`as_traces`) puts into a model's tokens. `import_transcripts`
saves the traces of a whole file (`importing`), `export_traces` writes them for others
(`exporting`).
"""

from stepflow_tl.integrations.transcripts.as_traces import as_trace
from stepflow_tl.integrations.transcripts.exporting import LAYOUTS, export_traces, saved_traces
from stepflow_tl.integrations.transcripts.files import KINDS, read_transcripts
from stepflow_tl.integrations.transcripts.importing import Imported, import_transcripts, traces_of
from stepflow_tl.integrations.transcripts.lines import Fields
from stepflow_tl.integrations.transcripts.transcript import Found, Transcript

__all__ = [
    "KINDS",
    "LAYOUTS",
    "Fields",
    "Found",
    "Imported",
    "Transcript",
    "as_trace",
    "export_traces",
    "import_transcripts",
    "read_transcripts",
    "saved_traces",
    "traces_of",
]
