"""Decoding, step maps and a sweep on a CUDA device, checked against the CPU: one table.

    make bench-gpu                                        # the bundled reasoner
    python benchmarks/gpu.py --model NAME --dtype bfloat16 [--tokens 2048 8192 32768]
    python benchmarks/gpu.py --device cpu --small         # the same code, in a minute, anywhere

What is compared with the CPU is run there in float32: greedy texts, token by token up to the first
that differs; logits of a prompt; step maps. A line says the difference found and the one allowed,
and the exit status is 1 where one is larger.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from saliency_cost.workload import SHAPES, Shape, build_checkpoint, make_trace

from stepflow_tl import Decoding, Grid, StepFlow, Sweep, WordProblems, generate, load_model
from stepflow_tl.models.view import view
from stepflow_tl.saliency import step_saliency
from stepflow_tl.tasks.word_problems import make_problems
from stepflow_tl.traces.chat import prompt_token_ids
from stepflow_tl.traces.trace import Trace
from stepflow_tl.version import versions

ALLOWED = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest difference of logits and of step maps, as a share of the largest number."""

COMPARED = 2048
"""Tokens of the longest trace that is mapped on the CPU, too."""

SMALL = Shape(layers=2, hidden=32, heads=2, kv_heads=1, mlp=48, vocabulary=300)

SAME_TEXTS = {"float32": 0.95, "bfloat16": 0.3, "float16": 0.6}
"""Least share of tokens before a text differs from the CPU's in float32."""


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        what: What was run.
        seconds: How long it took, the device waited for.
        rate: In which unit of work.
        memory_gib: Most memory held on the device meanwhile; None on the CPU.
        difference: From the CPU; None where nothing was compared.
        allowed: The largest that is right; for texts the least share that is alike.
        right: Whether it is.
    """

    what: str
    seconds: float
    rate: str
    memory_gib: float | None
    difference: float | None = None
    allowed: float | None = None
    right: bool = True


class Device:
    """Where it is run, and what it costs there."""

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)
        self.is_cuda = self.device.type == "cuda"

    def timed(self, run: Callable[[], Any]) -> tuple[Any, float, float | None]:
        """What a run gives, its seconds, and the most memory held meanwhile."""
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        result = run()
        if not self.is_cuda:
            return result, time.perf_counter() - start, None
        torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - start
        return result, seconds, torch.cuda.max_memory_allocated(self.device) / 2**30

    @property
    def name(self) -> str:
        """Its name, as its maker says it."""
        return torch.cuda.get_device_name(self.device) if self.is_cuda else "CPU"


def gap(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, as a share of the largest number."""
    mine, theirs = mine.detach().double().cpu(), theirs.detach().double().cpu()
    return float((mine - theirs).abs().max() / theirs.abs().max())


def alike(mine: list[Trace], theirs: list[Trace]) -> float:
    """Share of the tokens decoded that come before a text differs."""
    same = total = 0
    for a, b in zip(mine, theirs, strict=True):
        one, other = (t.token_ids[t.prompt_length :].tolist() for t in (a, b))
        total += len(other)
        same += next(
            (i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), len(other)
        )
    return same / total


def decoding(
    device: Device, model: Any, reference: Any, options: argparse.Namespace
) -> Iterator[Line]:
    """Plain and under the paper's preset, in batches of 1 and of 32."""
    questions = [p.question for p in make_problems(64, 6, seed=5, split="test")]
    new = 16 if options.small else 256
    ids = prompt_token_ids(model.tokenizer, questions[0])
    with torch.no_grad():
        mine, theirs = (
            view(m).logits(torch.tensor([ids]).to(view(m).device)) for m in (model, reference)
        )
    limit = ALLOWED[options.dtype]
    found = gap(mine, theirs)
    yield Line("logits of a prompt", 0.0, "", None, found, limit, found <= limit)
    for batch, count in ((1, 2), (32, 32 if options.small else 64)):
        for name, flow in (("plain", StepFlow()), ("StepFlow.paper()", StepFlow.paper())):
            settings = Decoding(max_new_tokens=new, batch_size=batch)

            def run(on: Any) -> list[Trace]:
                with flow.attach(on):  # noqa: B023
                    return generate(on, questions[:count], settings)  # noqa: B023

            run(model)  # warm
            traces, seconds, memory = device.timed(lambda: run(model))
            tokens = sum(len(t) - t.prompt_length for t in traces)
            same, least = alike(traces, run(reference)), SAME_TEXTS[options.dtype]
            yield Line(
                f"decoding, {name}, batch {batch}",
                seconds,
                f"{1e3 * seconds / tokens:.3f} ms a token",
                memory,
                same,
                least,
                same >= least,
            )


