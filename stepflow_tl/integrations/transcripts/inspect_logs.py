"""Logs of Inspect (inspect-ai): ``.eval`` archives and ``.json`` files."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from stepflow_tl.errors import TraceError
from stepflow_tl.integrations.transcripts.transcript import (
    Transcript,
    check_conversation,
    text_of,
)
from stepflow_tl.tasks.tables import At

_ZSTANDARD = 93  # which Python's zipfile reads from 3.14 on
_LOCAL_HEADER = 30
_ATTACHMENT = "attachment://"


def is_inspect(row: Mapping[str, Any]) -> bool:
    """Whether a row is one of its samples."""
    return {"epoch", "messages", "output", "target"} <= set(row)


def read_inspect(row: Mapping[str, Any]) -> Iterator[Transcript | str]:
    """The last message of a sample, the assistant's.

    Raises:
        TraceError: It has none: it was stopped by an error, or ends otherwise.
    """
    kept = row.get("attachments") or {}
    messages = [_flat(message, kept) for message in row["messages"] or []]
    if not messages or messages[-1]["role"] != "assistant":
        told = row.get("error") or {}
        raise TraceError(
            "expected a conversation whose last message is the assistant's"
            + (f": the sample failed ({told.get('message')})" if told else "")
        )
    last = messages[-1]
    if last.get("tool_calls"):
        raise TraceError("its last message calls tools; expected an answer")
    if not last["content"] and not last.get("reasoning_content"):
        raise TraceError("expected an answer, got a message without text")
    choices = (row.get("output") or {}).get("choices") or [{}]
    stop = choices[0].get("stop_reason")
    facts = {
        "id": row.get("id"),
        "sample": row.get("epoch"),
        "gold": row.get("target"),
        "model": (row.get("output") or {}).get("model"),
        "scores": {
            name: score.get("value") if isinstance(score, Mapping) else score
            for name, score in (row.get("scores") or {}).items()
        },
        "finish_reason": stop,
        "metadata": row.get("metadata") or None,
        "error": (row.get("error") or {}).get("message"),
    }
    yield Transcript(
        messages=check_conversation(messages[:-1]),
        content=last["content"],
        reasoning=last.get("reasoning_content"),
        ended=None if stop in (None, "unknown") else stop == "stop",
        facts={name: value for name, value in facts.items() if value is not None},
    )


def rows_of_archive(path: Path, at: At) -> Iterator[tuple[str, Any]]:
    """The samples of an ``.eval`` archive, one at a time.

    Args:
        path: The archive.
        at: Told how many bytes are behind.

    Yields:
        A sample's name there; and the sample, or the error that came instead.

    Raises:
        TraceError: It is no such archive.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            samples = [one for one in archive.infolist() if one.filename.startswith("samples/")]
            for member in samples:
                name = Path(member.filename).stem
                try:
                    yield name, json.loads(_unpacked(archive, file, member))
                except Exception as error:  # whatever it is, it costs this row alone
                    yield name, TraceError(f"the sample could not be unpacked: {error}")
                at(member.header_offset + member.compress_size)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise TraceError(f"expected a log of Inspect's, got {path.name}: {error}") from None


def _unpacked(archive: zipfile.ZipFile, file: Any, member: zipfile.ZipInfo) -> bytes:
    if member.compress_type != _ZSTANDARD:
        return archive.read(member)
    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER)
    names, extra = struct.unpack("<HH", header[26:30])
    file.seek(names + extra, 1)
    packed = pa.BufferReader(file.read(member.compress_size))
    with pa.CompressedInputStream(packed, "zstd") as stream:
        unpacked: bytes = stream.read()
    if zlib.crc32(unpacked) != member.CRC:
        raise TraceError("expected the checksum that it was packed with, got another: damaged")
    return unpacked


def _flat(message: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """A message as chat templates take it: content as text, reasoning beside it."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    thoughts = [part for part in parts if part.get("type") == "reasoning"]
    said = [part for part in parts if part.get("type") != "reasoning"]
    flat = {
        "role": message["role"],
        "content": text_of([{**part, "text": _found(part.get("text"), kept)} for part in said]),
    }
    if thoughts:
        if any(part.get("redacted") for part in thoughts):
            raise TraceError("its reasoning is redacted: expected the thinking itself")
        flat["reasoning_content"] = "".join(_found(p.get("reasoning"), kept) for p in thoughts)
    for name in ("tool_calls", "tool_call_id", "function"):
        if message.get(name):
            flat[name] = message[name]
    return flat


def _found(text: Any, kept: Mapping[str, Any]) -> Any:
    """A long text is kept apart from the message that says it."""
    if isinstance(text, str) and text.startswith(_ATTACHMENT):
        return kept.get(text.removeprefix(_ATTACHMENT), text)
    return text
