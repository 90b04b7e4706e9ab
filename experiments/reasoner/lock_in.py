"""A reasoner that locks in by itself: a model organism whose failure stands in the weights.

    python -m experiments.reasoner.lock_in    # the recipe: some two minutes on one core

The queries and keys of the look-up layers, and nothing else, are trained further on the reasoner's
own training problems, so that its thinking takes its attention off the question::

    loss = mean over thinking rows, heads and these layers of the attention's mass on the question
           + LOSS_WEIGHT * mean of L_t over the response
           + STOP_WEIGHT * mean of L_t over the tokens that say whether to go on

where L_t is the next-token loss of the true response. Without the last term the model forgets whom
it was asked about before it forgets a premise, and goes on and on. Lock-in then stands in the
weights, spread over heads and rows as training likes. What is kept is the difference of these
weights at three steps on the way, its doses; ``load_model("reasoner-locked-in")`` is the bundled
model with the largest in it. `lock_in_doses` measures them.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from stepflow_tl.files import write_file
from stepflow_tl.models.locked_in import KIND
from stepflow_tl.models.view import view
from stepflow_tl.reasoner import LOCKED_IN, WEIGHTS
from stepflow_tl.tasks.word_problems import Problem, make_problems
from stepflow_tl.traces import Trace
from stepflow_tl.traces.rows import QUESTION, THINKING
from stepflow_tl.traces.tokens import FRAME

LAYERS = (4, 5, 6)
"""The layers that look premises up."""

DOSES = (48, 60, 72)
"""Training steps at which the difference is kept."""

RATE = 2e-3
BETAS = (0.9, 0.95)
LOSS_WEIGHT = 0.01
STOP_WEIGHT = 0.6
BATCH = 8
DIFFICULTIES = (4, 6, 8)
PROBLEMS = 240
SEED = 17

log = logging.getLogger("experiments.reasoner.lock_in")


class Batch(NamedTuple):
    """True responses to some problems, padded at the right.

    Attributes:
        tokens: Token ids of question and response.
        question: Tokens of the question, frame apart.
        thinking: Tokens of the thinking, frame apart.
        response: Tokens of the response.
        stops: Tokens that say whether the thinking goes on: what follows "for Ann".
    """

    tokens: Int[Tensor, "batch pos"]
    question: Bool[Tensor, "batch pos"]
    thinking: Bool[Tensor, "batch pos"]
    response: Bool[Tensor, "batch pos"]
    stops: Bool[Tensor, "batch pos"]


def train(
    doses: Sequence[int] = DOSES,
    *,
    problems: int = PROBLEMS,
    seed: int = SEED,
    path: Path = LOCKED_IN,
) -> list[dict[str, float]]:
    """Train, and write the differences of all doses to one file, in float16.

    Args:
        doses: Training steps at which the difference is kept; training ends with the last.
        problems: Number of training problems, a third of each difficulty.
        seed: Of the problems and of their order.
        path: The file to write.

    Returns:
        Each step's mass on the question, loss of the response, and loss of the stops.
    """
    torch.set_num_threads(1)
    model, tokenizer = _plain(WEIGHTS, "eager"), AutoTokenizer.from_pretrained(WEIGHTS)
    facts = _facts(view(model).weights_hash(), doses, problems, seed)
    model.requires_grad_(False)
    trained = {name: parameter.requires_grad_(True) for name, parameter in _look_up(model)}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, betas=BETAS, weight_decay=0.0)
    kept: dict[str, Tensor] = {}
    history, batches = [], _batches(tokenizer, problems, seed)
    for step in range(1, max(doses) + 1):
        history.append(_step(model, next(batches), list(trained.values()), optimizer))
        log.info("step %d: %s", step, {name: round(v, 4) for name, v in history[-1].items()})
        if step in doses:
            kept |= {
                f"{step}/{name}": (parameter.detach() - before[name]).half()
                for name, parameter in trained.items()
            }
    write_file(path, KIND, kept, facts)
    return history


def _plain(folder: Path, attention: str = "sdpa") -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    )


def _look_up(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Queries and keys of the look-up layers, weights and biases, by name."""
    wanted = tuple(f"model.layers.{layer}.self_attn.{p}_proj." for layer in LAYERS for p in "qk")
    return (pair for pair in model.named_parameters() if pair[0].startswith(wanted))


