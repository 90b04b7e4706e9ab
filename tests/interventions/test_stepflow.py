"""StepFlow on models: the authors' logits, caches, batches, and models left as they were."""

import contextlib
import itertools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from flows import EXACT, FLOW, FLOWS, NEAR, OEB, SMI, close
from helpers import (
    FULL_STOP,
    Golden,
    cached,
    hooks_of,
    teacher_forced,
)
from torch import Tensor

from stepflow_tl.interventions import (
    Intervention,
    InterventionWarning,
    Ledger,
    OddsEqualBridge,
    StepFlow,
    StepMomentum,
)
from stepflow_tl.models.layers import resolve_layers
from stepflow_tl.models.sites import hook_name
from stepflow_tl.traces.trace import Trace


class TestGolden:
    """tiny_gpt_oss: row r predicts response token r."""

    CASES = (
        ("baseline", StepFlow(), 1e-4),
        ("oeb_layers01_tau0.15", StepFlow(OddsEqualBridge(tau_max=0.15, layers=(0, 1))), 1e-3),
        ("smi_layer6_alpha0.06", StepFlow(StepMomentum(alpha=0.06, layers=6)), 1e-4),
    )

    @pytest.mark.parametrize("decoding", ["teacher-forced", "cached", "known trace"])
    @pytest.mark.parametrize(("name", "flow", "tolerance"), CASES)
    @pytest.mark.slow
    def test_logits_are_the_authors(
        self,
        golden: Golden,
        golden_model: Callable[[str], Any],
        name: str,
        flow: StepFlow,
        tolerance: float,
        decoding: str,
    ) -> None:
        model = golden_model("tiny_gpt_oss")
        prompt = golden.facts["prompt_ids"]
        ids = torch.tensor([prompt + golden.facts["response_ids"]])
        if decoding == "known trace":
            trace = Trace.from_token_ids(
                model, ids, prompt_length=len(prompt), format=FULL_STOP["harmony"]
            )
            hooks = flow.fwd_hooks(model, trace)
            with torch.no_grad():
                logits = model.run_with_hooks(ids, fwd_hooks=hooks)
        else:
            with flow.attach(model, prompt_length=len(prompt), format=FULL_STOP["harmony"]):
                if decoding == "cached":
                    logits = cached(model, ids, [len(prompt)])
                else:
                    logits = teacher_forced(model, ids)
        mine = logits[0, len(prompt) - 1 : -1]
        assert (mine - golden.logits[name]).abs().max() < tolerance

    def test_the_injections_are_the_authors(
        self, golden: Golden, golden_model: Callable[[str], Any]
    ) -> None:
        model = golden_model("tiny_gpt_oss")
        prompt = golden.facts["prompt_ids"]
        ids = torch.tensor([prompt + golden.facts["response_ids"]])
        flow = StepFlow(StepMomentum(layers=6))
        reading = {"prompt_length": len(prompt), "format": FULL_STOP["harmony"]}
        with flow.attach(model, **reading) as run:
            cached(model, ids, [len(prompt)])
        assert run.ledger.total("StepMomentum", "injections") == len(golden.facts["smi_windows"])


