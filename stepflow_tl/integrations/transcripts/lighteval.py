"""Details of lighteval (``details_*.parquet``, ``--save-details``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stepflow_tl.errors import TraceError
from stepflow_tl.integrations.transcripts.transcript import Transcript, check_conversation


def is_lighteval(row: Mapping[str, Any]) -> bool:
    """Whether a row is one of its details."""
    return isinstance(row.get("doc"), Mapping) and isinstance(row.get("model_response"), Mapping)


def read_lighteval(row: Mapping[str, Any]) -> Iterator[Transcript | str]:
    """Each response of a row, or why it is not read.

    The prompt is the text or the messages that the model was given, where the backend keeps them,
    and its tokens otherwise: these are for the tokenizer of the model that was evaluated.

    Raises:
        TraceError: It has no generated text, or no prompt.
    """
    doc, said = row["doc"], row["model_response"]
    texts = said.get("text") or []
    if not texts:
        raise TraceError("a task of log-likelihoods: expected one of generated text")
    given = said.get("input")
    prompt = given if isinstance(given, str) else None
    messages = check_conversation(given) if isinstance(given, list) else ()
    prompt_ids = tuple(int(i) for i in said.get("input_tokens") or ())
    if prompt is None and not messages and not prompt_ids:
        raise TraceError("expected the model's input, as text, messages or tokens, got none")
    outputs, reasonings = said.get("output_tokens") or [], said.get("reasonings") or []
    choices, gold = doc.get("choices") or [], doc.get("gold_index")
    golds = [choices[i] for i in (gold if isinstance(gold, list) else [gold]) if i is not None]
    facts = {
        "id": doc.get("id"),
        "task": doc.get("task_name"),
        "gold": golds[0] if len(golds) == 1 else golds,
        "scores": row.get("metric"),
    }
    for number, text in enumerate(texts):
        ids = tuple(int(i) for i in outputs[number]) if number < len(outputs) else ()
        exact = bool(prompt_ids and ids)
        yield Transcript(
            prompt=prompt,
            rendered=None if prompt is None else True,
            messages=messages,
            content=text,
            reasoning=reasonings[number] if number < len(reasonings) else None,
            prompt_ids=prompt_ids if exact else None,
            token_ids=ids if exact else None,
            facts={**facts, "sample": number},
        )
