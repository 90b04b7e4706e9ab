"""Time and peak memory of Step-Saliency against the length of the trace, beside other ways to it.

    python benchmarks/saliency.py --out outputs/saliency_cost.json
    python benchmarks/saliency.py --plot outputs/saliency_cost.json

Every measurement runs in a fresh process on a seeded random checkpoint and seeded random tokens:
one for peak memory (the allocator returns what is freed at once), then `--rounds` for time, the
methods rotated in each. The results go to a JSON file after each measurement, and a run that was
stopped goes on from it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from saliency_cost.measure import GIB, measured, report
from saliency_cost.peers import BENCHMARKS, PEER_METHODS, PEERS, interpreter, runner
from saliency_cost.runs import Limits, Row, fresh_process, load_rows, run_all
from saliency_cost.tables import Clock, extrapolation, tables
from saliency_cost.workload import SHAPES, WARM_UP, WORDS, Shape, build_checkpoint, make_trace

BASELINE = "forward + backward"
METHODS = (
    BASELINE,
    "naive",
    "run_with_cache",
    "hooks",
    "hooks, streamed",
    "fused",
    "fused + checkpoint",
    "streamed",
)
FIGURE = Path("figures/saliency_cost.png")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all, or do one of the other things asked for."""
    options = _options(argv)
    if options.one:
        measure_one(options.one, options.tokens[0], options.checkpoint, options.threads)
    elif options.build:
        build_checkpoint(options.checkpoint, _shape(options))
        print("{}")
    elif options.plot:
        from saliency_cost.chart import save_chart

        save_chart(json.loads(options.plot.read_text()), options.figure, BASELINE, options.clock)
    else:
        measure_all(options)


def measure_one(method: str, tokens: int, folder: Path, threads: int) -> None:
    """One measurement in this process, printed as one JSON line."""
    import torch
    from saliency_cost import methods

    torch.set_num_threads(threads)
    chosen = methods.METHODS[method]
    model = chosen.load(folder)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    chosen.run(model, make_trace(WARM_UP, vocabulary))
    trace = make_trace(tokens, vocabulary)
    facts = measured(lambda: chosen.run(model, trace))
    report(facts, ("torch", "transformers", "transformer-lens", "stepflow-tl"))


def measure_all(options: argparse.Namespace) -> None:
    """All measurements, each in its process; then the tables."""
    shape, limits = _shape(options), Limits(options.limit_seconds, options.limit_gb)
    settings = {
        "shape": {"name": options.shape, **asdict(shape)},
        "threads": options.threads,
        "limits": asdict(limits),
        "targets": options.targets,
    }
    rows = load_rows(options.out, settings)
    methods, environment = list(options.methods), _environment(options.threads)
    if options.peers:
        methods += PEER_METHODS
        for peer in PEERS:
            interpreter(peer, options.peer_folder)
    with ExitStack() as stack:
        folder = options.checkpoint or Path(stack.enter_context(TemporaryDirectory()))
        if not (folder / WORDS).exists():  # written last
            _build(folder, options, environment)

        def measure(method: str, tokens: int, allocator: Mapping[str, str]) -> Row:
            command = _command(method, tokens, folder, options)
            return fresh_process(command, limits, {**environment, **allocator})

        def save() -> None:
            _write(options.out, {"settings": settings, "machine": machine(), "measurements": rows})

        rounds = 0 if options.extrapolate else options.rounds
        run_all(measure, methods, options.tokens, rounds, rows, save)
    if options.extrapolate:
        print(extrapolation(rows, shape))
    else:
        print(tables(rows, BASELINE, options.clock))


def machine() -> dict[str, Any]:
    """What the measurements ran on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "python": platform.python_version(),
    }


def _environment(threads: int) -> dict[str, str]:
    """What every process is given; peers find the shared parts on their path."""
    path = [str(BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(path),
    }


def _build(folder: Path, options: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Make the checkpoint in a process of its own, so that this one stays small."""
    shape = _shape(options)
    sizes = [f"--layers={shape.layers}", f"--vocabulary={shape.vocabulary}"]
    command = [sys.executable, __file__, "--build", f"--checkpoint={folder}"]
    command += [f"--shape={options.shape}", *sizes]
    made = fresh_process(command, Limits(seconds=3600, gib=1024), environment)
    if "error" in made:
        raise SystemExit(f"the checkpoint could not be made: {made['error']}")


def _command(method: str, tokens: int, folder: Path, options: argparse.Namespace) -> list[str]:
    """The command line of one measurement."""
    rest = [f"--tokens={tokens}", f"--checkpoint={folder}", f"--threads={options.threads}"]
    if method in PEER_METHODS:
        python = interpreter(PEER_METHODS[method], options.peer_folder)
        return [str(python), *runner(method), *rest, f"--targets={options.targets}"]
    return [sys.executable, __file__, f"--one={method}", *rest]


def _shape(options: argparse.Namespace) -> Shape:
    """The shape asked for, with its number of layers and vocabulary where they are given."""
    shape = SHAPES[options.shape]
    return replace(
        shape,
        layers=options.layers or shape.layers,
        vocabulary=options.vocabulary or shape.vocabulary,
    )


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file at once, so that a run stopped meanwhile leaves a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".part")
    half.write_text(json.dumps(content, indent=1) + "\n")
    half.replace(path)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    add("--peers", action="store_true", help="other packages, too, in environments made for them")
    add("--tokens", type=_numbers, default=(1024, 2048, 4096, 8192))
    add("--rounds", type=int, default=3, help="rounds for time, after one for memory")
    add("--clock", choices=get_args(Clock), default="cpu_seconds", help="of the ratios")
    add("--threads", type=int, default=1)
    add("--shape", choices=SHAPES, default="third")
    add("--layers", type=int, help="instead of the shape's own")
    add("--vocabulary", type=int, help="instead of the shape's own")
    add("--limit-seconds", type=float, default=600, help="of one process, loading included")
    add("--limit-gb", type=float, default=16, help="resident, in one process, model included")
    add("--targets", type=int, default=4, help="target tokens of peers that take them one by one")
    add("--extrapolate", action="store_true", help="memory only, and a straight line through it")
    add("--out", type=Path, default=Path("outputs/saliency_cost.json"))
    add("--checkpoint", type=Path, help="folder to keep the random model in, or to take it from")
    add("--peer-folder", type=Path, default=Path("outputs/peers"))
    add("--plot", type=Path, metavar="JSON", help="only draw the chart of an earlier run")
    add("--figure", type=Path, default=FIGURE, help="where --plot draws to")
    add("--one", metavar="METHOD", help="one measurement in this process, as one JSON line")
    add("--build", action="store_true", help="only make the checkpoint")
    options = parser.parse_args(argv)
    if (options.one or options.build) and options.checkpoint is None:
        parser.error("--one and --build need --checkpoint")
    return options


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
