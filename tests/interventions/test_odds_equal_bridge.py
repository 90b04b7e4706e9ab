"""Odds-Equal Bridge as a map on patterns: by hand, its invariants, and the KL-closest row."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from stepflow_tl.interventions import OddsEqualBridge
from stepflow_tl.interventions.groups import Groups
from stepflow_tl.interventions.odds_equal_bridge import Rebalanced, equalize_odds


def groups(kinds: str, queries: int = 1) -> Groups:
    """One letter per key: B bridge, S current segment, anything else: the rest."""
    bridge, current = (torch.tensor([[[k == x for k in kinds]] * queries]) for x in "BS")
    return Groups.of(bridge, current)


def apply(row: list[float], kinds: str, **settings: Any) -> Rebalanced:
    pattern = torch.tensor(row).view(1, 1, 1, -1)
    return equalize_odds(pattern, groups(kinds), **{"tau_max": 0.5, **settings})


def row_of(result: Rebalanced) -> list[float]:
    return result.pattern.flatten().tolist()


class TestByHand:
    """Four keys: two of the bridge, two of the current segment: sqrt(2/4) = 0.707."""

    def test_the_bridge_is_raised_at_the_current_segments_cost(self) -> None:
        result = apply([0.1, 0.1, 0.2, 0.6], "BBSS", tau_max=0.5)
        assert row_of(result) == pytest.approx([0.25, 0.25, 0.125, 0.375])
        assert (result.before.item(), result.after.item()) == pytest.approx((0.2, 0.5))
        assert result.changed.all()
        assert not result.infeasible.any()

    def test_the_rest_is_kept(self) -> None:
        result = apply([0.1, 0.3, 0.2, 0.4], "BOSS", tau_max=0.5)
        # S gives up 0.4 of its 0.6: a third of each of its keys is left
        assert row_of(result) == pytest.approx([0.5, 0.3, 0.2 / 3, 0.4 / 3], abs=1e-6)
        assert sum(row_of(result)) == pytest.approx(1.0)

    def test_few_bridge_keys_lower_the_target(self) -> None:
        result = apply([0.01, 0.19, 0.4, 0.4], "BSSS", tau_max=0.9)
        assert row_of(result)[0] == pytest.approx(0.5)  # sqrt(1 / 4)

    def test_a_sink_keeps_its_share(self) -> None:
        result = apply([0.05, 0.05, 0.1, 0.3], "BBSS", tau_max=0.5)  # half is the sink's
        assert row_of(result) == pytest.approx([0.125, 0.125, 0.0625, 0.1875])
        assert (result.before.item(), result.after.item()) == pytest.approx((0.2, 0.5))

    @pytest.mark.parametrize(
        ("infeasible", "on_bridge"), [("clamp", 0.4 - 1e-6), ("scale", 0.2), ("skip", 0.1)]
    )
    def test_more_is_asked_than_there_is(self, infeasible: str, on_bridge: float) -> None:
        result = apply([0.1, 0.3, 0.6], "BSO", tau_max=0.5, infeasible=infeasible)
        assert row_of(result) == pytest.approx([on_bridge, 0.4 - on_bridge, 0.6], abs=1e-7)
        assert result.infeasible.all()
        assert result.changed.all() == (infeasible != "skip")
        assert result.after.item() == pytest.approx(on_bridge)

    def test_scaling_never_lowers_the_bridge(self) -> None:
        result = apply([0.3, 0.1, 0.6], "BSO", tau_max=0.5, infeasible="scale")
        assert row_of(result) == torch.tensor([0.3, 0.1, 0.6]).tolist()

    @pytest.mark.parametrize(
        ("row", "kinds"),
        [
            ([0.5, 0.5, 0.0], "SSB"),  # a bridge without mass
            ([1.0, 0.0], "BS"),  # nothing to take from
            ([0.4, 0.6], "SS"),  # no bridge
            ([0.4, 0.6], "BB"),  # no current segment
            ([0.4, 0.6], "OO"),
            ([0.0, 0.0], "BS"),  # a padded row
            ([1e-38, 1.0], "BS"),
            ([0.6, 0.4], "BS"),  # above the target
            ([0.5, 0.5], "BS"),  # at the target
            ([math.nan, math.nan], "BS"),
        ],
    )
    def test_rows_left_alone(self, row: list[float], kinds: str) -> None:
        result = apply(row, kinds)
        assert not result.changed.any()
        expected = torch.tensor(row)
        assert torch.equal(result.pattern.flatten().nan_to_num(9), expected.nan_to_num(9))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Groups, float]:
    kinds = "BS" + "".join(draw(st.lists(st.sampled_from("BSO"), min_size=1, max_size=8)))
    seed = draw(st.integers(0, 1000))
    sharpness = draw(st.sampled_from([0.1, 1.0, 3.0]))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 4, len(kinds) + 1, generator=generator) * sharpness
    pattern = logits.softmax(-1)[..., : -1 if draw(st.booleans()) else None]  # with a sink or not
    kinds += "O" * (pattern.shape[-1] - len(kinds))
    one = groups(kinds, 4)
    both = Groups(one.members.expand(2, *one.members.shape[1:]))
    return pattern, both, draw(st.floats(0.0, 1.0))


def share(pattern: Tensor, group: Tensor) -> Tensor:
    return (pattern * group[:, None]).sum(-1)


@given(case=cases(), infeasible=st.sampled_from(["clamp", "scale", "skip"]))
def test_what_is_kept_and_what_is_reached(
    case: tuple[Tensor, Groups, float], infeasible: str
) -> None:
    pattern, split, tau_max = case
    result = equalize_odds(pattern, split, tau_max=tau_max, infeasible=infeasible)
    new = result.pattern
    total = pattern.sum(-1)
    tau = min(
        math.sqrt(split.bridge_size[0, 0] / (split.bridge_size + split.current_size)[0, 0]), tau_max
    )

    torch.testing.assert_close(new.sum(-1), total, atol=1e-6, rtol=0)
    rest = ~(split.bridge | split.current)[:, None].expand_as(pattern)
    assert torch.equal(new[rest], pattern[rest])
    for group in (split.bridge, split.current):
        inside = group[:, None].expand_as(pattern)
        ratios = (new / pattern).masked_fill(~inside, float("nan"))
        low, high = (f(ratios, -1) for f in (_nanmin, _nanmax))
        torch.testing.assert_close(low, high, atol=0, rtol=1e-4)
    assert torch.equal(new[~result.changed], pattern[~result.changed])

    reached = share(new, split.bridge) / total
    torch.testing.assert_close(reached, result.after, atol=1e-6, rtol=1e-5)
    assert (reached >= result.before - 1e-6).all()
    feasible = ~result.infeasible & result.changed
    assert torch.allclose(reached[feasible], torch.tensor(tau), atol=1e-6)
    assert (result.before[~result.changed & ~result.infeasible] >= tau - 1e-6).all()


def _nanmin(x: Tensor, axis: int) -> Tensor:
    return x.nan_to_num(math.inf).amin(axis)


def _nanmax(x: Tensor, axis: int) -> Tensor:
    return x.nan_to_num(-math.inf).amax(axis)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_left_alone_are_bit_identical(dtype: torch.dtype) -> None:
    pattern = torch.randn(2, 3, 4, 6, dtype=torch.float64).softmax(-1).to(dtype)
    split = groups("BBSSOO", 4)
    both = Groups(split.members.expand(2, *split.members.shape[1:]))
    result = equalize_odds(pattern, both, tau_max=0.35)
    assert result.pattern.dtype == dtype
    assert result.changed.any()
    assert not result.changed.all()
    assert torch.equal(result.pattern[~result.changed], pattern[~result.changed])


def test_double_precision_is_kept() -> None:
    pattern = torch.randn(1, 1, 5, 6, dtype=torch.float64).softmax(-1)
    result = equalize_odds(pattern, groups("BBSSOO", 5), tau_max=0.7)
    torch.testing.assert_close(
        result.pattern.sum(-1), torch.ones(1, 1, 5, dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_half_precision_reaches_the_target() -> None:
    pattern = torch.randn(1, 2, 5, 60).softmax(-1).bfloat16()
    result = equalize_odds(pattern, groups("B" * 10 + "S" * 50, 5), tau_max=0.6)
    reached = share(result.pattern.float(), groups("B" * 10 + "S" * 50, 5).bridge)
    tau = math.sqrt(1 / 6)
    torch.testing.assert_close(reached, torch.full_like(reached, tau), atol=5e-3, rtol=0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sink", [0.0, 0.3])
def test_the_row_is_the_kl_closest(seed: int, sink: float) -> None:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(6)) * (1 - sink)
    kinds = "BBSSSO"
    result = apply(p.tolist(), kinds, tau_max=0.6)
    bridge, current, rest = (np.array([k == x for k in kinds]) for x in "BSO")
    on_bridge = result.after.item() * p.sum()

    def divergence(q: np.ndarray) -> float:
        return float(np.sum(q * np.log(q / p)))

    best = minimize(
        divergence,
        np.full(6, p.sum() / 6),
        method="SLSQP",
        bounds=[(1e-9, 1)] * 6,
        constraints=[
            {"type": "eq", "fun": lambda q, g=group, m=mass: q[g].sum() - m}
            for group, mass in (
                (bridge, on_bridge),
                (rest, p[rest].sum()),
                (current, p.sum() - on_bridge - p[rest].sum()),
            )
        ],
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert best.success
    np.testing.assert_allclose(row_of(result), best.x, atol=1e-5)


def test_the_authors_logit_shift_is_the_same_map() -> None:
    logits = torch.randn(7)
    kinds = "OBBSSSO"
    result = equalize_odds(logits.softmax(-1).view(1, 1, 1, -1), groups(kinds), tau_max=0.6)
    p = logits.softmax(-1)
    bridge, current = (torch.tensor([k == x for k in kinds]) for x in "BS")
    tau = result.after.item()
    shift = torch.zeros(7)
    shift[bridge] = math.log(tau / p[bridge].sum())
    shift[current] = torch.log((p[bridge].sum() + p[current].sum() - tau) / p[current].sum())
    torch.testing.assert_close(result.pattern.flatten(), (logits + shift).softmax(-1))


@pytest.mark.parametrize("mass", [1e-12, 1e-20, 1e-26])
def test_gradients_through_a_nearly_empty_bridge_are_those_of_wider_floats(mass: float) -> None:
    """1 / mass squared is past float32, but what reaches Step-Saliency, A x dL/dA, is not."""
    products = []
    for dtype in (torch.float32, torch.float64):
        row = torch.tensor([mass, 3 * mass, 0.4, 0.6], dtype=dtype, requires_grad=True)
        result = equalize_odds(row.view(1, 1, 1, -1), groups("BBSS"), tau_max=0.5)
        (
            result.pattern.flatten() * torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=dtype)
        ).sum().backward()
        products.append((row.detach() * row.grad).double())
    assert products[0].isfinite().all()
    torch.testing.assert_close(*products, rtol=1e-5, atol=1e-6)


def test_gradients_are_finite_and_pass_rows_left_alone() -> None:
    pattern = torch.tensor([[0.1, 0.9], [0.0, 1.0], [0.9, 0.1], [0.0, 0.0]]).view(1, 1, 4, 2)
    pattern.requires_grad_()
    result = equalize_odds(pattern, groups("BS", 4), tau_max=0.5)
    weights = torch.arange(8.0).view(1, 1, 4, 2)
    (result.pattern * weights).sum().backward()
    assert pattern.grad is not None
    assert pattern.grad.isfinite().all()
    assert torch.equal(pattern.grad[0, 0, 1:], weights[0, 0, 1:])


class TestSettings:
    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"tau_max": -0.1}, "OddsEqualBridge: expected tau_max in [0, 1], got -0.1"),
            ({"tau_max": 1.1}, "expected tau_max in [0, 1], got 1.1"),
            ({"tau_max": math.nan}, "expected tau_max in [0, 1], got nan"),
            ({"keys": "answer"}, "expected one of ['prompt', 'question'], got 'answer'"),
            ({"infeasible": "drop"}, "expected one of ['clamp', 'scale', 'skip'], got 'drop'"),
            ({"layers": "bottom"}, "layers='bottom': expected one of"),
            ({"layers": []}, "expected at least one layer index"),
        ],
    )
    def test_bad_ones(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            OddsEqualBridge(**settings)

    def test_frozen_and_keyword_only(self) -> None:
        with pytest.raises(TypeError):
            OddsEqualBridge(0.15)  # type: ignore[misc]
        with pytest.raises(AttributeError):
            OddsEqualBridge().tau_max = 0.2  # type: ignore[misc]
        with pytest.raises(TypeError, match="tau"):
            OddsEqualBridge(tau=0.2)  # type: ignore[call-arg]

    def test_the_papers_defaults(self) -> None:
        assert OddsEqualBridge() == OddsEqualBridge(
            tau_max=0.15, layers="shallow", keys="prompt", infeasible="clamp"
        )
        assert OddsEqualBridge(tau_max=0.0).is_neutral
        assert not OddsEqualBridge().is_neutral
