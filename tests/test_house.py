"""The numbers that keep the house easy to enter."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import stepflow_tl

PACKAGE = Path(stepflow_tl.__file__).parent
OPTIONS = ("--output-format", "json", str(PACKAGE))
TEXTS = {path.relative_to(PACKAGE): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def test_rooms_are_few() -> None:
    rooms = {path.parts[0] for path in TEXTS if len(path.parts) > 1}
    assert len(rooms) <= 20


def test_what_a_model_is_is_asked_in_one_room() -> None:
    elsewhere = {path: text for path, text in TEXTS.items() if path.parts[0] != "models"}
    for path, text in elsewhere.items():
        assert "is_huggingface" not in text, path
        assert not re.search(r"isinstance\([^)]*PreTrainedModel", text), path
    signatures = [
        ast.unparse(argument)
        for text in TEXTS.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
        for argument in [*node.args.args, *node.args.kwonlyargs]
    ]
    assert signatures.count("model: Any") <= 10


def test_public_names_are_few() -> None:
    assert 25 <= len(stepflow_tl.__all__) <= 35


def test_rooms_say_what_they_are_for() -> None:
    """Each opens with its purpose, and names its files."""
    for path, text in TEXTS.items():
        if path.name != "__init__.py" or path.parent == Path("."):
            continue
        said = ast.get_docstring(ast.parse(text)) or ""
        files = [p.stem for p in TEXTS if p.parent == path.parent and p.name != "__init__.py"]
        missing = [name for name in files if not re.search(rf"\b{name}\b", said)]
        assert not missing, f"{path}: {missing}"


def test_every_name_is_defined() -> None:
    """Ruff and mypy leave undefined names out, for the sake of jaxtyping's axis strings."""
    found = subprocess.run(
        [*f"{sys.executable} -m ruff check --isolated --select F821".split(), *OPTIONS],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = {str(path): path.read_text().splitlines() for path in PACKAGE.rglob("*.py")}
    for one in json.loads(found.stdout):
        at, line = one["location"], lines[one["filename"]][one["location"]["row"] - 1]
        in_a_string = line[: at["column"] - 1].count('"') % 2 == 1
        assert in_a_string, f"{one['filename']}:{at['row']}: {one['message']}"
