"""Write lm_eval/reasoner/samples_*.jsonl with lm-eval 0.4.13: sample logs of the bundled reasoner.

    python -m venv ENV; ENV/bin/pip install torch==2.13.0
    ENV/bin/pip install "lm-eval[hf]==0.4.13" transformers==5.23.0
    ENV/bin/python tests/data/transcripts/write_lm_eval.py

lm-eval's own command and its own model "hf", once per task: words_chat (chat template, two filters,
thinking kept), words_answer (system message, an example as turns, thinking cut off by lm-eval),
words_plain (bare prompt, two sampled repeats) and words_choice (log-likelihoods: no responses).
Same bytes with the same versions on the same machine: the time in the files' names, which is all
that would differ, is replaced by a fixed one.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

OUT = Path(__file__).parent / "lm_eval"
WEIGHTS = Path(__file__).resolve().parents[3] / "stepflow_tl" / "reasoner" / "weights"
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


def pick(name, pattern):
    """Give a filter that takes the last match of a pattern."""
    regex = {"function": "regex", "regex_pattern": pattern, "group_select": -1}
    return {"name": name, "filter": [regex, {"function": "take_first"}]}


TASK = {
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n\n\n\n"], "max_gen_toks": 300, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}
FILTERS = [pick("boxed", r"boxed\{(-?\d+)\}"), pick("last-number", r"(-?\d+)")]
SAMPLED = {"until": ["\n\n\n\n"], "max_gen_toks": 120, "do_sample": True, "temperature": 0.6}
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_choice": ["10", "29"],
    "doc_to_target": "{{0 if answer == '10' else 1}}",
    "metric_list": [{"metric": "acc"}],
}
TASKS = {
    "words_chat": TASK | {"filter_list": FILTERS},
    "words_answer": TASK | {"filter_list": FILTERS[:1], "fewshot_split": "test"},
    "words_plain": TASK | {"repeats": 2, "generation_kwargs": SAMPLED},
    "words_choice": {k: v for k, v in TASK.items() if k != "generation_kwargs"} | CHOICE,
}
OPTIONS = {
    "words_chat": ["--apply_chat_template"],
    "words_answer": [
        *("--apply_chat_template", "--system_instruction", "Answer in a box."),
        *("--num_fewshot", "1", "--fewshot_as_multiturn", "True"),
    ],
}


def main():
    """Run each task in a scratch folder and keep its samples."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "reasoner").symlink_to(WEIGHTS)
        (folder / "words.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
        data = {"dataset_kwargs": {"data_files": {"test": str(folder / "words.jsonl")}}}
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "cache"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        shutil.rmtree(OUT, ignore_errors=True)
        for name, task in TASKS.items():
            (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | data | task))
            model = "pretrained=reasoner,dtype=float32"
            model += ",think_end_token=</think>" if name == "words_answer" else ""
            command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", model]
            command += ["--tasks", name, "--include_path", scratch, "--device", "cpu"]
            command += ["--log_samples", "--output_path", "out", *OPTIONS.get(name, [])]
            subprocess.run(command, cwd=scratch, env=environment, check=True, timeout=300)
            (samples,) = (folder / "out" / "reasoner").glob(f"samples_{name}_*.jsonl")
            kept = OUT / "reasoner" / f"samples_{name}_{TIME}.jsonl"
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(samples, kept)


if __name__ == "__main__":
    main()
