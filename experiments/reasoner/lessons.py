"""What the reasoner is trained on: stages as data, and the batches that each of their steps sees.

A batch is a pure function of (stage, step, process), so training can stop and resume anywhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from transformers import PreTrainedTokenizerBase

from experiments.reasoner.tokenizer import END, prompt_text
from stepflow_tl.tasks.word_problems.sentences import LARGEST_VALUE, NAMES, premise_text
from stepflow_tl.tasks.word_problems.world import Problem, Reach, make_problem, split_of

IGNORED = -100
Encoded = tuple[list[int], list[int]]
Piece = tuple[str, bool]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stretch of training.

    Attributes:
        name: For the log.
        tokens: How long it lasts, in tokens read by all processes together.
        kinds: Weight, by tokens, of each kind of lesson at the start and at the end of the stage.
        easy: Smallest and largest number of operations at the start; they grow to `hard` over the
            first half.
        hard: The same from half of the stage on.
        reach: Whose counts "joined" operations add.
        tail: Share of problems drawn from `tail_range` instead.
        tail_range: Smallest and largest number of operations of the tail.
        spans: Longest stretch of random tokens that "repeats" repeats, at the start and, growing,
            at the end.
        rate: Learning rate as a share of the full one.
        other_rate: The same for what is no matrix, as a share of `rate`.
        warm: Share of the stage over which the rate rises.
        decay_from: Share of the stage after which the rate falls linearly.
        final_rate: What it falls to, as a share of `rate`.
        batch: Tokens per step, all processes together.
    """

    name: str
    tokens: int
    kinds: Mapping[str, tuple[float, float]]
    easy: tuple[int, int] = (1, 8)
    hard: tuple[int, int] = (1, 8)
    reach: Reach = "start"
    tail: float = 0.0
    tail_range: tuple[int, int] = (9, 12)
    spans: tuple[int, int] = (24, 24)
    rate: float = 1.0
    other_rate: float = 0.3
    warm: float = 0.02
    decay_from: float = 1.0
    final_rate: float = 0.1
    batch: int = 8192

    def rate_at(self, progress: float) -> float:
        """Return the share of the full learning rate at `progress` (0 to 1) of the stage."""
        warm = min(1.0, 0.1 + progress / self.warm)
        past = max(0.0, progress - self.decay_from) / max(1e-9, 1.0 - self.decay_from)
        return self.rate * warm * (1.0 - past * (1.0 - self.final_rate))


def draw_kind(stage: Stage, progress: float, *, seed: str) -> str:
    """Draw the kind of lesson of one step: the same in all processes, so that none waits."""
    weights = [start + (end - start) * progress for start, end in stage.kinds.values()]
    return random.Random(seed).choices(list(stage.kinds), weights)[0]


def draw_batch(
    tokenizer: PreTrainedTokenizerBase,
    stage: Stage,
    progress: float,
    *,
    kind: str,
    seed: str,
    tokens: int,
) -> list[Encoded]:
    """Draw one process's share of a step: sequences of one kind, sorted by length.

    Args:
        tokenizer: The reasoner's.
        stage: Whose settings the lesson follows.
        progress: How much of the stage is over, 0 to 1.
        kind: Which lesson.
        seed: Decides everything that is drawn.
        tokens: When to stop: as soon as the sequences hold so many.
    """
    rng = random.Random(seed)
    pool: list[Encoded] = []
    while sum(len(ids) for ids, _ in pool) < tokens:
        pool.append(LESSONS[kind](tokenizer, stage, progress, rng))
    return sorted(pool, key=lambda pair: len(pair[0]))


