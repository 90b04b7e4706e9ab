"""What watching costs: decoding under a monitor of some layers, as a ratio to decoding alone.

Variants take turns, round by round, on the same prompts and number of tokens; of each the least
processor time counts.

    python benchmarks/monitor.py                                   # the bundled reasoner
    python benchmarks/monitor.py --model outputs/models/smollm2 --tokens 48
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from stepflow_tl import Decoding, generate, load_model
from stepflow_tl.models.view import view
from stepflow_tl.monitor import Monitor
from stepflow_tl.tasks.word_problems import make_problems


def main() -> None:
    """Print a line for each variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="reasoner")
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    model = load_model(chosen.model, device="cpu")
    count = view(model).n_layers
    kept = sorted({1, count // 4 or 1, count})
    watched: dict[str, Monitor | None] = {"alone": None}
    watched["entropy, confidence"] = Monitor(measures=("entropy", "confidence"))
    watched |= {f"lock_in, {n} layers": Monitor(measures="lock_in", layers=range(n)) for n in kept}
    watched["saliency, all layers"] = Monitor(measures="lock_in", rule="saliency")
    for batch in chosen.batch:
        problems = make_problems(batch, 6, seed=5, split="test")
        prompts = [problem.question for problem in problems]
        least: dict[str, float] = {}
        for _ in range(chosen.rounds):
            for name, monitor in watched.items():
                spent = _time(model, prompts, chosen.tokens, monitor)
                least[name] = min(spent, least.get(name, spent))
        for name, spent in least.items():
            token = 1e3 * spent / chosen.tokens
            ratio = spent / least["alone"]
            print(f"batch {batch:3d}  {name:24s} {token:8.2f} ms a token  {ratio:.3f}", flush=True)


def _time(model: Any, prompts: list[str], tokens: int, monitor: Monitor | None) -> float:
    decoding = Decoding(max_new_tokens=tokens, batch_size=len(prompts))
    begun = time.process_time()
    if monitor is None:
        generate(model, prompts, decoding)
    else:
        with monitor.attach(model):
            generate(model, prompts, decoding)
    return time.process_time() - begun


if __name__ == "__main__":
    main()
