"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="'reasoner' or 'reasoner-locked-in' (bundled), a Hugging Face name, a local folder, "
        "or a .gguf file.",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="Precision of the weights: float32, bfloat16, float16, or auto (the checkpoint's own)."
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option("--device-map", help="'auto': over several devices, through accelerate."),
]


def placed(device_map: str | None) -> dict[str, Any]:
    """What `load_model` takes for it."""
    return {} if device_map is None else {"device_map": device_map}
