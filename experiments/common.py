"""What the experiments share: options, the problems, one store, a figure with its JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from statsmodels.stats.multitest import multipletests

from stepflow_tl import Decoding, Grid, RayExecutor, StepFlow, Sweep, WordProblems, compare
from stepflow_tl.models.view import view
from stepflow_tl.plots import save_figure
from stepflow_tl.sweep import Store
from stepflow_tl.version import __version__, versions

# Settings under which the bundled reasoner fails at times: too many operations (it forgets or
# misreads premises), or counts of just any earlier person to recall (it carries wrong values).
PROBLEMS = "16 17 18 recall:6"
FAST_PROBLEMS = "1 recall:3"
SEED = 71


@dataclass(frozen=True)
class Options:
    """What the command line asked for.

    Attributes:
        name: The experiment's, and of its files.
        model: As `load_model` takes it.
        problems: Groups: numbers of operations, and "recall:6" for those that recall.
        n: Problems in each group.
        out: Folder for figures, JSON and the store.
        fast: A few seconds' worth, for tests: not a result.
        ray: Address of a Ray cluster, "local" to start one here, None for this process.
        given: All that was asked for, an experiment's own options among it.
    """

    name: str
    model: str
    problems: str
    n: int
    out: Path
    fast: bool
    ray: str | None
    given: argparse.Namespace

    @property
    def task(self) -> WordProblems:
        """The problems."""
        groups = self.problems.replace(",", " ").split()
        plain = tuple(int(group) for group in groups if ":" not in group)
        recall = tuple(int(group.removeprefix("recall:")) for group in groups if ":" in group)
        return WordProblems(n=self.n, difficulties=plain, recall=recall, seed=SEED)

    @property
    def decoding(self) -> Decoding:
        """Greedy, cut at about a fifth more than the longest true response."""
        return self.decoding_of(self.task)

    def decoding_of(self, task: WordProblems) -> Decoding:
        """The same for other problems."""
        longest = max(*task.difficulties, *task.recall, 0)
        return Decoding(max_new_tokens=40 + 28 * (longest + 1), batch_size=40)

    @property
    def settings(self) -> dict[str, Any]:
        """What is written down beside the results."""
        return {
            "model": self.model,
            "problems": self.problems,
            "n_per_group": self.n,
            "problem_seed": SEED,
            "decoding": vars(self.decoding),
            "fast": self.fast,
        }

    @property
    def store(self) -> Path:
        """The store of these problems: experiments share what they have in common."""
        return self.out / f"sweep-{self.task.digest}.sqlite"


def options(
    name: str,
    doc: str,
    argv: Sequence[str] | None,
    *,
    n: int = 40,
    problems: str = PROBLEMS,
    fast: str = FAST_PROBLEMS,
    fast_n: int = 4,
    more: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
) -> Options:
    """Read the command line; `n` and `problems` are the full setting, `fast` that of tests."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--model", default="reasoner", help="'reasoner', a name, or a folder")
    parser.add_argument("--problems", help=f"groups of problems (default: {problems!r})")
    parser.add_argument("--n", type=int, help=f"problems in each group (default: {n})")
    parser.add_argument("--out", type=Path, default=Path("outputs/experiments"))
    parser.add_argument("--fast", action="store_true", help="a few seconds' worth: not a result")
    parser.add_argument("--ray", help="a Ray cluster's address, or 'local' to start one here")
    more(parser)
    given = parser.parse_args(argv)
    return Options(
        name=name,
        model=given.model,
        problems=given.problems or (fast if given.fast else problems),
        n=given.n or (fast_n if given.fast else n),
        out=given.out,
        fast=given.fast,
        ray=given.ray,
        given=given,
    )


def sweep(chosen: Options, settings: Grid | Mapping[str, StepFlow], **others: Any) -> pd.DataFrame:
    """Run a grid on the experiment's problems and store; a row per cell."""
    return sweep_of(chosen, chosen.task, settings, **others)


