"""Readers of files."""

from pathlib import Path

import pytest
from made_maps import made_map
from typer.testing import CliRunner

from stepflow_tl.cli.app import app
from stepflow_tl.errors import SettingError
from stepflow_tl.traces.trace import Trace
from stepflow_tl.views import read_files

TEXTS = ["How many?", "Ken has 2.", "It is 2."]


def test_maps_are_named_by_their_files(tmp_path: Path) -> None:
    for name in ("share", "attention"):
        made_map(TEXTS).save(tmp_path / f"{name}.safetensors")
    paths = [tmp_path / "share.safetensors", tmp_path / "attention.safetensors"]
    reader = read_files(paths, title="Mine")
    assert list(reader.reading.maps) == ["share", "attention"]
    assert reader.title == "Mine"


def test_single_maps_of_both_sides_are_compared(tmp_path: Path) -> None:
    for name in ("before", "after"):
        made_map(TEXTS).save(tmp_path / f"{name}.safetensors")
    reader = read_files([tmp_path / "before.safetensors"], [tmp_path / "after.safetensors"])
    assert reader.after is not None
    assert list(reader.after.maps) == ["before"]


def test_a_trace_with_its_map(tmp_path: Path, trace: Trace) -> None:
    texts = [step.text for step in trace.steps]
    trace.save(tmp_path / "trace.safetensors")
    made_map(texts).save(tmp_path / "map.safetensors")
    out = tmp_path / "new" / "page.html"
    files = [str(tmp_path / f"{name}.safetensors") for name in ("map", "trace")]
    result = CliRunner().invoke(app, ["read", *files, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    assert out.read_text().startswith("<!doctype html>")
    with pytest.raises(SettingError, match="got a second trace"):
        read_files([files[1], files[1]])


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    path.write_text("no")
    with pytest.raises(SettingError, match="expected a saved trace or step map"):
        read_files([path])
    with pytest.raises(FileNotFoundError):
        read_files([tmp_path / "none.safetensors"])
