import os
from dataclasses import replace

import pytest
import yaml
from small import CELLS, DECODING, GRID, assert_same_cells, assert_same_rows, small
from test_sweep import SAMPLED, Stopping, counted

from stepflow_tl.interventions import OddsEqualBridge, StepFlow, StepMomentum
from stepflow_tl.interventions.flow import PRESETS
from stepflow_tl.sweep import (
    ConfigError,
    Store,
    StoreError,
    Sweep,
    grid,
    read_config,
    resume,
    status,
)
from stepflow_tl.tasks import WordProblems
from stepflow_tl.tasks.strategies import (
    BudgetForcing,
    ChainOfThought,
    Decoding,
    Plain,
    SelfConsistency,
)
from stepflow_tl.tasks.word_problems import make_problem
from stepflow_tl.traces.chat import Chat
from stepflow_tl.traces.formats import Format

# A file says [16, 17] and 1, which annotations of tuples and floats do not admit.
pytestmark = pytest.mark.usefixtures("unchecked")

FULL = """
model: reasoner
dtype: bfloat16
problems: {n: 3, difficulties: [2, 3], recall: [4], seed: 7}
grid:
  - OddsEqualBridge: {tau_max: [0, 0.05], layers: [shallow, [0, 1], [0.0, 0.5]]}
    StepMomentum: {alpha: [0, 0.06], window: step}
  - StepMomentum: {alpha: 0.2}
settings:
  paper: paper
  mine:
    - {type: OddsEqualBridge, tau_max: 0.3}
    - {type: StepMomentum, layers: {range: [0, 8, 2]}}
strategies:
  - plain
  - chain_of_thought: {prompt: Go.}
  - self_consistency: {k: 3, temperature: 1}
  - {type: budget_forcing, most: 20}
seeds: [0, 1]
decoding:
  max_new_tokens: 50
  temperature: 1
  batch_size: 4
  chat: {system: Be brief., options: {effort: high}}
load: {revision: main}
"""


@pytest.fixture
def written(tmp_path):
    """Write a configuration."""

    def write(text: str):
        path = tmp_path / "sweep.yaml"
        path.write_text(text)
        return path

    return write


def test_everything_can_be_said(written):
    sweep = read_config(written(FULL))
    assert sweep == Sweep(
        WordProblems(n=3, difficulties=(2, 3), recall=(4,), seed=7),
        grid(OddsEqualBridge, tau_max=[0, 0.05], layers=["shallow", (0, 1), (0.0, 0.5)])
        * grid(StepMomentum, alpha=[0, 0.06], window="step")
        + grid(StepMomentum, alpha=0.2)
        + type(GRID).of(
            {
                "paper": StepFlow.paper(),
                "mine": StepFlow(OddsEqualBridge(tau_max=0.3), StepMomentum(layers=range(0, 8, 2))),
            }
        ),
        strategy=[
            Plain(),
            ChainOfThought(prompt="Go."),
            SelfConsistency(k=3, temperature=1.0),
            BudgetForcing(most=20),
        ],
        seeds=(0, 1),
        decoding=Decoding(
            max_new_tokens=50,
            temperature=1.0,
            batch_size=4,
            chat=Chat(system="Be brief.", options={"effort": "high"}),
        ),
        dtype="bfloat16",
        load={"revision": "main"},
    )


def test_little_need_be_said(written):
    sweep = read_config(written("problems: {n: 1}\nsettings: {release: release}"))
    assert [arm.label for arm in sweep.arms] == ["baseline", "release"]
    assert sweep == Sweep(WordProblems(n=1), type(GRID).of({"release": StepFlow.release()}))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_named_and_made_again(written, name):
    sweep = read_config(written(f"problems: {{n: 1}}\nsettings: {{mine: {name}}}"))
    assert sweep.arms[1].setting.flow == getattr(StepFlow, name)()
    again = read_config(written(yaml.safe_dump(sweep.describe(), sort_keys=False)))
    assert again == sweep


def test_what_a_sweep_describes_makes_it_again(written):
    sweep = read_config(written(FULL))
    again = read_config(written(yaml.safe_dump(sweep.describe(), sort_keys=False)))
    assert again == sweep
    assert again.describe() == sweep.describe()


def test_a_format_of_ones_own_is_remembered(folder, tmp_path):
    own = Format(name="hash", summary_open="#", thinking_cutter="line")
    path = tmp_path / "s.sqlite"
    sweep = small(folder, decoding=replace(DECODING, format=own))
    with pytest.raises(KeyboardInterrupt):
        sweep.run(path, executor=Stopping(2))
    rows = resume(path)
    assert_same_rows(sweep.run(path), sweep.run(tmp_path / "other.sqlite"))
    assert len(rows) == CELLS


