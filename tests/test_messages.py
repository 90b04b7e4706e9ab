"""What the package says: every error quotes what came or what was expected, and nothing prints."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import stepflow_tl

PACKAGE = Path(stepflow_tl.__file__).parent
PATHS = sorted(PACKAGE.rglob("*.py"))
SAYS = ("expected", "must", "got", "needs", "found", "no ", "not ", "could", "cannot", "unknown")


def raised(path: Path) -> Iterator[tuple[int, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield node.lineno, node.exc


def text_of(message: ast.expr) -> str | None:
    """The fixed words of a message; None where it is made elsewhere."""
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.JoinedStr):
        return "".join(
            str(p.value) if isinstance(p, ast.Constant) else "{}" for p in message.values
        )
    return None


@pytest.mark.parametrize("path", PATHS, ids=[str(p.relative_to(PACKAGE)) for p in PATHS])
def test_errors_say_what_is_wrong(path: Path) -> None:
    for line, call in raised(path):
        name = ast.unparse(call.func)
        if name.endswith("Exit"):  # the command line has said it already
            continue
        assert call.args, f"{path.name}:{line}: {name} without a message"
        text = text_of(call.args[0])
        if text is not None:
            assert any(word in text for word in SAYS) or "{}" in text, f"{path.name}:{line}: {text}"
            assert not text.endswith("."), f"{path.name}:{line}: a message is no sentence: {text}"


@pytest.mark.parametrize("path", PATHS, ids=[str(p.relative_to(PACKAGE)) for p in PATHS])
def test_modules_open_with_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), path


@pytest.mark.parametrize(
    "error", [getattr(stepflow_tl, n) for n in stepflow_tl.__all__ if n.endswith("Error")]
)
def test_the_packages_errors_are_value_errors_too(error: type[Exception]) -> None:
    assert issubclass(error, ValueError)
