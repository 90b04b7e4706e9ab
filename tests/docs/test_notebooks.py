"""The notebooks are committed solved, run again as they stand, and show the same."""

import base64
import importlib.util
import json
import math
import re

import pytest
from helpers import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXERCISES = {"01_step_saliency": 6, "02_stepflow": 3, "03_sweep": 3}
FIGURES = {"01_step_saliency": 7, "02_stepflow": 1, "03_sweep": 3}
VIEWS = {"01_step_saliency": 2}  # of CircuitsVis; committed as pictures
PRINTED = {  # what happens as the text around it says
    "03_sweep": r"3 batches: (\d+) rows in the store\ninterrupted\n\1 rows were kept, [1-9]",
}
SMALL = 100_000  # bytes of a picture
OPEN = "your turn: this exercise is still open\n"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell):
    return "".join(cell["source"])


def is_exercise(cell):
    return "exercise" in cell["metadata"].get("tags", [])


def outputs_of(notebook_cells):
    return [out for cell in notebook_cells for out in cell.get("outputs", [])]


def said(out):
    """What an output says as text; nothing where it is a picture."""
    return "".join(out.get("text", out.get("data", {}).get("text/plain", "")))


def printed(outputs):
    return "".join(said(out) for out in outputs if out["output_type"] == "stream")


def shown(outputs, kind):
    return ["".join(out["data"][kind]) for out in outputs if kind in out.get("data", {})]


def opened(text):
    """An exercise as its reader begins it: name, arguments, docstring, and nothing solved."""
    head = re.match(r'(?s)(?:.*?\n)??def .*?""".*?"""\n', text)
    assert head is not None, text
    return f"{head.group()}    raise NotImplementedError"


def same(text, other):
    """Whether two texts are equal up to numbers beyond their third digit."""
    if NUMBER.sub("#", text) != NUMBER.sub("#", other):
        return False
    pairs = zip(NUMBER.findall(text), NUMBER.findall(other), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=5e-3, abs_tol=5e-4) for a, b in pairs)


def test_all_are_known():
    assert [path.stem for path in NOTEBOOKS] == sorted(EXERCISES)


def test_texts_are_compared_rounded():
    assert same("KL 0.03051 of 3\n", "KL 0.03052 of 3\n")
    assert not same("KL 0.0305", "KL 0.0335")
    assert not same("3 fixed", "4 fixed")
    assert not same("3 fixed", "3 broken")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestAsStored:
    def test_solved_with_outputs(self, path):
        code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
        found = outputs_of(code)
        assert OPEN not in printed(found)
        assert printed(found).count("correct\n") >= EXERCISES[path.stem]
        assert not [out for out in found if out["output_type"] == "error"]
        assert not [out for out in found if out.get("name") == "stderr"]

    def test_small_pictures_and_no_scripts(self, path):
        found = outputs_of(cells(path))
        pictures = [base64.b64decode(picture) for picture in shown(found, "image/png")]
        assert len(pictures) == FIGURES[path.stem]
        assert all(picture[:4] == b"\x89PNG" and len(picture) < SMALL for picture in pictures)
        kinds = {kind for out in found for kind in out.get("data", {})}
        assert kinds <= {"image/png", "text/html", "text/plain"}
        for page in shown(found, "text/html"):
            assert not re.search(r"<(?!/?(?:div|style|table|thead|tbody|tr|th|td|p)\b)", page)

    def test_names_no_place_of_a_machine(self, path):
        assert not re.search(r"(?<![\w.])/(home|tmp|root|work)/", path.read_text())

    def test_it_opens_with_what_is_seen(self, path):
        assert "**What you will see**" in source(cells(path)[0])

    def test_each_exercise_has_a_text_and_is_followed_by_a_check(self, path):
        stored = cells(path)
        places = [i for i, cell in enumerate(stored) if is_exercise(cell)]
        assert len(places) == EXERCISES[path.stem]
        for i in places:
            assert "### Exercise" in source(stored[i - 1])
            assert "NotImplementedError" not in source(stored[i])
            assert "raise NotImplementedError" in opened(source(stored[i]))
            following = next(cell for cell in stored[i + 1 :] if cell["cell_type"] == "code")
            assert "@check" in source(following)
            assert "assert" in source(following)

    def test_only_names_of_the_package_that_others_may_use(self, path):
        text = "\n".join(source(cell) for cell in cells(path))
        assert not re.findall(r"from stepflow_tl\S* import .*\b_\w", text)


def test_what_they_quote_from_the_results_stands_there():
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    before, after, _, fixed, broken, p = re.search(
        r"\| all \| 150 " + r"\| (-?[\d.]+) .*?" * 3 + r"\| (\d+) \| (\d+) \| ([\d.]+) \|", results
    ).groups()
    saliency, flow, sweep = ("".join(map(source, cells(path))) for path in NOTEBOOKS)
    assert f"{before} before, {after} after, exact McNemar p = {p}" in flow
    assert f"the table's {fixed} fixed, {broken} broken of 150" in sweep
    assert "31 of each" in results
    assert "With 31 traces of each" in saliency


@pytest.fixture(scope="module")
def executing():
    """notebooks/execute.py as a module."""
    pytest.importorskip("ipykernel")
    pytest.importorskip("nbclient")
    spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path):
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_as_it_stands_and_shows_the_same(path, executing, tmp_path):
    pytest.importorskip("circuitsvis")
    notebook = executing.tidy(executing.execute(read(path), tmp_path))
    found = outputs_of(notebook.cells)
    text = printed(found)
    assert OPEN not in text
    assert text.count("correct\n") >= EXERCISES[path.stem]
    assert "Warning" not in text
    assert re.search(PRINTED.get(path.stem, ""), text)
    for cell, stored in zip(notebook.cells, cells(path), strict=True):
        now, then = cell.get("outputs", []), stored.get("outputs", [])
        assert [sorted(out.get("data", {})) for out in now] == [
            sorted(out.get("data", {})) for out in then
        ], source(stored)
        for one, other in zip(now, then, strict=True):
            assert same(said(one), said(other)), (
                f"{said(one)}\nis not what is committed:\n{said(other)}\nmake notebooks writes it"
            )


@pytest.mark.slow
def test_it_runs_with_its_exercises_open_and_its_views_live(executing, tmp_path):
    pytest.importorskip("circuitsvis")
    path = NOTEBOOKS[0]
    notebook = read(path)
    for cell in notebook.cells:
        if is_exercise(cell):
            cell.source = opened(cell.source)
        cell.source = cell.source.replace("LIVE = False", "LIVE = True")
    found = outputs_of(executing.execute(notebook, tmp_path).cells)
    assert printed(found).count(OPEN) == EXERCISES[path.stem]
    frames = [page for page in shown(found, "text/html") if page.startswith("<iframe sandbox=")]
    assert len(frames) == VIEWS[path.stem]
    assert all("CircuitsVis.render" in frame for frame in frames)
