"""The command that closes the loop: diagnose, choose, repair, measure again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stepflow_tl.cli.app import app
from stepflow_tl.cli.options import Model
from stepflow_tl.errors import SettingError


@app.command()
def repair(
    model: Model = "reasoner",
    task: Annotated[
        str | None, typer.Option(help="A benchmark such as gsm8k; default: word problems.")
    ] = None,
    path: Annotated[Path | None, typer.Option(help="A local file of the benchmark.")] = None,
    problems: Annotated[str, typer.Option(help="Word problems: numbers of operations.")] = "16 17",
    n: Annotated[
        int, typer.Option(min=1, help="Problems in each group, held out and reported.")
    ] = 50,
    reference: Annotated[
        str | None,
        typer.Option(help="A healthy model of the same tokenizer, run on the same traces."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="What maps are compared with: reference, correct (traces), nothing. The first is "
            "the default with --reference; the others accuse no better than chance "
            "(docs/planted.md)."
        ),
    ] = None,
    measure: Annotated[str, typer.Option(help="The measure that accuses.")] = "lock_in",
    tau_max: Annotated[
        list[float] | None, typer.Option(help="Strengths to choose from; several times.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="The decoding limit.")] = 640,
    batch_size: Annotated[int, typer.Option(min=1, help="Responses decoded together.")] = 40,
    maps: Annotated[int, typer.Option(min=1, help="Traces that are diagnosed at most.")] = 60,
    out: Annotated[Path, typer.Option(help="Folder of the stores; a stopped run goes on.")] = Path(
        "outputs/repair"
    ),
) -> None:
    """Diagnose a model, choose layers and strength on held-out problems, repair, measure again.

    What is chosen is never reported on. A diagnosis is no proof: experiments/closed_loop.py
    measures how often it accuses the right layers.

    Example: stepflow-tl repair --model reasoner-locked-in --reference reasoner --problems 8
    """
    from stepflow_tl.decoding.settings import Decoding
    from stepflow_tl.models.loading import load_model
    from stepflow_tl.sweep import closed_loop
    from stepflow_tl.sweep.closed_loop import TAU_MAX

    held_out, reported = _problems(task, path, problems, n)
    compared = against or ("reference" if reference else None)
    if compared is None:
        raise SettingError(
            "expected --reference, a healthy model of the same tokenizer to compare with, or "
            "--against correct or nothing, got neither"
        )
    found = closed_loop(
        held_out,
        reported,
        out,
        model=load_model(model),
        reference=None if reference is None else load_model(reference),
        against=compared,  # type: ignore[arg-type]
        measure=measure,
        tau_max=tuple(tau_max or TAU_MAX),
        maps=maps,
        decoding=Decoding(max_new_tokens=max_new_tokens, batch_size=batch_size),
        progress=True,
    )
    typer.echo(text_of(found, measure, compared))


def text_of(found: Any, measure: str, against: str) -> str:
    """What a closed loop found, as it is printed."""
    from stepflow_tl.analysis import Estimate

    lines = [f"diagnosis: {measure} against {against}, held-out problems"]
    lines.append(found.band.evidence.round(3).to_string(index=False))
    layers = ", ".join(map(str, found.band.layers))
    lines.append(f"accused: layers {layers}\n\nstrengths, held-out problems")
    shown = ["arm", "n", "accuracy", "baseline", "difference", "fixed", "broken", "p_value"]
    lines.append(found.tried[shown].round(3).to_string(index=False))
    if found.outcome is None:
        lines.append("\nno strength was more accurate than none: nothing is repaired")
    else:
        lines.append(f"\nchosen: {found.flow.interventions[0]!r}\n\nreported problems")
        row = found.outcome.iloc[0]
        difference = Estimate(*(row[f"difference{end}"] for end in ("", "_low", "_high")))
        lines.append(
            f"accuracy {row['baseline']:.3f} -> {row['accuracy']:.3f}, difference {difference}, "
            f"n = {row['n']}, {row['fixed']} fixed, {row['broken']} broken, exact McNemar p = "
            f"{row['p_value']:.3g}"
        )
    lines.append(f"\n{measure} over the accused layers, reported problems")
    lines.append(found.measured.round(4).to_string(index=False))
    return "\n".join(lines)


def _problems(task: str | None, path: Path | None, problems: str, n: int) -> tuple[Any, ...]:
    """Held-out problems, and others to report on."""
    from stepflow_tl.tasks import Benchmark, WordProblems

    if task is not None or path is not None:
        return (
            Benchmark(name=task, path=path, part="calibration", n=n),
            Benchmark(name=task, path=path, part="test", n=n),
        )
    groups = problems.replace(",", " ").split()
    if not groups or not all(group.isdigit() for group in groups):
        raise SettingError(f"expected numbers of operations such as '16 17', got {problems!r}")
    difficulties = tuple(int(group) for group in groups)
    return tuple(WordProblems(n=n, difficulties=difficulties, seed=seed) for seed in (72, 71))
