"""What tests of tasks share."""

import json

import pytest


@pytest.fixture
def written(tmp_path):
    """Write rows as JSON lines."""

    def write(*rows, name="mine.jsonl"):
        path = tmp_path / name
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return path

    return write
