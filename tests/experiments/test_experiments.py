"""Every experiment runs in its fast setting, and writes what it promises."""

import ast
import importlib
import json

import pytest
from helpers import ROOT

FOLDER = ROOT / "experiments"
PARTS = (  # of other experiments
    "audit_flashtrace",
    "audit_real",
    "audit_rules",
    "audit_tables",
    "common",
    "learned_lock_in",
    "parts",
    "planted_arms",
    "planted_seen",
    "published",
)
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in PARTS)
FIGURES = {"step_maps": ["token_and_step_maps", "step_flow"]}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("experiments")


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_experiment_writes_its_figure_and_its_json(script, out) -> None:
    run = importlib.import_module(script).main
    run(["--fast", "--out", str(out)])
    names = FIGURES.get(script, [script])
    first = {path: path.read_bytes() for name in names for path in sorted(out.glob(f"{name}.*"))}
    assert {path.suffix for path in first} == {".png", ".pdf", ".json"}
    for name in names:
        written = json.loads((out / f"{name}.json").read_text())
        assert written["settings"]["fast"] is True
        assert written["versions"]["stepflow-tl"] and written["tables"]
    run(["--fast", "--out", str(out)])  # the store holds all cells: equal data, equal bytes
    for path, content in first.items():
        assert path.read_bytes() == content, path.name


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_first_line_says_what_it_mirrors(script) -> None:
    doc = ast.get_docstring(ast.parse((FOLDER / f"{script}.py").read_text()))
    assert doc is not None
    assert doc.startswith(("Mirrors the paper's ", "Beyond the paper: "))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_only_public_names_are_imported(path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stepflow_tl"):
            module = importlib.import_module(str(node.module))
            public = getattr(module, "__all__", dir(module))
            assert {alias.name for alias in node.names} <= set(public), path.name
            assert not any(part.startswith("_") for part in str(node.module).split("."))


def test_a_folder_that_cannot_be_written_is_named(tmp_path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OSError, match="file"):
        importlib.import_module("error_kinds").main(["--fast", "--out", str(blocked)])