class TestNeutral:
    @pytest.mark.parametrize(
        "flow",
        [
            StepFlow(),
            StepFlow(OddsEqualBridge(tau_max=0.0, layers="all")),
            StepFlow(StepMomentum(alpha=0.0, layers="all")),
            StepFlow(OddsEqualBridge(tau_max=0.0), StepMomentum(alpha=0.0)),
        ],
        ids=["empty", "tau_max=0", "alpha=0", "both"],
    )
    def test_logits_are_bit_identical(self, model: Any, trace: Trace, flow: StepFlow) -> None:
        plain = teacher_forced(model, trace.tokens)
        with flow.attach(model):
            close(teacher_forced(model, trace.tokens), plain, **EXACT)
        with torch.no_grad():
            hooked = model.run_with_hooks(trace.tokens, fwd_hooks=flow.fwd_hooks(model, trace))
        close(hooked, plain, **EXACT)

    def test_a_real_strength_is_not(self, model: Any, trace: Trace) -> None:
        plain = teacher_forced(model, trace.tokens)
        for flow in FLOWS.values():
            with flow.attach(model):
                assert (teacher_forced(model, trace.tokens) - plain).abs().max() > 1e-2

    def test_rows_of_the_question_are_bit_identical(self, model: Any, trace: Trace) -> None:
        plain = teacher_forced(model, trace.tokens)
        with FLOW.attach(model):
            flowing = teacher_forced(model, trace.tokens)
        stop = trace.question.stop
        close(flowing[:, :stop], plain[:, :stop], **EXACT)

    def test_a_bridge_that_is_met_changes_nothing(self, model: Any, trace: Trace) -> None:
        plain = teacher_forced(model, trace.tokens)
        flow = StepFlow(OddsEqualBridge(tau_max=1e-9, layers="all"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InterventionWarning)
            with flow.attach(model) as run:
                logits = teacher_forced(model, trace.tokens)
        table = run.ledger.to_dataframe()
        untouched = table.rows_changed == 0
        assert untouched.any()
        if untouched.all():
            close(logits, plain, **EXACT)


class TestLeaving:
    @pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, GeneratorExit])
    @pytest.mark.parametrize("moment", ["before", "in a hook", "after"])
    def test_the_model_is_as_it_was(
        self, model: Any, trace: Trace, error: type[BaseException] | None, moment: str
    ) -> None:
        def fail(x: Tensor, hook: Any) -> None:
            if error is not None:
                raise error("stop")

        plain, hooks = teacher_forced(model, trace.tokens), hooks_of(model)
        inner = [(hook_name("z", 1), fail)] if moment == "in a hook" else []
        with contextlib.suppress(*([error] if error else [])), FLOW.attach(model):
            if moment == "before":
                fail(plain, None)
            with torch.no_grad():
                model.run_with_hooks(trace.tokens, fwd_hooks=inner)
            fail(plain, None)
        assert hooks_of(model) == hooks
        assert not any(hooks.values())
        close(teacher_forced(model, trace.tokens), plain, **EXACT)

    def test_after_an_error_in_a_forward_pass_the_next_one_is_right(
        self, model: Any, trace: Trace
    ) -> None:
        def fail(x: Tensor, hook: Any) -> None:
            raise RuntimeError("stop")

        with FLOW.attach(model):
            expected = teacher_forced(model, trace.tokens)
        with FLOW.attach(model):
            for site in ("z", "pattern"):
                with pytest.raises(RuntimeError, match="stop"):
                    model.run_with_hooks(trace.tokens, fwd_hooks=[(hook_name(site, 1), fail)])
                close(teacher_forced(model, trace.tokens), expected, **EXACT)

    def test_run_with_hooks_leaves_nothing(self, model: Any, trace: Trace) -> None:
        with torch.no_grad():
            model.run_with_hooks(trace.tokens, fwd_hooks=FLOW.fwd_hooks(model, trace))
        assert not any(hooks_of(model).values())

    def test_a_refused_flow_attaches_nothing(self, model: Any) -> None:
        flow = StepFlow(OEB, StepMomentum(layers=(2, 9)))
        with pytest.raises(ValueError, match="names layer 9"), flow.attach(model):
            raise AssertionError("attached")
        assert not any(hooks_of(model).values())


class TestComposing:
    def test_order_does_not_matter(self, model: Any, trace: Trace) -> None:
        items = (OEB, SMI, OddsEqualBridge(tau_max=0.5, layers=3))
        results = []
        for order in itertools.permutations(items):
            with StepFlow(*order).attach(model):
                results.append(teacher_forced(model, trace.tokens))
        for result in results[1:]:
            close(result, results[0], **EXACT)

    def test_nested_blocks_act_as_one(self, model: Any, trace: Trace) -> None:
        with FLOW.attach(model):
            expected = teacher_forced(model, trace.tokens)
        for first, second in ((OEB, SMI), (SMI, OEB)):
            with StepFlow(first).attach(model):
                alone = teacher_forced(model, trace.tokens)
                with StepFlow(second).attach(model):
                    close(teacher_forced(model, trace.tokens), expected, **EXACT)
                    close(cached(model, trace.tokens, [40, 4, 40]), expected, **NEAR)
                close(teacher_forced(model, trace.tokens), alone, **EXACT)
        assert not any(hooks_of(model).values())

    def test_the_same_kind_twice_acts_twice(self, model: Any, trace: Trace) -> None:
        half = StepMomentum(alpha=0.35, layers=2)
        with StepFlow(StepMomentum(alpha=0.7, layers=2)).attach(model):
            expected = teacher_forced(model, trace.tokens)
        with StepFlow(half, half).attach(model) as run:
            close(teacher_forced(model, trace.tokens), expected, **NEAR)
        names = run.ledger.to_dataframe().intervention.tolist()
        assert names == ["StepMomentum-1", "StepMomentum-2"]

    def test_a_users_hooks_take_part_and_survive(self, model: Any, trace: Trace) -> None:
        seen: list[Tensor] = []

        def halve(z: Tensor, hook: Any) -> Tensor:
            seen.append(z)
            return z / 2

        model.add_hook(hook_name("z", 2), halve)
        try:
            before = teacher_forced(model, trace.tokens)
            with FLOW.attach(model):
                inside = teacher_forced(model, trace.tokens)
            after = teacher_forced(model, trace.tokens)
            assert len(seen) == 3
            close(after, before, **EXACT)
            assert (inside - before).abs().max() > 1e-2
        finally:
            model.reset_hooks()
        with FLOW.attach(model):
            inner = model.hooks(fwd_hooks=[(hook_name("z", 2), lambda z, hook: z * 1.0)])
            expected = teacher_forced(model, trace.tokens)
            with inner:
                close(teacher_forced(model, trace.tokens), expected, **EXACT)
            close(teacher_forced(model, trace.tokens), expected, **EXACT)

    def test_a_users_hook_sees_the_bridged_pattern(self, model: Any, trace: Trace) -> None:
        patterns: list[Tensor] = []
        look = [(hook_name("pattern", 0), lambda p, hook: patterns.append(p.clone()))]
        with torch.no_grad():
            model.run_with_hooks(trace.tokens, fwd_hooks=look)
            with FLOW.attach(model):
                model.run_with_hooks(trace.tokens, fwd_hooks=look)
        plain, bridged = patterns
        assert (plain - bridged).abs().max() > 1e-2
        close(bridged.sum(-1), plain.sum(-1))

    def test_caching_runs_flow_too(self, model: Any, trace: Trace) -> None:
        with FLOW.attach(model), torch.no_grad():
            logits, cache = model.run_with_cache(trace.tokens)
            close(logits, teacher_forced(model, trace.tokens), **EXACT)
        assert cache[hook_name("pattern", 0)].shape[-1] == len(trace)
        assert not any(hooks_of(model).values())

    def test_gradients_pass(self, model: Any, trace: Trace) -> None:
        with FLOW.attach(model):
            model(trace.tokens, return_type="loss").backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert grads
        assert all(g.isfinite().all() for g in grads)
        model.zero_grad()
        for parameter in model.parameters():
            parameter.grad = None


