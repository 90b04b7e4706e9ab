"""What goes wrong on a real machine, with the exceptions that the libraries raise there."""

import errno
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import errors
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformer_lens.model_bridge import TransformerBridge

from stepflow_tl import OddsEqualBridge, Sweep, generate, grid, load_model, step_saliency
from stepflow_tl.errors import GenerationError, ModelError, StepMapError, WorkFileError
from stepflow_tl.files import is_disk_full, write_file
from stepflow_tl.models.hub import explain, weights_size
from stepflow_tl.models.memory import is_out_of_memory, out_of_memory_as
from stepflow_tl.saliency.workfile import WorkFile
from stepflow_tl.sweep import Store
from stepflow_tl.tasks import WordProblems
from stepflow_tl.tasks.strategies import Decoding
from stepflow_tl.traces.trace import Trace

NAME = "some-lab/some-model"
ASK = {"max_new_tokens": 8, "chat": False, "format": "plain"}
CUDA = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.15 GiB"
)
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 4398046511104 bytes. Error code 12 (Cannot allocate memory)"
)


def of_the_hub(kind: type[Exception]) -> Exception:
    """An error of the Hub's, whose constructors want a response."""
    error = kind.__new__(kind, "401 Client Error")
    Exception.__init__(error, "401 Client Error. https://huggingface.co/some-lab/some-model")
    return error


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def wrapped(cause: Exception) -> OSError:
    """As transformers says it."""
    error = OSError("We could not load the files.\nCheck your internet connection.")
    error.__cause__ = cause
    return error


LOADING = {
    "gated": (
        of_the_hub(errors.GatedRepoError),
        rf"'{NAME}' is gated: expected an account that may read it, got none; accept its licence "
        rf"on the model's page .*\({NAME}\), then log in with 'hf auth login' or set HF_TOKEN",
    ),
    "not found": (
        of_the_hub(errors.RepositoryNotFoundError),
        rf"no model '{NAME}': expected 'reasoner'.*the Hub has none of this name: check its spell",
    ),
    "no revision": (of_the_hub(errors.RevisionNotFoundError), "has no such revision: expected a b"),
    "offline": (
        errors.LocalEntryNotFoundError("Cannot find the requested files in the disk cache"),
        rf"no model '{NAME}': .*; it is not cached in .*hub, and HF_HUB_OFFLINE is set: check the",
    ),
    "offline mode": (errors.OfflineModeIsEnabled("offline"), "and HF_HUB_OFFLINE is set"),
    "no disk": (
        OSError(errno.ENOSPC, "No space left on device"),
        rf"no space left on the disk for model '{NAME}': expected enough in .*hub, got [\d.]+ GiB "
        "free; make room there, or set HF_HOME to a folder on a larger disk",
    ),
    "damaged weights": (
        SafetensorError("Error while deserializing header: header too large"),
        "could not be loaded: expected whole .safetensors files, got damaged .*header too large",
    ),
    "no such device": (AssertionError("Torch not compiled with CUDA enabled"), "CUDA enabled"),
    "other shapes": (RuntimeError("size mismatch for lm_head"), "could not be loaded: size mism"),
}


