"""What is known of which step uses which: the truths that maps are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepflow_tl.analysis.audit.knock_out import KnockOut
from stepflow_tl.errors import NonFiniteError, StepMapError
from stepflow_tl.saliency.maps import StepMap
from stepflow_tl.tasks.word_problems import Problem, Verdict
from stepflow_tl.traces.cuts import tokens_at
from stepflow_tl.traces.trace import Step, Trace


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """How much each step rests on each earlier one, where that is known.

    Attributes:
        name: Of the kind of truth.
        values: How much: 0 and 1, or a number such as a divergence in nats.
        known: The pairs that are compared, all of them below the diagonal.
    """

    name: str
    values: Float[Tensor, "query_step key_step"]
    known: Bool[Tensor, "query_step key_step"]

    def __post_init__(self) -> None:
        """Check it.

        Raises:
            StepMapError: A pair on or above the diagonal is compared, or a number is not finite.
        """
        if bool(self.known.triu().any()):
            raise StepMapError("expected pairs of a step with an earlier one, got one on or above")
        if not bool(self.values[self.known].isfinite().all()):
            raise StepMapError(f"expected finite numbers in the truth {self.name!r}, got others")

    @property
    def is_binary(self) -> bool:
        """Whether a step uses another or does not."""
        given = self.values[self.known]
        return bool(((given == 0) | (given == 1)).all())


def with_premises(trace: Trace, problem: Problem) -> Trace:
    """A trace of a word problem in which each premise of the question is a step of its own.

    Args:
        trace: The model's trace of the problem's question.
        problem: The problem.

    Raises:
        StepMapError: The trace's first step is not the problem's question.
    """
    question = trace.steps[0] if trace.steps else None
    if question is None or question.segment != "question":
        raise StepMapError(f"expected a trace whose first step is a question, got {trace!r}")
    before = question.text.find(problem.question)
    if before < 0:
        raise StepMapError(
            f"expected a trace of the problem {problem.question[:60]!r}, got one of "
            f"{question.text[:60]!r}"
        )
    texts = trace.token_texts[question.start : question.stop]
    whole = "".join(texts)
    before += len(whole) - len(whole.lstrip())
    starts = [before, *(before + first for first, _ in problem.premise_spans)]
    at = [question.start + token for token in tokens_at(texts, whole, starts)]
    ends = [*at[1:], question.stop]
    parts = [
        Step(number, "question", start, stop, "".join(trace.token_texts[start:stop]).strip())
        for number, (start, stop) in enumerate(zip(at, ends, strict=True))
    ]
    more = len(parts) - 1
    rest = [replace(step, index=step.index + more) for step in trace.steps[1:]]
    return replace(trace, steps=(*parts, *rest))


def dependencies(trace: Trace, problem: Problem, verdict: Verdict) -> dict[str, Truth]:
    """What each thinking step of a word problem truly uses, as far as the thinking is right.

    Args:
        trace: The trace, cut by `with_premises`: the question sentence, then each premise.
        problem: The problem.
        verdict: What became of the response: from its first error on nothing is known.

    Returns:
        ``"premise"``: of all premises, the one that a thinking step uses; ``"earlier step"``: of
        the thinking steps before it, those whose values it uses.
    """
    thinking = trace.steps_in("thinking")
    right = min(len(thinking), len(problem.solution))
    if verdict.error_step is not None:
        right = min(right, verdict.error_step)
    count, first = len(trace.steps), 1
    values = {name: torch.zeros(count, count) for name in ("premise", "earlier step")}
    known = {name: torch.zeros(count, count, dtype=torch.bool) for name in values}
    for step, truth in zip(thinking[:right], problem.solution, strict=False):
        premises = slice(first, first + len(problem.premises))
        known["premise"][step.index, premises] = True
        values["premise"][step.index, first + truth.premise] = 1.0
        known["earlier step"][step.index, thinking[0].index : step.index] = True
        for used in truth.uses:
            values["earlier step"][step.index, thinking[used].index] = 1.0
    return {name: Truth(name=name, values=values[name], known=known[name]) for name in values}


def knock_out_truth(result: KnockOut, *, question: bool = True) -> Truth:
    """The divergences of `knock_out` as a truth.

    Args:
        result: What hiding steps did.
        question: Whether pairs with a step of the question are compared.
    """
    is_question = torch.tensor([step.segment == "question" for step in result.steps])
    known = torch.ones_like(result.kl, dtype=torch.bool).tril(-1) & ~is_question[:, None]
    if not question:
        known &= ~is_question
    values = result.kl.masked_fill(result.kl == -torch.inf, 0.0)
    return Truth(name="knock-out", values=values, known=known)


def check_map(step_map: StepMap, steps: Sequence[Step] | int, what: str) -> None:
    """Refuse a map that is of other steps, or that has scores which are no numbers.

    Args:
        step_map: The map.
        steps: The steps that it should be of, or their number.
        what: Names it in the message.

    Raises:
        StepMapError: It is of other steps.
        NonFiniteError: A score is NaN or infinite.
    """
    count = steps if isinstance(steps, int) else len(steps)
    if len(step_map.steps) != count:
        raise StepMapError(
            f"expected a map of the trace's {count} steps, got one of {len(step_map.steps)}: {what}"
        )
    if not isinstance(steps, int):
        for mine, wanted in zip(step_map.steps, steps, strict=True):
            if (mine.start, mine.stop) != (wanted.start, wanted.stop):
                raise StepMapError(
                    f"expected a map of this trace, whose step {wanted.index} has the tokens "
                    f"{wanted.start} to {wanted.stop}, got {mine.start} to {mine.stop}: {what}"
                )
    if not bool(step_map.scores.isfinite().all()):
        raise NonFiniteError(f"expected scores that are numbers, got NaN or infinity: {what}")


def labeled_dependencies(trace: Trace) -> Truth:
    """What somebody else's labels say: ``depends_on`` of each labeled step.

    Args:
        trace: A trace whose steps have labels such as thought-anchors': ``chunk_idx``, the number
            of the step among theirs, and ``depends_on``, numbers of those it depends on.

    Raises:
        StepMapError: No step says what it depends on.
    """
    of_chunk = _steps_by_chunk(trace)
    count = len(trace.steps)
    values, known = torch.zeros(count, count), torch.zeros(count, count, dtype=torch.bool)
    earlier = sorted(of_chunk.values())
    for step in trace.steps:
        said = step.labels.get("depends_on")
        if said is None or step.index not in earlier:
            continue
        known[step.index, [other for other in earlier if other < step.index]] = True
        for chunk in said if isinstance(said, (list, tuple)) else [said]:
            source = of_chunk.get(_number(chunk))
            if source is not None and source < step.index:
                values[step.index, source] = 1.0
    if not bool(known.any()):
        raise StepMapError(
            "expected steps with labels chunk_idx and depends_on, got none in this trace"
        )
    return Truth(name="labels", values=values, known=known)


def _steps_by_chunk(trace: Trace) -> dict[int | None, int]:
    """Of each number among the labels' own, the step's."""
    numbers = {step.index: _number(step.labels.get("chunk_idx")) for step in trace.steps}
    return {number: step for step, number in numbers.items() if number is not None}


def _number(said: object) -> int | None:
    """A whole number in somebody else's file; None for anything else."""
    try:
        return int(str(said))
    except ValueError:
        return None


