r"""Mirrors the paper's main table: a checkpoint on a benchmark, with and without StepFlow.

Without options it runs the bundled reasoner on its own word problems, to show that it works.
One command reproduces a row, and goes on where it was stopped::

    python experiments/main_results.py --model deepseek-ai/DeepSeek-R1-Distill-Qwen-7B \
        --task aime24 --samples 16 --dtype bfloat16

Prompt and sampling are those that the model's family recommends (the paper names none);
``--show-prompt`` prints what the model will see. With ``--calibrate`` tau_max and alpha are chosen
on a fifth of the problems, held out, and the others are reported.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import common
import pandas as pd
import published

from stepflow_tl import (
    Benchmark,
    Decoding,
    Grid,
    OddsEqualBridge,
    StepFlow,
    StepMomentum,
    Sweep,
    Task,
    WordProblems,
)
from stepflow_tl.analysis.presets import Preset, PresetName
from stepflow_tl.cli import errors_on_one_line
from stepflow_tl.models.loading import load_tokenizer
from stepflow_tl.plots import figure_arms
from stepflow_tl.sweep import calibrate
from stepflow_tl.tasks import STYLES, Style, rendered_prompt, style_for
from stepflow_tl.text import escaped

OWN = "word-problems"


@dataclass(frozen=True)
class Options:
    """What the command line asked for.

    Attributes:
        given: The options by name, as `parse` describes them.
    """

    given: argparse.Namespace
    name: str = "main_results"

    @property
    def out(self) -> Path:
        """Folder for the table, its picture and the stores."""
        if self.given.out is not None:
            return Path(self.given.out)
        model = self.given.model.strip("/").split("/")[-1]
        return Path("outputs/main_results") / f"{model}-{self.label}"

    @property
    def label(self) -> str:
        """The benchmark's name."""
        return str(self.given.task or (Path(self.given.path).stem if self.given.path else OWN))

    @cached_property
    def style(self) -> Style:
        """How the model's family wants to be asked."""
        return STYLES[self.given.style] if self.given.style else style_for(self.given.model)

    def task(self, part: str = "all") -> Task:
        """The problems: all of them, those to calibrate on, or the others."""
        if self.is_own:
            return WordProblems(
                n=self.given.n or 40,
                difficulties=(1,) if self.given.fast else (16, 17, 18),
                recall=() if self.given.fast else (6,),
                seed=72 if part == "calibration" else 71,
            )
        return Benchmark(
            name=self.given.task,
            path=self.given.path,
            kind=self.given.kind,
            n=self.given.n,
            part=part,
            style=self.style,
            allow_code_execution=self.given.allow_code_execution,
        )

    @property
    def is_own(self) -> bool:
        """Whether these are the bundled reasoner's own problems, which it is asked as they are."""
        return self.given.task is None and self.given.path is None

    @property
    def preset(self) -> Preset:
        """Whose settings: steps end where they end in the authors' code, too."""
        return Preset.of(self.given.preset)

    @property
    def decoding(self) -> Decoding:
        """As the model's family recommends, but for what was asked for."""
        style = self.style
        default = {
            "chat": True if self.is_own else style.chat,
            "temperature": 0.0 if self.is_own else style.temperature,
            "top_p": 1.0 if self.is_own else style.top_p,
            "max_new_tokens": 600 if self.is_own else style.max_new_tokens,
            "batch_size": 32 if self.is_own else 8,
        }
        asked = {name: getattr(self.given, name, None) for name in default}
        given = {name: value for name, value in asked.items() if value is not None}
        return Decoding(**default | given, format=self.preset.format)

    @property
    def sweep(self) -> dict[str, Any]:
        """What every sweep here is run with."""
        load = {"revision": self.given.revision, "device_map": self.given.device_map}
        return {
            "model": self.given.model,
            "dtype": self.given.dtype,
            "load": {name: value for name, value in load.items() if value is not None},
            "decoding": self.decoding,
            "seeds": tuple(range(self.samples)),
        }

    @property
    def samples(self) -> int:
        """Samples per problem: as asked for, else as in the paper."""
        task = self.task()
        default = task.samples if isinstance(task, Benchmark) else 1
        return int(self.given.samples or default)

    @property
    def running(self) -> dict[str, Any]:
        """How every sweep here is run."""
        cluster = common.executor(self.given.ray, gpus=self.given.gpus)
        return {"executor": cluster, "progress": True}

    @property
    def settings(self) -> dict[str, Any]:
        """What is written down beside the results."""
        return {
            "model": self.given.model,
            "task": self.task("test" if self.given.calibrate else "all").describe(),
            "style": self.style.describe(),
            "samples": self.samples,
            "dtype": self.given.dtype,
            "decoding": json.loads(json.dumps(vars(self.decoding), default=vars)),
            "fast": self.given.fast,
        }


