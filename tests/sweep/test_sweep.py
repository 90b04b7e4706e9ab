import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, dataclass, replace

import pandas as pd
import pytest
from small import CELLS, DECODING, GRID, PROBLEMS, assert_clean, assert_same_rows, small

from stepflow_tl.interventions import InterventionWarning, OddsEqualBridge, StepFlow, StepMomentum
from stepflow_tl.sweep import Grid, LocalExecutor, Store, StoreError, Sweep, grid
from stepflow_tl.sweep.cells import Arm, batches_of
from stepflow_tl.sweep.executors import LocalWorkers
from stepflow_tl.tasks import Grade, Item, Task, WordProblems
from stepflow_tl.tasks.strategies import (
    BudgetForcing,
    ChainOfThought,
    Decoding,
    Plain,
    SelfConsistency,
)
from stepflow_tl.tasks.word_problems import make_problem
from stepflow_tl.traces.formats import PLAIN, Format

SAMPLED = replace(DECODING, temperature=1.0)
HASHED = Decoding(max_new_tokens=100, chat=False, format="plain")
IDENTITY = {"version": "0.1.0", "weights": "0123456789abcdef"}


@contextmanager
def counted(model) -> Iterator[list[int]]:
    """The size of each batch that the model sees first (its prefill)."""
    sizes: list[int] = []

    def look(module, inputs):
        if inputs[0].shape[1] > 1:
            sizes.append(inputs[0].shape[0])

    handle = model.embed.register_forward_pre_hook(look)
    try:
        yield sizes
    finally:
        handle.remove()


@dataclass
class Stopping:
    """Stops after some batches, as Ctrl-C would."""

    after: int

    @contextmanager
    def open(self, job):
        with LocalExecutor().open(job) as workers:
            yield Halting(workers.job, workers.model, self.after)


@dataclass(frozen=True)
class Halting(LocalWorkers):
    after: int

    def run(self, identity, batches):
        for count, rows in enumerate(super().run(identity, batches)):
            if count == self.after:
                raise KeyboardInterrupt
            yield rows


@dataclass(frozen=True)
class Echo(Task):
    """Any question is right where the answer is its length."""

    questions: tuple[str, ...]
    fails_at: str | None = None

    @property
    def items(self):
        return tuple(Item.of(question, "echo") for question in self.questions)

    def grade(self, item, response, seed=0):
        if item.question == self.fails_at:
            raise ArithmeticError("this grader fails")
        return Grade(len(response) % 2 == 0, response[:3])

    def describe(self):
        return {"given": self.digest}


def test_a_row_for_each_cell_in_order(tiny_model, tmp_path):
    sweep = small(tiny_model)
    rows = sweep.run(tmp_path / "s.sqlite")
    assert len(rows) == len(sweep) == CELLS
    assert rows["hash"].is_unique
    assert rows["arm"].tolist() == [arm.label for arm in sweep.arms for _ in range(4)]
    assert rows["problem"].tolist() == [item.key for item in PROBLEMS.items] * 3
    assert rows["group"].tolist() == ["1", "1", "2", "2"] * 3
    assert (rows["tokens"] <= DECODING.max_new_tokens).all()
    assert (rows["forward_passes"] == rows["tokens"]).all()
    assert (rows["seconds"] > 0).all()
    assert (rows["fired"] > 0).tolist() == [False] * 4 + [True] * 8
    assert rows["identity"].nunique() == 1
    assert_clean(tiny_model)


def test_what_is_done_is_not_done_again(tiny_model, tmp_path):
    sweep = small(tiny_model)
    with counted(tiny_model) as first:
        rows = sweep.run(tmp_path / "s.sqlite")
    with counted(tiny_model) as second:
        again = sweep.run(tmp_path / "s.sqlite")
    assert first == [2] * 6
    assert second == []
    pd.testing.assert_frame_equal(again, rows)


def test_two_sweeps_on_one_store_share_the_baseline(tiny_model, tmp_path):
    store = Store(tmp_path / "s.sqlite", create=True)
    bridge = small(tiny_model, grid=grid(OddsEqualBridge, tau_max=[0.9, 1.0], layers="all")).run(
        store
    )
    momentum = grid(StepMomentum, alpha=[0.0], layers="all") + Grid.of(
        {"gentle": StepFlow(OddsEqualBridge(tau_max=0.9, layers="all"))}
    )
    with counted(tiny_model) as sizes:
        other = small(tiny_model, grid=momentum).run(store)
    assert sizes == []
    assert other["arm"].unique().tolist() == ["baseline", "gentle"]
    assert other["setting"].unique().tolist() == ["baseline", "gentle"]
    assert other["hash"].tolist() == bridge["hash"][:8].tolist()
    assert len(store.to_dataframe()) == CELLS