def test_a_cutter_of_ones_own_cannot_be_made_again(folder, tmp_path):
    own = Format(name="own", thinking_cutter=lambda step, token: len(step) > 8)
    path = tmp_path / "s.sqlite"
    small(folder, decoding=replace(DECODING, format=own)).run(path)
    with pytest.raises(ConfigError, match="caller's own test_config.*lambda"):
        resume(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected settings such as 'grid: ...' in .*sweep.yaml, got None"),
        ("- a\n- b", "expected settings such as"),
        ("a: [", "sweep.yaml is no YAML: while parsing"),
        ("a: !!python/object/apply:os.getcwd []", "is no YAML: could not determine a constructor"),
        ("grids: {}", r"unknown settings \['grids'\]: expected some of \['model'"),
        ("grid: {}", "expected problems, such as"),
        ("problems: 5", "problems: expected settings by name, got 5"),
        ("problems: {given: abc}\ngrid: {}", "given one by one in Python"),
        ("problems: {m: 1}\ngrid: {StepMomentum: }", "unexpected keyword argument 'm'"),
        ("problems: {n: 0}\ngrid: {StepMomentum: }", "expected n >= 1"),
        ("problems: {difficulties: 3}\ngrid: {StepMomentum: }", "difficulties such as .*got 3"),
        ("problems: {difficulties: [0]}\ngrid: {StepMomentum: }", r"difficulties .*got \(0,\)"),
        ("problems: {}", "expected a grid or settings, got neither"),
        ("problems: {}\ngrid: {}", "at least one intervention in each part of the grid"),
        ("problems: {}\ngrid: []", "expected a grid or settings, got neither"),
        ("problems: {}\ngrid: {Magic: {}}", "no intervention 'Magic': expected one of"),
        ("problems: {}\ngrid: {StepMomentum: 3}", "StepMomentum: expected settings by name, got 3"),
        ("problems: {}\ngrid: {StepMomentum: {beta: 1}}", "no setting 'beta': expected some of"),
        ("problems: {}\ngrid: {StepMomentum: {alpha: []}}", "at least one value of alpha"),
        ("problems: {}\ngrid: {OddsEqualBridge: {tau_max: [1e-3]}}", "OddsEqualBridge.*'1e-3'"),
        ("problems: {}\ngrid: {OddsEqualBridge: {tau_max: [x]}}", "OddsEqualBridge.*'x'"),
        ("problems: {}\nsettings: {a: magic}", r"no preset 'magic': expected one of \['paper'"),
        ("problems: {}\nsettings: {a: [{tau_max: 1}]}", "'type': .*got {'tau_max': 1}"),
        ("problems: {}\nsettings: {a: {type: StepMomentum}}", "expected a preset or a list.*'a'"),
        ("problems: {}\nsettings: {a: 3}", "expected a preset or a list .*'a', got 3"),
        ("problems: {}\nsettings: [paper]", "settings: expected settings by name"),
        (
            "problems: {}\nsettings: {p: paper}\nstrategies: [magic]",
            "no strategy 'magic': expected",
        ),
        ("problems: {}\nsettings: {p: paper}\nstrategies: [3]", "strategies: expected settings by"),
        (
            "problems: {}\nsettings: {p: paper}\nstrategies: plain",
            "strategies: expected a list .*got 'plain'",
        ),
        ("problems: {}\nsettings: {p: paper}\nstrategies: [{plain: {k: 1}}]", "argument 'k'"),
        ("problems: {}\nsettings: {p: paper}\nstrategies: [budget_forcing]", "least >= 1 or most"),
        ("problems: {}\nsettings: {p: paper}\nstrategies: []", "at least one, got arms"),
        ("problems: {}\nsettings: {p: paper}\nseeds: 3", "seeds such as .*got 3"),
        ("problems: {}\nsettings: {p: paper}\nseeds: [a]", r"seeds such as .*got \['a'\]"),
        ("problems: {}\nsettings: {p: paper}\ndtype: 32", "dtype such as 'float32'.*got 32"),
        ("problems: {}\nsettings: {p: paper}\nmodel: 5", "a model or its name, got 5"),
        ("problems: {}\nsettings: {p: paper}\nmodel: null", "a model or its name, got None"),
        ("problems: {}\nsettings: {p: paper}\ndecoding: {tokens: 3}", "argument 'tokens'"),
        ("problems: {}\nsettings: {p: paper}\ndecoding: {top_p: 3}", "top_p in .*got 3"),
        (
            "problems: {}\nsettings: {p: paper}\ndecoding: {format: {a: 1}}",
            "of a format, got {'a': 1}",
        ),
        ("problems: {}\nsettings: {p: paper}\ndecoding: {max_new_tokens: x}", "'x'"),
    ],
)
def test_what_is_not_understood_is_named(written, text, message):
    with pytest.raises(ValueError, match=message):
        read_config(written(text))


