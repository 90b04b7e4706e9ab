"""Other packages, each in a virtual environment of its own on the same torch.

What they compute differs from ours; their runners in ``benchmarks/peers`` say how.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Peer:
    """A package, and how its runner is told what to do.

    Attributes:
        package: Name and version, installed without its own requirements.
        variants: Method name in our tables, and the runner's argument.
    """

    package: str
    variants: dict[str, str]

    @property
    def name(self) -> str:
        """Name of the package, of its environment and of its files in ``benchmarks/peers``."""
        return self.package.split("==")[0]


PEERS = (
    Peer("inseq==0.7.1", {"inseq attention": "attention", "inseq saliency": "saliency"}),
    Peer("flashtrace==0.1.1", {"flashtrace": "kept", "flashtrace, recomputed": "recomputed"}),
)
PEER_METHODS = {method: peer for peer in PEERS for method in peer.variants}


def interpreter(peer: Peer, folder: Path) -> Path:
    """The Python of a peer's environment; the environment is made where there is none.

    torch and transformers come in the versions that this package is tested with; then what the
    peer imports (``benchmarks/peers/NAME.txt``), and the peer itself without its requirements.
    """
    python = folder / peer.name / "bin" / "python"
    ready = folder / peer.name / ".installed"
    if ready.exists():
        return python
    print(f"installing {peer.package} into {folder / peer.name}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", folder / peer.name], check=True)
    constraints = BENCHMARKS.parent / "constraints.txt"
    for arguments in (
        ["-c", str(constraints), "torch", "transformers"],
        ["-r", str(BENCHMARKS / "peers" / f"{peer.name}.txt")],
        ["--no-deps", peer.package],
    ):
        subprocess.run([python, "-m", "pip", "install", "-q", *arguments], check=True)
    ready.touch()
    return python


def runner(method: str) -> list[str]:
    """Script and first arguments that measure a peer's method."""
    peer = PEER_METHODS[method]
    script = BENCHMARKS / "peers" / f"run_{peer.name}.py"
    return [str(script), "--variant", peer.variants[method]]


def peer_options() -> argparse.Namespace:
    """What a runner in ``benchmarks/peers`` is told on its command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--targets", type=int, default=4)
    return parser.parse_args()