def test_two_names_of_the_same_layers_are_decoded_once(tiny_model, tmp_path):
    sweep = small(tiny_model, grid=grid(OddsEqualBridge, tau_max=0.9, layers=["shallow", (0,), 0]))
    with counted(tiny_model) as sizes:
        rows = sweep.run(tmp_path / "s.sqlite")
    assert sizes == [2] * 4
    assert len(rows) == len(sweep) == 16
    assert rows["arm"].tolist() == [arm.label for arm in sweep.arms for _ in range(4)]
    for name in ("hash", "response", "fired"):
        assert rows[name][4:8].tolist() == rows[name][8:12].tolist() == rows[name][12:].tolist()
    assert len(Store(tmp_path / "s.sqlite").to_dataframe()) == 8


def test_extended_seeds_and_settings_keep_what_is_there(tiny_model, tmp_path):
    path = tmp_path / "s.sqlite"
    rows = small(tiny_model, decoding=SAMPLED, seeds=(3,)).run(path)
    with counted(tiny_model) as sizes:
        more = small(tiny_model, decoding=SAMPLED, seeds=(3, 4)).run(path)
    assert sizes == [2] * 6
    assert len(more) == 2 * CELLS
    kept = more[more["seed"] == 3].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, rows)
    fresh = more[more["seed"] == 4]["response"].tolist()
    assert fresh != kept["response"].tolist()
    alone = small(tiny_model, decoding=SAMPLED, seeds=(4,)).run(tmp_path / "alone.sqlite")
    assert fresh == alone["response"].tolist()


def test_greedy_decoding_has_the_first_seed_only(tiny_model, tmp_path):
    votes = SelfConsistency(k=2, temperature=1.0)
    sweep = small(tiny_model, grid=grid(OddsEqualBridge, tau_max=0.0), seeds=(5, 6))
    sweep = replace(sweep, strategy=(Plain(), votes))
    assert sweep.sizes == {"baseline": 4, votes.label: 8}
    rows = sweep.run(tmp_path / "s.sqlite")
    assert rows.groupby("arm", sort=False)["seed"].apply(list).tolist() == [
        [5] * 4,
        [5] * 4 + [6] * 4,
    ]


def test_batch_size_changes_no_answer_and_no_hash(tiny_model, tmp_path):
    rows = small(tiny_model, decoding=SAMPLED).run(tmp_path / "a.sqlite")
    path = tmp_path / "b.sqlite"
    with pytest.raises(KeyboardInterrupt):
        small(tiny_model, decoding=SAMPLED).run(path, executor=Stopping(3))
    resumed = small(tiny_model, decoding=replace(SAMPLED, batch_size=3)).run(path)
    same = [name for name in rows.columns if name not in ("seconds", "fired")]
    pd.testing.assert_frame_equal(resumed[same], rows[same])


def test_an_interrupt_between_batches_leaves_a_resumable_store(tiny_model, tmp_path):
    rows = small(tiny_model).run(tmp_path / "whole.sqlite")
    path = tmp_path / "s.sqlite"
    for after in (0, 1, 3):
        with pytest.raises(KeyboardInterrupt):
            small(tiny_model).run(path, executor=Stopping(after), progress=True)
        assert_clean(tiny_model)
    assert len(Store(path).to_dataframe()) == 2 * (0 + 1 + 3)
    assert_same_rows(small(tiny_model).run(path), rows)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_an_interrupt_inside_a_batch_leaves_the_model_clean(tiny_model, tmp_path, error):
    rows = small(tiny_model).run(tmp_path / "whole.sqlite")
    seen = []

    def strike(module, inputs):
        seen.append(1)
        if len(seen) == 21:  # in the middle of the fourth batch, under the bridge
            raise error

    handle = tiny_model.blocks[2].register_forward_pre_hook(strike)
    path = tmp_path / "s.sqlite"
    try:
        with pytest.raises(error):
            small(tiny_model).run(path)
    finally:
        handle.remove()
    assert_clean(tiny_model)
    assert len(Store(path).to_dataframe()) == 6
    assert_same_rows(small(tiny_model).run(path), rows)


