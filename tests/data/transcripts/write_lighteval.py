"""Write lighteval/**/*.parquet with lighteval 0.13.0: details of one task, by two of its backends.

    python -m venv ENV; ENV/bin/pip install torch==2.13.0
    ENV/bin/pip install "lighteval[litellm]==0.13.0" transformers==5.24.0 litellm==1.80.0 "xxhash<4"
    ENV/bin/python tests/data/transcripts/write_lighteval.py

reasoner/: its transformers backend on the bundled reasoner, two sampled responses each.
openai/reasoner/: its litellm backend on a server on 127.0.0.1 with canned answers, so no model did
those: for pens one with reasoning apart, for coins one with it inline, which litellm sets apart;
each beside one without any.
Same texts with the same versions on the same machine. In the names of folders and files the time is
replaced by a fixed one, and the task's "words|0" by "words_0", which every file system takes.
"""

import atexit
import json
import os
import shutil
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE / "lighteval"
WEIGHTS = HERE.parents[2] / "stepflow_tl" / "reasoner" / "weights"
SCRATCH = tempfile.mkdtemp()
atexit.register(shutil.rmtree, SCRATCH)
os.chdir(SCRATCH)  # litellm caches where it is imported
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": SCRATCH, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}

import torch  # noqa: E402
from lighteval.logging.evaluation_tracker import EvaluationTracker  # noqa: E402
from lighteval.metrics.metrics import Metrics  # noqa: E402
from lighteval.models.endpoints.litellm_model import LiteLLMModelConfig  # noqa: E402
from lighteval.models.transformers.transformers_model import TransformersModelConfig  # noqa: E402
from lighteval.pipeline import ParallelismManager, Pipeline, PipelineParameters  # noqa: E402
from lighteval.tasks.lighteval_task import LightevalTaskConfig  # noqa: E402
from lighteval.tasks.registry import Registry  # noqa: E402
from lighteval.tasks.requests import Doc  # noqa: E402

TIME = "2026-01-02T03-04-05.678901"
DOCS = [
    {
        "question": "How many pens does Gil have? In pens, Jim has 4. In pens unlike Gus, Gil has "
        "Jim's count more. In pens near Jim, Gus has two more.",
        "answer": "10",
    },
    {
        "question": "How many coins does Una have? In coins unlike Ivy, Una has two more. In coins "
        "after Dan, Ivy has three more. In coins unlike Sue, Dan has twice as many. In coins, "
        "Sue has 12.",
        "answer": "29",
    },
]
PENS = "In pens, Jim has 4: 4 for Jim. So Gus has two more: 4+2=6. So Gil has Jim's more: 6+4=10."
COINS = "In coins, Sue has 12. So Dan has twice as many: 12*2=24, Ivy 24+3=27 and Una 27+2=29."
CANNED = {
    "pens": [
        {"content": "The answer is \\boxed{10}.", "reasoning_content": PENS},
        {"content": "Gil has \\boxed{10} pens."},
    ],
    "coins": [
        {"content": f"<think>\n{COINS}\n</think>\n\nThe answer is \\boxed{{29}}."},
        {"content": "Una has \\boxed{29} coins."},
    ],
}


class Server(BaseHTTPRequestHandler):
    """A server of chat completions with canned answers."""

    def do_POST(self):
        """Answer what was asked about."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        messages = CANNED["pens" if "pens" in asked["messages"][-1]["content"] else "coins"]
        choices = [
            {"index": i, "finish_reason": "stop", "message": {"role": "assistant"} | message}
            for i, message in enumerate(messages)
        ]
        usage = {"prompt_tokens": 60, "completion_tokens": 50, "total_tokens": 110}
        body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1790000000}
        body |= {"model": "reasoner", "choices": choices, "usage": usage}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
        """Stay quiet."""


def prompt(line, task_name):
    """Give a row of the data as lighteval's document."""
    return Doc(
        query=line["question"],
        choices=[line["answer"]],
        gold_index=0,
        task_name=task_name,
        specific={"source": "tests"},
    )


TASKS_TABLE = [
    LightevalTaskConfig(
        name="words",
        prompt_function=prompt,
        hf_repo=f"{SCRATCH}/data",
        hf_subset="default",
        metrics=[Metrics.avg_at_n_math(sample_params={"n": 2})],
        hf_avail_splits=["test"],
        evaluation_splits=["test"],
        generation_size=200,
    )
]


def run(launcher, model):
    """Run the task on a model and keep its details."""
    pipeline = Pipeline(
        tasks="words|0",
        pipeline_parameters=PipelineParameters(
            launcher_type=launcher,
            custom_tasks_directory=sys.modules[__name__],
            bootstrap_iters=0,
        ),
        evaluation_tracker=EvaluationTracker(output_dir="out", save_details=True),
        model_config=model,
    )
    torch.manual_seed(1)
    pipeline.evaluate()
    pipeline.save_and_push_results()
    (written,) = Path("out", "details", model.model_name).glob("*/details_words|0_*.parquet")
    kept = OUT / model.model_name / TIME / f"details_words_0_{TIME}.parquet"
    kept.parent.mkdir(parents=True)
    shutil.copyfile(written, kept)


def main():
    """Run the task in a scratch folder, once per backend."""
    Path("data").mkdir()
    Path("data", "test.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    shutil.copytree(WEIGHTS, "reasoner")
    sampling = Path("reasoner", "generation_config.json")  # lighteval does not set it itself
    sampling.write_text(json.dumps(json.loads(sampling.read_text()) | {"do_sample": True}))
    Registry._load_from_files = Registry._load_from_subdirs = lambda *_: {}  # they ask the net
    shared = {"generation_parameters": {"temperature": 0.6}, "cache_dir": f"{SCRATCH}/cache"}
    shutil.rmtree(OUT, ignore_errors=True)
    local = TransformersModelConfig(model_name="reasoner", dtype="float32", batch_size=1, **shared)
    run(ParallelismManager.ACCELERATE, local)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    remote = LiteLLMModelConfig(
        model_name="openai/reasoner",
        base_url=f"http://127.0.0.1:{server.server_port}/v1",
        api_key="none",
        max_model_length=2048,
        system_prompt="Answer in a box.",
        **shared,
    )
    run(ParallelismManager.NONE, remote)
    server.shutdown()


if __name__ == "__main__":
    main()