def saliency(
    device: Device, model: Any, reference: Any, options: argparse.Namespace
) -> Iterator[Line]:
    """Step maps of the paper's objective, of short traces and long ones, on random weights.

    The widths of Qwen2.5-0.5B, 8 of its layers: no checkpoint is needed for 32,768 positions.
    """
    shape = SMALL if options.small else SHAPES["third"]
    with tempfile.TemporaryDirectory() as folder:
        build_checkpoint(Path(folder), shape)
        wide = load_model(folder, device=options.device, dtype=options.dtype)
        beside = load_model(folder, device="cpu", dtype="float32")
    for length in (96, 160) if options.small else options.tokens:
        trace = make_trace(length, shape.vocabulary)
        maps, seconds, memory = device.timed(lambda: step_saliency(wide, trace))  # noqa: B023
        found = limit = None
        if length <= COMPARED:
            found = gap(maps.scores, step_saliency(beside, trace).scores)
            limit = ALLOWED[options.dtype]
        yield Line(
            f"step map, {length} tokens, {maps.settings['backend']}",
            seconds,
            f"{1e3 * seconds / length:.3f} ms a token",
            memory,
            found,
            limit,
            found is None or limit is None or found <= limit,
        )


def sweep(
    device: Device, model: Any, reference: Any, options: argparse.Namespace
) -> Iterator[Line]:
    """One sweep of two arms, and the same on the CPU."""
    made = {}
    for name, on in (("here", model), ("CPU", reference)):
        described = Sweep(
            WordProblems(n=2 if options.small else 16, difficulties=(3, 5), seed=5),
            Grid.of({"paper": StepFlow.paper()}),
            model=on,
            decoding=Decoding(max_new_tokens=16 if options.small else 256, batch_size=32),
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sweep.sqlite"
            made[name] = device.timed(lambda: described.run(path))  # noqa: B023
    (rows, seconds, memory), (others, _, _) = made["here"], made["CPU"]
    same = float((rows["response"] == others["response"]).mean())
    least = SAME_TEXTS[options.dtype] / 2  # of whole texts
    yield Line(
        f"sweep of {len(rows)} cells",
        seconds,
        f"{len(rows) / seconds:.1f} cells a second",
        memory,
        same,
        least,
        same >= least,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run all of it, print and write the table; 1 where a result is not the CPU's."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="reasoner", help="as load_model takes it")
    parser.add_argument("--dtype", choices=list(ALLOWED), default="float32")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--small", action="store_true", help="a few tokens of everything")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu.json"))
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("expected a CUDA device, found none: --device cpu --small runs the same code")
    device = Device(options.device)
    model = load_model(options.model, device=options.device, dtype=options.dtype)
    reference = load_model(options.model, device="cpu", dtype="float32")
    facts = {"device": device.name, "dtype": options.dtype, "model": options.model} | versions()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print("\n| what | seconds | rate | GiB | beside the CPU | allowed | right |")
    print("|---|---|---|---|---|---|---|")
    lines = []
    for part in (decoding, saliency, sweep):
        for line in part(device, model, reference, options):
            lines.append(line)
            shown = [
                "" if x is None else f"{x:.3g}"
                for x in (line.memory_gib, line.difference, line.allowed)
            ]
            right = "yes" if line.right else "NO"
            cells = [line.what, f"{line.seconds:.3f}", line.rate, *shown, right]
            print(f"| {' | '.join(cells)} |", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({"facts": facts, "lines": [asdict(line) for line in lines]}, indent=2) + "\n"
    )
    return 0 if all(line.right for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
