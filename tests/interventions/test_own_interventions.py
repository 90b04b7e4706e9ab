"""Interventions of a user: what comes with them, and several blocks at once, on every view."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from flows import EXACT, NEAR, close
from helpers import HAS_HOOKED, ROOT, hooks_of
from torch import Tensor
from transformers import AutoModelForCausalLM

from stepflow_tl import Decoding, Intervention, StepFlow, Store, Sweep, WordProblems, grid
from stepflow_tl.errors import InterventionWarning, SettingError, WrongTypeError
from stepflow_tl.interventions import INTERVENTIONS, EditPosition
from stepflow_tl.models.base import ModelView
from stepflow_tl.models.view import view
from stepflow_tl.sweep.grid import from_spec, to_spec
from stepflow_tl.traces import Trace

SHORT = Decoding(max_new_tokens=4, chat=False, format="plain")


@dataclass(frozen=True, kw_only=True)
class Scale(Intervention):
    """h' = by * h."""

    by: float = 2.0
    layers: Any = 1
    site = "resid_post"

    def edit(self, stream: Tensor, at: EditPosition) -> Any:
        return stream * self.by, {"rows_changed": stream.shape[0]}


@dataclass(frozen=True, kw_only=True)
class Shift(Intervention):
    """h' = h + by."""

    by: float = 1.0
    layers: Any = 1
    site = "resid_post"

    def edit(self, stream: Tensor, at: EditPosition) -> Any:
        return stream + self.by, {"rows_changed": stream.shape[0]}


@dataclass(frozen=True, kw_only=True)
class Look(Intervention):
    """Reads, and leaves all as it is."""

    kept: Any = None
    layers: Any = 1
    site = "z"
    reads = ("v",)
    columns = ("rows_seen",)
    fired = "rows_seen"

    def edit(self, z: Tensor, at: EditPosition) -> Any:
        self.kept.append((at.start, at.seen["v"].shape[1], z.shape[1]))
        at.memory[at.rows[0]] = at.memory.get(at.rows[0], 0) + 1
        return None, {"rows_seen": at.memory[at.rows[0]]}

    def prepare(self, at: EditPosition) -> Any:
        self.kept.append("pass")
        return {}


@pytest.fixture(params=["qwen2", "plain", *(["hooked"] if HAS_HOOKED else [])])
def seen(
    request: pytest.FixtureRequest, tiny: Callable[..., Any], tiny_folder: Callable[..., Path]
) -> ModelView:
    """The view of a model of each class."""
    if request.param != "plain":
        return view(tiny(request.param))
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder("qwen2"), dtype=torch.float32)
    return view(plain.eval())


@pytest.fixture
def run(seen: ModelView, tokenizer: Any, trace: Trace) -> Callable[..., Tensor]:
    """Logits of the trace under several blocks, the outermost first."""

    def logits(*flows: StepFlow) -> Tensor:
        if flows:
            with flows[0].attach(seen, tokenizer=tokenizer):
                return logits(*flows[1:])
        with torch.no_grad():
            return seen.logits(trace.tokens)

    return logits


def test_blocks_nest_in_their_order(seen: ModelView, run: Callable[..., Tensor]) -> None:
    plain = run()
    both = run(StepFlow(Scale()), StepFlow(Shift()))
    close(both, run(StepFlow(Scale(), Shift())), **EXACT)
    other = run(StepFlow(Shift()), StepFlow(Scale()))
    close(other, run(StepFlow(Shift(), Scale())), **EXACT)
    assert (both - other).abs().max() > 1e-3
    shifted = run(StepFlow(Scale()), StepFlow(Shift(by=4.0)))
    close(run(StepFlow(Shift(by=2.0)), StepFlow(Scale())), shifted, **NEAR)
    close(run(), plain, **EXACT)
    assert seen.hooks_on() == []


def test_an_inner_block_leaves_and_the_outer_stays(
    seen: ModelView, tokenizer: Any, trace: Trace, run: Callable[..., Tensor]
) -> None:
    outer, plain = run(StepFlow(Scale())), run()
    with StepFlow(Scale()).attach(seen, tokenizer=tokenizer) as first, torch.no_grad():
        inner = StepFlow(Shift()).attach(seen, tokenizer=tokenizer)
        with pytest.raises(RuntimeError, match="stop"), inner as second:
            seen.logits(trace.tokens)
            raise RuntimeError("stop")
        close(seen.logits(trace.tokens), outer, **EXACT)
    assert (first.forwards, second.forwards) == (2, 1)
    assert (first.actions, second.actions) == (2, 1)
    close(run(), plain, **EXACT)


