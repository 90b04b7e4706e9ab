"""Train the bundled reasoner: `python -m experiments.reasoner.train`.

On a GPU one process trains; without one, two processes of one thread each share every step and
average their gradients. Muon (torch 2.9 or later) moves the matrices, AdamW everything else. A
checkpoint is written every few minutes, and the same command resumes from it; at the end the
16-bit weights and the tokenizer are written to `weights/` in the training folder.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

from experiments.reasoner.lessons import Stage, draw_batch, draw_kind, micro_batches
from experiments.reasoner.model import (
    MATRIX_RATE,
    OTHER_RATE,
    build_model,
    build_optimizers,
    export,
    masked_loss,
    teacher_forced,
)
from experiments.reasoner.tokenizer import build_tokenizer

log = logging.getLogger("experiments.reasoner.train")

MICRO_TOKENS = 2048
STEPS_PER_LINE = 50
STAGES = (
    Stage(
        name="induction",
        tokens=2_500_000,
        kinds={"repeats": (1.0, 1.0)},
        spans=(4, 12),
        other_rate=1.0,
        batch=4096,
    ),
    Stage(
        name="look-up",
        tokens=3_000_000,
        kinds={
            "repeats": (0.3, 0.05),
            "premises": (0.45, 0.2),
            "problem": (0.2, 0.65),
            "sums": (0.1, 0.1),
        },
        easy=(1, 2),
        hard=(1, 6),
        reach="any",
        spans=(12, 32),
    ),
    Stage(
        name="mixed",
        tokens=3_127_296,
        kinds={"problem": (0.84, 0.8684), "premises": (0.06, 0.0515), "sums": (0.10, 0.0801)},
        reach="any",
        tail=0.05,
        rate=0.7,
        warm=0.0703,
        batch=6144,
    ),
    Stage(
        name="settled",
        tokens=2_488_320,
        kinds={"problem": (0.88, 0.9005), "premises": (0.05, 0.0412), "sums": (0.07, 0.0583)},
        tail=0.05,
        rate=0.7,
        warm=0.0683,
        batch=6144,
    ),
    Stage(
        name="long",
        tokens=4_500_000,
        kinds={"problem": (0.90, 0.95), "premises": (0.03, 0.02), "sums": (0.07, 0.03)},
        tail=0.25,
        tail_range=(9, 14),
        rate=0.7,
        decay_from=0.25,
        final_rate=0.02,
        batch=6144,
    ),
)
"""The whole recipe.

