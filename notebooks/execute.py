"""Execute the notebooks and write their outputs into them: `make notebooks`, or with paths.

What is written holds text and pictures, and nothing that changes from run to run but numbers.
"""

import base64
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from ipykernel.kernelspec import write_kernel_spec
from PIL import Image

ROOT = Path(__file__).parents[1]
KERNEL = "stepflow"
COLORS = 64  # of a picture's palette
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(notebook: Any, folder: Path) -> Any:
    """Execute a notebook in a folder, in this interpreter and this checkout.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raises.
    """
    with tempfile.TemporaryDirectory() as jupyter:
        write_kernel_spec(Path(jupyter) / "kernels" / KERNEL)
        given = {
            "JUPYTER_PATH": jupyter,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        before = {name: os.environ.get(name) for name in given}
        os.environ.update(given)
        try:
            nbclient.NotebookClient(
                notebook,
                timeout=600,
                kernel_name=KERNEL,
                record_timing=False,
                resources={"metadata": {"path": str(folder)}},
            ).execute()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
    return notebook


def tidy(notebook: Any) -> Any:
    """Outputs as they are committed: streams joined, small pictures, no machine's metadata."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
            for output in cell.outputs:
                data = output.get("data", {})
                if "image/png" in data:
                    data["image/png"] = _small(data["image/png"])
                    data.pop("text/plain", None)
                output.pop("metadata", None)
                if output.output_type != "stream":
                    output.metadata = nbformat.from_dict({})
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """Neighboring pieces of one stream as one output; how they came differs from run to run."""
    joined: list[Any] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if output.output_type == "stream" and last and last.get("name") == output.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def _small(picture: str) -> str:
    """A PNG with a palette, base64."""
    drawn = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    written = io.BytesIO()
    drawn.quantize(COLORS).save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode()


def main(paths: list[Path]) -> None:
    """Execute and write."""
    for path in paths:
        print(path.name)
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(nbformat.read(path, as_version=4), Path(folder))
        nbformat.write(tidy(notebook), path)


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or sorted(Path(__file__).parent.glob("*.ipynb")))
