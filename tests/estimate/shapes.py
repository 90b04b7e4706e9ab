"""Configurations of the shapes that the paper names."""

from pathlib import Path

from helpers import DATA

SHAPES = DATA / "shapes"
SMALL, MIDDLE, LARGE = "R1-Distill-Qwen-7B", "QwQ-32B", "Llama-3-70B"
EXPERTS = "GPT-OSS-20B"


def shape(name: str) -> Path:
    return SHAPES / f"{name}.json"
