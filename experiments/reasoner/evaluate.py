"""Measure the bundled reasoner: greedy answers on held-out problems, and what went wrong first.

`python -m experiments.reasoner.evaluate` writes the table that `MODEL_CARD.md` shows.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from stepflow_tl.analysis import proportion
from stepflow_tl.reasoner import WEIGHTS
from stepflow_tl.tasks.word_problems import (
    ERROR_KINDS,
    ErrorKind,
    Problem,
    Reach,
    Verdict,
    grade,
    make_problems,
)

log = logging.getLogger("experiments.reasoner.evaluate")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One difficulty of the table.

    Attributes:
        difficulty: Number of operations.
        n: How many problems were asked.
        correct: How many were answered right.
        low: Lower end of the 95% Wilson interval of the accuracy.
        high: Upper end.
        errors: Number of wrong answers by the kind of their first error.
        flawed: Number of right answers with an error somewhere on the way.
    """

    difficulty: int
    n: int
    correct: int
    low: float
    high: float
    errors: dict[ErrorKind, int]
    flawed: int


@torch.no_grad()
def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    batch: int = 100,
) -> list[str]:
    """Return greedy responses, cut off at one and a half times the true response's length."""
    texts: list[str] = []
    for start in range(0, len(problems), batch):
        part = problems[start : start + batch]
        chats = [[{"role": "user", "content": problem.question}] for problem in part]
        prompts = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        limit = 3 * max(len(tokenizer(problem.response)["input_ids"]) for problem in part) // 2
        out = model.generate(**prompts, do_sample=False, max_new_tokens=limit)
        texts += tokenizer.batch_decode(
            out[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True
        )
    return texts


def tabulate(difficulty: int, verdicts: Sequence[Verdict]) -> Row:
    """Count the verdicts of one difficulty."""
    correct = sum(verdict.correct for verdict in verdicts)
    _, low, high = proportion(correct, len(verdicts))
    wrong = Counter(verdict.first_error for verdict in verdicts if not verdict.correct)
    return Row(
        difficulty=difficulty,
        n=len(verdicts),
        correct=correct,
        low=low,
        high=high,
        errors={kind: wrong[kind] for kind in ERROR_KINDS if wrong[kind]},
        flawed=sum(verdict.correct and verdict.first_error is not None for verdict in verdicts),
    )


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    kinds = [kind for kind in ERROR_KINDS if any(kind in row.errors for row in rows)]
    head = ["operations", "n", "accuracy", "95% interval", *kinds, "right, with a flaw"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [
            str(row.difficulty),
            str(row.n),
            f"{row.correct / row.n:.3f}",
            f"{row.low:.3f} to {row.high:.3f}",
        ]
        cells += [str(row.errors.get(kind, 0)) for kind in kinds] + [str(row.flawed)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def evaluate(
    folder: Path,
    difficulties: Sequence[int],
    *,
    n: int,
    seed: int = 0,
    reach: Reach = "start",
    device: str = "cpu",
) -> list[Row]:
    """Measure the model of a folder in float32 on test problems.

    Args:
        folder: Where the weights and the tokenizer are.
        difficulties: Numbers of operations.
        n: How many problems of each.
        seed: Different seeds give different problems.
        reach: As in `make_problem`.
        device: Where to compute.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    rows: list[Row] = []
    for difficulty in difficulties:
        problems = make_problems(n, difficulty, seed=seed, split="test", reach=reach)
        texts = respond(model, tokenizer, problems)
        rows.append(
            tabulate(difficulty, [grade(*pair) for pair in zip(problems, texts, strict=True)])
        )
        log.info("%s", json.dumps(asdict(rows[-1])))
    return rows


def main() -> None:
    """Read the command line and write the table."""
    parser = argparse.ArgumentParser(description="Measure the bundled reasoner.")
    parser.add_argument("--folder", type=Path, default=WEIGHTS)
    parser.add_argument("--out", type=Path, default=Path("reasoner-accuracy.md"))
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--difficulties", type=int, nargs="+", default=list(range(1, 21)))
    parser.add_argument("--reach", choices=get_args(Reach), default="start")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    rows = evaluate(
        arguments.folder,
        arguments.difficulties,
        n=arguments.n,
        reach=arguments.reach,
        device=arguments.device,
    )
    arguments.out.write_text(table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
