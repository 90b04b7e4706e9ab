"""Write openai/*.json[l] with openai 3.51.0: chat completions and a batch, as a user stores them.

    python -m venv ENV
    ENV/bin/pip install openai==3.51.0
    ENV/bin/python tests/data/transcripts/write_openai.py

The real client asks a server on 127.0.0.1 that gives canned bodies in the documented shape, so the
client's own parsing and dumping made every row, but no model did. Same bytes every time. The files
vllm_* beside them are written by write_vllm.py.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from openai import OpenAI

OUT = Path(__file__).parent / "openai"
QUESTION = (
    "How many coins does Una have? In coins unlike Ivy, Una has two more. In coins after Dan, "
    "Ivy has three more. In coins unlike Sue, Dan has twice as many. In coins, Sue has 12."
)
REASONING = (
    "Here, in coins, Sue has 12: 12 for Sue. And in coins unlike Sue, Dan has twice as many: "
    "12*2=24 for Dan. So in coins after Dan, Ivy has three more: 24+3=27 for Ivy. "
    "So in coins unlike Ivy, Una has two more: 27+2=29 for Una."
)
ANSWER = (
    "At first, Sue has 12 coins.\n\nLater, Ivy has 27 and Una has 29.\n\nThe answer is \\boxed{29}."
)
CALL = {
    "id": "call_9aXq",
    "type": "function",
    "function": {"name": "add", "arguments": '{"a":27,"b":2}'},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        },
    },
}


def choice(content, finish="stop", **more):
    """Give one choice of a body."""
    message = {"role": "assistant", "content": content, "refusal": None, "annotations": []}
    return {"message": message | more, "logprobs": None, "finish_reason": finish}


def body(number, *choices, model="reasoner"):
    """Give a body as a server sends it."""
    return {
        "id": f"chatcmpl-{number:04d}",
        "object": "chat.completion",
        "created": 1790000000 + number,
        "model": model,
        "choices": [{"index": i} | c for i, c in enumerate(choices)],
        "usage": {
            "prompt_tokens": 62,
            "completion_tokens": 120,
            "total_tokens": 182,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 80,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        "service_tier": "default",
        "system_fingerprint": "fp_0a1b2c3d4e",
    }


BODIES = [
    body(1, choice(ANSWER, reasoning_content=REASONING)),
    body(
        2,
        choice(ANSWER, reasoning_content=REASONING),
        choice("", "length", reasoning_content=REASONING[:100]),
    ),
    body(3, choice(None, "tool_calls", tool_calls=[CALL], reasoning_content=REASONING)),
    body(4, choice("The answer is \\boxed{29}.")),
    body(5, choice(None, refusal="I'm sorry, I can't help with that.")),
    body(6, choice(f"<think>\n{REASONING}\n</think>\n\n{ANSWER}")),
]
BATCH = {
    "trace-0": (200, body(7, choice(ANSWER, reasoning_content=REASONING))),
    "trace-1": (200, body(8, choice("The answer is \\boxed{29}."), choice("29", "length"))),
    "trace-2": (
        400,
        {
            "error": {
                "message": "Unsupported value: 'temperature' must be at most 2.",
                "type": "invalid_request_error",
                "param": "temperature",
                "code": "unsupported_value",
            }
        },
    ),
    "trace-3": None,  # not answered within the completion window
}


def batch_line(key):
    """Give one line of a batch's output or error file."""
    number = int(key[-1])
    line = {"id": f"batch_req_{number:04d}", "custom_id": key}
    if BATCH[key] is None:
        text = "This request could not be executed before the completion window expired."
        return line | {"response": None, "error": {"code": "batch_expired", "message": text}}
    status, answer = BATCH[key]
    response = {"status_code": status, "request_id": f"req_{number:04d}", "body": answer}
    return line | {"response": response, "error": None}


def lines(rows):
    """Give JSON lines as text."""
    return "".join(json.dumps(row) + "\n" for row in rows)


FILES = {  # a batch's answers come in no fixed order
    "file-out": lines(batch_line(key) for key in ("trace-1", "trace-0")),
    "file-err": lines(batch_line(key) for key in ("trace-2", "trace-3")),
}


class Server(BaseHTTPRequestHandler):
    """Answers the five calls that the client makes."""

    chats = iter(BODIES)

    def log_message(self, *_):
        pass

    def reply(self, data, kind="application/json"):
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def batch(self, status):
        self.reply(
            {
                "id": "batch_0001",
                "object": "batch",
                "endpoint": "/v1/chat/completions",
                "input_file_id": "file-in",
                "completion_window": "24h",
                "status": status,
                "output_file_id": "file-out",
                "error_file_id": "file-err",
                "created_at": 1790000000,
            }
        )

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/chat/completions":
            self.reply(next(self.chats))
        elif self.path == "/v1/files":
            self.reply(
                {
                    "id": "file-in",
                    "object": "file",
                    "bytes": 1,
                    "created_at": 1790000000,
                    "filename": "batch_input.jsonl",
                    "purpose": "batch",
                    "status": "processed",
                }
            )
        else:
            self.batch("validating")

    def do_GET(self):
        if self.path.startswith("/v1/files/"):
            self.reply(FILES[self.path.split("/")[3]].encode(), "application/octet-stream")
        else:
            self.batch("completed")


def chats(client):
    """Ask six times; store the rows with and without their requests."""
    user = {"role": "user", "content": QUESTION}
    system = {"role": "system", "content": "You may add with the tool."}
    parts = {"role": "user", "content": [{"type": "text", "text": QUESTION}]}
    rows, bare = [], []

    def ask(messages, **more):
        answer = client.chat.completions.create(model="reasoner", messages=messages, **more)
        rows.append({"messages": messages, "response": answer.model_dump()})
        bare.append(answer)
        return answer.choices[0].message

    ask([user])
    ask([user], n=2, max_tokens=120)
    call = ask([system, user], tools=[TOOL]).to_dict()
    result = {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": "29"}
    ask([system, user, call, result], tools=[TOOL])
    ask([{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Fly me."}])
    ask([parts])
    (OUT / "completions.jsonl").write_text(lines(rows))
    (OUT / "bare.jsonl").write_text("".join(a.to_json(indent=None) + "\n" for a in bare[:3]))
    (OUT / "completion.json").write_text(bare[0].to_json() + "\n")


def batch(client):
    """Send a batch; store its input and what is fetched."""
    source = OUT / "batch_input.jsonl"
    requests = [
        {
            "custom_id": key,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "reasoner",
                "messages": [
                    {"role": "system", "content": "Think first."},
                    {"role": "user", "content": f"({key}) {QUESTION}"},
                ],
                "n": 2 if key == "trace-1" else 1,
                "temperature": 3.0 if key == "trace-2" else 0.6,
                "max_tokens": 300,
            },
        }
        for key in BATCH
    ]
    source.write_text(lines(requests))
    with source.open("rb") as file:
        sent = client.files.create(file=file, purpose="batch")
    made = client.batches.create(
        input_file_id=sent.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    done = client.batches.retrieve(made.id)
    client.files.content(done.output_file_id).write_to_file(OUT / "batch_output.jsonl")
    client.files.content(done.error_file_id).write_to_file(OUT / "batch_errors.jsonl")


def main():
    """Serve and write."""
    OUT.mkdir(exist_ok=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    with OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        chats(client)
        batch(client)
    server.shutdown()


if __name__ == "__main__":
    main()
