"""What interventions cost, and rule="jacobian", as ratios to plain runs within one process.

Every variant decodes the same tokens (the bundled reasoner's own traces, fed back token by token
against a KV cache), so that only the interventions differ. Variants are rotated within each round,
and each is compared with plain decoding of its own round. Times are CPU time of this process, so
that a busy machine does not count.

    python benchmarks/variants.py [--rounds 5] [--problems 4] [--difficulty 5] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from stepflow_tl import (
    GradientMomentum,
    OddsEqualBridge,
    StepFlow,
    StepMomentum,
    Trace,
    UniformPriorBridge,
    generate,
    load_model,
    step_saliency,
)
from stepflow_tl.decoding.batch import pad_token_id
from stepflow_tl.models.view import view
from stepflow_tl.tasks.word_problems import make_problems
from stepflow_tl.traces.formats import AUTO_FORMAT
from stepflow_tl.traces.rows import Rows, publish

FLOWS = {
    "none": StepFlow(),
    "OddsEqualBridge": StepFlow(OddsEqualBridge()),
    "StepMomentum": StepFlow(StepMomentum()),
    "StepFlow.paper()": StepFlow.paper(),
    "UniformPriorBridge": StepFlow(UniformPriorBridge()),
    "GradientMomentum": StepFlow(GradientMomentum()),
    "StepFlow.digest()": StepFlow.digest(),
}


def feed(model: Any, traces: Sequence[Trace]) -> None:
    """Decode traces as one left-padded batch: their prompts, then their own tokens one by one."""
    prompts = [trace.token_ids[: trace.prompt_length].tolist() for trace in traces]
    responses = [trace.token_ids[trace.prompt_length :].tolist() for trace in traces]
    pad = pad_token_id(model.tokenizer)
    rows = Rows.of_prompts(model.tokenizer, prompts, AUTO_FORMAT)
    length = max(map(len, responses))
    new = [response + [pad] * (length - len(response)) for response in responses]
    tokens = torch.tensor(rows.padded(pad))
    with torch.no_grad(), view(model).for_decoding(tokens[:1, -8:]) as plain:
        stops = [rows.width + length] * len(rows)
        running = plain.new_batch([row.pads for row in rows], stops, len(rows))
        for column in zip(*new, strict=True):
            rows.run(tokens)
            with publish(model, rows):
                running.run(tokens)
            rows.push([[token] for token in column])
            tokens = torch.tensor(column)[:, None]


def decode_under(
    model: Any, flow: StepFlow, traces: Sequence[Trace], batch: int
) -> tuple[int, int]:
    """Decode all traces under a flow; returns the extra forward passes and extra tokens."""
    with flow.attach(model) as run:
        for first in range(0, len(traces), batch):
            feed(model, traces[first : first + batch])
    table = run.ledger.to_dataframe()
    return int(table["extra_forwards"].sum()), int(table["extra_tokens"].sum())


def rotate(
    jobs: dict[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each job in each round (after one round to warm up), and its last result."""
    names = list(jobs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    results = {name: job() for name, job in jobs.items()}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            start = time.process_time()
            results[name] = jobs[name]()
            seconds[name].append(time.process_time() - start)
    return seconds, results


def ratios(seconds: dict[str, list[float]], name: str, baseline: str) -> str:
    """Median, least and largest ratio to the baseline of the same round."""
    shares = [a / b for a, b in zip(seconds[name], seconds[baseline], strict=True)]
    return f"{statistics.median(shares):.2f} | {min(shares):.2f} - {max(shares):.2f}"


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("rounds", 5), ("problems", 4), ("difficulty", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model("reasoner", device="cpu")
    problems = make_problems(options.problems, options.difficulty, seed=2026, split="test")
    traces = generate(model, [problem.question for problem in problems])
    new = sum(len(trace) - trace.prompt_length for trace in traces)
    total = sum(len(trace) for trace in traces)
    steps = sum(len(trace.steps_in("thinking")) for trace in traces)
    print(
        f"{len(traces)} traces of the reasoner, {total} tokens, {new} of them decoded, "
        f"{steps} steps of thinking; {options.rounds} rounds; torch {torch.__version__}, "
        f"{options.threads} thread(s), CPU time"
    )
    for batch in sorted({1, len(traces)}):
        jobs = {
            name: lambda flow=flow: decode_under(model, flow, traces, batch)  # noqa: B023
            for name, flow in FLOWS.items()
        }
        seconds, extra = rotate(jobs, options.rounds)
        plain = statistics.median(seconds["none"])
        print(
            f"\nDecoding, batch size {batch}: plain {plain:.2f} s, {1e3 * plain / new:.2f} ms/token"
        )
        print(
            "\n| interventions | ratio to none | least - largest | extra forwards | extra tokens |"
        )
        print("|---|---|---|---|---|")
        for name in FLOWS:
            forwards, tokens = extra[name]
            print(f"| {name} | {ratios(seconds, name, 'none')} | {forwards} | {tokens} |")
    rules = ("attention_x_gradient", "jacobian")
    saliency = {
        rule: lambda rule=rule: [step_saliency(model, trace, rule=rule) for trace in traces]
        for rule in rules
    }
    seconds, _ = rotate(saliency, options.rounds)
    plain = statistics.median(seconds[rules[0]])
    print(f"\nstep_saliency: rule {rules[0]!r} {1e3 * plain / len(traces):.0f} ms a trace")
    print("\n| rule | ratio | least - largest |\n|---|---|---|")
    for rule in rules:
        print(f"| {rule} | {ratios(seconds, rule, rules[0])} |")


if __name__ == "__main__":
    main()
