"""Tiny checkpoints in the shape of real architectures, with their families' chat templates."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from helpers import byte_tokenizer, encode, load_tiny, save_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from stepflow_tl.traces.chat import prompt_token_ids
from stepflow_tl.traces.trace import Trace

QUESTION = "Tom has 3 pens. He buys 4 more. How many?"
_THINKING = "Tom starts with 3 pens. Then he has 4 more pens.\n\nSo the sum is 7 pens. Good."
_SUMMARY = "Tom has \\boxed{7} pens.\n\nThat is the answer."


@dataclass(frozen=True, kw_only=True)
class Template:
    """A chat template in the shape of a family's own.

    Attributes:
        user: What stands before the user's words.
        reply: What stands after them, up to where the model goes on.
        end: The token that ends a response.
        begin: What opens the conversation.
        pad: The padding token; never one that a prompt begins with.
        specials: Special tokens.
        harmony: Whether the thinking stands in a channel of its own.
    """

    user: str
    reply: str
    end: str
    begin: str = ""
    pad: str = "<|endoftext|>"
    specials: tuple[str, ...] = ()
    harmony: bool = False

    @property
    def opens_thinking(self) -> bool:
        """Whether the template itself writes the opening delimiter."""
        return self.reply.endswith("<think>\n")

    @property
    def chat_template(self) -> str:
        """The template in Jinja, for one user's turn."""
        begin, user, reply = map(repr, (self.begin, self.user, self.reply))
        return (
            f"{{{{ {begin} }}}}{{% for message in messages %}}{{{{ {user} }}}}"
            f"{{{{ message['content'] }}}}{{% endfor %}}{{{{ {reply} }}}}"
        )

    @property
    def response(self) -> str:
        """Thinking in three sentences and a fragment, and a boxed answer in two paragraphs."""
        if self.harmony:
            return (
                f"<|channel|>analysis<|message|>{_THINKING}<|end|><|start|>assistant"
                f"<|channel|>final<|message|>{_SUMMARY}{self.end}"
            )
        opening = "" if self.opens_thinking else "<think>\n"
        return f"{opening}{_THINKING}\n</think>\n\n{_SUMMARY}{self.end}"

    def tokenizer(self) -> Any:
        """Byte-level BPE of few merges that speaks the template."""
        tokenizer = byte_tokenizer(whole_markers=True)
        tokenizer.add_tokens([*self.specials, self.end, self.pad], special_tokens=True)
        tokenizer.eos_token, tokenizer.pad_token = self.end, self.pad
        tokenizer.chat_template = self.chat_template
        return tokenizer