def micro_batches(
    sequences: list[Encoded], *, tokens: int, pad: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Cut sequences, sorted by length, into right-padded (ids, labels), each [batch, pos]."""
    groups: list[list[Encoded]] = [[]]
    for pair in sequences:
        if groups[-1] and (len(groups[-1]) + 1) * len(pair[0]) > tokens:
            groups.append([])
        groups[-1].append(pair)
    return [_pad(group, pad) for group in groups]


def _pad(group: list[Encoded], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(ids) for ids, _ in group)
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in group])
    labels = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in group])
    return ids, labels


def encode(tokenizer: PreTrainedTokenizerBase, pieces: list[Piece]) -> Encoded:
    """Encode (text, trained on?) pieces into token ids and labels."""
    ids: list[int] = []
    labels: list[int] = []
    for (_, trained), part in zip(
        pieces, tokenizer([text for text, _ in pieces])["input_ids"], strict=True
    ):
        ids += part
        labels += part if trained else [IGNORED] * len(part)
    return ids, labels


def problem_pieces(problem: Problem) -> list[Piece]:
    """Return prompt and response of a problem; only the response is trained on."""
    return [(prompt_text(problem.question), False), (problem.response + END, True)]


def _draw_problem(stage: Stage, progress: float, rng: random.Random) -> Problem:
    grown = min(1.0, 2 * progress)
    low, high = (round(a + (b - a) * grown) for a, b in zip(stage.easy, stage.hard, strict=True))
    if rng.random() < stage.tail:
        low, high = stage.tail_range
    difficulty = rng.randint(low, high)
    while True:
        problem = make_problem(rng.getrandbits(48), difficulty, reach=stage.reach)
        if split_of(problem.question) == "train":
            return problem


def _problem(
    tokenizer: PreTrainedTokenizerBase, stage: Stage, progress: float, rng: random.Random
) -> Encoded:
    """A problem with its true response."""
    return encode(tokenizer, problem_pieces(_draw_problem(stage, progress, rng)))


def _premises(
    tokenizer: PreTrainedTokenizerBase, stage: Stage, progress: float, rng: random.Random
) -> Encoded:
    """Premises, and the same in another order; trained on what follows each key."""
    problem = _draw_problem(stage, progress, rng)
    pieces: list[Piece] = [(prompt_text(problem.question), False)]
    for premise in rng.sample(problem.premises, len(problem.premises)):
        text = premise_text(rng, premise)
        head, _, rest = text.partition(",")
        pieces += [((" " if len(pieces) > 1 else "") + head + ",", False), (rest, True)]
    return encode(tokenizer, pieces)


def _repeats(
    tokenizer: PreTrainedTokenizerBase, stage: Stage, progress: float, rng: random.Random
) -> Encoded:
    """Random tokens in chunks, and the chunks again reordered; not trained on a chunk's first."""
    longest = round(stage.spans[0] + (stage.spans[1] - stage.spans[0]) * progress)
    size = rng.randint(2, 4)
    some = _name_tokens(tokenizer) if rng.random() < 0.7 else range(len(tokenizer))
    tokens = rng.sample(some, rng.randint(3, longest))
    chunks = [tokens[start : start + size] for start in range(0, len(tokens), size)]
    ids, labels = list(tokens), [IGNORED] * len(tokens)
    while len(ids) < 24 or len(ids) == len(tokens):
        for chunk in rng.sample(chunks, len(chunks)):
            ids += chunk
            labels += [IGNORED, *chunk[1:]]
    return ids, labels


@cache
def _name_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    return tuple(tokenizer(f" {name}")["input_ids"][0] for name in NAMES)


def _sums(
    tokenizer: PreTrainedTokenizerBase, stage: Stage, progress: float, rng: random.Random
) -> Encoded:
    """Bare arithmetic, as it stands in a step; trained on the results."""
    pieces: list[Piece] = []
    while len(pieces) < 24:
        left, sign = rng.randint(1, LARGEST_VALUE), rng.choice("+++--*")
        amount = 2 if sign == "*" else rng.randint(2, 6)
        if sign == "+" and rng.random() < 0.6:
            amount = rng.randint(1, LARGEST_VALUE)
        result = {"+": left + amount, "-": left - amount, "*": left * amount}[sign]
        if 1 <= result <= LARGEST_VALUE:
            pieces += [(f": {left}{sign}{amount}=", False), (f"{result}.", True)]
    return encode(tokenizer, pieces)


LESSONS: dict[str, Callable[[PreTrainedTokenizerBase, Stage, float, random.Random], Encoded]] = {
    "problem": _problem,
    "premises": _premises,
    "repeats": _repeats,
    "sums": _sums,
}
"""Each kind of lesson by name: draws one sequence with its labels."""