def test_a_grader_that_fails_loses_its_batch_only(tiny_model, tmp_path):
    questions = ("Tom has 3 pens.", "Ann has 4 pens.", "And then?")
    bad = Echo(questions, fails_at="And then?")
    path = tmp_path / "s.sqlite"
    with pytest.raises(ArithmeticError, match="this grader fails"):
        small(tiny_model, problems=bad).run(path)
    assert_clean(tiny_model)
    assert len(Store(path).to_dataframe()) == 2
    mended = replace(bad, fails_at=None)
    rows = small(tiny_model, problems=mended).run(path)
    assert_same_rows(rows, small(tiny_model, problems=mended).run(tmp_path / "t.sqlite"))


def test_given_problems_and_a_task_of_the_same_are_the_same_cells(tiny_model, tmp_path):
    given = [PROBLEMS.problem(item) for item in PROBLEMS.items]
    rows = small(tiny_model).run(tmp_path / "s.sqlite")
    with counted(tiny_model) as sizes:
        again = small(tiny_model, problems=given).run(tmp_path / "s.sqlite")
    assert sizes == []
    pd.testing.assert_frame_equal(again, rows)


def test_a_model_by_name_and_as_an_object_give_equal_rows(folder, tiny_model, tmp_path):
    by_name = small(folder)
    assert_same_rows(by_name.run(tmp_path / "a.sqlite"), small(tiny_model).run(tmp_path / "b"))
    assert_same_rows(by_name.run(tmp_path / "b"), by_name.run(tmp_path / "a.sqlite"))


def test_strategies_work_under_a_stepflow(tiny_model, tmp_path):
    strategies = [Plain(), ChainOfThought(), SelfConsistency(k=3, temperature=1.0)]
    sweep = small(tiny_model, strategy=strategies)
    rows = sweep.run(tmp_path / "s.sqlite")
    assert len(rows) == 3 * CELLS == len(sweep)
    assert rows["arm"].unique().tolist()[:4] == [
        "baseline",
        "chain_of_thought",
        "self_consistency(k=3, temperature=1.0)",
        "OddsEqualBridge(tau_max=0.9, layers=all)",
    ]
    plain, votes = (rows[rows["strategy"] == s.label] for s in (strategies[0], strategies[2]))
    assert (votes["tokens"] > plain["tokens"].max()).all()
    assert (votes["forward_passes"] == votes["tokens"]).all()
    assert not votes["tied"].any()  # the tiny model never answers


def test_an_arm_that_never_acts_is_warned_of(tiny_model, tmp_path):
    sweep = small(tiny_model, grid=grid(OddsEqualBridge, tau_max=[1e-6]))
    with pytest.warns(InterventionWarning, match=r"OddsEqualBridge\(tau_max=1e-06, .*of 4 prob"):
        sweep.run(tmp_path / "s.sqlite")


def test_a_sweep_is_frozen(tiny_model, unchecked):
    strategies = [Plain()]
    seeds = [0]
    sweep = small(tiny_model, strategy=strategies, seeds=seeds)
    with pytest.raises(FrozenInstanceError):
        sweep.seeds = (1,)
    strategies.append(ChainOfThought())
    seeds.append(1)
    assert len(sweep) == CELLS
    assert sweep == small(tiny_model, strategy=[Plain()], seeds=[0])
    assert len(small(tiny_model, strategy=iter([Plain(), ChainOfThought()]))) == 2 * CELLS


class One(Task):
    """One question, which is more than its words."""

    def __init__(self, item, more):
        self.items, self.more = (item,), more

    items = ()

    def content(self, item, seed):
        return self.more

    def grade(self, item, response, seed=0):
        return Grade(True, None)

    def describe(self):
        return {}


def _one_hash(identity=IDENTITY, decoding=HASHED, seed=0, problem=("Tom has 3 pens.", "2"), **arm):
    strategy = arm.get("strategy", Plain())
    (setting,) = Grid.of({"any name": StepFlow(*arm.get("flow", (OddsEqualBridge(),)))})
    (batch,) = batches_of(
        [Arm(strategy, setting)],
        One(Item.of(*problem), arm.get("more", "")),
        [seed],
        decoding,
        dict(identity),
        8,
    )
    (cell,) = batch.cells
    return cell.hash


