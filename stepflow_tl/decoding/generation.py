"""Generation: prompts in, traces out, under whatever interventions are attached."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from stepflow_tl.decoding.budget import ForcedRow, Plans, ThinkingBudget
from stepflow_tl.decoding.stopping import StoppedRow, stop_strings
from stepflow_tl.errors import GenerationError
from stepflow_tl.models.context import context_length
from stepflow_tl.models.memory import enough_memory
from stepflow_tl.models.precision import WIDER
from stepflow_tl.models.view import (
    decode,
    input_device,
    model_name,
    pad_token_id,
    padding_takes_positions,
    tokenizer_of,
)
from stepflow_tl.traces.chat import Asked, Chat, Prompt, as_prompt, is_one_prompt
from stepflow_tl.traces.formats import PLAIN, Format, named_format
from stepflow_tl.traces.reader import end_token_ids
from stepflow_tl.traces.rows import Row, Rows, publish
from stepflow_tl.traces.templates import expected_format
from stepflow_tl.traces.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 for the most likely token.
        top_p: Sample from the smallest set of tokens with at least this probability.
        seed: Together with prompt and sample number, it seeds each trace on its own, so that a
            trace does not depend on the batch it was made in.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            GenerationError: A setting is out of range.
        """
        for name in ("temperature", "top_p"):
            if not isinstance(getattr(self, name), Real):
                raise GenerationError(f"expected {name} as a number, got {getattr(self, name)!r}")
        if not 0.0 <= self.temperature < float("inf"):
            raise GenerationError(f"expected temperature >= 0, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise GenerationError(f"expected top_p in (0, 1], got {self.top_p}")

    def generator(self, prompt: str, sample: int) -> torch.Generator:
        """The random numbers of one trace."""
        digest = hashlib.sha256(f"{self.seed}\0{sample}\0{prompt}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def choose(
        self, logits: Float[Tensor, "batch vocab"], generators: Sequence[torch.Generator]
    ) -> Int[Tensor, "batch"]:
        """The next token of each row."""
        if self.temperature == 0.0:
            return logits.argmax(-1)
        probabilities = (logits.float() / self.temperature).softmax(-1)
        ordered, tokens = probabilities.sort(dim=-1, descending=True)
        reached = ordered.cumsum(-1)
        ordered = ordered.masked_fill(reached - ordered >= self.top_p, 0.0)
        reached = ordered.cumsum(-1)
        drawn = torch.cat([torch.rand(1, generator=g) for g in generators]).to(logits.device)
        chosen = torch.searchsorted(reached, (drawn * reached[:, -1])[:, None], right=True)
        return tokens.gather(1, chosen.clamp_max(tokens.shape[1] - 1))[:, 0]


@overload
def generate(
    model: Any,
    questions: str,
    *,
    tokenizer: Any | None = ...,
    samples: None = ...,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_p: float = ...,
    seed: int = ...,
    batch_size: int = ...,
    format: str | Format = ...,
    chat: bool | Chat = ...,
    budget: ThinkingBudget | None = ...,
    stop: str | Sequence[str] = ...,
    fit: bool = ...,
    progress: bool = ...,
) -> Trace: ...
@overload
def generate(
    model: Any,
    questions: Sequence[str],
    *,
    tokenizer: Any | None = ...,
    samples: int | None = ...,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_p: float = ...,
    seed: int = ...,
    batch_size: int = ...,
    format: str | Format = ...,
    chat: bool | Chat = ...,
    budget: ThinkingBudget | None = ...,
    stop: str | Sequence[str] = ...,
    fit: bool = ...,
    progress: bool = ...,
) -> list[Trace]: ...
@overload
def generate(
    model: Any,
    questions: Prompt | Sequence[Prompt],
    *,
    tokenizer: Any | None = ...,
    samples: int | None = ...,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_p: float = ...,
    seed: int = ...,
    batch_size: int = ...,
    format: str | Format = ...,
    chat: bool | Chat = ...,
    budget: ThinkingBudget | None = ...,
    stop: str | Sequence[str] = ...,
    fit: bool = ...,
    progress: bool = ...,
) -> Any: ...
def generate(
    model: Any,
    questions: Prompt | Sequence[Prompt],
    *,
    tokenizer: Any | None = None,
    samples: int | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
    format: str | Format = "auto",
    chat: bool | Chat = True,
    budget: ThinkingBudget | None = None,
    stop: str | Sequence[str] = (),
    fit: bool = False,
    progress: bool = False,
) -> Any:
    """Let the model answer questions, under whatever StepFlow is attached to it.

    Example::

        trace = generate(model, "Tom has 3 pens. He buys 4. How many?")
        trace = generate(model, [{"role": "system", "content": "Be brief."},
                                 {"role": "user", "content": "Why?"}])
        traces = generate(hf_model, [ids, other_ids], tokenizer=tokenizer)

    Args:
        model: A `TransformerBridge`, a `HookedTransformer`, or a Hugging Face decoder.
        questions: One prompt, or a sequence of several: a question, a conversation (a list of
            messages ``{"role", "content"}``, whose last user turn is the question), or token ids
            (a list, or a tensor [pos]).
        tokenizer: The tokenizer; None for the model's own.
        samples: Traces per prompt; None for one.
        max_new_tokens: Cut a response here; its trace then has ``ended`` False.
        temperature: 0 for greedy decoding, which makes all samples of a prompt equal.
        top_p: Nucleus sampling's probability.
        seed: Same seed, same traces; each trace draws from its own generator, which is seeded by
            the question, or by the token ids of any other prompt.
        batch_size: Prompts decoded together, left-padded, against one KV cache. In float32 it
            changes a text only where two logits are equal to within rounding; in narrower types
            rounding is coarser, and texts may differ.
        format: How the model writes its reasoning; ``"auto"`` asks chat template, prompt and text.
        chat: Whether to ask with the tokenizer's chat template, and how.
        budget: Cut or prolong the thinking at a number of tokens. A response whose prompt has
            closed the thinking, or of a model that has none, is left alone.
        stop: Texts that end a response in its answer (from the first character that is not white
            space), with the token that completes one; its trace then has ``ended`` False.
        fit: Cut responses to what fits in the model's context, and say so as ``cut: "context"`` in
            the trace's metadata, instead of refusing what does not. A prompt that fills the context
            then has an empty response.
        progress: Show a progress bar.

    Returns:
        A `Trace` for a single prompt without `samples`; else a list, the samples of each prompt in
        turn.

    Raises:
        GenerationError: No prompt, an empty one, a setting out of range, a prompt and
            `max_new_tokens` beyond the model's context, a batch that memory does not suffice for,
            or logits that are NaN or infinite.
        ModelError: The model has no tokenizer, and none is given.
        ValueError: The budget does not fit the format, or a stop string is empty.

    Warns:
        UserWarning: There is a budget, and no response had a thinking.
    """
    one = is_one_prompt(questions)
    if not one and not isinstance(questions, Iterable):
        raise GenerationError(f"expected a prompt, or a sequence of several, got {questions!r}")
    if budget is not None and not isinstance(budget, ThinkingBudget):
        raise GenerationError(f"expected budget to be a ThinkingBudget, got {budget!r}")
    given: list[Any] = [questions] if one else list(questions)
    for name, value in (
        ("samples", 1 if samples is None else samples),
        ("max_new_tokens", max_new_tokens),
        ("batch_size", batch_size),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise GenerationError(f"expected {name} >= 1, got {value!r}")
    if not given:
        raise GenerationError("expected at least one question, got none")
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    tokenizer = tokenizer_of(model) if tokenizer is None else tokenizer
    asked = [as_prompt(tokenizer, prompt, chat=chat) for prompt in given]
    decoder = Decoder(
        model,
        tokenizer,
        form=named_format(format),
        sampling=sampling,
        plans=None if budget is None else Plans(budget, tokenizer, end_token_ids(model, tokenizer)),
        stops=stop_strings(stop),
    )
    decoder.check(asked)
    limits = [_limit(model, prompt, max_new_tokens, fit) for prompt in asked]
    jobs = [(i, sample) for i in range(len(asked)) for sample in range(samples or 1)]
    traces: list[Trace] = []
    with tqdm(total=len(jobs), unit="trace", disable=not progress) as bar:
        for first in range(0, len(jobs), batch_size):
            batch = jobs[first : first + batch_size]
            rows = [asked[i].token_ids for i, _ in batch]
            with enough_memory(GenerationError, partial(_smaller, rows, max_new_tokens)):
                done = decoder.decode(
                    rows,
                    [sampling.generator(asked[i].seed_text, sample) for i, sample in batch],
                    [limits[i] for i, _ in batch],
                )
            for (i, sample), row in zip(batch, done, strict=True):
                facts = {
                    "question": asked[i].question,
                    "sample": sample,
                    "seed": seed,
                    "temperature": temperature,
                    "top_p": top_p,
                    "max_new_tokens": max_new_tokens,
                    "model": model_name(model),
                }
                traces.append(_trace(row, asked[i], facts, decoder, limits[i]))
            bar.update(len(batch))
    if budget is not None and all(trace.format_name == PLAIN.name for trace in traces):
        warnings.warn(
            f"{budget} forced nothing: expected responses with a thinking, got none in "
            f"{len(traces)}, and the chat template opens none",
            UserWarning,
            stacklevel=2,
        )
    return traces[0] if one and samples is None else traces


def _limit(model: Any, asked: Asked, wanted: int, fit: bool) -> int:
    """Tokens that a response may have."""
    limit, length = context_length(model), len(asked.token_ids)
    if limit is None or length + wanted <= limit:
        return wanted
    if fit:
        return max(0, limit - length)
    raise GenerationError(
        f"expected prompt and response within the {limit} positions of the model's context, got a "
        f"prompt of {length} tokens and max_new_tokens={wanted}, {length + wanted} in all; pass "
        f"a smaller max_new_tokens, or fit=True to cut the response to the "
        f"{max(0, limit - length)} tokens that are left"
    )


def _trace(row: Row, asked: Asked, facts: dict[str, Any], decoder: Decoder, limit: int) -> Trace:
    """The trace of a finished row."""
    reader = row.reader
    ids = row.columns[row.pads : row.pads + len(reader.texts)]
    if limit < facts["max_new_tokens"] and reader.response_length == limit and not reader.ended:
        facts["cut"] = "context"
    if asked.messages is not None:
        facts["messages"] = [dict(message) for message in asked.messages]
    trace = Trace.of_reader(ids, reader, metadata=facts)
    if asked.question is None:
        question = trace.text_of(trace.steps[0]) if trace.steps_in("question") else ""
        return trace.with_metadata(question=question)
    return trace


def _smaller(rows: Sequence[Sequence[int]], limit: int) -> str:
    """What would need less memory than these prompts together."""
    longest = max(len(row) for row in rows)
    got = (
        f"batch_size={len(rows)} with prompts of up to {longest} tokens and max_new_tokens={limit}"
    )
    if len(rows) > 1:
        return f"expected a batch that fits, got {got}; try batch_size={len(rows) // 2}"
    return (
        f"expected a response that fits, got {got}; try max_new_tokens={max(1, limit // 2)}, a "
        "model in dtype='bfloat16' or quantised (hf_model=...), or device_map='auto'"
    )


@dataclass(frozen=True)
class Decoder:
    """Decodes batches: it drives the model, and so owns the readers of its rows.

    Attributes:
        model: Any model.
        tokenizer: Its tokenizer.
        form: How responses are written.
        sampling: How tokens are chosen.
        plans: What a thinking budget means in token ids; None without one.
        stops: Texts that end an answer.
    """

    model: Any
    tokenizer: Any
    form: Format
    sampling: Sampling
    plans: Plans | None
    stops: tuple[str, ...]

    def check(self, asked: Sequence[Asked]) -> None:
        """Refuse a budget that cannot be forced on what is asked, before anything is decoded.

        Raises:
            ValueError: The budget does not fit a format.
        """
        if self.plans is None:
            return
        for prompt in asked:
            form = self.form
            if form.is_auto:
                text = self.tokenizer.decode(prompt.token_ids, skip_special_tokens=False)
                form = expected_format(self.tokenizer, text)
                if form is PLAIN:
                    continue
            self.plans.of(form)

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        generators: Sequence[torch.Generator],
        limits: Sequence[int],
    ) -> list[Row]:
        """Decode one left-padded batch.

        Args:
            prompts: Token ids of each prompt.
            generators: The random numbers of each row.
            limits: Tokens that each response may have.

        Returns:
            The rows, each read up to its end token, the token that stopped it, or its limit.

        Raises:
            GenerationError: The logits of a row are NaN or infinite.
        """
        if len(prompts) > 1 and not self._fit_together(prompts, limits):
            alone = zip(prompts, generators, limits, strict=True)
            return [self.decode([p], [g], [limit])[0] for p, g, limit in alone]
        pad_id = pad_token_id(self.model, self.tokenizer)
        rows = Rows.of_prompts(
            self.tokenizer,
            prompts,
            self.form,
            pad_id=pad_id,
            end_ids=end_token_ids(self.model, self.tokenizer),
        )
        with torch.no_grad(), publish(self.model, rows):
            self._run(rows, prompts, generators, limits)
        return list(rows)

    def _fit_together(self, prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> bool:
        """Whether these can be one batch: all have room, and so has the padding."""
        positions = context_length(self.model) if padding_takes_positions(self.model) else None
        width = max(map(len, prompts)) + max(limits)
        return min(limits) > 0 and (positions is None or width <= positions)

    def _run(
        self,
        rows: Rows,
        prompts: Sequence[Sequence[int]],
        generators: Sequence[torch.Generator],
        limits: Sequence[int],
    ) -> None:
        """Choose and push a token for every row, until each is finished."""
        device = input_device(self.model)
        forced = [] if self.plans is None else [ForcedRow(self.plans, row.reader) for row in rows]
        stopped = [StoppedRow(self.stops, row.reader) for row in rows] if self.stops else []
        tokens = torch.tensor([row.columns for row in rows], device=device)
        mask = torch.tensor(  # none after a row's limit: its positions end there
            [
                [0] * row.pads + [1] * (rows.width - row.pads + limit) + [0] * (max(limits) - limit)
                for row, limit in zip(rows, limits, strict=True)
            ],
            device=device,
        )
        unfinished = [row for row in range(len(rows)) if limits[row] > 0]
        for row in set(range(len(rows))) - set(unfinished):
            rows[row].finish()
        cache = None
        for step in range(max(limits)):
            logits, cache = decode(self.model, tokens, mask[:, : rows.width], cache)
            ids = self._choose(logits, generators)
            for row in unfinished:
                if ids[row] < 0:
                    raise _non_finite(row, step, prompts)
            ids = [token if token >= 0 else -1 - token for token in ids]
            if forced:
                ids = [row.next(token) for row, token in zip(forced, ids, strict=True)]
            rows.push([[token] for token in ids])
            for row in unfinished:
                if (
                    rows[row].reader.ended
                    or step + 1 >= limits[row]
                    or (stopped and stopped[row].stopped())
                ):
                    rows[row].finish()
            unfinished = [row for row in unfinished if not rows[row].ended]
            if not unfinished:
                return
            tokens = torch.tensor(ids, device=device)[:, None]

    def _choose(
        self, logits: Float[Tensor, "batch vocab"], generators: Sequence[torch.Generator]
    ) -> list[int]:
        """The next token of every row; -1 - token where its logits are not finite."""
        chosen = self.sampling.choose(logits, generators)
        best = logits.amax(-1)  # NaN where any is, and infinite only where no token is left
        ids: list[int] = torch.where(best.isfinite(), chosen, -1 - chosen).tolist()
        return ids


def _non_finite(row: int, step: int, prompts: Sequence[Sequence[int]]) -> GenerationError:
    return GenerationError(
        f"expected finite logits, got NaN or infinite ones in row {row} of a batch of "
        f"{len(prompts)}, for its new token {step} (position {len(prompts[row]) + step}, after a "
        f"prompt of {len(prompts[row])}): check the weights and what is attached; {WIDER}"
    )