def sweep_of(
    chosen: Options, task: WordProblems, settings: Grid | Mapping[str, StepFlow], **others: Any
) -> pd.DataFrame:
    """The same on other problems, in a store of their own."""
    grid = settings if isinstance(settings, Grid) else Grid.of(settings)
    described = Sweep(
        task, grid, model=chosen.model, **({"decoding": chosen.decoding_of(task)} | others)
    )
    store = chosen.out / f"sweep-{task.digest}.sqlite"
    return described.run(store, executor=executor(chosen.ray), progress=True)


def executor(ray: str | None, **settings: Any) -> RayExecutor | None:
    """Ray at an address, or started here for "local"; None for this process."""
    return RayExecutor(address=None if ray == "local" else ray, **settings) if ray else None


def made_of(model: Any) -> dict[str, str]:
    """What results of a model depend on: its name, its weights and this version."""
    seen = view(model)
    return {"model": seen.name, "weights": seen.weights_hash(), "version": __version__}


def mean_with_interval(name: str, values: np.ndarray) -> dict[str, float]:
    """A mean over problems with its 95% percentile interval; NaN is of no problem."""
    known = np.sort(values[~np.isnan(values)])
    if not len(known):
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), np.nan)
    drawn = np.random.default_rng(0).choice(known, size=(2000, len(known))).mean(-1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {name: float(known.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}


def compare_by_group(rows: pd.DataFrame) -> pd.DataFrame:
    """Every arm against the baseline, over all problems and in each group."""
    return compare(rows, baseline="baseline", by="group")


def over_all(table: pd.DataFrame) -> pd.DataFrame:
    """The lines of a comparison that are over all problems."""
    return table[table["group"] == "all"].drop(columns="group").reset_index(drop=True)


def holm_over(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Several comparisons as one table, with Holm's correction over all of it."""
    table = pd.concat(tables, ignore_index=True)
    table["p_holm"] = multipletests(table["p_value"], method="holm")[1]
    return table


class Described(Protocol):
    """What `publish` needs of an experiment's options."""

    name: str
    out: Path

    @property
    def settings(self) -> dict[str, Any]:
        """What is written down beside the results."""
        ...


def facts_of(chosen: Described, **facts: Any) -> dict[str, Any]:
    """What results were made of, as their pictures say it: of `facts` the n and the models."""
    store, task = getattr(chosen, "store", None), getattr(chosen, "task", None)
    models, settings = facts.get("models"), chosen.settings
    if models is None and isinstance(store, Path) and store.exists():
        identity = Store(store).fact("identity")
        models = {identity["model"]: {name: identity[name] for name in ("weights", "version")}}
    return {
        "experiment": chosen.name,
        "settings": settings,
        "n": facts.get("n", None if task is None or callable(task) else len(task.items)),
        "seeds": {name: value for name, value in settings.items() if "seed" in name},
        "models": models,
        "versions": versions(),
    }


def publish(
    chosen: Described, figure: Figure, tables: Mapping[str, pd.DataFrame], **facts: Any
) -> None:
    """Write NAME.png, NAME.pdf and NAME.json: settings, versions, and the tables drawn.

    What the results were made of is in the pictures, too: settings, n, seeds, models, versions.
    """
    chosen.out.mkdir(parents=True, exist_ok=True)
    made = facts_of(chosen, **facts)
    save_figure(figure, chosen.out / chosen.name, formats=("png", "pdf"), facts=made)
    written = {
        **made,
        **facts,
        "tables": {
            name: json.loads(table.to_json(orient="records", double_precision=6))
            for name, table in tables.items()
        },
    }
    path = chosen.out / f"{chosen.name}.json"
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    for name, table in tables.items():
        print(f"\n{chosen.name}: {name}\n{table.round(3).to_string(index=False)}")
    print(f"\n{path.with_suffix('.png')} {path.with_suffix('.pdf')} {path}")
