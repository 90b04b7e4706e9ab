"""Commands on sweeps: run, resume, status, merge, export."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from stepflow_tl.cli.app import app
from stepflow_tl.errors import SettingError


class _DefaultsToRun(typer.core.TyperGroup):
    """`sweep CONFIG.yaml` is `sweep run CONFIG.yaml`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


sweeps = typer.Typer(
    cls=_DefaultsToRun,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Sweep settings over problems: sweep CONFIG.yaml, then resume, status, merge, export.",
)
app.add_typer(sweeps, name="sweep")


StorePath = Annotated[Path, typer.Argument(help="The sweep's store (.sqlite).")]
Address = Annotated[
    str | None,
    typer.Option(
        "--ray", help="Decode on a Ray cluster: its address, 'auto', or 'local' to start one here."
    ),
]

Mix = Annotated[bool, typer.Option("--mix", help="Accept a store with rows of something else.")]

Gpus = Annotated[float, typer.Option(min=0.0, help="GPUs for each Ray worker.")]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code-execution", help="Let graders run programs that the model wrote."),
]


@sweeps.command("run")
def sweep_run(
    config: Annotated[Path, typer.Argument(help="Settings (.yaml); see the README.")],
    store: Annotated[
        Path | None, typer.Option(help="Where rows are kept; default: CONFIG.sqlite beside it.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="N/OF",
            help="3/16: the third of sixteen parts, one for each task of a job array; default "
            "store: CONFIG.3-of-16.sqlite.",
        ),
    ] = None,
    ray: Address = None,
    gpus: Gpus = 0.0,
    mix: Mix = False,
    allow_code_execution: AllowCode = False,
) -> None:
    """Run a sweep, or go on with it; each finished batch is kept, whatever happens."""
    from stepflow_tl.sweep import read_config

    part = None if shard is None else _read_shard(shard)
    described = read_config(config, allow_code_execution=allow_code_execution)
    name = ".sqlite" if part is None else f".{part[0]}-of-{part[1]}.sqlite"
    path = store or config.with_suffix(name)
    with _resumable(path):
        described.run(path, executor=_executor(ray, gpus), progress=True, mix=mix, shard=part)
    _show_status(path)
    typer.echo(f"  {path}")


@sweeps.command("resume")
def sweep_resume(
    store: StorePath,
    ray: Address = None,
    gpus: Gpus = 0.0,
    mix: Mix = False,
    allow_code_execution: AllowCode = False,
) -> None:
    """Finish the sweeps that a store remembers."""
    from stepflow_tl.sweep import resume

    with _resumable(store):
        resume(
            store,
            executor=_executor(ray, gpus),
            progress=True,
            mix=mix,
            allow_code_execution=allow_code_execution,
        )
    _show_status(store)


@sweeps.command("status")
def sweep_status(store: StorePath) -> None:
    """How far a sweep is, and its accuracies so far; while it is running, too."""
    _show_status(store)


@sweeps.command("merge")
def sweep_merge(
    stores: Annotated[
        list[Path], typer.Argument(help="Stores, such as those of a sweep's shards.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The store that takes them in; default: the first of them.")
    ] = None,
    mix: Mix = False,
) -> None:
    """Put several stores into one; `sweep resume` then finishes what is still missing."""
    from stepflow_tl.sweep import merge, missing_shards

    into, sources = (stores[0], stores[1:]) if out is None else (out, stores)
    missing = missing_shards(stores)  # they must all be there: none is made but --out
    typer.echo(merge(sources, into, mix=mix).to_string(index=False))
    typer.echo()
    _show_status(into)
    if missing:
        named = ", ".join(f"{number}/{of}" for number, of in missing)
        typer.echo(f"missing: shard {named}; stepflow-tl sweep resume {into} finishes it")
    typer.echo(f"  {into}")


@sweeps.command("export")
def sweep_export(
    store: StorePath,
    out: Annotated[
        Path | None, typer.Option(help="The .parquet or .csv file; default: STORE.parquet.")
    ] = None,
) -> None:
    """Write all rows to one file, whole or not at all."""
    from stepflow_tl.sweep import Store, write_table

    table = Store(store).to_dataframe()
    path = out or store.with_suffix(".parquet")
    write_table(table, path)
    typer.echo(f"  {path}: {len(table)} rows")


@contextmanager
def _resumable(store: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if store.is_file():  # else it was stopped before there was anything to go on with
            sys.stderr.write(f"stopped; go on with: stepflow-tl sweep resume {store}\n")
        raise


def _read_shard(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    try:
        return int(number), int(of)
    except ValueError:
        raise SettingError(
            f"expected --shard such as 3/16, the third of sixteen, got {text!r}"
        ) from None


def _executor(ray: str | None, gpus: float) -> Any:
    from stepflow_tl.sweep import LocalExecutor, RayExecutor

    if ray is None:
        return LocalExecutor()
    return RayExecutor(address=None if ray == "local" else ray, gpus=gpus)


def _show_status(store: Path) -> None:
    from stepflow_tl.sweep import status

    shown = status(store).round({"accuracy": 3, "seconds": 1})
    typer.echo(shown.to_string(index=False, na_rep="-"))