class TestLoading:
    @pytest.mark.parametrize("how", [lambda e: e, wrapped], ids=["itself", "wrapped"])
    @pytest.mark.parametrize("case", LOADING)
    def test_each_cause_is_told(
        self, monkeypatch: pytest.MonkeyPatch, case: str, how: Callable[..., Exception]
    ) -> None:
        cause, message = LOADING[case]
        if how is wrapped and not isinstance(cause, (OSError, SafetensorError)):
            pytest.skip("raised as it is")
        error = how(cause)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr(TransformerBridge, "boot_transformers", raising(error))
        with pytest.raises(ModelError, match=message) as caught:
            load_model(NAME)
        assert caught.value.__cause__ is error
        assert "http" not in str(caught.value)

    def test_no_disk_says_how_much_is_needed(self, tiny_folder: Callable[..., Path]) -> None:
        folder = str(tiny_folder("qwen2"))
        parameters = sum(x.numel() for x in load_file(f"{folder}/model.safetensors").values())
        assert weights_size(folder) == 4 * parameters
        assert weights_size(folder, torch.bfloat16) == 2 * parameters
        assert weights_size("nobody/nothing") is None
        said = explain(folder, OSError(errno.ENOSPC, "No space left on device"))
        assert "expected about 0.0 GiB in" in said

    @pytest.mark.parametrize("error", [CUDA, CPU], ids=["cuda", "cpu"])
    def test_out_of_memory(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tiny_folder: Callable[..., Path],
        error: RuntimeError,
    ) -> None:
        folder = tiny_folder("qwen2")
        monkeypatch.setattr(TransformerBridge, "boot_transformers", raising(error))
        message = (
            r"out of memory \(.* more were asked for\): expected room for weights of 0.0 GiB in "
            r"float32; load with dtype='bfloat16'.*device_map='auto', or quantized, as hf_model="
        )
        with pytest.raises(ModelError, match=message) as caught:
            load_model(folder)
        assert caught.value.__cause__ is error

    def test_ctrl_c_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(TransformerBridge, "boot_transformers", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            load_model()


class TestOutOfMemory:
    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (CUDA, True),
            (CPU, True),
            (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
            (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
            (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
            (RuntimeError("size mismatch"), False),
            (OSError(errno.ENOSPC, "No space left on device"), False),
            (ValueError("out of memory"), False),
            (None, False),
        ],
    )
    def test_is_known(self, error: BaseException | None, expected: bool) -> None:
        assert is_out_of_memory(error) is expected

    def test_what_the_failed_calls_held_is_let_go(self) -> None:
        import weakref

        held: list[Any] = []

        def work() -> None:
            large = torch.zeros(10)
            held.append(weakref.ref(large))
            raise torch.OutOfMemoryError("CUDA out of memory.")

        with (
            pytest.raises(ModelError, match="out of memory: less") as caught,
            out_of_memory_as(ModelError, lambda: "less"),
        ):
            work()
        assert held[0]() is None
        assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)

    @pytest.mark.parametrize(
        ("questions", "advice"),
        [
            (["Why?"] * 6, r"got batch_size=6 with prompts.*max_new_tokens=8; try batch_size=3"),
            (["Why?"], r"got batch_size=1 .*; try max_new_tokens=4, a model in dtype='bfloat16'"),
        ],
    )
    def test_in_generation(self, qwen2: Any, questions: list[str], advice: str) -> None:
        with (
            qwen2.hooks(fwd_hooks=[("blocks.2.hook_resid_post", raising(CUDA))]),
            pytest.raises(GenerationError, match=rf"20.00 GiB more.*{advice}") as caught,
        ):
            generate(qwen2, questions, **ASK)
        assert caught.value.__cause__ is CUDA

    @pytest.mark.parametrize(
        ("settings", "advice"),
        [
            ({"chunk": 20}, r"got chunk=20 with backend='hooks'.*try chunk=10 or backend='fused'"),
            (
                {"objective": "sequence"},
                r"got \d+ tokens with backend='hooks'.*try backend='fused'",
            ),
            ({"rule": "jacobian"}, "rule='jacobian'; try a model in dtype='bfloat16'"),
        ],
    )
    def test_in_saliency(
        self, qwen2: Any, trace: Trace, settings: dict[str, Any], advice: str
    ) -> None:
        with (
            qwen2.hooks(fwd_hooks=[("blocks.2.hook_resid_post", raising(CUDA))]),
            pytest.raises(StepMapError, match=advice) as caught,
        ):
            step_saliency(qwen2, trace, **settings)
        assert caught.value.__cause__ is CUDA

    @pytest.mark.parametrize(
        ("settings", "advice"),
        [
            ({"chunk": 20}, "got chunk=20 with backend='fused'.*try chunk=10$"),
            ({"objective": "sequence"}, "checkpointing=False; try checkpointing=True"),
            (
                {"objective": "sequence", "checkpointing": True},
                "checkpointing=True; try objective='token' with a chunk",
            ),
        ],
    )
    def test_in_fused_saliency(
        self,
        qwen2: Any,
        trace: Trace,
        settings: dict[str, Any],
        advice: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        step_saliency(qwen2, trace, backend="fused")
        monkeypatch.setattr("stepflow_tl.saliency.attention.score_backward", raising(CUDA))
        with pytest.raises(StepMapError, match=advice):
            step_saliency(qwen2, trace, backend="fused", **settings)

    def test_in_a_sweep_what_is_finished_is_kept(self, qwen2: Any, tmp_path: Path) -> None:
        sweep = Sweep(
            WordProblems(n=4, difficulties=(1, 2)),
            grid(OddsEqualBridge, tau_max=[0.0]),
            qwen2,
            decoding=Decoding(max_new_tokens=3, chat=False, format="plain", batch_size=2),
        )
        passes = 0

        def fail(x: Any, hook: Any) -> None:
            nonlocal passes
            passes += 1
            if passes == 8:  # in the third batch
                raise CUDA

        path = tmp_path / "s.sqlite"
        message = (
            r"batch_size=2 .*; try batch_size=1 of Decoding; 4 of 8 cells are kept in .*sqlite"
        )
        with (
            qwen2.hooks(fwd_hooks=[("unembed.hook_out", fail)]),
            pytest.raises(GenerationError, match=message) as caught,
        ):
            sweep.run(path)
        assert caught.value.__cause__ is CUDA
        assert len(Store(path).to_dataframe()) == 4
        assert len(sweep.run(path)) == 8


class TestFullDisks:
    def test_a_file_is_written_whole_or_not_at_all(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "some.safetensors"
        write_file(path, "thing", {"x": torch.ones(3)}, {})
        before = path.read_bytes()
        full = SafetensorError("I/O error: No space left on device (os error 28)")
        assert is_disk_full(full) and not is_disk_full(SafetensorError("(os error 2)"))
        monkeypatch.setattr("stepflow_tl.files.save_file", raising(full))
        with pytest.raises(OSError, match="could not write a thing file to .*no space left on the"):
            write_file(path, "thing", {"x": torch.zeros(3)}, {})
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == [path.name]

    def test_a_work_file(
        self, qwen2: Any, trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SQLite's own error, at a limit on the file's size."""
        path = tmp_path / "map.work"
        begin = WorkFile.__init__

        def small(self: Any, *args: Any, **options: Any) -> None:
            begin(self, *args, **options)
            self._database.execute("PRAGMA max_page_count = 9")

        with monkeypatch.context() as patch:
            patch.setattr(WorkFile, "__init__", small)
            message = "could not go on with the work file .*database or disk is full; the chunks"
            with pytest.raises(WorkFileError, match=message) as caught:
                step_saliency(qwen2, trace, backend="fused", chunk=5, work_file=path)
            assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        whole = step_saliency(qwen2, trace, backend="fused", chunk=5)
        again = step_saliency(qwen2, trace, backend="fused", chunk=5, work_file=path)
        assert torch.equal(whole.scores, again.scores)


class TestThinkingThatNeverCloses:
    def test_the_trace_is_fine_and_says_so(self, tokenizer: Any, qwen2: Any, trace: Trace) -> None:
        cut = Trace.from_text(tokenizer, "Why?<think>It is so. Because it has more. So it")
        assert cut.unclosed and not trace.unclosed
        assert len(cut.steps_in("thinking")) == 2
        message = (
            r"objective='summary' needs a summary, found none in Trace\(.*\); its thinking never "
            r"closed, and it was cut: generate it with more max_new_tokens \(or score it with obj"
        )
        with pytest.raises(ValueError, match=message):
            step_saliency(qwen2, cut, objective="summary")
        assert step_saliency(qwen2, cut).scores.isfinite().all()

    def test_a_plain_format_has_nothing_to_close(self, qwen2: Any) -> None:
        trace = generate(qwen2, "Why?", **ASK)
        assert not trace.unclosed


def test_a_template_that_refuses(tokenizer: Any) -> None:
    import copy

    from stepflow_tl.traces.chat import Chat, prompt_token_ids

    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('System role not supported') }}"
    message = (
        r"could not be filled in \(System role not supported\): expected a template that takes"
    )
    with pytest.raises(GenerationError, match=message):
        prompt_token_ids(strict, "Why?", chat=Chat(system="Be brief."))


def test_an_option_that_transformer_lens_has_not_is_named() -> None:
    with pytest.raises(
        ModelError, match=r"with none of \['offlaod'\]: expected some of \[.*'device_map'"
    ):
        load_model("reasoner", offlaod="folder")
