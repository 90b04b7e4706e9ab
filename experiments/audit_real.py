"""The part of `audit` that is about a pretrained model and other people's traces."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import pandas as pd


@dataclass
class Found:
    """What was found.

    Attributes:
        summaries: One line per rule, for each set of traces.
        details: Other tables.
        n: Number of traces of each set.
        models: What their results depend on.
    """

    summaries: dict[str, pd.DataFrame] = field(default_factory=dict)
    details: dict[str, pd.DataFrame] = field(default_factory=dict)
    n: dict[str, int] = field(default_factory=dict)
    models: dict[str, Any] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this part."""
    parser.add_argument("--real", help="a pretrained model: a .gguf file, a name, or a folder")
    parser.add_argument("--solutions", type=Path, help="GSM8K's example solutions, or such a file")
    parser.add_argument("--traces", type=Path, help="labeled traces in thought-anchors' layout")
    parser.add_argument("--real-n", type=int, default=50, help="problems of --solutions (50)")


def run(chosen: common.Options) -> Found:
    """Nothing yet."""
    return Found()