def test_files_that_are_no_text_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no configuration at .*none\.yaml"):
        read_config(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml is no YAML"):
        read_config(tmp_path / "binary.yaml")


def test_a_stopped_sweep_is_resumed_from_its_store(folder, tmp_path):
    path = tmp_path / "s.sqlite"
    with pytest.raises(KeyboardInterrupt):
        small(folder).run(path, executor=Stopping(3))
    assert status(path).to_dict("list")["done"] == [4, 2, 0]
    rows = resume(path)
    table = status(path)
    assert table["cells"].tolist() == table["done"].tolist() == [4, 4, 4]
    assert table["arm"].tolist() == [arm.label for arm in small(folder).arms]
    assert (table["seconds"] > 0).all()
    assert_same_cells(rows, small(folder).run(tmp_path / "other.sqlite"))


def test_every_remembered_sweep_is_resumed(folder, tmp_path):
    path = tmp_path / "s.sqlite"
    other = grid(OddsEqualBridge, tau_max=[0.8], layers="all")
    for settings in (GRID, other):
        with pytest.raises(KeyboardInterrupt):
            small(folder, grid=settings).run(path, executor=Stopping(1))
    assert len(resume(path)) == CELLS + 4
    assert resume(path)["hash"].is_unique


def test_status_counts_the_seeds_of_all_sweeps(tiny_model, tmp_path):
    path = tmp_path / "s.sqlite"
    for seeds in ((0, 1), (1,), (2,)):
        small(tiny_model, decoding=SAMPLED, seeds=seeds).run(path)
        table = status(path)
        assert table["cells"].tolist() == table["done"].tolist()
    assert table["cells"].tolist() == [12, 12, 12]


def test_status_knows_a_shared_setting_under_both_its_names(tiny_model, tmp_path):
    path = tmp_path / "s.sqlite"
    small(tiny_model).run(path)
    named = type(GRID).of({"strong": StepFlow(OddsEqualBridge(tau_max=0.9, layers="all"))})
    with counted(tiny_model) as sizes:
        small(tiny_model, grid=named).run(path)
    assert sizes == []
    table = status(path).set_index("arm")
    assert table.loc["strong", ["cells", "done"]].tolist() == [4, 4]
    assert (table["done"] == table["cells"]).all()


def test_a_mixed_store_is_resumed_when_told(folder, tmp_path):
    path = tmp_path / "s.sqlite"
    small(folder).run(path)
    other = small(folder, decoding=replace(DECODING, max_new_tokens=4))
    with pytest.raises(KeyboardInterrupt):
        other.run(path, mix=True, executor=Stopping(1))
    with pytest.raises(StoreError, match="'max_new_tokens': 4"):
        resume(path)
    assert len(resume(path, mix=True)) == 2 * CELLS


def test_what_cannot_be_resumed_says_why(tiny_model, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no sweep store at"):
        resume(tmp_path / "none.sqlite")
    with pytest.raises(FileNotFoundError, match="no sweep store at"):
        status(tmp_path / "none.sqlite")
    Store(tmp_path / "new.sqlite", create=True)
    assert status(tmp_path / "new.sqlite").empty
    with pytest.raises(StoreError, match="remembers no sweep"):
        resume(tmp_path / "new.sqlite")
    small(tiny_model).run(tmp_path / "object.sqlite")
    with pytest.raises(ConfigError, match="model given as an object"):
        resume(tmp_path / "object.sqlite")
    small(folder, problems=[make_problem(1, 1)]).run(tmp_path / "given.sqlite")
    with pytest.raises(ConfigError, match="given one by one in Python"):
        resume(tmp_path / "given.sqlite")


def test_a_relative_folder_is_found_from_elsewhere(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    path = tmp_path / "s.sqlite"
    with pytest.raises(KeyboardInterrupt):
        small(folder.name).run(path, executor=Stopping(1))
    monkeypatch.chdir(tmp_path)
    assert len(resume(path)) == CELLS
    assert os.path.isabs(Store(path).fact("sweeps")[0]["settings"]["model"])
