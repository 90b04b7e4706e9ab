"""A local task of lm-evaluation-harness, made of the bundled reasoner's word problems."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from stepflow_tl.tasks.word_problems import Problem

BOX = r"boxed\{(-?\d+)\}"


def write_task(folder: Path, problems: Sequence[Problem], **changes: Any) -> Path:
    """Write the task ``words``: its YAML, and its problems as JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"question": p.question, "answer": str(p.answer)} for p in problems]
    (folder / "words.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = {
        "task": "words",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "words.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n\n"], "max_gen_toks": 300, "do_sample": False},
        "filter_list": [
            {
                "name": "boxed",
                "filter": [
                    {"function": "regex", "regex_pattern": BOX, "group_select": -1},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    } | changes
    (folder / "words.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    return folder
