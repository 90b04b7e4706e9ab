"""Another major version of what runs models is refused by name, before anything is loaded."""

import re
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from transformer_lens.model_bridge import TransformerBridge

from stepflow_tl import cli, load_model
from stepflow_tl import version as versions_of
from stepflow_tl.version import RUNS_MODELS, check_versions, versions

ROOT = Path(__file__).parent.parent


def needs() -> list[str]:
    """The dependencies that pyproject.toml lists: what is installed may be older than the file."""
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return re.findall(r'"([^"]+)"', found[1])


@pytest.fixture
def installed(monkeypatch):
    """Pretend that other versions are installed."""
    real = versions_of.version

    def pretend(**others: str | None) -> None:
        def version(name: str) -> str:
            found = others.get(name.replace("-", "_"), real(name))
            if found is None:
                raise PackageNotFoundError(name)
            return found

        monkeypatch.setattr(versions_of, "version", version)
        monkeypatch.setattr(versions_of, "requires", lambda name: needs())

    return pretend


def test_what_runs_models_is_bounded_by_major_version(installed):
    bounds = {need.name: need.specifier for need in map(Requirement, needs())}
    for name in RUNS_MODELS:
        (upper,) = (each.version for each in bounds[name] if each.operator == "<")
        assert re.fullmatch(r"\d+", upper), name
        assert versions()[name] in bounds[name]
    installed()
    check_versions()


@pytest.mark.parametrize("torch", ["2.6.0", "2.99.1+cu126", "2.13.0a0+gitf00"])
def test_builds_of_a_supported_version_pass(installed, torch):
    installed(torch=torch)
    check_versions()


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"torch": "3.0.1"}, "expected torch>=2.6,<3, found 3.0.1; pip install 'torch>=2.6,<3'"),
        (
            {"transformers": "4.57.1"},
            "expected transformers>=5,<6, found 4.57.1; pip install 'transformers>=5,<6'",
        ),
        (
            {"transformer_lens": None, "transformers": "6.0.0.dev0"},
            "expected transformer-lens>=3.9,<5, found none; expected transformers>=5,<6, found "
            "6.0.0.dev0; pip install 'transformer-lens>=3.9,<5' 'transformers>=5,<6'",
        ),
    ],
)
def test_others_are_refused(installed, others, message):
    installed(**others)
    with pytest.raises(ImportError, match=f"^cannot run models: {re.escape(message)}$"):
        check_versions()


def test_no_model_is_loaded_with_them(installed, monkeypatch, capsys):
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(TransformerBridge, "boot_transformers", never)
    installed(transformers="6.1")
    with pytest.raises(ImportError, match=r"expected transformers>=5,<6, found 6\.1"):
        load_model("reasoner")
    monkeypatch.setattr(sys, "argv", ["stepflow-tl", "generate", "Why?"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr().err
    assert (stop.value.code, len(said.splitlines())) == (1, 1)
    assert said.startswith("error: cannot run models: expected transformers>=5,<6, found 6.1; pip")
