"""The house: a room imports only from rooms on lower floors, and starts without what is heavy."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

import stepflow_tl
from stepflow_tl.cli import app

PACKAGE = Path(stepflow_tl.__file__).parent
LEAVES = {"errors", "files", "text", "version"}  # the only modules at the root
FLOORS = [
    {*LEAVES, "reasoner"},
    {"models"},
    {"traces"},
    {"decoding", "saliency", "interventions"},  # siblings never import each other
    {"tasks", "monitor"},
    {"analysis", "plots"},
    {"sweep", "estimate"},
    {"integrations", "views"},
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


def listed_for_type_checkers() -> dict[str, str]:
    """Public names and their modules, as the package's imports under TYPE_CHECKING have them."""
    blocks = [
        node
        for node in tree_of("__init__").body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    assert len(blocks) == 1
    assert all(isinstance(node, ast.ImportFrom) for node in blocks[0].body)
    return {
        alias.asname or "": str(node.module)  # "X as X": a type checker takes it for public
        for node in blocks[0].body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_public_names_are_one_table() -> None:
    table = stepflow_tl._HOMES
    assert listed_for_type_checkers() == table
    assert stepflow_tl.__all__ == sorted(table)
    assert set(table) <= set(dir(stepflow_tl))
    assert not set(table) & set(FLOOR), "a name would hide a room"


@pytest.mark.parametrize("name", stepflow_tl.__all__)
def test_a_public_name_is_the_one_at_its_home(name: str) -> None:
    assert getattr(stepflow_tl, name) is getattr(import_module(stepflow_tl._HOMES[name]), name)


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'stepflow_tl' has no attribute 'load_modle'"):
        stepflow_tl.load_modle  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'load_modle'"):
        exec("from stepflow_tl import load_modle")


HEAVY = {
    *("torch", "transformers", "transformer_lens", "tokenizers", "safetensors", "jaxtyping"),
    *("numpy", "scipy", "pandas", "pyarrow", "statsmodels", "matplotlib", "lm_eval", "ray"),
}
"""What takes longer to import than help takes to read."""


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after a statement."""
    code = f"""
import sys
try:
    {statement}
except SystemExit as stop:
    assert not stop.code, stop.code
print(*{{name.split(".")[0] for name in sys.modules}})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    return set(done.stdout.splitlines()[-1].split())


def test_the_package_imports_without_what_is_heavy() -> None:
    loaded = loaded_by("import stepflow_tl; stepflow_tl.StoreError")
    assert "stepflow_tl" in loaded
    assert not loaded & {*HEAVY, "IPython", "pytest", "typer"}


def commands(group: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """Every command of the command line, groups too, as its words."""
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *path, name)


COMMANDS = sorted(commands(typer.main.get_command(app)))


def test_commands_are_found_in_groups_too() -> None:
    assert {(), ("generate",), ("lm-eval",), ("sweep", "resume")} <= set(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words) or "alone")
def test_help_loads_nothing_heavy(words: tuple[str, ...]) -> None:
    loaded = loaded_by(
        f"from stepflow_tl.cli import main; sys.argv[1:] = {[*words, '--help']}; main()"
    )
    assert "typer" in loaded
    assert not loaded & HEAVY
