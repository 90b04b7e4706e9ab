"""Maps of made-up steps."""

import torch

from stepflow_tl.saliency.maps import StepMap
from stepflow_tl.traces.trace import Step


def made_map(texts: list[str], *, layers: int = 4, heads: int = 0, seed: int = 0) -> StepMap:
    """A map of some steps: a question, thinking, and a summary of one step."""
    names = ["question", *["thinking"] * (len(texts) - 2), "summary"]
    steps = tuple(
        Step(index=i, segment=name, start=10 * i, stop=10 * i + 10, text=text)  # type: ignore[arg-type]
        for i, (name, text) in enumerate(zip(names, texts, strict=True))
    )
    torch.manual_seed(seed)
    shape = (layers, heads, len(texts), len(texts)) if heads else (layers, len(texts), len(texts))
    scores = torch.rand(shape).tril()
    return StepMap(
        scores=scores,
        layers=tuple(range(layers)),
        n_layers=layers,
        steps=steps,
        settings={"rule": "made"},
    )
