"""A row's trace is the one that was decoded, step by step; narrow types keep batch sizes apart."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from small import DECODING, GRID, PROBLEMS, small

from stepflow_tl import generate, load_model
from stepflow_tl.interventions import StepMomentum
from stepflow_tl.sweep import Store, Sweep, grid, trace_of
from stepflow_tl.sweep.cells import arms_of, batches_of
from stepflow_tl.tasks import WordProblems
from stepflow_tl.tasks.strategies import Decoding, Plain
from stepflow_tl.traces.formats import PLAIN, THINK, Format

IDENTITY = {"version": "0.1.0", "weights": "0123456789abcdef"}


def three_words(step: str, token: str) -> bool:
    return step.count(" ") >= 3 and token.startswith(" ")


@pytest.fixture(scope="module")
def reasoner() -> Any:
    return load_model("reasoner")


def row_of(model: Any, form: Any, path: Any) -> tuple[Any, Any]:
    """A row, and the trace that `generate` returns for its question."""
    task = WordProblems(n=1, difficulties=(3,))
    decoding = Decoding(max_new_tokens=150, format=form)
    sweep = Sweep(task, grid(StepMomentum, alpha=[0.0]), model=model, decoding=decoding)
    row = sweep.run(path).iloc[0]
    return row, generate(model, task.items[0].question, max_new_tokens=150, format=form)


@pytest.mark.parametrize(
    "form",
    [
        "auto",
        "think",
        PLAIN,
        replace(THINK, thinking_cutter="full_stop"),
        replace(THINK, thinking_cutter="none", summary_cutter="line"),
        Format(name="other", thinking_open="<think>", summary_open="</think>"),
    ],
    ids=["auto", "think", "plain", "full_stop", "none", "other"],
)
@pytest.mark.slow
def test_a_rows_trace_is_cut_as_it_was_decoded(reasoner, tmp_path, form):
    row, decoded = row_of(reasoner, form, tmp_path / "s.sqlite")
    again = trace_of(reasoner, row)
    assert again.steps == decoded.steps
    assert (again.segments, again.read_as) == (decoded.segments, decoded.read_as)
    assert row["steps"] == len(decoded.steps_in("thinking"))


def test_a_callers_own_cutter_is_asked_for(reasoner, tmp_path):
    form = replace(THINK, thinking_cutter=three_words)
    row, decoded = row_of(reasoner, form, tmp_path / "s.sqlite")
    message = r"own test_reading_again\.three_words.*expected format= with that cutter"
    with pytest.raises(ValueError, match=message):
        trace_of(reasoner, row)
    assert trace_of(reasoner, row, format=form).steps == decoded.steps


def test_the_row_says_where_the_context_ended(tiny_folder, tmp_path):
    model = load_model(tiny_folder("llama", max_position_embeddings=90, eos_token_id=None))
    rows = small(model, decoding=replace(DECODING, max_new_tokens=400)).run(tmp_path / "s.sqlite")
    sizes = rows["token_ids"].map(lambda ids: ids.count(",") + 1)
    assert set(rows["cut"]) == {"context"}
    assert (sizes >= 90).all() and (sizes[rows["tokens"] > 0] == 90).all()


def hashes(exact: bool, batch_size: int) -> list[str]:
    decoding = replace(DECODING, batch_size=batch_size)
    batches = batches_of(arms_of([Plain()], GRID), PROBLEMS, [0], decoding, IDENTITY, 4, exact)
    return [cell.hash for batch in batches for cell in batch.cells]


def test_cells_have_their_batch_size_in_the_key_where_rounding_depends_on_it():
    assert hashes(True, 1) == hashes(True, 4)
    assert not set(hashes(False, 1)) & set(hashes(False, 4))
    assert not set(hashes(False, 4)) & set(hashes(True, 4))


def test_a_store_filled_at_another_batch_size(tiny_folder, tmp_path):
    """bfloat16: the second run decodes its own rows; float32: it takes the first one's."""
    folder = tiny_folder("llama")
    for dtype, cells in ((torch.bfloat16, 24), (torch.float32, 12)):
        model = load_model(folder, dtype=dtype)
        path = tmp_path / f"{dtype}.sqlite"
        for size in (1, 4):
            rows = small(model, decoding=replace(DECODING, batch_size=size)).run(path)
            assert len(rows) == 12
        assert len(Store(path).to_dataframe()) == cells