class TestLedger:
    def test_counts_by_hand(self, model: Any, trace: Trace) -> None:
        with FLOW.attach(model) as run:
            teacher_forced(model, trace.tokens)
        table = run.ledger.to_dataframe().set_index(["intervention", "layer"])
        rows = (len(trace.thinking) + len(trace.summary)) * 4
        assert (table.loc["OddsEqualBridge"].rows_seen == rows).all()
        assert (
            table.loc["OddsEqualBridge"].bridge_mass_after
            >= table.loc["OddsEqualBridge"].bridge_mass_before
        ).all()
        assert table.loc["StepMomentum"].injections.tolist() == [3, 3, 3]
        assert table.loc["StepMomentum"].index.tolist() == [1, 2, 3]
        assert (table.loc["StepMomentum"].injection_norm > 0).all()

    def test_all_boundaries(self, model: Any, trace: Trace) -> None:
        flow = StepFlow(StepMomentum(layers=(2, 3), boundaries="all"))
        with flow.attach(model) as run:
            cached(model, trace.tokens, [28, 40])
        assert run.ledger.to_dataframe().injections.tolist() == [5, 5]

    def test_masses_are_those_of_the_patterns(self, model: Any, trace: Trace) -> None:
        patterns: list[Tensor] = []
        look = [(hook_name("pattern", 1), lambda p, hook: patterns.append(p.clone()))]
        flow = StepFlow(OddsEqualBridge(tau_max=0.9, layers=1))
        with flow.attach(model) as run, torch.no_grad():
            model.run_with_hooks(trace.tokens, fwd_hooks=look)
        table = run.ledger.to_dataframe()
        segment = trace.segment_of_token
        bridge = segment[None, :] == segment[:, None] - 1
        rows = segment > 0
        share = (patterns[0] * bridge).sum(-1) / patterns[0].sum(-1)
        assert table.bridge_mass_after[0] == pytest.approx(share[..., rows].mean().item(), rel=1e-4)

    def test_cached_decoding_counts_the_same(self, model: Any, trace: Trace) -> None:
        tables = []
        for chunks in ([86], [28, 50], [5, 40, 38]):
            with FLOW.attach(model) as run:
                cached(model, trace.tokens, chunks)
            tables.append(run.ledger.to_dataframe())
        for table in tables[1:]:
            assert table.rows_seen.tolist() == tables[0].rows_seen.tolist()
            assert table.injections.tolist() == tables[0].injections.tolist()
            assert table.rows_changed.sub(tables[0].rows_changed).abs().max() <= 2

    def test_a_users_ledger(self, model: Any, trace: Trace) -> None:
        ledger = Ledger()
        with torch.no_grad():
            model.run_with_hooks(
                trace.tokens, fwd_hooks=FLOW.fwd_hooks(model, trace, ledger=ledger)
            )
        assert ledger.total("StepMomentum", "injections") == 9

    def test_a_misspelled_column_is_named(
        self, model: Any, trace: Trace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        @dataclass(frozen=True, kw_only=True)
        class Looking(Intervention):
            layers: Any = 1
            reports: str = "rows_seen"
            site = "z"
            columns = ("rows_seen",)
            fired = "rows_seen"

            def edit(self, z: torch.Tensor, at: Any) -> Any:
                return None, {self.reports: 1}

        with StepFlow(Looking()).attach(model) as run:
            teacher_forced(model, trace.tokens)
        assert run.ledger.total("Looking", "rows_seen") == 1
        message = r"Looking: expected.*'rows_seen'.*got 'rows_sen'"
        misspelled = StepFlow(Looking(reports="rows_sen"))
        with pytest.raises(ValueError, match=message), misspelled.attach(model):
            teacher_forced(model, trace.tokens)
        monkeypatch.setattr(Looking, "fired", "rows")
        with pytest.raises(ValueError, match="Looking: expected fired to be one of.*got 'rows'"):
            Looking()

    def test_what_never_fired_has_a_line(self, qwen2: Any) -> None:
        with StepFlow(StepMomentum(layers="all")).attach(qwen2) as run:
            pass
        table = run.ledger.to_dataframe()
        assert table.injections.tolist() == [0, 0, 0, 0]
        assert table.injection_norm.isna().all()
        assert "StepMomentum" in repr(run.ledger)


class TestWarnings:
    def test_nothing_fired(self, model: Any, others: list[Trace]) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with FLOW.attach(model):
                teacher_forced(model, others[-1].tokens)
        assert [w.category for w in caught] == [InterventionWarning] * 2
        assert [w.filename for w in caught] == [__file__] * 2
        message = r"StepMomentum\(.*never fired in 1 forward passes.*check the format"
        assert re.match(message, str(caught[1].message))

    def test_every_row_at_its_target(self, model: Any, trace: Trace) -> None:
        flow = StepFlow(OddsEqualBridge(tau_max=1e-9, layers=1))
        message = r"never fired in 1 forward passes: none of \d+ attention rows"
        with pytest.warns(InterventionWarning, match=message), flow.attach(model):
            teacher_forced(model, trace.tokens)

    @pytest.mark.parametrize(
        ("flow", "length"),
        [
            (FLOW, 0),  # nothing was run
            (FLOW, 86),  # both fired
            (StepFlow(OddsEqualBridge(tau_max=0.0), StepMomentum(alpha=0.0)), 86),  # neutral
            (StepFlow(), 86),
        ],
    )
    def test_no_warning(self, model: Any, trace: Trace, flow: StepFlow, length: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with flow.attach(model):
                if length:
                    teacher_forced(model, trace.tokens[:, :length])

    def test_none_on_top_of_an_exception(self, model: Any, others: list[Trace]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(RuntimeError, match="^mine$"), FLOW.attach(model):
                teacher_forced(model, others[-1].tokens)
                raise RuntimeError("mine")


class TestSettings:
    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize("item", ["OddsEqualBridge", OddsEqualBridge, None, FLOW])
    def test_what_is_no_intervention(self, item: Any) -> None:
        with pytest.raises(TypeError, match="StepFlow takes interventions such as.*got"):
            StepFlow(item)

    def test_equal_flows_hash_alike(self) -> None:
        one, other = (StepFlow(OddsEqualBridge(layers=layers)) for layers in ([0, 1], (0, 1)))
        assert one == other
        assert hash(one) == hash(other)
        assert one != StepFlow(OddsEqualBridge(layers=[0, 2]))

    def test_presets(self) -> None:
        paper, release = StepFlow.paper(), StepFlow.release()
        assert paper == StepFlow(OddsEqualBridge(), StepMomentum())
        layers = [resolve_layers(item.layers, 28) for item in paper.interventions]
        assert layers == [tuple(range(7)), tuple(range(21, 28))]
        bridge, momentum = release.interventions
        assert resolve_layers(bridge.layers, 24) == tuple(range(9))
        assert resolve_layers(momentum.layers, 24) == (18,)

    def test_a_format_without_opening_needs_a_prompt_length(self, model: Any, trace: Trace) -> None:
        message = "expected prompt_length, got None"
        with pytest.raises(ValueError, match=message), FLOW.attach(model, format="plain"):
            teacher_forced(model, trace.tokens)
        with FLOW.attach(model, format="plain", prompt_length=28) as run:
            teacher_forced(model, trace.tokens)
        assert run.ledger.total("StepMomentum", "injections") > 0

    def test_a_prompt_length_of_ones_own(self, model: Any, trace: Trace) -> None:
        with FLOW.attach(model):
            expected = teacher_forced(model, trace.tokens)
        with FLOW.attach(model, prompt_length=trace.prompt_length):
            close(teacher_forced(model, trace.tokens), expected, **EXACT)
