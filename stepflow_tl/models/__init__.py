"""Models: loading them, and one view of whatever class they are of.

`load_model` (`loading`; `hub` knows what can go wrong, `gguf` reads single files) makes a
`TransformerBridge`. Everything above asks `view` (`view`) what it needs of a model, and knows no
class of models: `base` says what can be asked, `hooked`, `bridge` and `huggingface` answer. Hook
points are named in `sites`; a plain decoder runs hook functions inside its attention (`decoder`,
`decoder_hooks`), or sees fewer keys (`hidden_keys`). What is decoded is a `running_batch`, with a
`kv_cache` whose rows come and go; `foreign_hooks` tells a user's hooks from ours. Beside: how
layers are named (`layers`), `context`, `precision`, `memory`, `weights`, and a reasoner that fails
(`locked_in`).
"""

from stepflow_tl.errors import ModelError
from stepflow_tl.models.base import Model, ModelView
from stepflow_tl.models.layers import LayerSpec, resolve_layers
from stepflow_tl.models.loading import load_model, load_tokenizer
from stepflow_tl.models.sites import hook_name

__all__ = [
    "LayerSpec",
    "Model",
    "ModelError",
    "ModelView",
    "hook_name",
    "load_model",
    "load_tokenizer",
    "resolve_layers",
]
