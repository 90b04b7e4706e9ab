"""Two Ray nodes on one machine, one of which is killed."""

import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from nodes import Noted, Ungradable
from small import assert_same_rows, small

from stepflow_tl.sweep import RayExecutor, Store
from stepflow_tl.sweep.cells import Batch, Cell
from stepflow_tl.sweep.executors import RayWorkers, Survey
from stepflow_tl.tasks import Item, WordProblems

HERE = Path(__file__).parent
SYSTEM = {
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 2,
    "worker_niceness": 0,  # else whatever else runs on the machine comes first
}
FEW = {"problems": WordProblems(n=4, difficulties=(1, 2))}


def _processes(session: str) -> list[str]:
    """Command lines of a Ray session's processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if session in line:
            found.append(line)
    return found


@pytest.fixture(scope="module")
def cluster():
    """A head and a second node, with a CPU each; no process of theirs outlives it."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        paths = [str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("HF_HUB_OFFLINE", "1")
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "num_gpus": 2,
                "include_dashboard": False,
                "object_store_memory": 80_000_000,
                "_system_config": SYSTEM,
            },
        )
        session = os.path.basename(cluster.head_node.get_session_dir_path())
        cluster.victim = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
        cluster.wait_for_nodes()
        try:
            yield cluster
        finally:
            cluster.shutdown()
    deadline = time.monotonic() + 60
    while _processes(session) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _processes(session)


class _Counting(Store):
    """A store that tells when the first rows have arrived."""

    arrived = threading.Event()

    def add(self, rows):
        super().add(rows)
        self.arrived.set()


@pytest.mark.slow
def test_a_lost_nodes_cells_run_again(cluster, folder, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "victim").write_text(cluster.victim.node_id)
    noted = Noted(folder=str(notes))
    sweep = small(folder, strategy=noted, **FEW)
    store = _Counting(tmp_path / "ray.sqlite", create=True)
    at_the_kill = []

    def kill_the_victim() -> None:
        store.arrived.wait(120)
        while cluster.victim.node_id not in [where for where, _ in noted.notes()]:
            time.sleep(0.05)
        at_the_kill.append(len(store.to_dataframe()))
        cluster.remove_node(cluster.victim, allow_graceful=False)
        (notes / "killed").touch()

    killer = threading.Thread(target=kill_the_victim, daemon=True)
    killer.start()
    rows = sweep.run(store, executor=RayExecutor(address=cluster.address))
    killer.join()

    assert 0 < at_the_kill[0] < len(rows) == 24
    stored = Store(store.path).to_dataframe()
    assert sorted(stored["hash"]) == sorted(rows["hash"])
    begun = list(noted.notes())
    lost = [batch for where, batch in begun if where == cluster.victim.node_id]
    elsewhere = [batch for where, batch in begun if where != cluster.victim.node_id]
    assert lost, "the killed node was working"
    assert len(elsewhere) == 12, "each batch ran once on the node that was left"
    assert set(lost) <= set(elsewhere)
    (notes / "victim").write_text("nobody")
    local = sweep.run(tmp_path / "local.sqlite")
    assert_same_rows(rows, local)


@pytest.mark.slow
def test_an_error_on_a_worker_ends_the_sweep_and_keeps_what_is_done(cluster, folder, tmp_path):
    ungradable = Ungradable(n=2, difficulties=(1, 2))
    path = tmp_path / "s.sqlite"
    executor = RayExecutor(address=cluster.address, ahead=1)
    with pytest.raises(ArithmeticError, match="no grade for"):
        small(folder, problems=ungradable).run(path, executor=executor)
    done = len(Store(path).to_dataframe())
    assert done % 2 == 0 and done < 12
    rows = small(folder).run(path, executor=executor)
    assert_same_rows(rows, small(folder).run(tmp_path / "local.sqlite"))


def test_a_model_given_as_an_object_cannot_travel(tiny_model, tmp_path):
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match=r"Sweep\(model=...\) to be a name or a folder"):
        small(tiny_model).run(tmp_path / "s.sqlite", executor=RayExecutor())
    assert not (tmp_path / "s.sqlite").exists()


def test_without_an_address_no_other_cluster_of_this_machine_is_joined(
    folder, tmp_path, monkeypatch
):
    ray = pytest.importorskip("ray")
    asked = {}

    def init(**settings):
        asked.update(settings)
        raise RuntimeError("far enough")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RuntimeError, match="far enough"):
        small(folder).run(tmp_path / "s.sqlite", executor=RayExecutor())
    assert asked["address"] == "local"


def test_without_ray_the_extra_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'stepflow-tl\[ray\]'"):
        small(folder).run(tmp_path / "s.sqlite", executor=RayExecutor())


