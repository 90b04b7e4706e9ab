import json
from dataclasses import FrozenInstanceError

import numpy as np
import pandas as pd
import pytest

from stepflow_tl.interventions import OddsEqualBridge, StepFlow, StepMomentum
from stepflow_tl.monitor import measure
from stepflow_tl.sweep import BASELINE, Grid, Setting, grid, settings_columns
from stepflow_tl.sweep.cells import arms_of
from stepflow_tl.sweep.grid import from_spec, to_spec
from stepflow_tl.tasks.strategies import Plain, SelfConsistency

# Users write tau_max=0 and alpha=1, which annotations of floats do not admit.
pytestmark = pytest.mark.usefixtures("unchecked")

LAYERS = [
    "shallow",
    "deep-onset",
    0.25,
    -0.25,
    1.0,
    1,
    -1,
    (0, 1),
    (0.0, 1.0),
    (0, 2, 3),
    range(4),
    range(3, 0, -1),
]


def labels(settings: Grid) -> list[str]:
    return [setting.label for setting in settings]


def test_the_issues_grid():
    settings = grid(
        OddsEqualBridge, tau_max=[0, 0.02, 0.05, 0.15, 0.3], layers=["shallow", "middle", "deep"]
    ) * grid(StepMomentum, alpha=[0, 0.03, 0.06, 0.2])
    assert len(settings) == (1 + 4 * 3) * (1 + 3)  # three neutral bridges are one
    assert len(set(labels(settings))) == len(settings)
    assert labels(settings)[:3] == [
        "baseline",
        "StepMomentum(alpha=0.03, layers=deep)",
        "StepMomentum(alpha=0.06, layers=deep)",
    ]
    assert (
        labels(settings)[-1]
        == "OddsEqualBridge(tau_max=0.3, layers=deep) + StepMomentum(alpha=0.2, layers=deep)"
    )


def test_a_list_is_an_axis_and_anything_else_one_value():
    assert len(grid(OddsEqualBridge, layers=["shallow", "deep"], tau_max=[0.1, 0.2])) == 4
    for one in ("deep", 0.25, (0, 1), range(2), 3):
        (setting,) = grid(OddsEqualBridge, layers=one)
        assert setting.flow == StepFlow(OddsEqualBridge(layers=one))
    assert len(grid(OddsEqualBridge, layers=[[0, 1], [2]])) == 2
    assert len(grid(OddsEqualBridge)) == 1


def test_neutral_settings_are_the_baseline():
    assert labels(grid(OddsEqualBridge, tau_max=[0, 0.0], layers=["shallow", "deep"])) == [BASELINE]
    product = grid(OddsEqualBridge, tau_max=[0, 0.1]) * grid(StepMomentum, alpha=[0, 0.06])
    assert [len(setting.flow.interventions) for setting in product] == [0, 1, 1, 2]
    assert product.settings[0] == Setting(BASELINE, StepFlow())
    assert product.settings[1].flow == StepFlow(StepMomentum(alpha=0.06))


def test_a_sum_holds_both_and_none_twice():
    bridge, momentum = grid(OddsEqualBridge, tau_max=[0, 0.1]), grid(StepMomentum, alpha=[0, 0.06])
    both = bridge + momentum + grid(OddsEqualBridge, tau_max=[0.1, 0.2])
    assert labels(both) == [
        BASELINE,
        "OddsEqualBridge(tau_max=0.1, layers=shallow)",
        "StepMomentum(alpha=0.06, layers=deep)",
        "OddsEqualBridge(tau_max=0.2, layers=shallow)",
    ]


def test_an_equal_setting_keeps_the_name_it_was_given():
    named = Grid.of({"paper": StepFlow.paper()})
    again = grid(OddsEqualBridge) * grid(StepMomentum)
    assert labels(named + again) == labels(again + named) == ["paper"]
    assert labels(named + Grid.of({"theirs": StepFlow.paper()})) == ["paper"]
    assert labels(grid(OddsEqualBridge, tau_max=[1, 1.0])) == [
        "OddsEqualBridge(tau_max=1, layers=shallow)"
    ]


def test_two_names_for_one_setting_are_refused():
    with pytest.raises(ValueError, match=r"\['again'\] are the same settings as others of"):
        Grid.of({"paper": StepFlow.paper(), "again": StepFlow.paper()})


def test_layers_that_python_thinks_equal_are_different_settings():
    """1 is layer 1, 1.0 is all of them; (0, 1) are two layers, (0.0, 1.0) is the whole depth."""
    settings = grid(OddsEqualBridge, layers=LAYERS)
    assert len(settings) == len(LAYERS) == len(set(labels(settings)))
    assert len({json.dumps(to_spec(setting.flow)) for setting in settings}) == len(LAYERS)


@pytest.mark.parametrize("layers", LAYERS, ids=str)
def test_a_spec_makes_the_same_flow_again(layers):
    flow = StepFlow(
        OddsEqualBridge(tau_max=1, layers=layers, keys="question"),
        StepMomentum(alpha=0.06, layers=layers, window="step"),
        StepMomentum(alpha=-1, layers="deep", window=7, boundaries="all"),
    )
    again = from_spec(json.loads(json.dumps(to_spec(flow))))
    assert again == flow
    assert repr(again.interventions[0].layers) == repr(layers)
    assert to_spec(again) == to_spec(flow)


