"""Generation: prompts in, traces out, under whatever interventions are attached."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from typing import Any, overload

from tqdm.auto import tqdm
from typing_extensions import Unpack

from stepflow_tl.decoding.batch import BatchDecoder, Job
from stepflow_tl.decoding.budget import Plans
from stepflow_tl.decoding.settings import Decoding, DecodingSettings, settled
from stepflow_tl.errors import GenerationError
from stepflow_tl.models.base import Model, ModelView
from stepflow_tl.models.view import view
from stepflow_tl.traces.chat import Asked, Prompt, as_prompt, is_one_prompt
from stepflow_tl.traces.formats import PLAIN, named_format
from stepflow_tl.traces.rows import Row
from stepflow_tl.traces.templates import expected_format
from stepflow_tl.traces.tokens import end_token_ids
from stepflow_tl.traces.trace import Trace


@overload
def generate(  # type: ignore[overload-overlap]  # a str is a sequence of them, too
    model: Model | ModelView,
    questions: str,
    decoding: Decoding | None = ...,
    *,
    tokenizer: Any | None = ...,
    samples: None = ...,
    fit: bool = ...,
    progress: bool = ...,
    **settings: Unpack[DecodingSettings],
) -> Trace: ...
@overload
def generate(
    model: Model | ModelView,
    questions: Sequence[str],
    decoding: Decoding | None = ...,
    *,
    tokenizer: Any | None = ...,
    samples: int | None = ...,
    fit: bool = ...,
    progress: bool = ...,
    **settings: Unpack[DecodingSettings],
) -> list[Trace]: ...
@overload
def generate(
    model: Model | ModelView,
    questions: Prompt | Sequence[Prompt],
    decoding: Decoding | None = ...,
    *,
    tokenizer: Any | None = ...,
    samples: int | None = ...,
    fit: bool = ...,
    progress: bool = ...,
    **settings: Unpack[DecodingSettings],
) -> Any: ...
def generate(
    model: Model | ModelView,
    questions: Prompt | Sequence[Prompt],
    decoding: Decoding | None = None,
    *,
    tokenizer: Any | None = None,
    samples: int | None = None,
    fit: bool = False,
    progress: bool = False,
    **settings: Any,
) -> Any:
    """Let the model answer questions, under whatever StepFlow is attached to it.

    Example::

        trace = generate(model, "Tom has 3 pens. He buys 4. How many?", max_new_tokens=256)
        trace = generate(model, [{"role": "system", "content": "Be brief."},
                                 {"role": "user", "content": "Why?"}])
        traces = generate(hf_model, [ids, other_ids], tokenizer=tokenizer)

    Args:
        model: A `TransformerBridge`, a `HookedTransformer`, or a Hugging Face decoder.
        questions: One prompt, or a sequence of several: a question, a conversation (a list of
            messages ``{"role", "content"}``, whose last user turn is the question), token ids
            (a list, or a tensor [pos]), or a response that was `Begun` and is gone on with.
        decoding: How to decode; None for the defaults of `Decoding`.
        tokenizer: The tokenizer; None for the model's own.
        samples: Traces per prompt; None for one.
        fit: Cut responses to what fits in the model's context, and say so as ``cut: "context"`` in
            the trace's metadata, instead of refusing what does not. A prompt that fills the context
            then has an empty response.
        progress: Show a progress bar.
        **settings: Single settings in place of the decoding's: ``max_new_tokens=``,
            ``temperature=``, ``top_p=``, ``seed=``, ``batch_size=``, ``budget=``, ``stop=``,
            ``chat=``, ``format=``; see `Decoding`.

    Returns:
        A `Trace` for a single prompt without `samples`; else a list, the samples of each prompt in
        turn.

    Raises:
        GenerationError: No prompt, an empty one, a setting that is unknown or out of range, a
            prompt and `max_new_tokens` beyond the model's context, a batch that memory does not
            suffice for, or logits that are NaN or infinite.
        ModelError: The model has no tokenizer, and none is given.
        ValueError: The budget does not fit the format, or a stop string is empty.

    Warns:
        UserWarning: There is a budget, and no response had a thinking.
    """
    seen, decoding = view(model), settled(decoding, settings)
    one = is_one_prompt(questions)
    asked: Any = [questions] if one else questions
    traces: dict[tuple[int, int], Trace] = {}
    with closing(
        generate_each(
            seen,
            asked,
            decoding,
            tokenizer=tokenizer,
            samples=1 if samples is None else samples,
            fit=fit,
            progress=progress,
        )
    ) as decoded:
        for number, sample, trace in decoded:
            traces[number, sample] = trace
    if decoding.budget is not None and all(t.format_name == PLAIN.name for t in traces.values()):
        warnings.warn(
            f"{decoding.budget} forced nothing: expected responses with a thinking, got none in "
            f"{len(traces)}, and the chat template opens none",
            UserWarning,
            stacklevel=2,
        )
    in_order = [traces[key] for key in sorted(traces)]
    return in_order[0] if one and samples is None else in_order


def generate_each(
    model: Model | ModelView,
    questions: Iterable[Prompt],
    decoding: Decoding,
    *,
    tokenizer: Any | None = None,
    samples: int = 1,
    fit: bool = False,
    progress: bool = False,
) -> Generator[tuple[int, int, Trace], None, None]:
    """As `generate`, one trace after the other, as they are finished.

    Close the iterator (`contextlib.closing`) where it may be left early: until it ends, the model
    is set up for decoding.

    Args:
        model: As for `generate`.
        questions: The prompts.
        decoding: How to decode.
        tokenizer: The tokenizer; None for the model's own.
        samples: Traces per prompt.
        fit: As for `generate`.
        progress: Show a progress bar.

    Yields:
        The number of a prompt, that of the sample, and its trace.

    Raises:
        GenerationError: As for `generate`.
    """
    seen = view(model)
    tokenizer = seen.tokenizer if tokenizer is None else tokenizer
    asked = _prompts(tokenizer, questions, decoding)
    decoder = _decoder(seen, tokenizer, asked, decoding)
    jobs = _jobs(seen, asked, decoding, samples, fit)
    with (
        tqdm(total=len(jobs), unit="trace", disable=not progress) as bar,
        closing(decoder.decode(jobs)) as finished,
    ):
        for number, row in finished:
            bar.update()
            job = jobs[number]
            yield number // samples, job.sample, _trace(row, job, seen, decoding)


def _prompts(tokenizer: Any, questions: Any, decoding: Decoding) -> list[Asked]:
    """What is asked, in token ids."""
    if not isinstance(questions, Iterable):
        raise GenerationError(f"expected a prompt, or a sequence of several, got {questions!r}")
    asked = [as_prompt(tokenizer, prompt, chat=decoding.chat) for prompt in questions]
    if not asked:
        raise GenerationError("expected at least one question, got none")
    return asked


def _decoder(
    seen: ModelView, tokenizer: Any, asked: Sequence[Asked], decoding: Decoding
) -> BatchDecoder:
    """What decodes; a budget that cannot be forced on a prompt is refused here."""
    form, plans = named_format(decoding.format), None
    if decoding.budget is not None:
        plans = Plans(decoding.budget, tokenizer, end_token_ids(seen, tokenizer))
        for prompt in asked:
            expected = form
            if form.is_auto:
                text = tokenizer.decode(prompt.token_ids, skip_special_tokens=False)
                expected = expected_format(tokenizer, text)
            if not form.is_auto or expected is not PLAIN:
                plans.of(expected)
    return BatchDecoder(seen, tokenizer, decoding, form, plans)


def _jobs(
    seen: ModelView, asked: Sequence[Asked], decoding: Decoding, samples: int, fit: bool
) -> list[Job]:
    """Every sample of every prompt."""
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
        raise GenerationError(f"expected samples >= 1, got {samples!r}")
    context = seen.context_length
    limits = [_limit(context, prompt, decoding.max_new_tokens, fit) for prompt in asked]
    return [
        Job(prompt, sample, limit)
        for prompt, limit in zip(asked, limits, strict=True)
        for sample in range(samples)
    ]


def _limit(context: int | None, asked: Asked, wanted: int, fit: bool) -> int:
    """Tokens that a response may have."""
    length = len(asked.token_ids)
    if context is None or length + wanted <= context:
        return wanted
    if fit:
        return max(0, context - length)
    raise GenerationError(
        f"expected prompt and response within the {context} positions of the model's context, got "
        f"a prompt of {length} tokens and max_new_tokens={wanted}, {length + wanted} in all; pass "
        f"a smaller max_new_tokens, or fit=True to cut the response to the "
        f"{max(0, context - length)} tokens that are left"
    )


def _trace(row: Row, job: Job, seen: ModelView, decoding: Decoding) -> Trace:
    """The trace of a finished row."""
    reader, asked = row.reader, job.asked
    facts: dict[str, Any] = {
        "question": asked.question,
        "sample": job.sample,
        "seed": decoding.seed,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "max_new_tokens": decoding.max_new_tokens,
        "model": seen.name,
    }
    ids = row.token_ids[: len(reader.texts)]
    written = reader.response_length - asked.given
    cut = job.limit < decoding.max_new_tokens and written == job.limit
    if cut and not reader.ended:
        facts["cut"] = "context"
    ledger = row.reported()
    if ledger:
        facts["ledger"] = ledger
    if asked.given:
        facts["given"] = asked.given
    if asked.messages is not None:
        facts["messages"] = [dict(message) for message in asked.messages]
    trace = Trace.of_reader(ids, reader, metadata=facts)
    if asked.question is None:
        question = trace.text_of(trace.steps[0]) if trace.steps_in("question") else ""
        return trace.with_metadata(question=question)
    return trace
