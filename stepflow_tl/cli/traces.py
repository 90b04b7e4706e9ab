"""Commands on traces: demo, generate, saliency, read, diagnose, import, export."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from stepflow_tl.cli.app import app
from stepflow_tl.cli.options import DeviceMap, Dtype, Model, placed
from stepflow_tl.cli.settings import DemoSettings
from stepflow_tl.text import one_line


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for summary.json, tables and pictures.")] = Path(
        "outputs/demo"
    ),
    per_set: Annotated[
        int, typer.Option(min=1, help="Problems in each set (by number of operations).")
    ] = DemoSettings.per_set,
    seed: Annotated[int, typer.Option(help="Of the problems.")] = DemoSettings.seed,
) -> None:
    """Run the main job on the bundled reasoner: solve, look, repair, compare.

    Writes story.html, to be opened in a browser: a failure is planted, seen and repaired, with the
    null result where nothing was planted; the same as a picture (failure.png); step maps of a
    correct and a wrong trace, the failure measures by layer, and a table of the same problems
    solved with and without StepFlow.
    """
    from stepflow_tl.cli.demo import failure_sentence, format_table, run_demo

    settings = DemoSettings(per_set=per_set, seed=seed)
    summary = run_demo(out, settings, progress=True, processes=min(2, os.cpu_count() or 1))
    typer.echo(format_table(summary["table"]))
    typer.echo(f"\nNothing planted. {summary['verdict']}")
    typer.echo(f"\nPlanted. {failure_sentence(summary['planted'])}\n")
    for name in [summary["page"], "summary.json", "table.csv", *summary["pictures"]]:
        typer.echo(f"  {out / name}")
    typer.echo(f"in {summary['seconds']:.0f} s")


@app.command()
def generate(
    questions: Annotated[list[str], typer.Argument(help="One question, or several.")],
    model: Model = "reasoner",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the traces, one .safetensors file each.")
    ] = None,
    stepflow: Annotated[
        bool, typer.Option("--stepflow/--plain", help="Decode under StepFlow, or without it.")
    ] = False,
    tau_max: Annotated[float, typer.Option(help="OEB's tau_max (paper: 0.15); 0 is off.")] = 0.15,
    alpha: Annotated[float, typer.Option(help="SMI's alpha (paper: 0.06); 0 is off.")] = 0.06,
    samples: Annotated[int, typer.Option(min=1, help="Traces per question.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Cut a response here.")] = 1024,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Same seed, same traces.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts decoded together.")] = 32,
    chat: Annotated[
        bool, typer.Option("--chat/--no-chat", help="Ask with the model's chat template, or not.")
    ] = True,
    dtype: Dtype = "float32",
    device_map: DeviceMap = None,
) -> None:
    """Let a model answer questions, and show its traces step by step.

    Example: stepflow-tl generate --stepflow "How many books does Ann have? ..."
    """
    from stepflow_tl import OddsEqualBridge, StepFlow, StepMomentum, load_model
    from stepflow_tl import generate as generate_traces

    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    loaded = load_model(model, dtype=dtype, **placed(device_map))
    interventions = (OddsEqualBridge(tau_max=tau_max), StepMomentum(alpha=alpha))
    flow = StepFlow(*interventions) if stepflow else StepFlow()
    with flow.attach(loaded) as run:
        traces = generate_traces(
            loaded,
            questions,
            samples=samples,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            batch_size=batch_size,
            chat=chat,
            progress=True,
        )
    for number, trace in enumerate(traces):
        for step in trace.steps:
            typer.echo(f"{step.index:4d} {step.segment:9s} {one_line(step.text)}")
        if not trace.ended:
            unclosed = ", its thinking never closed" if trace.unclosed else ""
            typer.echo(f"     (cut at max_new_tokens{unclosed})")
        typer.echo(f"     answer: {one_line(trace.answer or 'none')}\n")
        if out is not None:
            trace.save(out / f"trace_{number:04d}.safetensors")
    if stepflow:
        typer.echo(repr(run.ledger))


@app.command()
def saliency(
    trace: Annotated[
        Path, typer.Argument(help="A saved trace (.safetensors), or a transcript as text (.txt).")
    ],
    model: Model = "reasoner",
    out: Annotated[Path | None, typer.Option(help="Save the map here (.safetensors).")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw shallow and deep maps here.")] = None,
    rule: Annotated[
        str,
        typer.Option(
            help="attention_x_gradient, signed, gradient, attention, attention_x_value, jacobian "
            "or rollout."
        ),
    ] = "attention_x_gradient",
    objective: Annotated[
        str,
        typer.Option(
            help="token (the paper), logit, margin, sequence (its code), summary or answer."
        ),
    ] = "token",
    pool: Annotated[
        str, typer.Option(help="share of each token's row, mean (the paper), or sum.")
    ] = "share",
    backend: Annotated[
        str, typer.Option(help="hooks, fused (long traces), or auto, which chooses.")
    ] = "auto",
    work_file: Annotated[
        Path | None,
        typer.Option(help="Write the scores here meanwhile; a stopped run goes on from it."),
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(help="Queries scored together: fewer need less memory.")
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option(help="Less memory for the other objectives, with --backend fused.")
    ] = False,
    dtype: Dtype = "float32",
    device_map: DeviceMap = None,
) -> None:
    """Compute the step-to-step saliency map of a trace.

    A transcript must hold the model's own delimiters, for example <think> and </think>.
    """
    from stepflow_tl import load_model, step_saliency

    for path in (out, picture):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    loaded = load_model(model, dtype=dtype, **placed(device_map))
    step_map = step_saliency(
        loaded,
        _read_trace(trace, loaded),
        rule=rule,  # type: ignore[arg-type]
        objective=objective,  # type: ignore[arg-type]
        pool=pool,  # type: ignore[arg-type]
        backend=backend,  # type: ignore[arg-type]
        chunk=chunk,
        checkpointing=checkpointing,
        work_file=work_file,
        progress=True,
    )
    typer.echo(repr(step_map))
    if out is not None:
        step_map.save(out)
        typer.echo(f"  {out}")
    if picture is not None:
        from stepflow_tl.models.view import view
        from stepflow_tl.plots import figure_step_flow, save_figure
        from stepflow_tl.version import versions

        files = save_figure(
            figure_step_flow({trace.stem: step_map}),
            picture,
            formats=[picture.suffix.lstrip(".") or "png"],
            facts={
                "settings": dict(step_map.settings),
                "n": 1,
                "seeds": {},
                "models": {view(loaded).name: {"weights": view(loaded).weights_hash()}},
                "versions": versions(),
            },
        )
        typer.echo(f"  {files[0]}")


@app.command()
def read(
    files: Annotated[
        list[Path],
        typer.Argument(help="A saved trace and maps of it (.safetensors), or a sweep's .sqlite."),
    ],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("outputs/read.html"),
    after: Annotated[
        list[Path] | None,
        typer.Option(help="What it is compared with: a trace, a map; once for each file."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="The page's title.")] = None,
    model: Annotated[
        str, typer.Option(help="Of a sweep: its model, whose tokenizer reads the answers.")
    ] = "reasoner",
) -> None:
    """Write the one-file reader: text beside its maps, in any browser, without a network.

    Example: stepflow-tl read trace.safetensors map.safetensors --out page.html
    """
    from stepflow_tl.errors import SettingError
    from stepflow_tl.views import read_files, read_sweep

    out.parent.mkdir(parents=True, exist_ok=True)
    stores = [path for path in files if path.suffix == ".sqlite"]
    if stores:
        if len(files) > 1 or after:
            raise SettingError(f"expected one .sqlite by itself, got {len(files)} files")
        from stepflow_tl import load_model

        page = read_sweep(stores[0], load_model(model), title)
        typer.echo(f"  {page.write(out)}")
        return
    typer.echo(f"  {read_files(files, after or (), title).write(out)}")


@app.command()
def diagnose(
    step_map: Annotated[Path, typer.Argument(help="A map that `saliency --out` saved.")],
) -> None:
    """Print the failure measures of a map: Shallow Lock-in and Deep Decay, layer by layer."""
    from stepflow_tl import StepMap
    from stepflow_tl import diagnose as diagnose_map

    loaded = StepMap.load(step_map)
    table = diagnose_map(loaded)
    undefined = table.attrs["undefined"]
    typer.echo(table.drop(columns=list(undefined)).round(3).to_string(index=False))
    for reason in dict.fromkeys(undefined.values()):
        names = ", ".join(name for name, said in undefined.items() if said == reason)
        typer.echo(f"(not here: {names}: {reason})")


@app.command("import")
def import_(
    path: Annotated[
        Path,
        typer.Argument(
            help="A file (.jsonl, .jsonl.gz, .json, .parquet, .csv, .eval), or a folder."
        ),
    ],
    model: Model = "reasoner",
    out: Annotated[
        Path, typer.Option(help="Folder for the traces and the table, transcripts.csv.")
    ] = Path("outputs/transcripts"),
    kind: Annotated[
        str | None,
        typer.Option(
            help="lm-eval, lighteval, inspect, openai, thought-anchors, stepflow-tl or lines; "
            "default: as each row says."
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="The field of the prompt, in rows of prompt and response.")
    ] = None,
    response: Annotated[str | None, typer.Option(help="The field of the response.")] = None,
    reasoning: Annotated[
        str | None, typer.Option(help="The field of the thinking, where it is kept apart.")
    ] = None,
    requests: Annotated[
        Path | None, typer.Option(help="The input of a batch, whose output is imported (OpenAI).")
    ] = None,
    rollouts: Annotated[
        bool, typer.Option("--rollouts", help="Read the rollouts of thought-anchors, too.")
    ] = False,
    format: Annotated[
        str, typer.Option(help="How responses are written: auto, think, harmony or plain.")
    ] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many responses.")] = None,
) -> None:
    """Make traces of other people's transcripts, for a model's tokenizer.

    Sample logs of lm-evaluation-harness, details of lighteval, logs of Inspect, chat completions
    (as vLLM serves them, too), folders of thought-anchors, JSON lines of prompt and response. Bad
    rows stop nothing: the table says what was read, and what not, and why. Only the tokenizer is
    loaded.

    Example: stepflow-tl import samples_gsm8k.jsonl --model Qwen/Qwen3-8B
    """
    from stepflow_tl.integrations.transcripts import Fields, import_transcripts
    from stepflow_tl.models.loading import load_tokenizer

    imported = import_transcripts(
        load_tokenizer(model),
        path,
        out,
        kind=kind,
        fields=Fields(prompt=prompt, response=response, reasoning=reasoning),
        requests=requests,
        rollouts=rollouts,
        format=format,
        limit=limit,
        progress=True,
    )
    typer.echo(f"{imported}\n  {imported.table}")


@app.command("export")
def export(
    traces: Annotated[
        list[Path], typer.Argument(help="Saved traces (.safetensors), or folders of these.")
    ],
    out: Annotated[Path, typer.Option(help="The .jsonl file, or the folder of thought-anchors.")],
    layout: Annotated[str, typer.Option(help="lines, or thought-anchors.")] = "lines",
) -> None:
    """Write traces for others: JSON lines of text and steps, or thought-anchors' layout.

    Imported again, they are the same traces, labels and all.
    """
    from stepflow_tl.integrations.transcripts import export_traces, saved_traces

    count = export_traces(saved_traces(traces), out, layout=layout)  # type: ignore[arg-type]
    typer.echo(f"  {out}: {count} traces")


def _read_trace(path: Path, model: Any) -> Any:
    from stepflow_tl import Trace

    if path.suffix == ".safetensors":
        return Trace.load(path)
    return Trace.from_text(model, path.read_text(encoding="utf-8"))