class Promise:
    """Stands for what Ray promises, kept at once."""

    def __init__(self, value):
        self.value = value


class Kept:
    """A method of an actor, run at once; a lost actor's calls fail when they are asked for."""

    def __init__(self, method):
        self.method = method

    def remote(self, *arguments):
        try:
            return Promise(self.method(*arguments))
        except RuntimeError as error:
            return Promise(error)


class Here:
    """As much of Ray as the executor uses, in this process."""

    class exceptions:
        RayActorError = RuntimeError

    def __init__(self, workers, **resources):
        self.workers, self.resources, self.killed = iter(workers), resources, []

    def remote(self, **_):
        def kind(_):
            return SimpleNamespace(remote=lambda job: self._actor(next(self.workers)))

        return kind

    def _actor(self, worker):
        actor = Promise(worker)  # hashed by what it is, as an actor's handle
        actor.survey, actor.solve = Kept(worker.survey), Kept(worker.solve)
        return actor

    def put(self, value):
        return value

    def get(self, promise):
        if isinstance(promise.value, RuntimeError):
            raise promise.value
        return promise.value

    def wait(self, promises):
        return promises[:1], promises[1:]

    def kill(self, actor):
        self.killed.append(actor.value)

    def cluster_resources(self):
        return self.resources


class Fake:
    """A worker that returns its units as rows: here each is one batch."""

    def __init__(self, weights="w", fails=0):
        self.weights, self.fails, self.solved = weights, fails, []

    def survey(self):
        return Survey("m", self.weights, 4, True)

    def solve(self, identity, unit):
        if self.fails:
            self.fails -= 1
            raise RuntimeError("the node was lost")
        (batch,) = unit
        self.solved.append(batch)
        return [{"batch": batch.seed}]


def batches(count):
    cell = Cell("hash", Item.of("Why?", "g"))
    return [Batch(None, seed, (replace(cell, hash=str(seed)),)) for seed in range(count)]


def run_on(workers, count=6, **resources):
    ray = Here(workers, **(resources or {"CPU": 2.0}))
    crew = RayWorkers(RayExecutor(), ray, "job")
    assert crew.survey.weights == "w"
    found = [rows[0]["batch"] for rows in crew.run({"weights": "w"}, batches(count))]
    crew.leave()
    return found, ray


def test_workers_share_the_batches_and_are_ended(unchecked):
    first, second = Fake(), Fake()
    found, ray = run_on([first, second])
    assert sorted(found) == list(range(6))
    assert first.solved and len(first.solved) + len(second.solved) == 6
    assert ray.killed == [first, second]


def test_a_lost_workers_batch_goes_to_another(unchecked):
    lost, other, third = Fake(fails=1), Fake(), Fake()
    found, ray = run_on([lost, other, third])
    assert sorted(found) == list(range(6))
    assert lost not in ray.killed


def test_a_batch_that_always_ends_its_worker_ends_the_sweep(unchecked):
    with pytest.raises(RuntimeError, match="the node was lost"):
        run_on([Fake(fails=99) for _ in range(99)], count=1)


def test_a_worker_with_other_weights_refuses(unchecked):
    with pytest.raises(ValueError, match=r"expected one model .*\(x\) than the first"):
        run_on([Fake(), Fake(weights="x")])


@pytest.mark.slow
def test_workers_with_gpus_of_their_own(cluster, folder, tmp_path):
    """Ray counts GPUs by what it is told; the model itself runs on the CPU here."""
    executor = RayExecutor(address=cluster.address, gpus=2.0)
    assert len(small(folder, **FEW).run(tmp_path / "s.sqlite", executor=executor)) == 24


@pytest.mark.slow
def test_the_sweep_itself_loads_no_model_where_workers_do(folder, cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("stepflow_tl.sweep.sweep.load_model", None)
    rows = small(folder, **FEW).run(
        tmp_path / "s.sqlite", executor=RayExecutor(address=cluster.address)
    )
    assert len(rows) == 24


@pytest.mark.parametrize(
    ("resources", "settings", "slots"),
    [
        ({"CPU": 8.0}, {}, 8),
        ({"CPU": 8.0}, {"cpus": 3.0}, 2),
        ({"CPU": 64.0, "GPU": 4.0}, {"gpus": 1.0}, 4),
        ({"CPU": 64.0, "GPU": 4.0}, {"gpus": 8.0}, 1),
        ({}, {}, 1),
    ],
)
def test_as_many_batches_are_out_as_can_be_decoded(resources, settings, slots):
    assert RayWorkers(RayExecutor(**settings), Here([], **resources), "job")._slots == slots