def test_an_edit_may_read_decline_and_remember(
    seen: ModelView, tokenizer: Any, trace: Trace, run: Callable[..., Tensor]
) -> None:
    plain, kept, ids = run(), [], trace.tokens
    with StepFlow(Look(kept=kept)).attach(seen, tokenizer=tokenizer) as reading, torch.no_grad():
        _, cache = seen.run_cached(ids[:, :40], torch.ones_like(ids[:, :40]), None)
        logits, _ = seen.run_cached(ids[:, 40:], torch.ones_like(ids), cache)
    assert kept == ["pass", (0, 40, 40), "pass", (40, len(trace) - 40, len(trace) - 40)]
    assert reading.ledger.total("Look", "rows_seen") == 1 + 2  # what it remembers of the row
    close(logits, plain[:, 40:], **NEAR)


def test_the_page_shows_how_to_write_one(qwen2: Any, trace: Trace, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "interventions.md").read_text(encoding="utf-8")
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "class Sharpen" in b]
    names: dict[str, Any] = {"__name__": "docs_interventions"}
    exec(block.partition("with StepFlow(")[0], names)
    kind = names["Sharpen"]
    body = block[block.index("@dataclass") : block.index("\n\n\nwith")]
    assert len([line for line in body.splitlines() if line.strip()]) <= 12
    plain, flow = qwen2(trace.tokens), StepFlow(kind())
    with flow.attach(qwen2) as run:
        sharp = qwen2(trace.tokens)
    rows = (trace.segment_of_token > 0).sum() * 4  # heads
    assert run.ledger.total("Sharpen", "rows_changed") == rows
    assert (sharp - plain).abs().max() > 1e-3
    with StepFlow(kind(power=1.0)).attach(qwen2):
        close(qwen2(trace.tokens), plain, **NEAR)
    silent = "Sharpen.* never fired in 1 forward passes"
    with pytest.warns(InterventionWarning, match=silent), flow.attach(qwen2):
        qwen2(trace.tokens[:, :20])
    assert INTERVENTIONS["Sharpen"] is kind
    assert from_spec(to_spec(flow)) == flow
    rows = Sweep(
        WordProblems(n=1, difficulties=(1,), recall=()),
        grid(kind, power=[1.2, 1.5]),
        model=qwen2,
        decoding=SHORT,
    ).run(tmp_path / "sweep.sqlite")
    assert list(rows["setting"].unique()) == [
        "baseline",
        "Sharpen(power=1.2, layers=shallow)",
        "Sharpen(power=1.5, layers=shallow)",
    ]
    assert len(Store(tmp_path / "sweep.sqlite").to_dataframe()) == 3


@dataclass(frozen=True, kw_only=True)
class Gives(Intervention):
    """Gives what it was told to."""

    what: Any
    layers: Any = 1
    site = "resid_post"

    def edit(self, stream: Tensor, at: EditPosition) -> Any:
        return self.what


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (torch.zeros(2), r"a tensor of \[2\]"),
        ((torch.zeros(1, 3), {}), r"a tensor of \[1, 3\], \{\}"),
        ((None, None), "None, None"),
        (None, "None"),
    ],
)
def test_what_an_edit_must_give(
    seen: ModelView, tokenizer: Any, trace: Trace, what: Any, said: str
):
    message = rf"Gives.edit to give a tensor of shape \[1, 86, 32\] or None, and facts .*got {said}"
    flow = StepFlow(Gives(what=what))
    with pytest.raises(WrongTypeError, match=message), flow.attach(seen, tokenizer=tokenizer):
        seen.logits(trace.tokens)


def test_a_name_is_taken_once() -> None:
    with pytest.raises(SettingError, match="'StepMomentum', which stepflow_tl.*has"):
        type("StepMomentum", (Intervention,), {"__module__": __name__})
    again = type("Shift", (Shift,), {"__module__": __name__})  # a notebook's cell, run again
    assert INTERVENTIONS["Shift"] is again
    INTERVENTIONS["Shift"] = Shift


def test_settings_of_earlier_versions_are_understood() -> None:
    old = {"type": "OddsEqualBridge", "tau_max": 0.3, "layers": "deep", "bridge": "question"}
    (bridge,) = from_spec([old]).interventions
    assert (bridge.keys, bridge.tau_max) == ("question", 0.3)
    with pytest.raises(SettingError, match="no intervention 'Unheard': .* module is imported"):
        from_spec([{"type": "Unheard"}])


def test_no_hook_stays(seen: ModelView, run: Callable[..., Tensor]) -> None:
    run(StepFlow(Scale()), StepFlow(Shift()))
    if "embed" in seen.sites:
        assert not any(hooks_of(seen.model).values())
    assert not seen.embedding._forward_pre_hooks
