"""What StepFlow costs per decoded token on a model of Qwen2.5-0.5B's shape, as ratios in one run.

The weights are random; the tokens are fed, not chosen: a long question and correct reasoning of the
bundled reasoner's world, in its tokens. Every variant has its own KV cache and its own copy of the
modules around the same weights, and decodes the same tokens: one token each in turn, the order
rotated from token to token, so that whatever the machine does meanwhile meets all of them alike.
Times are CPU time of this process on the CPU, and waiting time on a GPU.

    python benchmarks/decoding.py --kind bridge [--batch 1] [--tokens 200] [--layers 24] [...]
    python benchmarks/decoding.py --kind hf     (its own attention: SDPA)
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from stepflow_tl import OddsEqualBridge, StepFlow, StepMomentum, load_model
from stepflow_tl.models.view import view
from stepflow_tl.reasoner import WEIGHTS
from stepflow_tl.tasks.word_problems import make_problems
from stepflow_tl.traces.chat import prompt_text

FLOWS = {
    "plain": StepFlow(),
    "OddsEqualBridge": StepFlow(OddsEqualBridge()),
    "StepMomentum": StepFlow(StepMomentum()),
    "StepFlow.paper()": StepFlow.paper(),
}
CHUNK = 64  # prompt tokens a pass: a bridge gives the logits of all of them

Step = Callable[[Tensor], None]


def build(layers: int, device: str) -> Any:
    """A random Hugging Face model of Qwen2.5-0.5B's shape, whose heads prefer some distances.

    Under uniform attention a long question would always have its share, and no bridge would act.
    """
    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.bias", "k_proj.bias")):
                parameter.normal_(std=4.0)
    return model.to(device)


def twin(model: Any) -> Any:
    """The same weights in other modules, to which other hooks can be attached."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def bridge_around(model: Any, tokenizer: Any) -> Any:
    """A TransformerBridge around a model of ours."""
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        bridge = load_model(folder, hf_model=model, device=str(model.device))
    bridge.tokenizer = tokenizer
    return bridge


def texts(tokenizer: Any, batch: int, prompt: int, tokens: int) -> Tensor:
    """Ids [batch, prompt + tokens]: questions, then one chain of thoughts after the other."""
    problems = make_problems(40 * batch + tokens, 8, seed=2026, split="test")
    rows = []
    for row in range(batch):
        own = problems[row::batch]
        question = " ".join(problem.question for problem in own[: prompt // 40])
        question = prompt_text(tokenizer, question)
        thinking = " ".join(problem.thinking for problem in own[: 2 + tokens // 20])
        asked, thought = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in (question, thinking)
        )
        if len(asked) < prompt or len(thought) < tokens:
            raise SystemExit(
                f"expected {prompt} + {tokens} tokens, got {len(asked)}, {len(thought)}"
            )
        rows.append(asked[-prompt:] + thought[:tokens])
    return torch.tensor(rows)


class Decoding:
    """One variant: its cache, and one token a call."""

    def __init__(self, model: Any, kind: str, mask: Tensor) -> None:
        self.model, self.kind, self.mask = model, kind, mask
        self.length, self.cache = 0, None

    def __call__(self, new: Tensor) -> None:
        """Run new tokens against the cache."""
        self.length += new.shape[1]
        seen = self.mask[:, : self.length]
        if self.kind == "bridge":
            _, self.cache = view(self.model).decode(new, seen, self.cache)
        else:
            out = self.model(
                new,
                attention_mask=seen,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
            self.cache = out.past_key_values


def clock(device: str) -> float:
    """Seconds that count."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@torch.no_grad()
def measure(
    variants: dict[str, Decoding], ids: Tensor, prompt: int, device: str
) -> dict[str, np.ndarray]:
    """Seconds of each variant for each decoded token, after the prompt and one token to warm up."""
    for variant in variants.values():
        for chunk in ids[:, :prompt].split(CHUNK, dim=1):
            variant(chunk)
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number, new in enumerate(ids[:, prompt:].split(1, dim=1)):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            start = clock(device)
            variants[name](new)
            seconds[name].append(clock(device) - start)
    return {name: np.array(times[1:]) for name, times in seconds.items()}


def compare(seconds: np.ndarray, baseline: np.ndarray) -> dict[str, float]:
    """Ratio of the sums, with a bootstrap interval over tokens, and ratio of the medians."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(seconds), size=(2000, len(seconds)))
    sums = seconds[drawn].sum(1) / baseline[drawn].sum(1)
    low, high = np.quantile(sums, [0.025, 0.975])
    return {
        "ratio": float(seconds.sum() / baseline.sum()),
        "low": float(low),
        "high": float(high),
        "median_ratio": float(np.median(seconds) / np.median(baseline)),
        "ms_per_pass": float(1e3 * np.median(seconds)),
    }


def main() -> None:
    """Measure, print a table, and write it where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", choices=("bridge", "hf"), default="bridge")
    for name, default in (("layers", 24), ("batch", 1), ("prompt", 1000), ("tokens", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    ids = texts(tokenizer, options.batch, options.prompt, options.tokens).to(options.device)
    mask = torch.ones_like(ids)
    base = build(options.layers, options.device)
    with ExitStack() as stack:
        variants, runs = {}, {}
        for name, flow in FLOWS.items():
            model = twin(base)
            if options.kind == "bridge":
                model = bridge_around(model, tokenizer)
            attached = flow.attach(
                model, tokenizer=tokenizer, format="think", prompt_length=options.prompt
            )
            runs[name] = stack.enter_context(attached)
            variants[name] = Decoding(model, options.kind, mask)
        seconds = measure(variants, ids, options.prompt, options.device)
    results = {
        name: {
            **compare(seconds[name], seconds["plain"]),
            "rows_changed": run.ledger.total("OddsEqualBridge", "rows_changed"),
            "injections": run.ledger.total("StepMomentum", "injections"),
        }
        for name, run in runs.items()
    }
    print(
        f"{options.kind}, {options.layers} layers, batch {options.batch}, {options.prompt} tokens "
        f"of prompt, {options.tokens} decoded; torch {torch.__version__}, {options.device}, "
        f"{options.threads} thread(s)\n\n| variant | ms a pass | ratio of sums (95%) | ratio of "
        "medians | rows changed | injections |\n|---|---|---|---|---|---|"
    )
    for name, row in results.items():
        print(
            f"| {name} | {row['ms_per_pass']:.1f} | {row['ratio']:.3f} "
            f"({row['low']:.3f} - {row['high']:.3f}) | {row['median_ratio']:.3f} "
            f"| {row['rows_changed']:.0f} | {row['injections']:.0f} |"
        )
    if options.json is not None:
        settings = {key: str(value) for key, value in vars(options).items()}
        options.json.write_text(json.dumps({"settings": settings, "results": results}, indent=2))


if __name__ == "__main__":
    main()
