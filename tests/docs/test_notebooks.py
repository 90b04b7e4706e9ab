"""The notebooks run as they stand, and with their own solutions; what they show comes out."""

import json
import re
import sys

import pytest
from helpers import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXERCISES = {"01_step_saliency": 5, "02_stepflow": 3, "03_sweep": 3}
SHOWN = {  # views in frames, figures
    "01_step_saliency": (2, 4),
    "02_stepflow": (0, 1),
    "03_sweep": (0, 3),
}
PRINTED = {  # what happens as the text around it says
    "03_sweep": r"3 batches: (\d+) rows in the store\ninterrupted\n\1 rows were kept, [1-9]",
}
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n```python\n(.*?)```", re.DOTALL)
OPEN = "your turn: this exercise is still open\n"


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell):
    return "".join(cell["source"])


def is_exercise(cell):
    return "exercise" in cell["metadata"].get("tags", [])


def test_all_are_known():
    assert [path.stem for path in NOTEBOOKS] == sorted(EXERCISES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestAsStored:
    def test_without_outputs(self, path):
        for cell in cells(path):
            if cell["cell_type"] == "code":
                assert cell["outputs"] == []
                assert cell["execution_count"] is None

    def test_each_exercise_is_open_and_followed_by_its_solution_and_a_check(self, path):
        stored = cells(path)
        places = [i for i, cell in enumerate(stored) if is_exercise(cell)]
        assert len(places) == EXERCISES[path.stem]
        for i in places:
            assert "raise NotImplementedError" in source(stored[i])
            (solution,) = SOLUTION.findall(source(stored[i + 1]))
            head = source(stored[i]).partition("    raise")[0]
            assert solution.startswith(head)  # same name, arguments and docstring
            assert "@check" in source(stored[i + 2])
            assert "assert" in source(stored[i + 2])

    def test_only_names_of_the_package_that_others_may_use(self, path):
        text = "\n".join(source(cell) for cell in cells(path))
        assert not re.findall(r"from stepflow_tl\S* import .*\b_\w", text)


def test_what_they_quote_from_the_results_stands_there():
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    before, after, _, fixed, broken, p = re.search(
        r"\| all \| 250 " + r"\| ([\d.]+) .*?" * 3 + r"\| (\d+) \| (\d+) \| ([\d.]+) \|", results
    ).groups()
    saliency, flow, sweep = ("".join(map(source, cells(path))) for path in NOTEBOOKS)
    assert f"{before} before, {after} after, exact McNemar p = {p}" in flow
    assert f"the table's {fixed} fixed, {broken} broken of 250" in sweep
    assert "31 of each" in results
    assert "With 31 traces of each" in saliency


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Name of a kernel of this interpreter and this checkout, wherever others are installed."""
    kernelspec = pytest.importorskip("ipykernel.kernelspec")
    kernelspec.write_kernel_spec(tmp_path / "kernels" / "stepflow-test")
    written = json.loads((tmp_path / "kernels/stepflow-test/kernel.json").read_text())
    assert written["argv"][0] == sys.executable
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return "stepflow-test"


def run(path, kernel, folder, *, solved):
    """Execute a notebook; an error raises `nbclient.exceptions.CellExecutionError`."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    if solved:
        for cell, following in zip(notebook.cells, notebook.cells[1:], strict=False):
            if is_exercise(cell):
                cell.source = SOLUTION.findall(following.source)[0]
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name=kernel, resources={"metadata": {"path": str(folder)}}
    ).execute()
    return [out for cell in notebook.cells for out in cell.get("outputs", [])]


def printed(outputs):
    return "".join(out["text"] for out in outputs if out["output_type"] == "stream")


def shown(outputs, kind):
    return [out["data"][kind] for out in outputs if kind in out.get("data", {})]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_with_its_solutions(path, kernel, tmp_path):
    pytest.importorskip("circuitsvis")
    outputs = run(path, kernel, tmp_path, solved=True)
    text = printed(outputs)
    assert OPEN not in text
    assert text.count("correct\n") >= EXERCISES[path.stem]
    assert "Warning" not in text
    assert re.search(PRINTED.get(path.stem, ""), text)
    views, figures = SHOWN[path.stem]
    frames = [page for page in shown(outputs, "text/html") if page.startswith("<iframe sandbox=")]
    assert len(frames) == views
    assert all("CircuitsVis.render" in frame for frame in frames)
    assert len(shown(outputs, "image/png")) == figures


@pytest.mark.slow
def test_it_runs_with_its_exercises_open(kernel, tmp_path):
    pytest.importorskip("circuitsvis")
    path = NOTEBOOKS[0]
    assert printed(run(path, kernel, tmp_path, solved=False)).count(OPEN) == EXERCISES[path.stem]
