"""Beyond the paper: a model of one's own on one page, before anything else is asked of it.

    python experiments/real_model.py --model path.gguf

A chat answer and its steps; its maps, shallow and deep; its attention sinks; what StepFlow does to
the same question, by its ledger; and what each cost.
"""

from __future__ import annotations

import argparse
import json
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import common
import matplotlib as mpl
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stepflow_tl import (
    Decoding,
    StepFlow,
    Trace,
    diagnose,
    generate,
    load_model,
    step_saliency,
    token_saliency,
)
from stepflow_tl.analysis import sink_shares
from stepflow_tl.plots import STYLE, plot_step_map

QUESTION = "Tom has 3 pens. He buys 4 more and gives 2 away. How many pens does he have now?"
SINKS = {"first_token": "first token", "frame": "other frame", "question": "question"}
T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    name: str
    model: str
    question: str
    decoding: Decoding
    dtype: str
    out: Path
    fast: bool

    @property
    def settings(self) -> dict[str, Any]:
        """What is written down beside the results."""
        shown = {n: getattr(self, n) for n in ("model", "question", "dtype", "fast")}
        return shown | {"decoding": vars(self.decoding)}


class Stopwatch:
    """Seconds that each part took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, part: str, work: Callable[[], T]) -> T:
        """Do some work."""
        started = time.perf_counter()
        done = work()
        self.seconds[part] = time.perf_counter() - started
        return done


def main(argv: Sequence[str] | None = None) -> None:
    """Print the page, and write it."""
    chosen = _options(argv)
    timed = Stopwatch()
    model = timed("loading", lambda: load_model(chosen.model, dtype=chosen.dtype))
    chat = bool(model.tokenizer.chat_template)
    asked = chosen.question if chat else f"Question: {chosen.question}\nAnswer:"

    def answer() -> Trace:
        return generate(model, asked, chosen.decoding, chat=chat)

    trace = timed("an answer", answer)
    maps = timed("its maps", lambda: step_saliency(model, trace))
    attention = timed("its patterns", lambda: token_saliency(model, trace, rule="attention"))
    with StepFlow.paper().attach(model) as run:
        repaired = timed("an answer under StepFlow", answer)
    ledger = run.ledger.to_dataframe()
    steps = trace.to_dataframe()[["index", "segment", "start", "stop", "text"]]
    sinks = sink_shares(attention, trace)
    print(textwrap.fill(f"question: {chosen.question}", 100))
    print(f"read as {trace.format_name}; boxed answer: {trace.answer or 'none'}")
    same = trace.token_ids.tolist() == repaired.token_ids.tolist()
    changed = "the same text" if same else f"another: {repaired.parts.graded!r}"
    measures = diagnose(maps)
    undefined = measures.attrs["undefined"]
    common.publish(
        chosen,
        _page(chosen, trace, maps, sinks, ledger),
        {
            "steps": steps,
            "failure measures": measures.drop(columns=list(undefined)),
            "sinks": sinks,
            "StepFlow's ledger": ledger,
        },
        under_stepflow=changed,
        undefined=undefined,
    )
    for name, reason in undefined.items():
        print(f"{name} is not here: it {reason}")
    print(f"under StepFlow: {changed}")
    tokens = {
        "an answer": len(trace) - trace.prompt_length,
        "its maps": len(trace),
        "an answer under StepFlow": len(repaired) - repaired.prompt_length,
    }
    cost = pd.DataFrame(
        [(part, seconds, tokens.get(part)) for part, seconds in timed.seconds.items()],
        columns=["part", "seconds", "tokens"],
    )
    print(f"\ncost\n{cost.round(2).to_string(index=False, na_rep='')}")
    path = chosen.out / f"{chosen.name}_cost.json"
    path.write_text(json.dumps(cost.to_dict("records"), indent=1), encoding="utf-8")


def _page(
    chosen: Options, trace: Trace, maps: Any, sinks: pd.DataFrame, ledger: pd.DataFrame
) -> Figure:
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=(14.0, 11.0), layout="constrained")
        axes = figure.subplot_mosaic([["shallow", "deep"], ["sinks", "ledger"]])
        for band in ("shallow", "deep"):
            plot_step_map(
                maps.band(band).normalize("row"),
                ax=axes[band],
                title=f"{band} layers, on a scale of their own",
                legend=band == "deep",
            )
        for name, label in SINKS.items():
            axes["sinks"].plot(sinks["layer"], sinks[name], marker="o", ms=3, label=label)
        axes["sinks"].set(
            xlabel="layer",
            ylabel="share of the response's attention",
            ylim=(0, 1),
            title="attention sinks",
        )
        axes["sinks"].legend(frameon=False)
        _draw_ledger(axes["ledger"], ledger)
        for name in ("sinks", "ledger"):
            axes[name].xaxis.set_major_locator(MaxNLocator(integer=True))  # layers
        said = textwrap.shorten(trace.response, 160, placeholder=" ...")
        figure.suptitle(
            textwrap.fill(f"{Path(chosen.model).name}: {said}", 120), parse_math=False, fontsize=10
        )
    return figure


def _draw_ledger(ax: Any, ledger: pd.DataFrame) -> None:
    bridge = ledger[ledger["intervention"] == "OddsEqualBridge"]
    momentum = ledger[ledger["intervention"] == "StepMomentum"]
    ax.plot(bridge["layer"], bridge["bridge_mass_before"], "o--", ms=4, label="before")
    ax.plot(bridge["layer"], bridge["bridge_mass_after"], "s-", ms=4, label="after")
    seen, changed = bridge["rows_seen"].sum(), bridge["rows_changed"].sum()
    injections = momentum["injections"].sum()
    ax.set(
        xlabel="layer of the Odds-Equal Bridge",
        ylabel="share of attention on the bridge",
        title=f"StepFlow: {changed:.0f} of {seen:.0f} rows changed, {injections:.0f} injections",
    )
    ax.legend(frameon=False)


def _options(argv: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--model", default="reasoner", help="'reasoner', a name, a folder, or a .gguf file"
    )
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--dtype", default="float32", help="or bfloat16, float16, auto")
    parser.add_argument("--out", type=Path, default=Path("outputs/experiments"))
    parser.add_argument("--fast", action="store_true", help="a few seconds' worth: not a result")
    given = parser.parse_args(argv)
    return Options(
        name="real_model",
        model=given.model,
        question=given.question,
        decoding=Decoding(max_new_tokens=40 if given.fast else given.max_new_tokens),
        dtype=given.dtype,
        out=given.out,
        fast=given.fast,
    )


if __name__ == "__main__":
    main()
