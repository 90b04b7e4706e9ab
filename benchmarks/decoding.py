"""What a decoded token costs: against transformers' own `generate`, under StepFlow, and before.

Variants take turns, round by round, on the same weights, prompts and number of tokens; of each the
least time counts. Every checkout of this package that is compared runs in a process of its own,
which waits while another one works.

    python benchmarks/decoding.py                           # the bundled reasoner
    python benchmarks/decoding.py --model outputs/models/smollm2      # see real_model.py
    python benchmarks/decoding.py --before ../checkout      # an earlier version, too
    python benchmarks/decoding.py --what sweep --before ../checkout   # 160 problems, baseline arm
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

HERE, BEFORE = "this version", "before"
EQUAL, UNEVEN = "equal lengths", "natural ends"


class Work:
    """One process's models, and what is timed in it."""

    def __init__(self, name: str, threads: int) -> None:
        from transformers import AutoModelForCausalLM

        from stepflow_tl import load_model
        from stepflow_tl.reasoner import WEIGHTS
        from stepflow_tl.tasks.word_problems import make_problems
        from stepflow_tl.traces.chat import prompt_token_ids

        torch.set_num_threads(threads)
        source = str(WEIGHTS) if name == "reasoner" else name
        self.model = load_model(name, device="cpu")
        self.plain = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self.tokenizer = self.model.tokenizer
        problems = make_problems(96, 6, seed=5, split="test")
        self.prompts = [prompt_token_ids(self.tokenizer, p.question) for p in problems]

    def transformers(self, batch: int, tokens: int, ends: str) -> int:
        """`model.generate` of transformers, batch after batch; tokens decoded."""
        settings = self.plain.generation_config
        settings.pad_token_id = self.tokenizer.pad_token_id
        settings.eos_token_id = None if ends == EQUAL else self.tokenizer.eos_token_id
        asked, count = self._asked(batch, ends), 0
        for first in range(0, len(asked), batch):
            prompts = asked[first : first + batch]
            longest = max(map(len, prompts))
            pad = self.tokenizer.pad_token_id
            ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
            mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
            new = self.plain.generate(
                ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False
            )[:, longest:]
            end = self.tokenizer.eos_token_id
            for row in new.tolist():
                count += row.index(end) + 1 if ends == UNEVEN and end in row else len(row)
        return count

    def generate(self, batch: int, tokens: int, ends: str) -> int:
        """`stepflow_tl.generate`; tokens decoded."""
        from unittest import mock

        import stepflow_tl.decoding.batch as batches
        from stepflow_tl import generate

        known = batches.end_token_ids
        none = frozenset[int]()
        with mock.patch.object(
            batches, "end_token_ids", known if ends == UNEVEN else lambda *_: none
        ):
            traces = generate(
                self.model, self._asked(batch, ends), max_new_tokens=tokens, batch_size=batch
            )
        return sum(len(trace) - trace.prompt_length for trace in traces)

    def stepflow(self, batch: int, tokens: int, ends: str) -> int:
        """The same under the paper's preset; how often that acted must be seen."""
        from stepflow_tl import StepFlow

        with StepFlow.paper().attach(self.model) as run:
            count = self.generate(batch, tokens, ends)
        if tokens > 8 and not run.actions:
            raise SystemExit("expected StepFlow to act, it never did")
        return count

    def sweep(self, batch: int, tokens: int, ends: str) -> int:
        """160 problems of a sweep, of which the baseline arm alone is decoded; tokens decoded."""
        from stepflow_tl import Decoding, Grid, StepFlow, Sweep, WordProblems

        sweep = Sweep(
            WordProblems(n=40, difficulties=(4, 5, 6, 7), seed=5),
            Grid.of({"baseline": StepFlow()}),
            model=self.model,
            decoding=Decoding(max_new_tokens=tokens, batch_size=batch),
        )
        with tempfile.TemporaryDirectory() as folder:
            return int(sweep.run(Path(folder) / "sweep.sqlite")["tokens"].sum())

    def _asked(self, batch: int, ends: str) -> list[list[int]]:
        """One batch, of one length, where lengths are equal; else three batches as they come."""
        if ends == UNEVEN:
            return self.prompts[: 3 * batch]
        return [self.prompts[0]] * batch

    def serve(self) -> None:
        """Do what comes in, line by line, and say how long it took."""
        for line in sys.stdin:
            asked = json.loads(line)
            variant = getattr(self, asked.pop("variant"))
            cpu, wall = time.process_time(), time.perf_counter()
            tokens = variant(**asked)
            seconds = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
            print(json.dumps({"tokens": tokens} | seconds), flush=True)


