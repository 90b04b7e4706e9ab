"""What the package says: every error quotes what came or what was expected, and nothing prints."""

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import stepflow_tl
from stepflow_tl import errors

PACKAGE = Path(stepflow_tl.__file__).parent
PATHS = sorted(PACKAGE.rglob("*.py"))
NO_VALUES = ("StepFlowError", "WrongTypeError", "TrackingError", "SandboxError")
SAYS = ("expected", "must", "got", "needs", "found", "no", "not", "could", "cannot", "unknown")


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


def hands_on(message: ast.expr) -> bool:
    """Whether a message ends in what another error, or a function, says."""
    if not isinstance(message, ast.JoinedStr) or not str(text_of(message)).endswith(": {}"):
        return False
    said = ast.unparse(message.values[-1].value)  # type: ignore[attr-defined]
    return said == "error" or said.endswith(")")


def says(message: ast.expr) -> bool:
    """Whether a message holds a word of `SAYS`, or its words are made elsewhere."""
    text = text_of(message)
    wanted = re.compile(rf"\b({'|'.join(SAYS)})\b")
    return text is None or hands_on(message) or bool(wanted.search(text))


@pytest.mark.parametrize(
    ("message", "good"),
    [
        ("f'{x} is odd'", False),
        ("f'{x}'", False),
        ("'another notion'", False),
        ("f'{path}: {x}'", False),
        ("f'expected a number, got {x}'", True),
        ("f'{path}: {error}'", True),
        ("f'out of memory: {advice()}'", True),
        ("error", True),
    ],
)
def test_what_says_something(message: str, good: bool) -> None:
    assert says(ast.parse(message, mode="eval").body) == good


@pytest.mark.parametrize("path", PATHS, ids=[str(p.relative_to(PACKAGE)) for p in PATHS])
def test_errors_say_what_is_wrong(path: Path) -> None:
    for line, call in raised(path):
        name = ast.unparse(call.func)
        if name.endswith("Exit"):  # the command line has said it already
            continue
        assert call.args, f"{path.name}:{line}: {name} without a message"
        text = text_of(call.args[0])
        if text is not None:
            assert says(call.args[0]), f"{path.name}:{line}: expected a word of {SAYS} in: {text}"
            assert not text.endswith("."), f"{path.name}:{line}: a message is no sentence: {text}"


@pytest.mark.parametrize("path", PATHS, ids=[str(p.relative_to(PACKAGE)) for p in PATHS])
def test_modules_open_with_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), path


@pytest.mark.parametrize(
    "error",
    [getattr(errors, n) for n in vars(errors) if n.endswith("Error") and n not in NO_VALUES],
)
def test_the_packages_errors_are_value_errors_too(error: type[Exception]) -> None:
    assert issubclass(error, ValueError)


ALONE = {"tasks/grading/guarded.py", "tasks/grading/math_worker.py"}  # scripts of their own


def test_every_error_has_one_base() -> None:
    raised = {
        (str(path.relative_to(PACKAGE)), node.exc.func.id)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
    }
    bare = {(file, name) for file, name in raised if file not in ALONE and hasattr(builtins, name)}
    kept = {"FileNotFoundError", "OSError", "NotImplementedError", "ImportError", "PermissionError"}
    kept |= {"AttributeError"}  # Python's own word for a name that a module does not have
    assert {name for _, name in bare} <= kept, bare
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in classes:
        assert issubclass(kind, (errors.StepFlowError, errors.InterventionWarning))
        assert kind is errors.StepFlowError or issubclass(
            kind, (ValueError, TypeError, RuntimeError, UserWarning)
        )
