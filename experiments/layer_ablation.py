"""Mirrors the paper's ablation of layer bands; goes on to the sweep over every single layer."""

from collections.abc import Sequence

import common
import pandas as pd

from stepflow_tl import OddsEqualBridge, StepFlow, StepMomentum, load_model
from stepflow_tl.plots import figure_layer_ablation

BANDS = {"bottom": (0.0, 0.25), "middle": (0.375, 0.625), "top": (0.75, 1.0)}
COMPONENTS = {"OEB": OddsEqualBridge, "SMI": StepMomentum}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment, or go on with it."""
    chosen = common.options("layer_ablation", __doc__, argv)
    layers = range(2 if chosen.fast else load_model(chosen.model).cfg.n_layers)
    places = {
        (component, place): kind(layers=where)
        for component, kind in COMPONENTS.items()
        for place, where in {**BANDS, **{f"layer {layer}": layer for layer in layers}}.items()
    }
    flows = {f"{name}, {place}": StepFlow(item) for (name, place), item in places.items()}
    table = common.over_all(common.compare_by_group(common.sweep(chosen, flows)))
    table[["component", "place"]] = table["arm"].str.split(", ", n=1, expand=True)
    single = table["place"].str.startswith("layer ")
    table["kind"] = single.map({True: "layer", False: "band"})
    table["layer"] = pd.to_numeric(table["place"].str.removeprefix("layer "), errors="coerce")
    common.publish(chosen, figure_layer_ablation(table), {"against the baseline": table})


if __name__ == "__main__":
    main()
