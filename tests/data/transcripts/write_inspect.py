"""Write inspect/*.eval and inspect/*.json with inspect-ai 0.3.285: logs of one task, two formats.

    python -m venv ENV; ENV/bin/pip install inspect-ai==0.3.285
    ENV/bin/python tests/data/transcripts/write_inspect.py

The real library runs the task on its model mockllm with canned outputs, so no model answered. Ids
and times differ from run to run, the texts do not. Done to the logs once they are written: paths of
the environment and of this folder, which stand in a traceback and in the header, are replaced by
names, member by member in words.eval; and words.json is read and written again by the library
without its events, which are most of it (words.eval has them).
"""

import atexit
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

SCRATCH = tempfile.mkdtemp()
atexit.register(shutil.rmtree, SCRATCH)
os.environ |= {"XDG_DATA_HOME": SCRATCH, "GIT_DIR": SCRATCH}  # traces; no git revision in the logs

from inspect_ai import Task, eval, task  # noqa: E402
from inspect_ai.dataset import Sample  # noqa: E402
from inspect_ai.log import read_eval_log, write_eval_log  # noqa: E402
from inspect_ai.model import (  # noqa: E402
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentReasoning,
    ContentText,
    ModelOutput,
    ModelUsage,
    get_model,
)
from inspect_ai.scorer import match  # noqa: E402
from inspect_ai.solver import generate, solver, use_tools  # noqa: E402
from inspect_ai.tool import tool  # noqa: E402

HERE = Path(__file__).resolve().parent
OUT = HERE / "inspect"
QUESTION = "In {0}, Dan has 12. In {0} near Dan, Ivy has three more. How many {0} does Ivy have?"
THINKING = "Here, in {0}, Dan has 12: 12 for Dan. So in {0} near Dan, Ivy has three more: 12+3=15."
ANSWER = "Dan has 12 {0}, so Ivy has 15.\n\nThe answer is 15"
EXAMPLE = [
    ChatMessageSystem(content="End with the number."),
    ChatMessageUser(content="How many pens are 2 pens and 5 pens?"),
    ChatMessageAssistant(content="Two and five are seven.\n\nThe answer is 7"),
]


def sample(id, thing, before=()):
    """Give a question about things, perhaps after other messages."""
    question = QUESTION.format(thing)
    asked = [*before, ChatMessageUser(content=question)] if before else question
    return Sample(id=id, input=asked, target="15", metadata={"thing": thing})


SAMPLES = [
    sample("reasoning", "coins"),
    sample("inline", "pens"),
    sample(3, "books"),
    sample("turns", "stamps", EXAMPLE),
    sample("tool", "shells"),
    sample("error", "cups"),
]


def answer(messages, tools, tool_choice, config):
    """Answer, with a count of tokens, for which mockllm would ask the net."""
    output = answered(messages)
    output.usage = ModelUsage(input_tokens=60, output_tokens=50, total_tokens=110)
    return output


def answered(messages):
    """Answer as the thing asked about wants it."""
    asked = [message.text for message in messages if message.role == "user"][-1]
    thing = asked.split()[1].strip(",")
    thinking, text = THINKING.format(thing), ANSWER.format(thing)
    if thing == "shells" and messages[-1].role != "tool":
        output = ModelOutput.for_tool_call(
            "mockllm/model", "add", {"a": 12, "b": 3}, tool_call_id="call_1", content="I add them."
        )
        output.message.content = [
            ContentReasoning(reasoning="I need 12+3."),
            ContentText(text="I add them."),
        ]
        return output
    content = {
        "pens": f"<think>\n{thinking}\n</think>\n\n{text}",
        "books": text,
    }.get(thing, [ContentReasoning(reasoning=thinking), ContentText(text=text)])
    return ModelOutput.from_content("mockllm/model", content)


@tool
def add():
    """Give a tool that adds."""

    async def execute(a: int, b: int):
        """Add two numbers.

        Args:
            a: One.
            b: Another.
        """
        return str(a + b)

    return execute


@solver
def fragile():
    """Give a solver that fails on cups the second time."""

    async def solve(state, generate):
        if state.sample_id == "error" and state.epoch == 2:
            raise ValueError("no cups left")
        return state

    return solve


@task
def words():
    """Give the task."""
    return Task(dataset=SAMPLES, solver=[fragile(), use_tools(add()), generate()], scorer=match())


def named(data):
    """Replace paths of this machine by names."""
    for path, name in ((sys.prefix, "ENV"), (sys.base_prefix, "PYTHON"), (str(HERE), "HERE")):
        data = data.replace(path.encode(), name.encode())
    return data


def keep(log, kept):
    """Copy a log, with names for paths, and as JSON without events."""
    if kept.suffix == ".json":
        read = read_eval_log(str(log))
        for each in read.samples:
            each.events = []
        write_eval_log(read, str(log))
        kept.write_bytes(named(log.read_bytes()))
        return
    with zipfile.ZipFile(log) as old, zipfile.ZipFile(kept, "w") as new:
        for member in old.infolist():
            new.writestr(member, named(old.read(member)))  # compressed as it was


def main():
    """Run the task once per format."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    for form, epochs, ids in (
        ("eval", 2, ["reasoning", "error"]),
        ("json", 1, ["inline", 3, "turns", "tool"]),
    ):
        (done,) = eval(
            words(),
            model=get_model("mockllm/model", custom_outputs=answer, memoize=False),
            epochs=epochs,
            sample_id=ids,
            log_dir=str(Path(SCRATCH, form)),
            log_format=form,
            fail_on_error=False,
            display="none",
        )
        keep(Path(done.location), OUT / f"words.{form}")


if __name__ == "__main__":
    main()
