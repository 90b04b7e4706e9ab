"""The reasoner that was fine-tuned to lock in: the bundled weights and a difference to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from stepflow_tl.errors import ModelError, SettingError
from stepflow_tl.files import read_file
from stepflow_tl.models.view import view
from stepflow_tl.reasoner import LOCKED_IN, WEIGHTS

NAME = "reasoner-locked-in"
"""What `load_model` knows the largest dose by."""

KIND = "reasoner difference"
"""What the file says that it is."""


def locked_in_decoder(dose: int | None = None, path: Path = LOCKED_IN, base: Path = WEIGHTS) -> Any:
    """The bundled reasoner with the difference of a dose in it, a Hugging Face decoder in float32.

    ``load_model("reasoner", hf_model=locked_in_decoder(48))`` is a bridge around it.
    `experiments/reasoner/lock_in.py` is the recipe.

    Args:
        dose: Training steps away from the reasoner, one of `doses_of`; None for the most.
        path: The file with the differences.
        base: The folder of the weights that the difference belongs to.

    Raises:
        FileNotFoundError: There is no such file.
        SettingError: There is no such dose.
        ModelError: The file is of another kind, or was made for other weights.
    """
    from transformers import AutoModelForCausalLM

    tensors, facts = read_file(path, KIND, ModelError)
    dose = facts["doses"][-1] if dose is None else dose
    if dose not in facts["doses"]:
        raise SettingError(f"expected a dose in {facts['doses']}, got {dose!r}")
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="sdpa"
    )
    found = view(model).weights_hash()
    if found != facts["base"]:
        raise ModelError(
            f"expected the weights {facts['base']}, for which {path.name} was made, got {found} "
            f"in {base}"
        )
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            of_dose, parameter = name.split("/", 1)
            if of_dose == str(dose):
                parameters[parameter].add_(tensor.float())
    return model


def doses_of(path: Path = LOCKED_IN) -> tuple[int, ...]:
    """The doses that a file of differences has, from the smallest on."""
    _, facts = read_file(path, KIND, ModelError)
    return tuple(facts["doses"])