_IM = ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
R1 = Template(
    begin="<｜begin▁of▁sentence｜>",
    user="<｜User｜>",
    reply="<｜Assistant｜><think>\n",
    end="<｜end▁of▁sentence｜>",
    specials=("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
)
QWQ = Template(user=_IM[0], reply=_IM[1] + "<think>\n", end="<|im_end|>")
QWEN3 = Template(user=_IM[0], reply=_IM[1], end="<|im_end|>")
LLAMA3 = Template(
    begin="<|begin_of_text|>",
    user="<|start_header_id|>user<|end_header_id|>\n\n",
    reply="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    end="<|eot_id|>",
    specials=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
)
GEMMA = Template(
    begin="<bos>",
    user="<start_of_turn>user\n",
    reply="<end_of_turn>\n<start_of_turn>model\n",
    end="<end_of_turn>",
    specials=("<bos>", "<start_of_turn>"),
)
MISTRAL = Template(
    begin="<s>",
    user="[INST] ",
    reply="[/INST]",
    end="</s>",
    specials=("<s>", "[INST]", "[/INST]"),
)
GPT_OSS = Template(
    begin="<|start|>system<|message|>Reasoning: medium<|end|>",
    user="<|start|>user<|message|>",
    reply="<|end|><|start|>assistant",
    end="<|return|>",
    specials=("<|start|>", "<|message|>", "<|end|>", "<|channel|>"),
    harmony=True,
)
PHI3 = Template(
    user="<|user|>\n",
    reply="<|end|>\n<|assistant|>\n",
    end="<|end|>",
    specials=("<|user|>", "<|assistant|>"),
)
PHI4_MINI = Template(
    user="<|user|>", reply="<|end|><|assistant|>", end="<|end|>", specials=PHI3.specials
)
OLMO2 = Template(
    begin="<|endoftext|>",
    user="<|user|>\n",
    reply="\n<|assistant|>\n",
    end="<|endoftext|>",
    pad="<|pad|>",
)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A row of the table of what is verified.

    Attributes:
        name: The family, and models of it.
        features: What its attention has that others have not.
        kind: transformers' ``model_type``.
        template: A chat template of the family.
        settings: Configuration, beside what all tiny checkpoints have.
        windows: How many keys each layer's queries see; None for all.
        sinks: Whether rows of a pattern may sum to less than 1.
        length_dependent: Whether the rotary embedding changes with the length of what is run.
    """

    name: str
    features: str
    kind: str
    template: Template
    settings: dict[str, Any] = field(default_factory=dict)
    windows: tuple[int | None, ...] = (None,) * 4
    sinks: bool = False
    length_dependent: bool = False


_WINDOW = 24  # keys; the prompt is longer, so that some rows see nothing of it
_ALTERNATE = {
    "sliding_window": _WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_GEMMA3 = {"head_dim": 16, "query_pre_attn_scalar": 12, "tie_word_embeddings": True, **_ALTERNATE}
_EVERY_OTHER = (_WINDOW, None) * 2

ARCHITECTURES = (
    Architecture(
        name="Qwen2: R1-Distill, QwQ",
        features="attention bias, untied embeddings",
        kind="qwen2",
        template=R1,
        settings={"tie_word_embeddings": False},
    ),
    Architecture(
        name="Qwen2.5, small",
        features="attention bias, tied embeddings",
        kind="qwen2",
        template=QWQ,
        settings={"tie_word_embeddings": True},
    ),
    Architecture(
        name="Qwen3",
        features="q/k norms, wide heads",
        kind="qwen3",
        template=QWEN3,
        settings={"head_dim": 16},
    ),
    Architecture(
        name="Llama 3",
        features="llama3 rotary scaling",
        kind="llama",
        template=LLAMA3,
        settings={
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    Architecture(
        name="Gemma 3",
        features="q/k norms, alternate windows, scaled tied embeddings",
        kind="gemma3_text",
        template=GEMMA,
        settings=_GEMMA3,
        windows=_EVERY_OTHER,
    ),
    Architecture(
        name="Gemma 3, multimodal",
        features="the text half of a nested configuration",
        kind="gemma3",
        template=GEMMA,
        settings={
            **_GEMMA3,
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
        },
        windows=_EVERY_OTHER,
    ),
    Architecture(
        name="Mistral",
        features="windows on all layers",
        kind="mistral",
        template=MISTRAL,
        settings={"sliding_window": _WINDOW, "head_dim": 16},
        windows=(_WINDOW,) * 4,
    ),
    Architecture(
        name="GPT-OSS",
        features="sinks, alternate windows, experts, yarn, attention bias",
        kind="gpt_oss",
        template=GPT_OSS,
        settings={
            "head_dim": 16,
            **_ALTERNATE,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 64,
            },
        },
        windows=_EVERY_OTHER,
        sinks=True,
    ),
    Architecture(
        name="Phi-3",
        features="one projection for q, k and v, windows on all layers",
        kind="phi3",
        template=PHI3,
        settings={"sliding_window": _WINDOW},
        windows=(_WINDOW,) * 4,
    ),
    Architecture(
        name="Phi-4-mini",
        features="one projection for q, k and v, partial longrope, tied embeddings",
        kind="phi3",
        template=PHI4_MINI,
        settings={
            "tie_word_embeddings": True,
            "original_max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "short_factor": [1.0, 1.5],
                "long_factor": [2.0, 3.0],
                "original_max_position_embeddings": 256,
            },
        },
        length_dependent=True,
    ),
    Architecture(
        name="OLMo 2",
        features="norms of all q and k, norms after the blocks",
        kind="olmo2",
        template=OLMO2,
    ),
)


class Built:
    """A checkpoint of an architecture, its models and traces.

    Attributes:
        architecture: The architecture.
        folder: Where the checkpoint is.
        tokenizer: Its tokenizer.
    """

    def __init__(self, architecture: Architecture, folder: Path) -> None:
        self.architecture = architecture
        self.folder = folder
        tokenizer = architecture.template.tokenizer()
        save_tiny(architecture.kind, tokenizer, folder, **architecture.settings)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)  # which may cut words its own way
        self._plain: dict[str, Any] = {}

    @cached_property
    def bridge(self) -> Any:
        """As `load_model` gives it."""
        return load_tiny(self.folder)

    @cached_property
    def wide_bridge(self) -> Any:
        """In float64."""
        return load_tiny(self.folder, dtype=torch.float64)

    def plain(self, implementation: str) -> Any:
        """The plain Hugging Face model."""
        if implementation not in self._plain:
            model = AutoModelForCausalLM.from_pretrained(
                self.folder, dtype=torch.float32, attn_implementation=implementation
            )
            if hasattr(model, "set_experts_implementation"):
                model.set_experts_implementation("eager")
            self._plain[implementation] = model.eval()
        return self._plain[implementation]

    @cached_property
    def trace(self) -> Trace:
        """A question and its answer."""
        return self.trace_of(QUESTION)

    def trace_of(self, question: str, tokens: int | None = None) -> Trace:
        """The answer to a question, cut after some tokens."""
        prompt = prompt_token_ids(self.tokenizer, question)
        response = encode(self.tokenizer, self.architecture.template.response)
        return Trace.from_token_ids(
            self.tokenizer, (prompt + response)[:tokens], prompt_length=len(prompt)
        )