Induction on random tokens, look-up in premises, then whole problems in three stages. "mixed" and
"settled" are as short as they were cut: the first because counts of just any earlier person were
not recalled (about two in five), so that later stages add the first person's only; the second
because problems beyond its tail failed nearly always.
"""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where, and as which of how many processes, training runs.

    Attributes:
        folder: Where the checkpoint and the weights go.
        rank: This process's number.
        world_size: How many processes share each step.
        device: Where the model lives.
        minutes_between_checkpoints: How often the checkpoint is written.
    """

    folder: Path
    rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    minutes_between_checkpoints: float = 3.0


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What training changes, and where it stands.

    Attributes:
        model: The network.
        tokenizer: Its tokenizer.
        optimizers: Muon and AdamW.
        state: Stage, step, tokens read by this process, seconds spent, and smoothed losses.
    """

    model: Qwen2ForCausalLM
    tokenizer: PreTrainedTokenizerBase
    optimizers: list[Optimizer]
    state: dict[str, Any]


def average_gradients(model: Qwen2ForCausalLM, count: int, *, world_size: int) -> float:
    """Divide the gradients, summed over processes, by the number of labeled tokens, and clip.

    Args:
        model: Holds the summed gradients of this process.
        count: How many labeled tokens they come from.
        world_size: How many processes take part.

    Returns:
        The norm before clipping to 1.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    counted = torch.tensor([float(count)], device=gradients[0].device)
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), counted])
    if world_size > 1:
        dist.all_reduce(flat)
    mean = flat[:-1] / flat[-1]
    norm = float(mean.norm())
    mean *= min(1.0, 1.0 / (norm + 1e-6))
    parts = torch.split(mean, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
    return norm


def train_step(setting: Setting, learner: Learner, stage: Stage) -> float:
    """Take one step of a stage; return the gradient norm."""
    state = learner.state
    progress = state["step"] * stage.batch / stage.tokens
    seed = f"{stage.name}:{state['step']}"
    kind = draw_kind(stage, progress, seed=seed)
    share = stage.batch // setting.world_size
    seed = f"{seed}:{setting.rank}"
    pool = draw_batch(learner.tokenizer, stage, progress, kind=kind, seed=seed, tokens=share)
    learner.model.zero_grad(set_to_none=False)
    total, count = 0.0, 0
    for ids, labels in micro_batches(pool, tokens=MICRO_TOKENS, pad=learner.tokenizer.pad_token_id):
        loss, labeled = masked_loss(learner.model, ids, labels, device=setting.device)
        torch.autograd.backward(loss)
        total, count = total + float(loss.detach()), count + labeled
    norm = average_gradients(learner.model, count, world_size=setting.world_size)
    rate = stage.rate_at(progress)
    rates = (MATRIX_RATE * rate, OTHER_RATE * rate * stage.other_rate)
    for optimizer, now in zip(learner.optimizers, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = now
        optimizer.step()
    before = state["losses"].get(kind, total / count)
    state["losses"][kind] = 0.9 * before + 0.1 * total / count
    state["tokens"] += sum(len(ids) for ids, _ in pool)
    state["step"] += 1
    return norm


def run_stage(setting: Setting, learner: Learner) -> None:
    """Run the stage that the state names, from its step on, to the end."""
    state = learner.state
    stage = STAGES[state["stage"]]
    steps = stage.tokens // stage.batch
    began = saved = time.monotonic()
    spent = state["seconds"]
    while state["step"] < steps:
        norm = train_step(setting, learner, stage)
        state["seconds"] = spent + time.monotonic() - began
        if setting.rank == 0 and state["step"] % STEPS_PER_LINE == 0:
            _report(setting, learner, stage, norm)
        if time.monotonic() - saved > 60 * setting.minutes_between_checkpoints:
            saved = time.monotonic()
            save_checkpoint(setting, learner)


def _report(setting: Setting, learner: Learner, stage: Stage, norm: float) -> None:
    state = learner.state
    shares: dict[int, dict[str, float]] = {}
    if state["step"] % (2 * STEPS_PER_LINE) == 0:
        for difficulty in (2, 6):
            shares[difficulty] = teacher_forced(
                learner.model, learner.tokenizer, difficulty, device=setting.device
            )
    log.info(
        "%s step %d tokens %.2fM seconds %.0f norm %.2f loss %s right %s",
        stage.name,
        state["step"],
        state["tokens"] * setting.world_size / 1e6,
        state["seconds"],
        norm,
        {kind: round(loss, 3) for kind, loss in state["losses"].items()},
        shares,
    )


def save_checkpoint(setting: Setting, learner: Learner) -> None:
    """Write all that is needed to go on; a kill at any moment leaves a whole checkpoint."""
    if setting.rank != 0:
        return
    target = setting.folder / "checkpoint.pt"
    payload = {
        "model": learner.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in learner.optimizers],
        "state": learner.state,
    }
    torch.save(payload, target.with_suffix(".part"))
    os.replace(target.with_suffix(".part"), target)


def load_learner(setting: Setting) -> Learner:
    """Return the learner of the folder's checkpoint, or a new one."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer).to(setting.device)
    optimizers = build_optimizers(model)
    state = {"stage": 0, "step": 0, "tokens": 0, "seconds": 0.0, "losses": {}}
    path = setting.folder / "checkpoint.pt"
    if path.exists():
        payload = torch.load(path, map_location=setting.device, weights_only=True)
        model.load_state_dict(payload["model"])
        for optimizer, saved in zip(optimizers, payload["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        state = payload["state"]
    return Learner(model=model, tokenizer=tokenizer, optimizers=optimizers, state=state)


def work(rank: int, setting: Setting) -> None:
    """Train, as one process of `setting.world_size`, to the end of the recipe."""
    setting = replace(setting, rank=rank)
    handlers: list[logging.Handler] = [
        logging.StreamHandler(),
        logging.FileHandler(setting.folder / f"log-{rank}.txt"),
    ]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    if setting.device == "cpu":
        torch.set_num_threads(1)
    if setting.world_size > 1:
        meeting = f"file://{setting.folder / 'rendezvous'}"
        dist.init_process_group(
            "gloo", init_method=meeting, rank=rank, world_size=setting.world_size
        )
    learner = load_learner(setting)
    while learner.state["stage"] < len(STAGES):
        run_stage(setting, learner)
        learner.state.update(stage=learner.state["stage"] + 1, step=0)
        save_checkpoint(setting, learner)
    if rank == 0:
        export(learner.model, learner.tokenizer, setting.folder / "weights")
    if setting.world_size > 1:
        dist.destroy_process_group()


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train the bundled reasoner.")
    parser.add_argument("--folder", type=Path, default=Path("reasoner-training"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rendezvous").unlink(missing_ok=True)
    world_size = 1 if arguments.device != "cpu" else min(2, os.cpu_count() or 1)
    setting = Setting(folder=folder, world_size=world_size, device=arguments.device)
    if world_size == 1:
        work(0, setting)
    else:
        with ProcessPoolExecutor(world_size, mp_context=get_context("spawn")) as pool:
            list(pool.map(work, range(world_size), [setting] * world_size))


if __name__ == "__main__":
    main()
