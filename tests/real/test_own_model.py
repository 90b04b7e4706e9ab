"""The commands of the page on one's own model, run as they stand."""

import pytest
from get import MODELS, PACKED
from helpers import ROOT
from pages import blocks, commands, page, run

pytestmark = pytest.mark.xdist_group("smollm2")


@pytest.fixture
def here(tmp_path):
    """A folder that looks like a checkout with the model in it."""
    path = MODELS / PACKED["smollm2"].file
    if not path.is_file():
        pytest.skip(f"no {path.name}: python tests/real/get.py fetches it")
    (tmp_path / "outputs" / "models").mkdir(parents=True)
    (tmp_path / "outputs" / "models" / path.name).symlink_to(path)
    for name in ("tests", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_own_model_from_the_shell(here):
    told = {command: run(command, here) for command in commands(page("models.md"))}
    assert len(told) == 5
    answer = next(said for command, said in told.items() if "stepflow-tl generate" in command)
    assert "Paris" in answer
    for name in ("real_model.png", "map.png"):
        assert (here / "outputs" / "mine" / name).stat().st_size > 10_000


def test_own_model_in_python(here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    first = blocks(page("models.md"))[0]
    assert "gguf" in first
    exec(first, {})
    assert "first_token" in capsys.readouterr().out
