"""The import graph: a module imports only from rooms above it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import stepflow_tl

PACKAGE = Path(stepflow_tl.__file__).parent
ROOMS = [
    {"version", "files", "layers", "huggingface", "memory", "precision", "weights", "untrusted"},
    {"answers", "cutters"},
    {"formats"},
    {"templates", "chat"},
    {"reading"},
    {"budget", "cuts", "stopping"},
    {"trace"},
    {"models", "hub", "context"},
    {"loading"},
    {"rows"},
    {"here"},
    {"tracking"},
    {"saliency", "interventions", "statistics"},  # siblings never import each other
    {"diagnostics"},
    {"generation"},
    {"strategies"},
    {"tasks"},
    {"sweep"},
    {"plots"},
    {"report", "notebook"},
    {"reasoner"},
    {"integrations", "estimate", "demo"},
    {"cli"},
]
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
# The reasoner's world knows no model, and tasks are drawn from it.
BELOW_EVERYTHING = {"reasoner", "reasoner.world", "reasoner.grading", "reasoner.sentences"}


def modules() -> list[str]:
    paths = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths)


LAZY = {("saliency.maps", "plots")}  # StepMap.plot, for those who have matplotlib


def imports(module: str) -> Iterator[str]:
    """Modules of the package that a module imports, without the package's name."""
    path = PACKAGE.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text())
    outside = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "stepflow_tl":
                found = name.removeprefix("stepflow_tl").removeprefix(".")
                while found and found not in MODULES:  # a name inside a module
                    found = found.rpartition(".")[0]
                if (module, found) not in LAZY or id(node) in outside:
                    yield found


MODULES = modules()


def room(module: str) -> str:
    return module.split(".")[0]


def is_type_of_saliency(module: str) -> bool:
    return module in {"saliency", "saliency.maps"}


def test_every_room_has_a_floor() -> None:
    assert {room(module) for module in MODULES} <= {*FLOOR, "__init__", "__main__", "py"}


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("__init__", "__main__")])
def test_imports_run_upwards(module: str) -> None:
    for imported in imports(module):
        if imported in ("", "__init__") and room(module) in ("cli", "__main__", "demo"):
            continue  # the command line and the demo use what users use
        assert imported not in ("", "__init__"), f"{module} imports the package itself"
        if room(imported) == room(module) or imported in BELOW_EVERYTHING:
            continue
        assert FLOOR[room(imported)] < FLOOR[room(module)], f"{module} imports {imported}"


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in ("plots", "report")])
def test_figures_read_results_and_touch_no_model(module: str) -> None:
    for imported in imports(module):
        assert room(imported) not in {"models", "generation", "tracking", "interventions"}, imported
        if room(imported) == "saliency":
            assert is_type_of_saliency(imported), imported


def test_no_import_cycles() -> None:
    graph = {
        module: {m for m in imports(module) if m and m != module}
        for module in MODULES
        if module != "__init__"
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module not in done:
            for imported in graph.get(module, ()):
                visit(imported, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after a statement."""
    code = f"{statement}; import sys; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    return set(done.stdout.split())


def test_the_package_imports_without_matplotlib() -> None:
    loaded = loaded_by("import stepflow_tl")
    assert "stepflow_tl" in loaded
    assert not loaded & {"matplotlib", "IPython", "pytest", "typer", "lm_eval"}
