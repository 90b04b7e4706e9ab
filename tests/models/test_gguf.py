"""Models in single files, written by gguf's own writer from the bundled reasoner."""

import json
import shutil
import sys

import pytest
import torch
from helpers import DATA
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.integrations.mxfp4 import Mxfp4GptOssExperts

from stepflow_tl import StepFlow, Sweep, Trace, generate, grid, load_model, step_saliency
from stepflow_tl.errors import ModelError, StepMapError
from stepflow_tl.estimate.architecture import read_architecture
from stepflow_tl.interventions import OddsEqualBridge
from stepflow_tl.models import load_tokenizer
from stepflow_tl.models.view import view
from stepflow_tl.models.weights import is_quantized, let_gradients_through
from stepflow_tl.reasoner import WEIGHTS
from stepflow_tl.sweep import resume
from stepflow_tl.tasks import WordProblems
from stepflow_tl.tasks.word_problems import make_problem

gguf = pytest.importorskip("gguf")

from gguf_file import write_gguf  # noqa: E402

QUESTION = make_problem(0, 3).question
FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
FP4 += [-value for value in FP4]


@pytest.fixture(scope="module")
def mxfp4_folder(tmp_path_factory):
    """The tiny GPT-OSS with experts in MXFP4, and what they stand for."""
    folder = tmp_path_factory.mktemp("mxfp4")
    shutil.copytree(DATA / "tiny_gpt_oss", folder, dirs_exist_ok=True)
    chance = torch.Generator().manual_seed(0)
    packed, meant = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            packed[name] = tensor.bfloat16()
            continue
        experts, inside, outside = tensor.shape
        shape = (experts, outside, inside // 32)
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=chance)
        scales = torch.randint(122, 125, shape, dtype=torch.uint8, generator=chance)
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        digits = torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2)
        values = torch.tensor(FP4)[digits.long()] * 2.0 ** (scales.float() - 127)[..., None]
        meant[name] = values.flatten(-2).transpose(1, 2)
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    kept = [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    return folder, meant


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The reasoner in one file; its weights are in float16, which loses nothing."""
    return write_gguf(WEIGHTS, tmp_path_factory.mktemp("gguf") / "reasoner.gguf", "F16")


@pytest.fixture(scope="module")
def reasoner():
    return load_model("reasoner")


@pytest.fixture(scope="module")
def loaded(written):
    return load_model(written)


def test_it_is_the_model_that_was_written(loaded, reasoner):
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert not is_quantized(loaded)
    trace = generate(reasoner, QUESTION, max_new_tokens=200)
    again = generate(loaded, QUESTION, max_new_tokens=200)
    assert again.token_ids.tolist() == trace.token_ids.tolist()
    assert (again.steps, again.answer) == (trace.steps, trace.answer)
    assert torch.equal(loaded(trace.tokens), reasoner(trace.tokens))
    maps = [step_saliency(model, trace).scores for model in (loaded, reasoner)]
    assert torch.equal(*maps)


def test_its_tokenizer_comes_from_the_file(loaded, written, reasoner):
    alone = load_tokenizer(written)
    for text in (QUESTION, "So Tom has 12.\n</think>\n\n\\boxed{12}", "  a\tb 数学 é"):
        ids = reasoner.tokenizer(text, add_special_tokens=False)["input_ids"]
        for tokenizer in (loaded.tokenizer, alone):
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    assert alone.chat_template == reasoner.tokenizer.chat_template
    assert alone.eos_token == reasoner.tokenizer.eos_token


def test_it_is_called_by_its_name(loaded):
    assert view(loaded).name == "reasoner.gguf"
    assert "model=reasoner.gguf" in repr(step_saliency(loaded, generate(loaded, QUESTION)))


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", torch.float64])
def test_precisions(written, dtype):
    model = load_model(written, dtype=dtype)
    wanted = {"auto": torch.float32, "bfloat16": torch.bfloat16}.get(dtype, dtype)
    assert {p.dtype for p in model.parameters()} == {wanted}


def test_packed_weights_are_unpacked(tmp_path, reasoner):
    path = write_gguf(WEIGHTS, tmp_path / "packed.gguf", "Q8_0")
    model = load_model(path)
    tokens = generate(reasoner, QUESTION, max_new_tokens=40).tokens
    exact, near = reasoner(tokens), model(tokens)
    assert not torch.equal(near, exact)
    assert (near - exact).abs().max() < 0.05 * exact.abs().max()
    with StepFlow.paper().attach(model) as run:
        generate(model, QUESTION, max_new_tokens=60)
    assert run.actions > 0


def test_a_sweep_loads_it_by_its_path_from_anywhere(written, tmp_path, monkeypatch):
    monkeypatch.chdir(written.parent)
    sweep = Sweep(
        WordProblems(n=1, difficulties=(1,)),
        grid(OddsEqualBridge, tau_max=[0.5]),
        model=written.name,
    )
    rows = sweep.run(tmp_path / "store.sqlite")
    monkeypatch.chdir(tmp_path)
    assert len(resume(tmp_path / "store.sqlite")) == len(rows) == 2


def test_its_cost_is_estimated(written):
    ours, theirs = (read_architecture(source) for source in (written, "reasoner"))
    assert (ours.parameters, ours.kv_width, ours.windows) == (
        *(theirs.parameters, theirs.kv_width, theirs.windows),
    )


def _cut(path, out, size):
    out.write_bytes(path.read_bytes()[:size])


BROKEN = {
    "nothing there": (lambda path, out: None, "expected a .gguf file, found none there"),
    "empty": (lambda path, out: out.touch(), "is no .gguf file"),
    "text": (lambda path, out: out.write_text("no model"), "is no .gguf file"),
    "cut in its header": (lambda path, out: _cut(path, out, 900), "truncated"),
    "cut in its weights": (lambda path, out: _cut(path, out, 2_000_000), "truncated"),
    "another architecture": (
        lambda path, out: write_gguf(WEIGHTS, out, architecture="deepseek2"),
        r"some of .*gpt_oss.*qwen3.*, got 'deepseek2'; load its Hugging Face checkpoint",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_cannot_be_read_is_named(written, tmp_path, how):
    make, message = BROKEN[how]
    path = tmp_path / "broken.gguf"
    make(written, path)
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match=message) as caught:
            load(path)
        assert "broken.gguf" in str(caught.value)


def test_one_part_of_several_is_named(written, tmp_path):
    part = tmp_path / "large-00001-of-00003.gguf"
    shutil.copy(written, part)
    with pytest.raises(ModelError, match="one part of a model: expected a single file"):
        load_model(part)


def test_a_packing_that_is_not_read_is_named(written, monkeypatch):
    def refuse(data, kind):
        raise NotImplementedError(f"Dequantization for {kind.name} is not yet implemented")

    monkeypatch.setattr(gguf, "dequantize", refuse)
    with pytest.raises(ModelError, match="in a packing that transformers unpacks .*F16 is not yet"):
        load_model(written)


def test_weights_that_are_missing_are_not_made_up(tmp_path, monkeypatch):
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 8)
    add = gguf.GGUFWriter.add_tensor
    lacking = names.get_name("model.layers.3.mlp.up_proj.weight", try_suffixes=(".weight",))
    monkeypatch.setattr(
        gguf.GGUFWriter,
        "add_tensor",
        lambda self, name, *rest, **more: name == lacking or add(self, name, *rest, **more),
    )
    path = write_gguf(WEIGHTS, tmp_path / "lacking.gguf")
    with pytest.raises(ModelError, match=r"fit 1 of them, such as model\.layers\.3\.mlp\.up_proj"):
        load_model(path)


def test_the_extra_is_named(written, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"needs pip install 'stepflow-tl\[gguf\]'"):
        load_model(written)


class TestMxfp4:
    """GPT-OSS as it is published: experts in blocks of 4 bits."""

    @pytest.mark.parametrize("dtype", [None, "bfloat16", "auto"])
    def test_it_is_unpacked(self, mxfp4_folder, dtype):
        folder, weights = mxfp4_folder
        model = load_model(folder, dtype=dtype)
        wanted = torch.float32 if dtype is None else torch.bfloat16
        assert {p.dtype for p in model.parameters()} == {wanted}
        assert not is_quantized(model)
        named = model.original_model.named_parameters()
        held = {name.replace("_original_component.", ""): numbers for name, numbers in named}
        for name, values in weights.items():
            assert torch.equal(held[name], values.to(wanted)), name
        trace = Trace.from_token_ids(model, list(range(6, 40)), prompt_length=5, strict=False)
        assert torch.isfinite(step_saliency(model, trace).scores).all()

    def test_a_packed_one_gives_no_gradient_and_says_so(self, mxfp4_folder):
        """On a GPU transformers may keep the experts packed, in kernels without backward."""
        folder, _ = mxfp4_folder
        inner = AutoModelForCausalLM.from_pretrained(folder)
        inner.model.layers[1].mlp.experts = Mxfp4GptOssExperts(inner.config)
        message = r"got Mxfp4GptOssExperts at model\.layers\.1\.mlp\.experts \(its kernels have no"
        assert is_quantized(inner)
        with pytest.raises(StepMapError, match=message):
            let_gradients_through(inner, StepMapError)