class Worker:
    """A process with one checkout of this package."""

    def __init__(self, checkout: Path, model: str, threads: int) -> None:
        path = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, str(Path(__file__).resolve()), "--serve"]
        self._process = subprocess.Popen(
            [*command, "--model", model, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )

    def ask(self, **what: Any) -> dict[str, float]:
        """Let it do something."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"the process that should do {what} has ended")
        found: dict[str, float] = json.loads(answer)
        return found


def measure(
    variants: dict[str, tuple[Worker, str]], rounds: int, clock: str, **what: Any
) -> dict[str, float]:
    """The least milliseconds a token of each variant, after one round to warm up."""
    names = list(variants)
    least = dict.fromkeys(names, float("inf"))
    for number in range(-1, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            worker, variant = variants[name]
            warm = {"tokens": 8} if number < 0 else {}
            answer = worker.ask(variant=variant, **{**what, **warm})
            if number >= 0:
                least[name] = min(least[name], 1e3 * answer[clock] / answer["tokens"])
    return least


def show(title: str, least: dict[str, float], baselines: dict[str, str]) -> None:
    """A line of the table for each variant, with its ratio to its baseline."""
    for name, milliseconds in least.items():
        base = baselines.get(name)
        ratio = "" if base is None else f"{milliseconds / least[base]:.3f} x {base}"
        print(f"| {title} | {name} | {milliseconds:.3f} | {ratio} |", flush=True)


def bandwidth() -> float:
    """Bytes a second that one pass over a large tensor reads."""
    large = torch.ones(1 << 27)  # half a gigabyte
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        large.sum()
        best = min(best, time.perf_counter() - start)
    return large.numel() * large.element_size() / best


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="reasoner", help="as load_model takes it")
    parser.add_argument("--before", type=Path, help="a checkout of an earlier version")
    parser.add_argument("--what", choices=("tokens", "sweep"), default="tokens")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--ends", nargs="+", choices=(EQUAL, UNEVEN), default=[EQUAL, UNEVEN])
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.serve:
        Work(options.model, options.threads).serve()
        return
    here = Worker(Path(__file__).resolve().parents[1], options.model, options.threads)
    old = None
    if options.before is not None:
        old = Worker(options.before.resolve(), options.model, options.threads)
    torch.set_num_threads(options.threads)
    print(
        f"{options.model}; torch {torch.__version__}, CPU, {options.threads} thread(s) of "
        f"{os.cpu_count()} cores, {options.clock} time, least of {options.rounds} rounds; "
        f"{bandwidth() / 1e9:.1f} GB/s read\n\n| what | variant | ms a token | ratio |\n"
        "|---|---|---|---|",
        flush=True,
    )
    if options.what == "sweep":
        variants = {HERE: (here, "sweep")} | ({BEFORE: (old, "sweep")} if old else {})
        what = {"batch": 32, "tokens": max(options.tokens, 250), "ends": UNEVEN}
        least = measure(variants, options.rounds, options.clock, **what)
        show("160 problems of a sweep", least, {HERE: BEFORE} if old else {})
        return
    for batch in options.batches:
        for ends in options.ends:
            if ends == UNEVEN and batch == 1:
                continue
            variants = {
                "transformers": (here, "transformers"),
                "generate": (here, "generate"),
                "StepFlow": (here, "stepflow"),
            }
            baselines = {"generate": "transformers", "StepFlow": "generate"}
            if old is not None:
                variants |= {f"generate, {BEFORE}": (old, "generate")}
                variants |= {f"StepFlow, {BEFORE}": (old, "stepflow")}
                baselines |= {f"generate, {BEFORE}": "transformers"}
                baselines |= {f"StepFlow, {BEFORE}": f"generate, {BEFORE}"}
            tokens = options.tokens if ends == EQUAL else 2 * options.tokens
            what = {"batch": batch, "tokens": tokens, "ends": ends}
            least = measure(variants, options.rounds, options.clock, **what)
            show(f"batch {batch}, {ends}, {tokens} tokens", least, baselines)


if __name__ == "__main__":
    main()
