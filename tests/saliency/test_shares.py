"""pool="share": streamed, fused and through hooks, against shares of the token scores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MODEL_KINDS

from stepflow_tl.analysis.presets import Preset
from stepflow_tl.errors import SettingError, WorkFileError
from stepflow_tl.saliency import StepMap, StepPooler, step_saliency, token_saliency
from stepflow_tl.traces.trace import Trace

SETTINGS = [
    {"rule": "attention_x_gradient", "objective": "token"},
    {"rule": "attention_x_gradient", "objective": "logit"},
    {"rule": "gradient", "objective": "margin"},
    {"rule": "attention_x_gradient", "objective": "sequence"},
    {"rule": "attention"},
    {"rule": "attention_x_value"},
]


@pytest.mark.parametrize("frame_keys", ["in", "out"])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s.values()))
def test_they_are_shares_of_token_scores(
    qwen2: Any, trace: Trace, settings: dict[str, str], frame_keys: str
) -> None:
    tokens = token_saliency(qwen2, trace, backend="hooks", **settings).double()
    pooler = StepPooler(trace.step_of_token, len(trace.steps), "share", frame_keys=frame_keys)
    streamed = settings.get("objective") != "sequence"
    for backend in ("hooks", "fused"):
        for chunk in (None, 17) if streamed else (None,):
            mine = step_saliency(
                qwen2,
                trace,
                pool="share",
                frame_keys=frame_keys,
                backend=backend,
                chunk=chunk,
                **settings,
            )
            expected = pooler(tokens)
            torch.testing.assert_close(mine.scores.double(), expected, atol=2e-5, rtol=0)
    if frame_keys == "out":
        rows = mine.scores.sum(-1)
        torch.testing.assert_close(rows, torch.ones_like(rows), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_every_class_of_models(tiny: Callable[..., Any], trace: Trace, kind: str) -> None:
    """Windows, sinks and grouped heads; heads kept apart have shares of their own."""
    model = tiny(kind)
    heads = token_saliency(model, trace, per_head=True, backend="hooks").double()
    pooler = StepPooler(trace.step_of_token, len(trace.steps), "share")
    mine = step_saliency(model, trace, pool="share", per_head=True)
    torch.testing.assert_close(mine.scores.double(), pooler(heads), atol=2e-5, rtol=0)
    together = step_saliency(model, trace, pool="share")
    torch.testing.assert_close(together.scores.double(), pooler(heads.mean(1)), atol=2e-5, rtol=0)


def test_rows_without_scores_are_counted(qwen2: Any, trace: Trace) -> None:
    """The last token predicts nothing; here it is in a step of the thinking."""
    trace = Trace.from_token_ids(qwen2, trace.token_ids[:-9], prompt_length=trace.prompt_length)
    assert trace.step_of_token[-1] >= 0
    made = step_saliency(qwen2, trace, pool="share")
    assert made.settings["zero_rows"] == [1] * len(made.layers)
    assert step_saliency(qwen2, trace, rule="attention", pool="share").settings["zero_rows"][0] == 0


def test_signs_are_refused(qwen2: Any, trace: Trace) -> None:
    with pytest.raises(SettingError, match=r"expected pool='mean' or 'sum' for rule='signed'"):
        step_saliency(qwen2, trace, rule="signed")


def test_shares_are_the_default_but_not_the_papers(qwen2: Any, trace: Trace) -> None:
    assert step_saliency(qwen2, trace).settings["pool"] == "share"
    for name in ("paper", "release"):
        assert step_saliency(qwen2, trace, **Preset.of(name).saliency).settings["pool"] == "mean"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"diagonal": "full"}, "expected pool='mean' for diagonal='full', got pool='share'"),
        (
            {"pool": "mean", "frame_keys": "out"},
            "expected pool='share' for frame_keys='out', got pool='mean'",
        ),
    ],
)
def test_what_another_pool_needs_is_refused(
    qwen2: Any, trace: Trace, settings: dict[str, Any], expected: str
) -> None:
    with pytest.raises(SettingError, match=expected):
        step_saliency(qwen2, trace, **settings)


def test_a_work_file_knows_the_denominator(qwen2: Any, trace: Trace, tmp_path: Path) -> None:
    def run(**settings: Any) -> StepMap:
        return step_saliency(
            qwen2, trace, pool="share", chunk=20, work_file=tmp_path / "work", **settings
        )

    first = run()
    again = run()
    torch.testing.assert_close(again.scores, first.scores)
    assert again.settings == first.settings
    with pytest.raises(WorkFileError, match="frame out"):
        run(frame_keys="out")


def test_from_a_cache(qwen2: Any, trace: Trace) -> None:
    _, cache = qwen2.run_with_cache(trace.tokens)
    mine = StepMap.from_cache(cache, trace, pool="share", frame_keys="out")
    expected = step_saliency(qwen2, trace, rule="attention", pool="share", frame_keys="out")
    torch.testing.assert_close(mine.scores, expected.scores, atol=1e-5, rtol=0)
