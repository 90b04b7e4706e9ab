"""Tiny models of real architectures, tokenizers that split where it hurts, and golden numbers."""

import gc
import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
import transformers
from helpers import (
    DATA,
    MODEL_KINDS,
    TRANSCRIPT,
    Golden,
    byte_tokenizer,
    encode,
    hooked_from,
    load_tiny,
    save_tiny,
)
from hypothesis import HealthCheck, settings
from verified import Plugin

from stepflow_tl.models.loading import load_model
from stepflow_tl.traces.trace import Trace

settings.register_profile(
    "shared-machine",
    deadline=None,
    max_examples=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("shared-machine")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-table",
        action="store_true",
        help="write the table of docs/models.md, what tests/conformance verifies",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Plugin(config), "verified-table")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No type checks, as users run it: the package's own errors are seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Byte-level BPE of few merges; ``<think>`` and ``</think>`` are single tokens."""
    return byte_tokenizer(whole_markers=True)


@pytest.fixture(scope="session")
def split_tokenizer() -> Any:
    """The same, but each thinking marker is split over several tokens."""
    return byte_tokenizer(whole_markers=False)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Callable[..., Path]:
    """Folder of a tiny random checkpoint: ``tiny_folder("qwen2")``, with settings to change."""

    def make(kind: str, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp(kind) / kind
        save_tiny(kind, tokenizer, folder, **changes)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny(tiny_folder: Callable[..., Path]) -> Callable[..., Any]:
    """A tiny model, loaded once: ``tiny("gpt_oss")``, ``tiny("hooked")``."""
    loaded: dict[tuple[str, str], Any] = {}

    def get(kind: str, dtype: torch.dtype = torch.float32) -> Any:
        key = (kind, str(dtype))
        if key not in loaded:
            folder = tiny_folder("qwen2" if kind == "hooked" else kind)
            loaded[key] = (hooked_from if kind == "hooked" else load_tiny)(folder, dtype=dtype)
        return loaded[key]

    return get


@pytest.fixture(params=MODEL_KINDS)
def model(request: pytest.FixtureRequest, tiny: Callable[..., Any]) -> Any:
    """Each architecture and model class, without hooks before and after."""
    return tiny(request.param)


@pytest.fixture
def qwen2(tiny: Callable[..., Any]) -> Any:
    return tiny("qwen2")


@pytest.fixture
def gpt_oss(tiny: Callable[..., Any]) -> Any:
    """Sliding windows of 8 keys on layers 0 and 2."""
    return tiny("gpt_oss")


@pytest.fixture(scope="session")
def trace(tokenizer: Any) -> Trace:
    """A question, thinking with five sentences (the last a fragment), and a boxed answer."""
    return Trace.from_text(tokenizer, TRANSCRIPT)


@pytest.fixture
def others(tokenizer: Any) -> list[Trace]:
    """Traces of other lengths: short steps, no summary, no thinking at all."""
    texts = [
        "Why is it so?<think>It is so. Because it has more pens. So it is.</think>It is so.",
        "<|im_start|>user\nWhy?<|im_end|>\n<think>Tom has 3 pens with him. Then he has 4 more.",
    ]
    traces = [Trace.from_text(tokenizer, text) for text in texts]
    ids = encode(tokenizer, "No thinking here. Tom has 3 pens with him. Then he has more.")
    return [*traces, Trace.from_token_ids(tokenizer, ids, strict=False)]


@pytest.fixture(scope="session", params=["tiny_gpt_oss", "tiny_qwen2"])
def golden_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden(DATA)


@pytest.fixture(scope="session")
def golden_model() -> Iterator[Callable[[str], Any]]:
    """A golden checkpoint by name, loaded once."""
    loaded: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in loaded:
            loaded[name] = load_model(DATA / name)
        return loaded[name]

    yield get


@pytest.fixture
def many_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """For simulations: statsmodels' ``multipletests`` collects all garbage at every call."""
    monkeypatch.setattr(gc, "collect", lambda generation=2: 0)


@pytest.fixture
def written(tmp_path):
    """Write rows as JSON lines."""

    def write(*rows, name="mine.jsonl"):
        path = tmp_path / name
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return path

    return write
