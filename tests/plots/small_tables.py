"""Small tables, as the experiments make them."""

import numpy as np
import pandas as pd

HOSTILE = "$\\frac{x}$ <b> _y_ \\n \x00 cost $5 and $6 " + "OddsEqualBridge(tau_max=0.05) + " * 9


def estimate(name, values, half=0.03):
    values = np.asarray(values, dtype=float)
    return {name: values, f"{name}_low": values - half, f"{name}_high": values + half}


def comparison(arms=("OEB only", "SMI only"), groups=("easy", "hard", "all")):
    """As `compare` makes it: a row per arm and group."""
    rows = pd.DataFrame(
        [(arm, group) for group in groups for arm in arms], columns=["arm", "group"]
    )
    gain = np.linspace(-0.02, 0.05, len(rows))
    return rows.assign(
        n=100,
        **estimate("accuracy", 0.7 + gain),
        **estimate("baseline", np.full(len(rows), 0.7)),
        **estimate("difference", gain),
        p_holm=np.where(gain > 0.03, 0.01, 0.5),
    )


def published():
    return pd.DataFrame(
        {"label": ["OEB"], "benchmark": ["AIME25"], "model": ["GPT-OSS-20B"], "difference": [0.025]}
    )


def strategies():
    rows = [(s, f, g) for s in ("plain", "voting") for f in (False, True) for g in ("easy", "hard")]
    table = pd.DataFrame(rows, columns=["strategy", "stepflow", "group"])
    return table.assign(**estimate("accuracy", np.linspace(0.5, 0.8, len(rows))))


def layer_ablation():
    places = [("bottom", "band", np.nan), ("top", "band", np.nan)]
    places += [(f"layer {i}", "layer", i) for i in range(4)]
    rows = [(component, *place) for component in ("OEB", "SMI") for place in places]
    table = pd.DataFrame(rows, columns=["component", "place", "kind", "layer"])
    return table.assign(**estimate("difference", np.linspace(-0.1, 0.1, len(rows))), p_holm=0.2)


def strengths():
    rows = [(tau, alpha) for tau in (0.0, 0.15, 0.3) for alpha in (0.0, 0.06)]
    table = pd.DataFrame(rows, columns=["tau_max", "alpha"])
    return table.assign(
        accuracy=0.732,
        difference=[0.0, -0.04, 0.05, 0.02, 0.012, np.nan],
        p_value=[1.0, 0.02, 0.001, 0.5, 0.5, np.nan],
        p_holm=[1.0, 0.1, 0.01, 0.9, 0.9, np.nan],
    )


def compute():
    arms = ["baseline", "StepFlow", "voting k=2", "voting k=4", "voting k=8"]
    return pd.DataFrame(
        {
            "arm": arms,
            "family": ["plain", "StepFlow", "voting", "voting", "voting"],
            "compute": [1.0, 1.01, 2.0, 4.0, 8.0],
            **estimate("accuracy", [0.70, 0.72, 0.71, 0.74, 0.76]),
        }
    )


def difficulty():
    return comparison(("StepFlow",), ("2", "4", "8", "all"))


def error_kinds():
    return pd.DataFrame(
        {
            "kind": ["forgotten premise", "arithmetic"],
            "corrected": [12, 1],
            "introduced": [3, 0],
            "baseline_errors": [34, 9],
        }
    )


def layer_changes():
    rows = [(layer, name) for name in ("lock_in", "summary_on_thinking") for layer in range(4)]
    change = np.linspace(-0.03, 0.03, len(rows))
    table = pd.DataFrame(rows, columns=["layer", "measure"])
    return table.assign(change=change, low=change - 0.01, high=change + 0.01)


def problem_changes():
    rows = [(name, c) for name in ("lock_in", "summary_on_thinking") for c in (-1, 0, 0, 0, 1)]
    table = pd.DataFrame(rows, columns=["measure", "correctness_change"])
    return table.assign(change=np.linspace(-0.1, 0.1, len(rows)))


def contrasts():
    change = np.linspace(-0.02, 0.03, 4)
    return pd.DataFrame({"arm": ["OEB, shallow", "SMI, deep", "both", "control"]}).assign(
        **estimate("correct", change, 0.004),
        **estimate("wrong", change[::-1], 0.004),
        **estimate("contrast", change - change[::-1], 0.006),
        p_holm=[0.01, 0.5, 0.5, 0.01],
    )


