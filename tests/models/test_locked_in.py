"""The reasoner that locks in loads by its name, and is what its file was made for."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stepflow_tl import (
    Decoding,
    Grid,
    StepFlow,
    Sweep,
    WordProblems,
    generate,
    load_model,
)
from stepflow_tl.errors import ModelError, SettingError
from stepflow_tl.files import write_file
from stepflow_tl.models import load_tokenizer
from stepflow_tl.models.locked_in import NAME, doses_of, locked_in_decoder
from stepflow_tl.models.view import view

LAYERS = (4, 5, 6)


@pytest.fixture(scope="module")
def plain() -> Any:
    return load_model("reasoner", device="cpu")


@pytest.fixture(scope="module")
def locked() -> Any:
    return load_model(NAME, device="cpu")


def test_only_queries_and_keys_of_the_look_up_layers_differ(plain: Any, locked: Any) -> None:
    before = dict(plain.named_parameters())
    changed = {
        name
        for name, parameter in locked.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    ends = {
        f"{layer}.{part}.{kind}" for layer in LAYERS for part in "qk" for kind in ("weight", "bias")
    }
    assert {_short(name) for name in changed} == ends
    tokens = torch.arange(20)[None]
    assert not torch.allclose(plain(tokens), locked(tokens), atol=1e-3)
    assert view(plain).weights_hash() != view(locked).weights_hash()


def _short(name: str) -> str:
    """Layer, part and kind of a parameter's name in a bridge."""
    numbers = [piece for piece in name.split(".") if piece.isdigit()]
    (part,) = {p for p in "qkvo" if f".{p}." in name or f".{p}_proj." in name}
    return f"{numbers[0]}.{part}.{name.rsplit('.', 1)[-1]}"


def test_other_weights_beside_its_name_are_refused() -> None:
    with pytest.raises(ModelError, match="got it beside 'reasoner-locked-in'"):
        load_model(NAME, hf_model=locked_in_decoder(48))


def test_a_dose_that_was_not_kept_is_refused() -> None:
    with pytest.raises(SettingError, match=r"expected a dose in \[48, 60, 72\], got 50"):
        locked_in_decoder(50)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    locked_in_decoder().save_pretrained(other)
    with pytest.raises(ModelError, match=r"expected the weights \w{16}, for which .* got \w{16}"):
        locked_in_decoder(base=other)


def test_another_file_is_refused(tmp_path: Path) -> None:
    write_file(tmp_path / "map", "step map", {"x": torch.zeros(1)}, {})
    with pytest.raises(ModelError, match="expected a reasoner difference file"):
        locked_in_decoder(path=tmp_path / "map")


def test_the_name_is_the_largest_dose(locked: Any) -> None:
    largest = load_model(hf_model=locked_in_decoder(doses_of()[-1]), device="cpu")
    assert view(largest).weights_hash() == view(locked).weights_hash()
    assert (view(locked).name, view(largest).name) == ("reasoner-locked-in", "reasoner")
    assert load_tokenizer(NAME).get_vocab() == load_tokenizer().get_vocab()


def test_the_precision_is_as_asked() -> None:
    half = load_model(NAME, device="cpu", dtype="bfloat16")
    assert view(half).dtype == torch.bfloat16
    with pytest.raises(ModelError, match="dtype"):
        load_model(NAME, device="cpu", dtype="int9")


def test_traces_say_which_model_wrote_them(locked: Any) -> None:
    trace = generate(locked, "How many?", max_new_tokens=4)
    assert trace.metadata["model"] == NAME


def test_sweeps_load_it_by_its_name(tmp_path: Path, locked: Any) -> None:
    rows = [
        Sweep(
            WordProblems(n=2, difficulties=(1,)),
            Grid.of({"baseline": StepFlow()}),
            model=model,
            decoding=Decoding(max_new_tokens=12),
        ).run(tmp_path / f"{number}.sqlite")
        for number, model in enumerate((locked, NAME))
    ]
    assert rows[0]["token_ids"].tolist() == rows[1]["token_ids"].tolist()
