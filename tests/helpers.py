"""What several tests build from: tiny checkpoints, tokenizers, cached decoding, golden numbers."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from stepflow_tl.models.loading import load_model
from stepflow_tl.models.view import view
from stepflow_tl.traces.cutters import new_cutter
from stepflow_tl.traces.cutting import Cutting
from stepflow_tl.traces.formats import HARMONY, PLAIN, THINK

FULL_STOP = {
    form.name: replace(form, thinking_cutter="full_stop") for form in (THINK, HARMONY, PLAIN)
}
"""Formats cut as the authors' code cuts, whose numbers are golden."""

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
HAS_HOOKED = find_spec("transformer_lens.HookedTransformer") is not None
MODEL_KINDS = ["qwen2", "llama", "gpt_oss", *(["hooked"] if HAS_HOOKED else [])]

TRANSCRIPT = (
    "<|im_start|>user\nTom has 3 pens. He buys 4 more.<|im_end|>\n<|im_start|>assistant\n"
    "<think>\nTom starts with 3 pens. Then he has 4 more.\n\nThe sum is 7 pens. Good.</think>\n\n"
    "Tom has \\boxed{7} pens.\n\nThat is the answer.<|im_end|>"
)
_CORPUS = [
    "Then he has 4 more pens, so that the total is the sum of the two numbers. What is the answer? "
    "Tom starts with 3 pens. He buys more. That would be the thing that Tom has with him."
] * 3

PIECES = [
    "<think>",
    "</think>",
    "<|im_end|>",
    "<|im_start|>",
    "<|im_start|>user\n",
    "Tom has 3 pens. ",
    "So the value is 3.14 in all.\n\n",
    "1. First",
    "Good.",
    "数学 ≈ é.",
    "\n",
    " ",
    "\\boxed{7}",
    "</thi",
    "nk>",
]


