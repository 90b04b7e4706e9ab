"""The house: a room imports only from rooms on lower floors, and starts without what is heavy."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import stepflow_tl

PACKAGE = Path(stepflow_tl.__file__).parent
LEAVES = {"errors", "files", "text", "version"}  # the only modules at the root
FLOORS = [
    {*LEAVES, "reasoner"},
    {"models"},
    {"traces"},
    {"decoding", "saliency", "interventions"},  # siblings never import each other
    {"tasks"},
    {"analysis", "plots"},
    {"sweep", "estimate"},
    {"integrations"},
    {"cli"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> list[str]:
    paths = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths)


def tree_of(module: str) -> ast.Module:
    path = PACKAGE.joinpath(*module.split(".")) if module != "__init__" else PACKAGE
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text())


def imports(module: str) -> Iterator[str]:
    """Modules of the package that a module imports, without the package's name."""
    for node in ast.walk(tree_of(module)):
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
                yield found


MODULES = modules()
INSIDE = [module for module in MODULES if module != "__init__"]


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_room_has_a_floor() -> None:
    assert {room(module) for module in INSIDE} == set(FLOOR)
    at_the_root = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert at_the_root <= LEAVES


@pytest.mark.parametrize("module", INSIDE)
def test_imports_run_downwards(module: str) -> None:
    for imported in imports(module):
        if imported == "":
            assert room(module) == "cli", f"{module} imports the package itself, as users do"
        elif room(imported) != room(module):
            assert FLOOR[room(imported)] < FLOOR[room(module)], f"{module} imports {imported}"


@pytest.mark.parametrize("module", [m for m in INSIDE if room(m) == "plots"])
def test_figures_read_results_and_touch_no_model(module: str) -> None:
    for imported in imports(module):
        assert room(imported) not in {"decoding", "interventions"}, imported
        if room(imported) in {"saliency", "models"}:  # types of results; naming layers
            assert imported in {"saliency", "saliency.maps", "models.layers"}, imported


def is_lookup(node: ast.AST) -> bool:
    """Whether this imports a module by name, but for a stranger's, whose name stands there."""
    if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module")):
        return False
    name = node.args[0]
    return not isinstance(name, ast.Constant) or str(name.value).startswith("stepflow_tl")


@pytest.mark.parametrize("module", INSIDE)
def test_a_shorter_way_to_a_higher_floor_is_one_line(module: str) -> None:
    """`maps.plot` and its like look their function up by name, and do nothing else."""
    tree = tree_of(module)
    lookups = {id(node) for node in ast.walk(tree) if is_lookup(node)}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            inside = {id(node) for node in ast.walk(function)} & lookups
            if inside:
                _, body = ast.get_docstring(function), function.body[1:]
                assert len(body) == 1 and isinstance(body[0], ast.Return), function.name
                assert body[0].end_lineno == body[0].lineno, function.name
                lookups -= inside
    assert not lookups, f"{module} looks up a module outside a method"


def test_no_import_cycles() -> None:
    graph = {module: {m for m in imports(module) if m and m != module} for module in INSIDE}
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