PINNED = "a3022b4eb59ec4a4b5f9f5fe047d394f"  # of version 0.3


def test_the_hash_of_a_content_never_changes():
    """Changing it makes every stored sweep begin anew: only a new version may."""
    assert _one_hash() == PINNED


def test_the_hash_depends_on_what_decides_a_result():
    hashes = [
        _one_hash(),
        _one_hash(flow=[OddsEqualBridge(tau_max=0.2)]),
        _one_hash(flow=[OddsEqualBridge(layers="deep")]),
        _one_hash(flow=[OddsEqualBridge(keys="question")]),
        _one_hash(flow=[OddsEqualBridge(), StepMomentum()]),
        _one_hash(seed=1),
        _one_hash(problem=("Tom has 4 pens.", "2")),
        _one_hash(problem=("Tom has 3 pens.", "3")),
        _one_hash(more="worded otherwise"),
        _one_hash(identity=IDENTITY | {"weights": "fedcba9876543210"}),
        _one_hash(identity=IDENTITY | {"version": "0.2.0"}),
        _one_hash(strategy=ChainOfThought()),
        _one_hash(strategy=ChainOfThought(prompt="Go.")),
        _one_hash(strategy=SelfConsistency(k=2, temperature=1.0)),
        _one_hash(strategy=SelfConsistency(k=3, temperature=1.0)),
        _one_hash(strategy=BudgetForcing(most=10)),
        _one_hash(strategy=BudgetForcing(most=10, wait="Hm")),
        _one_hash(decoding=replace(HASHED, max_new_tokens=7)),
        _one_hash(decoding=replace(HASHED, temperature=0.5)),
        _one_hash(decoding=replace(HASHED, top_p=0.5)),
        _one_hash(decoding=replace(HASHED, chat=True)),
        _one_hash(decoding=replace(HASHED, format="think")),
        _one_hash(decoding=replace(HASHED, format=Format(name="plain", summary_open="#"))),
        _one_hash(decoding=replace(HASHED, format=Format(name="plain", thinking_cutter="line"))),
    ]
    assert len(set(hashes)) == len(hashes)


def test_the_hash_depends_on_nothing_else(unchecked):
    """Whole numbers, names of built-in formats and batch sizes decide no result."""
    assert _one_hash(decoding=replace(HASHED, batch_size=7)) == PINNED
    assert _one_hash(decoding=replace(HASHED, format=PLAIN)) == PINNED
    assert _one_hash(decoding=replace(HASHED, temperature=0, top_p=1)) == PINNED
    assert _one_hash(flow=[StepMomentum(alpha=0), OddsEqualBridge()]) == PINNED
    votes = [_one_hash(strategy=SelfConsistency(k=2, temperature=t)) for t in (1, 1.0)]
    assert votes[0] == votes[1]


@pytest.mark.slow
def test_hashes_are_the_same_in_every_process():
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from test_sweep import _one_hash; print(_one_hash())"
    )
    here = os.path.dirname(__file__)
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, here, os.path.dirname(here)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=os.path.dirname(os.path.dirname(here)),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.stdout.strip() == PINNED, done.stderr


def test_a_number_written_another_way_is_the_same_sweep(tiny_model, tmp_path, unchecked):
    whole = replace(DECODING, temperature=1, top_p=1)
    rows = small(tiny_model, decoding=whole).run(tmp_path / "s.sqlite")
    with counted(tiny_model) as sizes:
        again = small(tiny_model, decoding=SAMPLED).run(tmp_path / "s.sqlite")
    assert sizes == []
    pd.testing.assert_frame_equal(again, rows)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"problems": WordProblems(n=1, difficulties=(1,))}, "problems: '[0-9a-f]+' there"),
        ({"decoding": replace(DECODING, max_new_tokens=4)}, "decoding: .*'max_new_tokens': 6.*4"),
    ],
)
def test_another_sweep_is_refused_unless_told_otherwise(tiny_model, tmp_path, changes, difference):
    path = tmp_path / "s.sqlite"
    rows = small(tiny_model).run(path)
    with pytest.raises(StoreError, match=difference):
        small(tiny_model, **changes).run(path)
    kept = Store(path).to_dataframe()  # in the order they were finished
    pd.testing.assert_frame_equal(
        kept.set_index("hash").loc[rows["hash"]].reset_index()[rows.columns], rows
    )
    mixed = small(tiny_model, **changes).run(path, mix=True)
    both = Store(path).to_dataframe()
    assert set(both["hash"]) == {*rows["hash"], *mixed["hash"]}
    assert both["hash"].is_unique


