"""What is known of the rule that made a map: the audits of `docs/audits.md`, in short."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class _Audit(NamedTuple):
    """AUROC within equal distance; distance alone has .50.

    Attributes:
        premise: The premise that a step uses, in the bundled reasoner (200 problems).
        reasoner: What hiding a step does to later ones, there.
        smollm2: The same in SmolLM2-135M (100 traces of 50 problems); None where it was not tried.
    """

    premise: str
    reasoner: str
    smollm2: str | None


_KNOWN = {
    ("attention_x_gradient", "token", "mean"): _Audit(".59", ".63", ".63 [.61, .66]"),
    ("attention_x_gradient", "token", "share"): _Audit("1.00", ".63", ".85 [.83, .87]"),
    ("attention_x_gradient", "logit", "share"): _Audit("1.00", ".63", ".84 [.82, .86]"),
    ("attention_x_value", "token", "share"): _Audit("1.00", ".63", ".85 [.83, .87]"),
    ("attention", "token", "share"): _Audit(".99", ".62", ".84 [.82, .86]"),
    ("attention", "token", "mean"): _Audit("1.00", ".66", None),
    ("rollout", "token", "share"): _Audit(".88", ".62", ".79 [.77, .81]"),
}
"""By rule, objective and pooling."""


def known_audit(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Lines on the rule of a map's settings; none where it was not audited."""
    wanted = tuple(
        str(settings.get(name, default))
        for name, default in (("rule", ""), ("objective", "token"), ("pool", "share"))
    )
    found = _KNOWN.get((wanted[0], wanted[1], wanted[2]))
    if found is None:
        return ()
    beside = (
        ""
        if found.smollm2 is None
        else (f"; hiding, in SmolLM2-135M (100 traces), {found.smollm2}")
    )
    return (
        "What this rule was found to be worth, by AUROC within equal distance (.50 is chance): the "
        f"premise that a step uses {found.premise}, what hiding a step does to later ones "
        f"{found.reasoner} (the bundled reasoner, 200 problems){beside}. On another model or task "
        "it may be worth something else.",
    )