def byte_tokenizer(*, whole_markers: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE with few merges: it splits inside words and inside UTF-8 characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + 100,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    if whole_markers:
        tokenizer.add_tokens([AddedToken(m, normalized=False) for m in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def cut(tokens: list[str], cutter: Cutting) -> list[str]:
    """The steps that a cutter makes of these tokens."""
    state = new_cutter(cutter)
    state.open(tokens[0])
    steps = [tokens[0]]
    for token in tokens[1:]:
        if state.push(token):
            steps.append("")
        steps[-1] += token
    return steps


@st.composite
def token_lists(draw: st.DrawFn, vocabulary: int = 361) -> list[int | str]:
    """Texts with delimiters in odd places, and any token in between."""
    return draw(
        st.lists(
            st.one_of(st.sampled_from(PIECES), st.integers(0, vocabulary - 1)),
            min_size=1,
            max_size=20,
        )
    )


def as_ids(tokenizer: Any, parts: list[int | str]) -> list[int]:
    ids: list[int] = []
    for part in parts:
        ids += encode(tokenizer, part) if isinstance(part, str) else [part % len(tokenizer)]
    return ids


KINDS: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "llama": {},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "decoder_sparse_step": 1,
    },
    "gpt_oss": {
        "head_dim": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "deepseek_v3": {  # keys and values of different sizes
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 6,
        "first_k_dense_replace": 1,
    },
    "gemma3_text": {"head_dim": 8, "sliding_window": 8},
    "gpt2": {"num_key_value_heads": None},
    "gpt_neox": {"num_key_value_heads": None},
    "mistral": {"sliding_window": 8},
    "mixtral": {"num_local_experts": 4},
    "olmo2": {},
    "phi3": {},
    "qwen3": {"head_dim": 8},
}
"""What a tiny checkpoint of each kind has, beside what all of them have."""

OTHER_KINDS = [kind for kind in KINDS if kind not in ("qwen2", "llama", "qwen2_moe", "gpt_oss")]
"""Architectures that the fused backend takes, beside those that most tests use."""


def _common_settings(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.3,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }


def plain_model(kind: str, tokenizer: Any, **changes: Any) -> Any:
    """A random Hugging Face model of four layers, with eager attention far from uniform."""
    torch.manual_seed(0)
    settings = {**_common_settings(tokenizer), **KINDS.get(kind, {}), **changes}
    settings = {name: value for name, value in settings.items() if value is not None}
    settings = {"bos_token_id": None, **settings}
    if "vision_config" in settings:
        settings = {"vision_config": settings.pop("vision_config"), "text_config": settings}
    config = AutoConfig.for_model(kind, **settings)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@torch.no_grad()
def run_in_parts(model: Any, tokens: Tensor, first: int) -> None:
    """Any model view: a prompt of `first` tokens, then token by token against the cache."""
    seen, cache, width = view(model), None, tokens.shape[1]
    for start, stop in pairwise([0, *range(first, width + 1)]):
        mask = torch.ones(1, stop, dtype=torch.long)
        _, cache = seen.run_cached(tokens[:, start:stop], mask, cache)


def save_tiny(kind: str, tokenizer: Any, folder: Path, **changes: Any) -> None:
    """Save a `plain_model` as a checkpoint."""
    plain_model(kind, tokenizer, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_tiny(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A checkpoint as a bridge, with experts that also run in float64."""
    model = load_model(folder, dtype=dtype)
    if hasattr(model.original_model, "set_experts_implementation"):
        model.original_model.set_experts_implementation("eager")
    return model


def hooked_from(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A Qwen2 checkpoint as a HookedTransformer."""
    source = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return hooked_of(source, AutoTokenizer.from_pretrained(folder), folder.name)


def hooked_of(source: Any, tokenizer: Any, name: str) -> Any:
    """A plain decoder as a HookedTransformer, where transformer-lens converts its weights."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions

    config, dtype = source.config, source.dtype
    convert = getattr(weight_conversions, f"convert_{config.model_type}_weights")
    cfg = HookedTransformerConfig(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_ctx=config.max_position_embeddings,
        d_head=config.hidden_size // config.num_attention_heads,
        n_heads=config.num_attention_heads,
        n_key_value_heads=config.num_key_value_heads,
        d_mlp=config.intermediate_size,
        d_vocab=config.vocab_size,
        act_fn="silu",
        eps=config.rms_norm_eps,
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_base=config.rope_parameters["rope_theta"],
        rotary_adjacent_pairs=False,
        rotary_dim=config.hidden_size // config.num_attention_heads,
        gated_mlp=True,
        final_rms=True,
        original_architecture=type(source).__name__,
        model_name=name,
        dtype=dtype,
        device="cpu",
    )
    model = HookedTransformer(cfg, tokenizer=tokenizer)
    model.load_and_process_state_dict(
        convert(source, cfg),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
        refactor_factored_attn_matrices=False,
    )
    return model.eval()


@torch.no_grad()
def teacher_forced(model: Any, tokens: Tensor, **options: Any) -> Tensor:
    """Logits of one pass over all tokens."""
    return model(tokens, return_type="logits", **options)


class Decoding:
    """Cached decoding, chunk by chunk.

    Args:
        model: Either model class.
        pads: Padding tokens at the left of each row.
    """

    def __init__(self, model: Any, pads: list[int]) -> None:
        self.model, self.pads = model, torch.tensor(pads)
        self.is_bridge = getattr(model, "original_model", None) is not None
        self.length, self.cache = 0, None
        if not self.is_bridge:
            from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

            self.cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", len(pads))

    @torch.no_grad()
    def __call__(self, new: Tensor) -> Tensor:
        """Logits of the new tokens."""
        start, self.length = self.length, self.length + new.shape[1]
        mask = (torch.arange(self.length) >= self.pads[:, None]).long()
        if not self.is_bridge:
            return self.model(
                new,
                attention_mask=mask[:, start:],
                past_kv_cache=self.cache,
                return_type="logits",
            )
        logits, self.cache = self.model(
            new,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            return_type="logits_and_cache",
        )
        return logits


def cached(model: Any, tokens: Tensor, chunks: list[int], pads: list[int] | None = None) -> Tensor:
    """Logits of cached decoding: a prefill in chunks of the given sizes, then token by token."""
    decoding = Decoding(model, pads or [0] * tokens.shape[0])
    sizes = chunks + [1] * (tokens.shape[1] - sum(chunks))
    return torch.cat([decoding(new) for new in tokens.split(sizes, dim=1)], dim=1)


def hooks_of(model: Any) -> dict[str, int]:
    """How many hooks live at each hook point, and on the embedding module."""
    counts = {
        name: len(point.fwd_hooks) + len(point.bwd_hooks) + len(point._forward_hooks)
        for name, point in model.hook_dict.items()
    }
    counts["embed"] = len(model.embed._forward_pre_hooks)
    return counts


class Readings(TorchDispatchMode):
    """Counts how often the host asks for a tensor's numbers, and so waits for the device."""

    WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count = 0
        tolist = Tensor.tolist

        def counted(tensor: Tensor) -> Any:
            self.count += 1
            return tolist(tensor)

        monkeypatch.setattr(Tensor, "tolist", counted)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        self.count += function.overloadpacket.__name__ in self.WAITS
        return function(*args, **(kwargs or {}))


@dataclass
class Golden:
    """The golden numbers."""

    folder: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        return json.loads((self.folder / "stepflow_logits.json").read_text())

    @cached_property
    def logits(self) -> dict[str, Tensor]:
        return load_file(self.folder / "stepflow_logits.safetensors")

    @cached_property
    def saliency(self) -> dict[str, Tensor]:
        return load_file(self.folder / "token_saliency.safetensors")

    @cached_property
    def pooling(self) -> dict[str, Any]:
        return json.loads((self.folder / "pooling.json").read_text())

    @cached_property
    def steps(self) -> dict[str, Any]:
        return json.loads((self.folder / "steps.json").read_text())
