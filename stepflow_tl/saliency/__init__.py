"""Step-Saliency: attention x gradient, pooled into step-to-step maps, layer by layer.

`step_saliency` and `token_saliency` (`compute`) decide once how (`planning`, `plan`); then one of
two backends scores (`backends`): through hook points (`hooked`), or inside the decoder's attention
(`fused`, `attention`, `tiles`; held against the model's own logits by `probe`). Scores of tokens
are made by `rules`, gathered tile by tile (`collect`), kept in a `workfile` if there is one, pooled
(`pooling`), and become a map (`maps`), which can be followed back through the steps (`tracing`).
`values` weights attention by what it moves; `jacobian` (the digest's) and `rollout` are rules with
a way of their own; `finite` says where numbers break.
"""

from stepflow_tl.errors import NonFiniteError, StepMapError, WorkFileError
from stepflow_tl.saliency.compute import step_saliency, token_saliency
from stepflow_tl.saliency.maps import StepMap
from stepflow_tl.saliency.plan import Backend
from stepflow_tl.saliency.pooling import Diagonal, FrameKeys, Pool, StepPooler
from stepflow_tl.saliency.rules import Objective, Rule

__all__ = [
    "Backend",
    "Diagonal",
    "FrameKeys",
    "NonFiniteError",
    "Objective",
    "Pool",
    "Rule",
    "StepMap",
    "StepMapError",
    "StepPooler",
    "WorkFileError",
    "step_saliency",
    "token_saliency",
]