def test_whole_numbers_and_numpys_are_the_same_strength():
    for strength in (1, 1.0, np.float64(1)):
        (item,) = to_spec(StepFlow(OddsEqualBridge(tau_max=strength)))
        assert json.dumps(item["tau_max"]) == "1.0"
    assert len(grid(OddsEqualBridge, tau_max=list(np.linspace(0, 1, 5)))) == 5


def test_other_settings_are_shown_where_they_are_not_the_default():
    (setting,) = grid(StepMomentum, window="step", layers=[0, 2][1])
    assert setting.label == "StepMomentum(alpha=0.06, layers=2, window=step)"


def test_baselines_come_first_for_every_strategy():
    strategies = (Plain(), SelfConsistency(k=3, temperature=1.0))
    arms = arms_of(strategies, grid(OddsEqualBridge, tau_max=[0.1, 0]))
    assert [arm.label for arm in arms] == [
        "baseline",
        "self_consistency(k=3, temperature=1.0)",
        "OddsEqualBridge(tau_max=0.1, layers=shallow)",
        "self_consistency(k=3, temperature=1.0) + OddsEqualBridge(tau_max=0.1, layers=shallow)",
    ]


def test_grids_are_frozen():
    settings = grid(OddsEqualBridge)
    with pytest.raises(FrozenInstanceError):
        settings.settings = ()
    with pytest.raises(FrozenInstanceError):
        settings.settings[0].label = "other"


def test_columns_of_settings():
    flows = [
        StepFlow(),
        StepFlow(OddsEqualBridge(tau_max=0.1, layers=(0, 2))),
        StepFlow(StepMomentum(alpha=0.2, layers=3)),
    ]
    rows = pd.DataFrame({"flow": [json.dumps(to_spec(flow)) for flow in flows]}, index=[7, 7, 8])
    table = settings_columns(rows)
    assert table.index.tolist() == [7, 7, 8]
    assert table["OddsEqualBridge.tau_max"].isna().tolist() == [True, False, True]
    assert table["OddsEqualBridge.layers"].iloc[1] == "[0, 2]"
    assert table["StepMomentum.alpha"].iloc[2] == 0.2
    assert len(settings_columns(rows.iloc[:1]).columns) == 1
    assert len(settings_columns(rows.iloc[:0])) == 0


def test_two_interventions_of_a_kind_have_columns_of_their_own():
    (setting,) = grid(OddsEqualBridge, tau_max=0.1) * grid(
        OddsEqualBridge, tau_max=0.2, layers="deep"
    )
    table = settings_columns(pd.DataFrame({"flow": [json.dumps(to_spec(setting.flow))]}))
    assert table["OddsEqualBridge-1.tau_max"].tolist() == [0.1]
    assert table["OddsEqualBridge-2.tau_max"].tolist() == [0.2]
    assert table["OddsEqualBridge-2.layers"].tolist() == ["deep"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: grid(StepFlow), TypeError, "intervention's class such as OddsEqualBridge, got"),
        (lambda: grid(OddsEqualBridge()), TypeError, "intervention's class"),
        (
            lambda: grid(OddsEqualBridge, alpha=[1]),
            TypeError,
            "no setting 'alpha': expected some of .*'tau_max'",
        ),
        (lambda: grid(OddsEqualBridge, tau_max=[]), ValueError, "at least one value of tau_max"),
        (lambda: grid(OddsEqualBridge, tau_max=[0, 2]), ValueError, r"tau_max in \[0, 1\], got 2"),
        (lambda: grid(OddsEqualBridge, layers="low"), ValueError, "layers='low': expected one of"),
        (lambda: grid(StepMomentum, alpha=float("nan")), ValueError, "finite alpha, got nan"),
        (lambda: Grid.of({}), ValueError, "at least one setting, got none"),
        (lambda: Grid.of({"a": OddsEqualBridge()}), TypeError, "expected a StepFlow for 'a', got"),
        (lambda: Grid.of({BASELINE: StepFlow.paper()}), ValueError, "nothing intervenes"),
        (lambda: Grid.of({"a": StepFlow(StepMomentum(alpha=0))}), ValueError, "got 'a' for"),
        (
            lambda: Grid.of({"a": StepFlow.paper()}) + Grid.of({"a": StepFlow.release()}),
            ValueError,
            "two different settings are both called 'a'",
        ),
        (lambda: from_spec([{"type": "Magic"}]), ValueError, "no intervention 'Magic': expected"),
        (lambda: from_spec([{"tau_max": 1}]), ValueError, "type.*got {'tau_max': 1}"),
        (
            lambda: from_spec([{"type": "StepMomentum", "beta": 1}]),
            TypeError,
            "unexpected keyword argument 'beta'",
        ),
    ],
)
def test_bad_grids_are_explained(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_condition_is_a_setting_and_changes_no_hash_where_there_is_none():
    when = measure("lock_in", layers="shallow").above(0.4, hold=1)
    described = {"measure": "lock_in", "above": 0.4, "hold": 1, "layers": "shallow"}
    assert "when" not in to_spec(StepFlow(OddsEqualBridge()))[0]
    (spec,) = to_spec(StepFlow(OddsEqualBridge(when=when)))
    assert spec["when"] == described
    assert from_spec([spec]) == StepFlow(OddsEqualBridge(when=when))
    made = grid(OddsEqualBridge, tau_max=[0.15, 0.3], when=[None, described])
    assert [setting.flow.interventions[0].when for setting in made] == [None, when] * 2
    labels = [setting.label for setting in made]
    assert len(set(labels)) == 4
    assert "when=" not in labels[0]
    assert "when=Measured(name='lock_in', side='above'" in labels[1]