def parse(argv: Sequence[str] | None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    add = parser.add_argument
    add("--model", default="reasoner", help="'reasoner', a Hugging Face name, or a folder")
    add("--task", help="aime24, math500, ... (default: the reasoner's own word problems)")
    add("--path", help="read the problems from this .jsonl or .parquet file")
    add("--kind", help="how a file of your own is graded: math, number, choice or code")
    add("--n", type=int, help="only so many problems")
    add("--samples", type=int, help="answers per problem (default: the paper's)")
    add("--style", choices=STYLES, help="how to ask (default: as the model's family likes)")
    add("--show-prompt", action="store_true", help="print the first prompt, and no more")
    add("--preset", choices=get_args(PresetName), default="paper", help="default: %(default)s")
    add("--tau-max", type=float, nargs="+", help="one value, or several to --calibrate")
    add("--alpha", type=float, nargs="+", help="one value, or several to --calibrate")
    add("--calibrate", action="store_true", help="choose tau_max and alpha on held-out problems")
    add("--temperature", type=float)
    add("--top-p", type=float)
    add("--max-new-tokens", type=int)
    add("--batch-size", type=int, help="responses decoded together")
    add("--dtype", default="float32", help="default: %(default)s; bfloat16 for large models")
    add("--device-map", help="'auto' spreads one model over all GPUs")
    add("--revision", help="of the checkpoint")
    add("--ray", help="a Ray cluster's address, or 'local' to start one here")
    add("--gpus", type=float, default=0.0, help="per Ray worker")
    add("--allow-code-execution", action="store_true", help="run programs that the model wrote")
    add("--out", help="default: outputs/main_results/MODEL-TASK")
    add("--fast", action="store_true", help="a few seconds' worth: not a result")
    given = parser.parse_args(argv)
    if given.path and not given.kind and not given.task:
        parser.error("--path needs --task NAME (a known benchmark's columns) or --kind")
    if not given.calibrate and max(len(given.tau_max or [0]), len(given.alpha or [0])) > 1:
        parser.error("several values of --tau-max or --alpha are for --calibrate")
    if given.fast:
        given.n = given.n or 4
    return Options(given)


def first_prompt(chosen: Options) -> str:
    """The first prompt as the model sees it, control characters as escapes."""
    task, tokenizer = chosen.task(), load_tokenizer(chosen.given.model)
    text = rendered_prompt(tokenizer, task, task.items[0], chat=chosen.decoding.chat)
    return escaped(text, keep="\n")


def chosen_flow(chosen: Options) -> tuple[StepFlow, dict[str, pd.DataFrame]]:
    """StepFlow as asked for, or as calibrated; and what was tried."""
    given = chosen.given
    strengths = {"tau_max": given.tau_max, "alpha": given.alpha}
    strengths = {name: values for name, values in strengths.items() if values is not None}
    if given.calibrate:
        found = calibrate(
            chosen.task("calibration"),
            chosen.out / "calibration.sqlite",
            **strengths,
            **chosen.sweep,
            **chosen.running,
        )
        said = "more accurate than" if found.beats_the_baseline else "no better than"
        print(f"calibrated: tau_max={found.tau_max}, alpha={found.alpha}, {said} the baseline")
        return found.flow, {"calibration: tried on held-out problems": found.tried}
    if not strengths:
        return chosen.preset.flow, {}
    one = {name: values[0] for name, values in strengths.items()}
    bridge = OddsEqualBridge(**{k: v for k, v in one.items() if k == "tau_max"})
    return StepFlow(bridge, StepMomentum(**{k: v for k, v in one.items() if k == "alpha"})), {}


def lengths(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean tokens of each setting's responses, and how many were cut before they ended."""
    grouped = rows.groupby("setting", sort=False)
    return grouped.agg(
        responses=("ended", "size"),
        cut=("ended", lambda ended: int((~ended).sum())),
        tokens=("tokens", "mean"),
        seconds=("seconds", "mean"),
    ).reset_index()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment, or go on with it."""
    chosen = parse(argv)
    if chosen.given.show_prompt:
        print(first_prompt(chosen))
        return
    flow, tried = chosen_flow(chosen)
    task = chosen.task("test" if chosen.given.calibrate else "all")
    rows = Sweep(task, Grid.of({"StepFlow": flow}), **chosen.sweep).run(
        chosen.out / "results.sqlite", **chosen.running
    )
    table = common.compare_by_group(rows)
    theirs = published.main_row(chosen.given.model, chosen.given.task)
    common.publish(
        chosen,
        figure_arms(
            common.over_all(table),
            published=_gain(theirs),
            published_as=published.THEIRS_HERE,
            title=f"{chosen.given.model}, {chosen.label}",
        ),
        {
            "with and without StepFlow": table,
            "length of the responses": lengths(rows),
            **tried,
            **({published.THEIRS_HERE: theirs} if len(theirs) else {}),
        },
        stepflow=repr(flow),
    )


def _gain(theirs: pd.DataFrame) -> pd.DataFrame | None:
    if theirs.empty:
        return None
    gain = (theirs["stepflow"] - theirs["baseline"]) / 100
    return theirs.assign(label="StepFlow", difference=gain)


if __name__ == "__main__":
    with errors_on_one_line():
        main()