def impact_truth(
    trace: Trace, impacts: Sequence[Mapping[str, object]], name: str = "their suppression"
) -> Truth:
    """A matrix of somebody else's, as thought-anchors writes it.

    Args:
        trace: The trace, whose steps have labels ``chunk_idx``.
        impacts: The rows of ``step_importance_supp.json``: ``source_chunk_idx`` and
            ``target_impacts``, a list of ``target_chunk_idx`` and ``importance_score``.
        name: Of the truth.

    Raises:
        StepMapError: No pair of them is a pair of the trace's steps.
    """
    of_chunk = _steps_by_chunk(trace)
    count = len(trace.steps)
    values, known = torch.zeros(count, count), torch.zeros(count, count, dtype=torch.bool)
    for row in impacts:
        source = of_chunk.get(_number(row.get("source_chunk_idx")))
        targets = row.get("target_impacts")
        for impact in targets if isinstance(targets, list) else []:
            target = of_chunk.get(_number(impact.get("target_chunk_idx")))
            score = impact.get("importance_score")
            if source is not None and target is not None and source < target and score is not None:
                known[target, source] = True
                values[target, source] = float(score)
    if not bool(known.any()):
        raise StepMapError("expected impacts of the trace's own steps, got none")
    return Truth(name=name, values=values, known=known)