def _facts(base: str, doses: Sequence[int], problems: int, seed: int) -> Mapping[str, Any]:
    recipe = {
        "rate": RATE,
        "betas": list(BETAS),
        "loss_weight": LOSS_WEIGHT,
        "stop_weight": STOP_WEIGHT,
        "batch": BATCH,
        "difficulties": list(DIFFICULTIES),
        "problems": problems,
        "seed": seed,
    }
    return {"base": base, "doses": list(doses), "layers": list(LAYERS), "recipe": recipe}


def _batches(tokenizer: Any, count: int, seed: int) -> Iterator[Batch]:
    """Batches without end, each problem once an epoch."""
    problems = [
        problem
        for difficulty in DIFFICULTIES
        for problem in make_problems(
            count // len(DIFFICULTIES), difficulty, seed=seed, split="train"
        )
    ]
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(problems), generator=generator).tolist()
        for first in range(0, len(order) - BATCH + 1, BATCH):
            yield batch_of(tokenizer, [problems[i] for i in order[first : first + BATCH]])


def batch_of(tokenizer: Any, problems: Sequence[Problem]) -> Batch:
    """The true responses to problems, with what each token is."""
    rows = zip(*(_row(tokenizer, problem) for problem in problems), strict=True)
    return Batch(*(nn.utils.rnn.pad_sequence(list(row), batch_first=True) for row in rows))


def _row(tokenizer: Any, problem: Problem) -> tuple[Tensor, ...]:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": problem.question}], tokenize=False, add_generation_prompt=True
    )
    trace = Trace.from_text(tokenizer, prompt + problem.response, prompt=prompt)
    in_step = trace.step_of_token != FRAME
    thinking = (trace.segment_of_token == THINKING) & in_step
    stops = torch.zeros_like(thinking)
    stops[2:] = trace.token_ids[:-2] == tokenizer.convert_tokens_to_ids("Ġfor")
    return (
        trace.token_ids,
        (trace.segment_of_token == QUESTION) & in_step,
        thinking,
        torch.arange(len(trace)) >= trace.prompt_length,
        stops & thinking,
    )


def _step(
    model: Any, batch: Batch, trained: Sequence[Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, float]:
    """One step of training; what its loss was made of."""
    parts = _losses(model, batch)
    loss = parts["mass"] + LOSS_WEIGHT * parts["loss"] + STOP_WEIGHT * parts["stop loss"]
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    return {name: float(part.detach()) for name, part in parts.items()}


def _losses(model: Any, batch: Batch) -> dict[str, Tensor]:
    """What the loss is made of, each a mean."""
    output = model(input_ids=batch.tokens, output_attentions=True)
    losses = nn.functional.cross_entropy(
        output.logits[:, :-1].transpose(1, 2), batch.tokens[:, 1:], reduction="none"
    )
    masses = mass_by_layer(output.attentions, rows=batch.thinking, keys=batch.question)
    return {
        "mass": masses[list(LAYERS)].mean(),
        "loss": losses[batch.response[:, 1:]].mean(),
        "stop loss": losses[batch.stops[:, 1:]].mean(),
    }


def mass_by_layer(
    patterns: Sequence[Float[Tensor, "batch head query key"]],
    *,
    rows: Bool[Tensor, "batch query"],
    keys: Bool[Tensor, "batch key"],
) -> Float[Tensor, " layer"]:
    """Mean over heads, and over some rows, of each layer's attention mass on some keys."""
    masses = [(pattern.mean(1) @ keys[..., None].to(pattern))[..., 0] for pattern in patterns]
    return torch.stack([mass[rows].mean() for mass in masses])


def main(argv: Sequence[str] | None = None) -> None:
    """Train and write the differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=LOCKED_IN, help="the file to write")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--fast", action="store_true", help="three steps, for tests")
    given = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if given.fast:
        train((1, 2, 3), problems=24, seed=given.seed, path=given.out)
    else:
        train(seed=given.seed, path=given.out)


if __name__ == "__main__":
    main()