def test_other_weights_and_versions_are_refused(tiny_model, tiny_folder, tmp_path, monkeypatch):
    path = tmp_path / "s.sqlite"
    small(tiny_model).run(path)
    with pytest.raises(StoreError, match=r"weights: '\w{16}' there, '\w{16}' now"):
        small(tiny_folder("qwen2", initializer_range=0.2)).run(path)
    monkeypatch.setattr("stepflow_tl.sweep.sweep.__version__", "9.9")
    with pytest.raises(StoreError, match=r"version: '[\d.]+' there, '9.9' now"):
        small(tiny_model).run(path)


class Deaf:
    """An executor that must not be asked."""

    @contextmanager
    def open(self, job):
        with LocalExecutor().open(job) as workers:
            yield Refusing(workers.job, workers.model)


@dataclass(frozen=True)
class Refusing(LocalWorkers):
    def run(self, identity, batches):
        raise AssertionError("decoding was begun")


@pytest.mark.parametrize("layers", [(0, 40), 99, -5])
def test_layers_that_the_model_lacks_are_refused_before_decoding(tiny_model, tmp_path, layers):
    sweep = small(tiny_model, grid=grid(OddsEqualBridge, layers=layers))
    with pytest.raises(ValueError, match=r"but the model has 4 layers"):
        sweep.run(tmp_path / "s.sqlite", executor=Deaf())


def test_a_budget_without_a_delimiter_is_refused_before_decoding(tiny_model, tmp_path):
    sweep = small(tiny_model, strategy=[Plain(), BudgetForcing(most=5)])
    with pytest.raises(ValueError, match="format 'plain' has none"):
        sweep.run(tmp_path / "s.sqlite", executor=Deaf())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"problems": []}, ValueError, "different problems, at least one, got 0"),
        ({"problems": [make_problem(1, 1)] * 2}, ValueError, "got 2 of which 1 differ"),
        ({"problems": ["Why?"]}, TypeError, "a Task such as WordProblems"),
        ({"grid": OddsEqualBridge()}, TypeError, "a grid such as .*got OddsEqualBridge"),
        ({"seeds": ()}, ValueError, r"different seeds, at least one, got \(\)"),
        ({"seeds": (1, 1)}, ValueError, r"different seeds, .*got \(1, 1\)"),
        ({"seeds": 3}, TypeError, "seeds such as .*got 3"),
        ({"seeds": "01"}, TypeError, "seeds such as .*got '01'"),
        ({"seeds": (0.5,)}, TypeError, r"seeds such as .*got \(0.5,\)"),
        ({"strategy": ()}, ValueError, "different strategies, at least one"),
        ({"strategy": (Plain(), Plain())}, ValueError, "different strategies"),
        ({"strategy": ("plain",)}, TypeError, r"strategies such as .*got \('plain',\)"),
        ({"strategy": "plain"}, TypeError, "strategies such as .*got 'plain'"),
        ({"strategy": SelfConsistency(k=2)}, ValueError, r"temperature=.* temperature > 0"),
        ({"dtype": "int64"}, ValueError, "dtype such as 'float32'.*got 'int64'"),
        ({"dtype": "fp32"}, ValueError, "dtype such as 'float32'.*got 'fp32'"),
        ({"dtype": 32}, ValueError, "dtype such as 'float32'.*got 32"),
        ({"model": 5}, TypeError, "model .*got 5"),
    ],
)
def test_bad_sweeps_are_refused_when_they_are_described(changes, error, message, unchecked):
    settings = {"problems": PROBLEMS, "grid": GRID, "decoding": DECODING} | changes
    with pytest.raises(error, match=message):
        Sweep(**settings)


def test_a_store_remembers_its_sweeps_once(tiny_model, folder, tmp_path):
    path = tmp_path / "s.sqlite"
    for model in (folder, tiny_model, folder):
        small(model).run(path)
    known = Store(path).fact("sweeps")
    assert [one["settings"]["model"] for one in known] == [str(folder), None]
    assert json.loads(json.dumps(small(folder).describe())) == known[0]["settings"]
