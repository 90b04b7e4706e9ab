"""Commands on benchmarks: prompt, grade, lm-eval, estimate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from stepflow_tl.cli.app import app
from stepflow_tl.cli.options import Model
from stepflow_tl.errors import SettingError
from stepflow_tl.text import escaped, one_line


@app.command()
def prompt(
    model: Model = "reasoner",
    task: Annotated[
        str | None, typer.Option(help="A benchmark, such as aime24 or gpqa_diamond.")
    ] = None,
    path: Annotated[Path | None, typer.Option(help="A local file of it, or of your own.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="Of your own file: math, number, choice or code.")
    ] = None,
    style: Annotated[
        str | None, typer.Option(help="How to ask; default: as the model likes.")
    ] = None,
    item: Annotated[int, typer.Option(min=0, help="Which question.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the sample: it orders the options.")] = 0,
) -> None:
    """Print the whole prompt of a benchmark's question, as the model would see it.

    Only the tokenizer is loaded. Control characters are shown as escapes.
    """
    from stepflow_tl.models.loading import load_tokenizer
    from stepflow_tl.tasks import Benchmark, rendered_prompt, style_for
    from stepflow_tl.tasks.prompts import as_style

    chosen = style_for(model) if style is None else as_style(style)
    benchmark = Benchmark(name=task, path=path, kind=kind, style=chosen)  # type: ignore[arg-type]
    if item >= len(benchmark.items):
        raise SettingError(f"expected an item below {len(benchmark.items)}, got {item}")
    asked, tokenizer = benchmark.items[item], load_tokenizer(model)
    text = rendered_prompt(tokenizer, benchmark, asked, seed=seed, chat=chosen.chat)
    shown = escaped(text, keep="\n")
    tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    typer.echo(
        f"style {chosen.name} ({chosen.source})\n"
        f"recommended: temperature {chosen.temperature:g}, top_p {chosen.top_p:g}, up to "
        f"{chosen.max_new_tokens} tokens\n"
        f"{benchmark.label}, item {item} of {len(benchmark.items)}, {one_line(asked.group)}, "
        f"seed {seed}: {tokens} tokens\n\n{shown}"
    )


@app.command()
def grade(
    file: Annotated[Path, typer.Argument(help="JSON lines, JSON, CSV or Parquet.")],
    kind: Annotated[
        str | None,
        typer.Option(help="math, number, choice or code; default: each row says it."),
    ] = None,
    response: Annotated[str, typer.Option(help="The field of what the model wrote.")] = "response",
    gold: Annotated[str, typer.Option(help="The field of the right answer.")] = "gold",
    score: Annotated[str, typer.Option(help="The field of a score to compare with.")] = "score",
    limit: Annotated[int, typer.Option(min=0, help="Disagreements to print.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Write every verdict as JSON lines.")] = None,
    skip_errors: Annotated[
        bool, typer.Option("--skip-errors", help="Leave out, count and name rows with an error.")
    ] = False,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run what the model wrote.")
    ] = False,
) -> None:
    """Grade other people's outputs, and compare with a stored score, disagreements first.

    A field may lie within others: --response resps.0.0 --gold doc.answer --score exact_match

    Example: stepflow-tl grade samples.jsonl --kind math
    """
    from stepflow_tl.integrations.grade_file import Fields, audit_file

    audit = audit_file(
        file,
        kind=kind,
        fields=Fields(response=response, gold=gold, score=score),
        allow_code_execution=allow_code_execution,
        on_error="skip" if skip_errors else "raise",
    )
    if out is not None:
        lines = (json.dumps(row.as_json()) for row in audit.rows)
        out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    typer.echo(audit.text(limit))


@app.command(
    "lm-eval",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def lm_eval(
    arguments: Annotated[list[str] | None, typer.Argument(help="What lm_eval takes.")] = None,
) -> None:
    """lm-evaluation-harness's own command, with --model stepflow-tl: any generative task.

    Example: stepflow-tl lm-eval --model stepflow-tl --model_args pretrained=NAME,oeb_tau=0.15
    --tasks gsm8k --apply_chat_template

    What else it takes: stepflow-tl lm-eval run --help
    """
    from stepflow_tl.integrations.lm_eval import main as run_harness

    run_harness(arguments or [])


@app.command()
def estimate(
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            "-m",
            help="A Hugging Face name, a folder or a config.json; several: columns.",
        ),
    ],
    task: Annotated[str, typer.Option(help="aime24, math500, gpqa_diamond, ...")],
    samples: Annotated[
        int | None, typer.Option(help="Answers per problem; default: the paper's.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Mean length of a response; default: the decoding limit.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="The decoding limit.")] = 32_768,
    prompt_tokens: Annotated[int, typer.Option(help="Length of a prompt.")] = 256,
    gpu: Annotated[str, typer.Option(help="a100-80gb, h100-sxm or h200.")] = "h100-sxm",
    memory: Annotated[float | None, typer.Option(help="In place of the GPU's: GB.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="In place of the GPU's: TB/s.")] = None,
    tflops: Annotated[float | None, typer.Option(help="In place of the GPU's.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs that hold the model.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Responses decoded together.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16, int8, int4.")
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="Measured by you, all rows together.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What a benchmark costs: tokens, memory, GPU hours, from the model's configuration alone.

    Example: stepflow-tl estimate --model Qwen/QwQ-32B --task aime24 --samples 16
    """
    from stepflow_tl import estimate as costs
    from stepflow_tl.tasks import source_of

    size = source_of(task)
    run = costs.Run(
        problems=size.problems,
        samples=size.samples if samples is None else samples,
        max_new_tokens=max_new_tokens,
        tokens=tokens,
        prompt_tokens=prompt_tokens,
        dtype=dtype,
        gpus=gpus,
        batch_size=batch_size,
        tokens_per_second=tokens_per_second,
    )
    device = costs.gpu(gpu, memory=memory, bandwidth=bandwidth, tflops=tflops)
    found = [costs.estimate(costs.read_architecture(name), run, device) for name in model]
    if as_json:
        typer.echo(json.dumps([costs.record(each) for each in found], indent=2))
        return
    typer.echo(costs.table(found))
    for note in costs.notes(found):
        typer.echo(f"  {note}")
