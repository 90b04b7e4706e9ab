"""The step map: saliency between the steps of a trace, layer by layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from stepflow_tl.errors import StepMapError
from stepflow_tl.files import read_file, write_file
from stepflow_tl.models.layers import LayerSpec, resolve_layers
from stepflow_tl.models.precision import widened
from stepflow_tl.saliency.pooling import Diagonal, FrameKeys, Pool, StepPooler
from stepflow_tl.traces.trace import Step, Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PATTERN = re.compile(r"blocks\.(\d+)\.attn\.hook_pattern")
_FILE_KIND = "stepflow_tl.StepMap"
PLOTS = "stepflow_tl.plots"  # a higher floor
VIEWS = "stepflow_tl.views"
TRACING = "stepflow_tl.saliency.tracing"  # which reads maps


@dataclass(frozen=True, kw_only=True, eq=False)
class StepMap:
    """Saliency from each step (key) to each later step (query), per layer.

    Attributes:
        scores: The map; zero above the diagonal. With `per_head`, a head axis follows the
            layers.
        layers: The model's layer of each entry of the first axis.
        n_layers: Number of layers of the model.
        steps: The steps, in the order of the last two axes.
        settings: How it was made: rule, objective, pool, diagonal, model, dtype, library version,
            normalization.
    """

    scores: Float[Tensor, "layer *head query_step key_step"]
    layers: tuple[int, ...]
    n_layers: int
    steps: tuple[Step, ...]
    settings: Mapping[str, Any]

    @classmethod
    def from_cache(
        cls,
        cache: Any,
        trace: Trace,
        *,
        per_head: bool = False,
        pool: Pool = "share",
        diagonal: Diagonal = "causal",
        frame_keys: FrameKeys = "in",
    ) -> StepMap:
        """The map of ``rule="attention"`` from the patterns in an `ActivationCache`.

        Example::

            _, cache = model.run_with_cache(trace.tokens)
            StepMap.from_cache(cache, trace).band("deep").plot()

        Args:
            cache: The `ActivationCache` of ``run_with_cache``, patterns of some layers in it.
            trace: The trace whose tokens were run.
            per_head: Keep the heads apart.
            pool: "share" of each token's row, the "mean" over a block, or its "sum".
            diagonal: What the mean of a diagonal block divides by.
            frame_keys: Whether the frame's keys are in a share's denominator.

        Raises:
            StepMapError: There is no pattern in it, or the patterns are not the trace's.
        """
        found = (_PATTERN.fullmatch(name) for name in cache)
        names = {int(match[1]): match[0] for match in found if match}
        if not names:
            raise StepMapError(
                "expected a cache with attention patterns (hook_pattern), found none: run it "
                "without a names_filter, or with one that lets patterns in"
            )
        size = len(trace)
        pooler = StepPooler(trace.step_of_token, len(trace.steps), pool, diagonal, frame_keys)
        scores = []
        for layer in sorted(names):
            pattern = cache[names[layer]].detach()
            if pattern.shape[0] != 1 or pattern.shape[-2:] != (size, size):
                raise StepMapError(
                    f"expected patterns of one sequence of {size} tokens, as the trace has, got "
                    f"{list(pattern.shape)} at {names[layer]}"
                )
            heads = pattern[0] if per_head else pattern[0].mean(0)
            scores.append(pooler(widened(heads)).cpu())
        model = getattr(getattr(cache, "model", None), "cfg", None)
        return cls(
            scores=torch.stack(scores),
            layers=tuple(sorted(names)),
            n_layers=int(getattr(model, "n_layers", max(names) + 1)),
            steps=trace.steps,
            settings={"rule": "attention", "pool": pool, "diagonal": diagonal},
        )

    @property
    def per_head(self) -> bool:
        """Whether the map has a head axis."""
        return self.scores.ndim == 4

    def __repr__(self) -> str:
        """Sizes and settings, not numbers."""
        made = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return f"StepMap({list(self.scores.shape)}, layers {list(self.layers)}; {made})"

    def select(self, layers: LayerSpec) -> StepMap:
        """The map of some of its layers.

        Raises:
            ValueError: The model has no such layer.
            StepMapError: The map was made without such a layer.
        """
        wanted = resolve_layers(layers, self.n_layers)
        missing = [layer for layer in wanted if layer not in self.layers]
        if missing:
            raise StepMapError(
                f"layers {missing} are not in this map of layers {list(self.layers)}"
            )
        rows = [self.layers.index(layer) for layer in wanted]
        return replace(self, scores=self.scores[rows], layers=wanted)

    def band(self, name: LayerSpec) -> StepMap:
        """Mean over a band of layers ("shallow", "middle", "deep", or any `LayerSpec`)."""
        part = self.select(name)
        return replace(
            part,
            scores=part.scores.mean(0, keepdim=True),
            layers=part.layers[:1],
            settings={**self.settings, "band": str(name), "band_layers": list(part.layers)},
        )

    def normalize(self, by: Literal["row", "layer"]) -> StepMap:
        """Scale each query step's row, or each layer's map, to a sum of one (of magnitudes).

        Rows and layers that are all zero stay zero.

        Raises:
            StepMapError: `by` is neither.
        """
        if by not in ("row", "layer"):
            raise StepMapError(f"expected by='row' or by='layer', got {by!r}")
        axes = (-1,) if by == "row" else (-2, -1)
        total = self.scores.abs().sum(axes, keepdim=True)
        scores = torch.where(total > 0, self.scores / total.clamp_min(1e-45), 0.0)
        return replace(self, scores=scores, settings={**self.settings, "normalized": by})

    def mean_over_heads(self) -> StepMap:
        """The map with its head axis averaged away."""
        return replace(self, scores=self.scores.mean(1)) if self.per_head else self

    def to_dataframe(self) -> pd.DataFrame:
        """One row per layer (and head), query step and key step at or below the diagonal.

        Labels of steps have columns of their own: ``query_kind``, ``key_kind`` and so on.
        """
        columns = ["layer", "head"] if self.per_head else ["layer"]
        columns += ["query_step", "key_step"]
        indices = torch.ones_like(self.scores, dtype=torch.bool).tril().nonzero()
        table = pd.DataFrame(indices.numpy(), columns=columns)
        table["layer"] = [self.layers[i] for i in table["layer"]]
        for end in ("query", "key"):
            steps = [self.steps[i] for i in table[f"{end}_step"]]
            table[f"{end}_segment"] = [step.segment for step in steps]
            for name in dict.fromkeys(name for step in self.steps for name in step.labels):
                table[f"{end}_{name}"] = [step.labels.get(name) for step in steps]
        table["score"] = self.scores[tuple(indices.T)].double().numpy()
        return table

    def trace_back(self, target: int | str = "answer", hops: int = 3) -> pd.DataFrame:
        """From a step back to the question: `stepflow_tl.saliency.tracing.trace_back`."""
        return cast("pd.DataFrame", import_module(TRACING).trace_back(self, target, hops))

    def plot(self, ax: Axes | None = None, **options: Any) -> Axes:
        """Draw the map, averaged over layers and heads: `stepflow_tl.plots.plot_step_map`."""
        return cast("Axes", import_module(PLOTS).plot_step_map(self, ax=ax, **options))

    def to_html(self, path: str | Path, trace: Trace | None = None, **known: Any) -> Path:
        """Write the one-file reader: text beside the map (`stepflow_tl.views.Reader.of`).

        Example::

            maps.to_html("trace.html", trace, after=repaired_maps)
        """
        return cast("Path", import_module(VIEWS).Reader.of(self, trace, **known).write(path))

    def show(self, trace: Trace | None = None, **known: Any) -> Any:
        """The same page in a notebook, in a frame of its own."""
        return import_module(VIEWS).Reader.of(self, trace, **known)

    def save(self, path: str | Path) -> None:
        """Write the map to one safetensors file (scores, and the rest as JSON)."""
        facts = {
            "layers": list(self.layers),
            "n_layers": self.n_layers,
            "steps": [vars(step) for step in self.steps],
            "settings": dict(self.settings),
        }
        write_file(path, _FILE_KIND, {"scores": self.scores}, facts)

    @classmethod
    def load(cls, path: str | Path) -> StepMap:
        """Read a map that `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            StepMapError: The file is truncated, or not a step map.
        """
        tensors, facts = read_file(path, _FILE_KIND, StepMapError)
        return cls(
            scores=tensors["scores"],
            layers=tuple(facts["layers"]),
            n_layers=facts["n_layers"],
            steps=tuple(Step(**step) for step in facts["steps"]),
            settings=facts["settings"],
        )
