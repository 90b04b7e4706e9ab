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


_KNOWN: Mapping[tuple[Any, Any, Any], _Audit] = {
    ("attention_x_gradient", "token", "mean"): _Audit(".59", ".63", ".63 [.61, .66]"),
    ("attention_x_gradient", "token", "share"): _Audit("1.00", ".63", ".85 [.83, .87]"),
    ("attention_x_gradient", "logit", "share"): _Audit("1.00", ".63", ".84 [.82, .86]"),
    ("attention_x_value", "token", "share"): _Audit("1.00", ".63", ".85 [.83, .87]"),
    ("attention", "token", "share"): _Audit(".99", ".62", ".84 [.82, .86]"),
    ("attention", "token", "mean"): _Audit("1.00", ".66", None),
    ("rollout", "token", "share"): _Audit(".88", ".62", ".79 [.77, .81]"),
}
"""By rule, objective and pooling; of the causal diagonal, with the frame's keys in."""


def known_audit(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Lines on the rule of a map's settings; none where it was not audited."""
    as_audited = {"diagonal": "causal", "frame_keys": "in"}
    found = _KNOWN.get(
        (settings.get("rule"), settings.get("objective", "token"), settings.get("pool", "share"))
    )
    if found is None or any(settings.get(name, as_) != as_ for name, as_ in as_audited.items()):
        return ()
    beside = f"; hiding, in SmolLM2-135M (100 traces), {found.smollm2}" if found.smollm2 else ""
    return (
        "What this rule was found to be worth, by AUROC within equal distance (.50 is chance): the "
        f"premise that a step uses {found.premise}, what hiding a step does to later ones "
        f"{found.reasoner} (the bundled reasoner, 200 problems){beside}. On another model or task "
        "it may be worth something else.",
    )
