"""Sample logs of lm-evaluation-harness (``samples_*.jsonl``, ``--log_samples``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stepflow_tl.errors import TraceError
from stepflow_tl.integrations.transcripts.transcript import Transcript


def is_lm_eval(row: Mapping[str, Any]) -> bool:
    """Whether a row is one of its samples."""
    return {"doc_id", "doc", "arguments", "resps"} <= set(row)


def read_lm_eval(row: Mapping[str, Any], seen: dict[str, Any]) -> Iterator[Transcript | str]:
    """Each response of a sample, or why it is not read.

    The prompt is what the model was given, chat template and all. A sample comes once for each of a
    task's filters, with the same responses: they are read with the first.

    Args:
        row: The sample.
        seen: What is known of its file, which this writes on.

    Raises:
        TraceError: It has no generated text, or belongs to another filter.
    """
    asked = _arguments(row["arguments"])
    if len(asked) != 1 or not isinstance(asked[0][1], Mapping):
        raise TraceError(
            "a task of log-likelihoods: expected one of generated text (output_type: "
            "generate_until)"
        )
    name, first = row.get("filter"), row.get("doc_hash")
    if "filter" not in seen or (  # another task begins, in a file of several
        name not in (seen["filter"], seen["declined"]) and first != seen["first"]
    ):
        seen.update(filter=name, first=first, declined=None)
    elif name != seen["filter"]:
        seen["declined"] = name
        raise TraceError(
            f"expected each response once, got that of filter {seen['filter']!r} under another, "
            f"{name!r}"
        )
    prompt = asked[0][0]
    if not isinstance(prompt, str):
        raise TraceError("expected the prompt as text")
    facts = {
        "doc_id": row["doc_id"],
        "gold": row.get("target"),
        "filtered": row.get("filtered_resps"),
        "scores": {name: row.get(name) for name in row.get("metrics", ())},
    }
    for number, response in enumerate(row["resps"][0]):
        if not isinstance(response, str):
            yield f"response {number}: expected text, got {type(response).__name__}"
        else:
            yield Transcript(
                prompt=prompt,
                rendered=True,
                content=response,
                facts={**facts, "sample": number},
            )


def _arguments(arguments: Any) -> list[tuple[Any, Any]]:
    """Pairs of prompt and settings, in the layout of any release since 0.4."""
    found = arguments.values() if isinstance(arguments, Mapping) else arguments
    pairs = [tuple(a.values()) if isinstance(a, Mapping) else tuple(a) for a in found]
    return [pair for pair in pairs if len(pair) == 2]