def controlled():
    rows = [
        (rule, measure, band)
        for rule in ("attention", "paper's", "release's")
        for measure in ("lock_in", "half_life")
        for band in ("shallow", "deep")
    ]
    table = pd.DataFrame(rows, columns=["rule", "measure", "band"])
    value = np.linspace(-0.1, 0.1, len(rows))
    return table.assign(
        **estimate("difference", value), **estimate("controlled", -value), p_holm=0.2
    )


def audited(rules=("paper", "share", "distance alone"), truths=("premise", "knock-out")):
    """As the audit's summary: a row per rule."""
    values = np.linspace(0.5, 0.95, len(rules))
    table = pd.DataFrame({"rule": list(rules)})
    for truth in truths:
        table = table.assign(
            **estimate(f"{truth}_auroc", values), **estimate(f"{truth}_within", values - 0.05)
        )
    return table.assign(**estimate("rise", np.where(np.arange(len(rules)) == 2, np.nan, values)))


def planted():
    """Doses, layers, repairs and power, as the experiment makes them."""
    doses = pd.DataFrame({"failure": ["lock-in"] * 3 + ["noise"] * 2, "dose": [0, 0.2, 0.4, 0, 1]})
    layers = pd.DataFrame({"failure": ["lock-in"] * 3, "layers": ["0-1", "2-3", "4"]})
    repairs = pd.DataFrame(
        {"failure": ["lock-in"] * 2 + ["noise"], "repair": ["OEB .15", "SMI", "OEB .15"]}
    )
    rows = [
        ("lock-in", "lock_in", rule, layer, n)
        for rule in "ab"
        for layer in (0, 1)
        for n in (20, 50)
    ]
    power = pd.DataFrame(rows, columns=["failure", "measure", "rule", "layer", "n"])
    return (
        doses.assign(**estimate("accuracy", [1, 0.9, 0.5, 1, 0.1])),
        layers.assign(**estimate("accuracy", [1, 0.9, 0.5])),
        repairs.assign(
            **estimate("accuracy", [0.9, 0.5, 0.4]),
            **estimate("baseline", [0.5, 0.5, 0.45]),
            p_holm=[0.001, 1.0, 0.4],
        ),
        power.assign(power=np.linspace(0, 1, len(rows)), planted=power["layer"] == 1),
    )


def closed_loop():
    """Windows accused, and loops closed, as the experiment makes them."""
    accused = pd.DataFrame(
        [(w, rule, way) for w in ("0-2", "4-6") for rule in ("paper", "share") for way in "xy"],
        columns=["planted", "rule", "against"],
    )
    values = np.linspace(0.1, 0.9, len(accused))
    loops = pd.DataFrame(
        {
            "model": ["planted", "unplanted"],
            "layers": ["accused", "accused"],
            "which": ["4-6", "1-3"],
            "held_out_before": [0.6, 0.8],
        }
    )
    return (
        accused.assign(**estimate("overlap", values), random=0.4).rename(
            columns={"overlap": "overlap_mean"}
        ),
        loops.assign(**estimate("accuracy", [0.7, np.nan]), **estimate("baseline", [0.6, np.nan])),
    )


def triggered():
    """Answers and predictions of every arm, as the experiment makes them."""
    arms = ["always", "triggered", "at random, as often (0)", "at random, as often (1)"]
    answers = pd.DataFrame({"case": ["planted"] * 4 + ["none"] * 4, "arm": arms * 2})
    rows = pd.DataFrame({"case": ["planted"] * 5 + ["none"] * 5, "arm": ["as it is", *arms] * 2})
    side, near = np.linspace(0, 1, 10), np.array([0.2] * 5 + [np.nan] * 5)
    return (
        answers.assign(
            **estimate("accuracy", [0.6, 0.7, 0.5, 0.5] * 2), **estimate("baseline", [0.5] * 8)
        ),
        rows.assign(
            **estimate("touched", side), **estimate("healthy_kl", near), **estimate("side_kl", side)
        ),
    )


def failure(models=("reasoner", "locked in")):
    """A measure by layer, accuracies, and the unplanted table, as the demo makes them."""
    by_layer = pd.DataFrame(
        [(model, layer) for model in models for layer in range(4)], columns=["model", "layer"]
    )
    sets = pd.DataFrame({"problems": ["8", "16"], "n": 5})
    return (
        by_layer.assign(**estimate("value", np.linspace(0.2, 0.8, len(by_layer)))),
        pd.DataFrame({"model": list(models), "n": 5}).assign(
            **estimate("accuracy", np.linspace(0.4, 0.9, len(models)))
        ),
        sets.assign(**estimate("baseline", [0.9, 0.5]), **estimate("StepFlow", [0.9, 0.6])),
    )
