"""The arms of `planted`: failures by dose, by layers, and under every repair."""

from stepflow_tl import (
    GradientMomentum,
    OddsEqualBridge,
    StepFlow,
    StepMomentum,
    UniformPriorBridge,
)
from stepflow_tl.interventions import (
    Intervention,
    PlantedDecay,
    PlantedForgetting,
    PlantedLockIn,
    PlantedNoise,
)

LOOK_UP = (4, 5, 6)
"""Layers of the bundled reasoner that look premises up (`audit`)."""

LOCK_IN, FORGETTING, DECAY, NOISE = 0.4, 0.7, 0.5, 0.8
"""The dose of each that repairs are tried at: where a third to a half of the answers are lost."""


def lock_in(dose: float = LOCK_IN, layers: tuple[int, ...] = LOOK_UP) -> PlantedLockIn:
    """Thinking loses its share on the question."""
    return PlantedLockIn(strength=dose, layers=layers)


def earlier(dose: float) -> PlantedLockIn:
    """Thinking loses its share on earlier steps, in all layers."""
    return PlantedLockIn(strength=dose, layers="all", source="earlier")


def forgetting(dose: float = FORGETTING, layers: object = "all") -> PlantedForgetting:
    """A step's first token loses its share on the step before."""
    return PlantedForgetting(strength=dose, layers=layers)


def decay(dose: float = DECAY, beyond: int = 0) -> PlantedDecay:
    """The summary loses its share on the thinking, in all layers."""
    return PlantedDecay(strength=dose, layers="all", beyond=beyond)


def noise(dose: float = NOISE) -> PlantedNoise:
    """Queries of the look-up layers match other keys."""
    return PlantedNoise(strength=dose, layers=LOOK_UP)


def bridge(tau_max: float, layers: object = LOOK_UP, keys: str = "question") -> OddsEqualBridge:
    """OEB where the failure is."""
    return OddsEqualBridge(tau_max=tau_max, layers=layers, keys=keys)


def momentum(alpha: float, layers: object = "all", **settings: str) -> StepMomentum:
    """SMI of whole steps."""
    return StepMomentum(alpha=alpha, layers=layers, window="step", **settings)


DOSES: dict[str, dict[float, Intervention]] = {
    "lock-in": {d: lock_in(d) for d in (0.2, 0.3, 0.4, 0.5, 0.7)},
    "lock-in (earlier steps)": {d: earlier(d) for d in (0.5, 0.9)},
    "forgetting": {d: forgetting(d) for d in (0.4, 0.6, 0.7, 0.8, 1.0)},
    "decay": {d: decay(d) for d in (0.5, 0.7, 0.9)},
    "decay (but the last step)": {1.0: decay(1.0, beyond=1)},
    "noise": {d: noise(d) for d in (0.6, 0.8, 1.0)},
}
"""Each failure by dose, without a repair."""

PLACES: dict[str, dict[str, Intervention]] = {
    "lock-in, d = 0.9": {
        name: lock_in(0.9, layers)
        for name, layers in {
            "0-1": (0, 1),
            "2-3": (2, 3),
            "4": (4,),
            "5": (5,),
            "6": (6,),
            "7": (7,),
        }.items()
    },
    "forgetting, d = 1": {
        f"{first}-{first + 1}": forgetting(1.0, (first, first + 1)) for first in (0, 2, 4, 6)
    },
}
"""Failures by layers, at one dose."""

PAPER = (OddsEqualBridge(), StepMomentum())

REPAIRS: dict[str, tuple[tuple[Intervention, ...], dict[str, tuple[Intervention, ...]]]] = {
    "none planted": (
        (),
        {
            "OEB .15 there": (bridge(0.15),),
            "OEB .3 there": (bridge(0.3),),
            "paper": PAPER,
        },
    ),
    "lock-in": (
        (lock_in(),),
        {
            **{f"OEB {tau:g} there": (bridge(tau),) for tau in (0.05, 0.15, 0.3, 0.5)},
            "OEB 0.15 there, prompt's keys": (bridge(0.15, keys="prompt"),),
            "OEB 0.15, shallow (paper)": (OddsEqualBridge(),),
            "SMI 0.06, deep (paper)": (StepMomentum(),),
            **{f"SMI {alpha:g} there": (momentum(alpha, LOOK_UP),) for alpha in (0.3, 1.0)},
            "both (paper)": PAPER,
            "both there": (bridge(0.15), momentum(0.3, LOOK_UP)),
            "uniform prior 0.1 there": (UniformPriorBridge(layers=LOOK_UP),),
            "gradient momentum": (GradientMomentum(),),
            "release": StepFlow.release().interventions,
        },
    ),
    "lock-in, d = 0.9": (
        (lock_in(0.9),),
        {"OEB 0.4 there": (bridge(0.4),)},
    ),
    "lock-in (earlier steps), d = 0.9": (
        (earlier(0.9),),
        {"OEB 0.15 everywhere": (bridge(0.15, "all"),), "SMI 0.3 everywhere": (momentum(0.3),)},
    ),
    "forgetting": (
        (forgetting(),),
        {
            **{f"SMI {alpha:g} everywhere": (momentum(alpha),) for alpha in (0.06, 0.3, 1.0)},
            "OEB 0.15 everywhere": (bridge(0.15, "all"),),
            "both (paper)": PAPER,
        },
    ),
    "decay": (
        (decay(),),
        {
            **{f"OEB {tau:g} everywhere": (bridge(tau, "all"),) for tau in (0.15, 0.4)},
            "SMI 0.3 everywhere, all boundaries": (momentum(0.3, boundaries="all"),),
        },
    ),
    "noise": (
        (noise(),),
        {"OEB 0.15 there": (bridge(0.15),), "SMI 0.3 everywhere": (momentum(0.3),)},
    ),
}
"""What is planted, and what repairs it is tried under; planted first, so that repairs act on it."""


def arms() -> dict[str, StepFlow]:
    """Every arm by its name; the failure alone, and with each repair."""
    found = {
        f"{kind}, d = {dose:g}": StepFlow(item)
        for kind, doses in DOSES.items()
        for dose, item in doses.items()
    }
    for kind, places in PLACES.items():
        found |= {f"{kind}, layers {name}": StepFlow(item) for name, item in places.items()}
    found["lock-in, d = 0.9, layers 4-6"] = StepFlow(lock_in(0.9))
    for kind, (planted, repairs) in REPAIRS.items():
        found |= {
            f"{kind} + {name}": StepFlow(*planted, *repair) for name, repair in repairs.items()
        }
    return found


def planted_arm(failure: str) -> str:
    """Name of the arm where a failure of `REPAIRS` stands alone."""
    alone = {
        "none planted": "baseline",
        "lock-in": f"lock-in, d = {LOCK_IN:g}",
        "lock-in, d = 0.9": "lock-in, d = 0.9, layers 4-6",
        "lock-in (earlier steps), d = 0.9": "lock-in (earlier steps), d = 0.9",
        "forgetting": f"forgetting, d = {FORGETTING:g}",
        "decay": f"decay, d = {DECAY:g}",
        "noise": f"noise, d = {NOISE:g}",
    }
    return alone[failure]
