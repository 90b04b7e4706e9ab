"""Rollouts from places in a thinking, and what they say of steps."""

import math
from typing import Any

import pandas as pd
import pytest
import torch

from stepflow_tl import Decoding, Grid, StepFlow, Sweep, Trace, WordProblems, generate, load_model
from stepflow_tl.errors import SettingError
from stepflow_tl.sweep import Resampling, answer_divergence, importance, trace_of

BASELINE = Grid.of({"baseline": StepFlow()})
TASK = WordProblems(n=2, difficulties=(2,), seed=4)


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model("reasoner", device="cpu")


@pytest.fixture(scope="module")
def traces(model: Any) -> dict[str, Trace]:
    return {item.key: generate(model, item.question, max_new_tokens=120) for item in TASK.items}


def rows_of(answers: dict[str, list[tuple[str, bool]]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"arm": "baseline", "problem": key, "answer": answer, "correct": correct}
            for key, said in answers.items()
            for answer, correct in said
        ]
    )


class TestImportance:
    def test_by_hand(self) -> None:
        """Half of four right, then three of four: step 0 is worth 1/4."""
        right, wrong = ("7", True), ("8", False)
        table = importance(
            rows_of({"x@0": [right, right, wrong, wrong], "x@1": [right, right, right, wrong]})
        )
        assert table["accuracy"].tolist() == [0.5, 0.75]
        assert table["n"].tolist() == [4, 4]
        first, last = table.iloc[0], table.iloc[1]
        assert first["importance"] == 0.25
        assert first["importance_low"] < 0.25 < first["importance_high"]
        p, q = (2.5 / 5, 2.5 / 5), (3.5 / 5, 1.5 / 5)
        assert first["kl"] == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q)))  # noqa: B905
        assert last[["importance", "kl"]].isna().all()

    def test_a_missing_answer_in_their_smoothing(self) -> None:
        """A third of the answers is gone afterwards: ln(1/3 / 1e-9) times a third."""
        found = answer_divergence(["a", "b", "c"], ["a", "b", "b"], "thought-anchors")
        third = 1 / 3
        expected = third * math.log(third / 1e-9) + third * math.log(0.5)
        assert found == pytest.approx(expected, rel=1e-6)
        assert answer_divergence(["a", None], ["a", float("nan")]) == 0.0

    def test_what_does_not_fit(self) -> None:
        both = rows_of({"x@0": [("1", True)], "x@2": [("1", True)]})
        with pytest.raises(SettingError, match=r"expected every place of 'x', got \[0, 2\]"):
            importance(both)
        with pytest.raises(SettingError, match="expected rows of one arm, got none"):
            importance(both.iloc[:0])
        with pytest.raises(SettingError, match="expected the key of a place"):
            importance(rows_of({"x": [("1", True)]}))
        with pytest.raises(SettingError, match="expected the key of a place"):
            importance(rows_of({"x@²": [("1", True)]}))
        with pytest.raises(SettingError, match=r"as many rollouts from every place .* \[1, 2\]"):
            importance(rows_of({"x@0": [("1", True)], "x@1": [("1", True)] * 2}))
        with pytest.raises(SettingError, match="expected rollouts that were graded"):
            importance(rows_of({"x@0": [("1", None)]}))
        with pytest.raises(SettingError, match="expected rows of one arm, got none"):
            importance(pd.DataFrame())

    def test_all_right_after_all_wrong_is_not_certain(self) -> None:
        """Newcombe's interval of 0/5 to 5/5, computed by hand from Wilson's."""
        table = importance(rows_of({"x@0": [("1", False)] * 5, "x@1": [("2", True)] * 5}))
        first = table.iloc[0]
        wilson_low = 1 / (1 + 1.959964**2 / 5)  # of 5/5
        assert first["importance_low"] == pytest.approx(1 - math.hypot(*[1 - wilson_low] * 2))
        assert first["importance_high"] == 1.0

    def test_a_missing_end_is_seen_beside_the_task(
        self, model: Any, traces: dict[str, Trace]
    ) -> None:
        task = Resampling(TASK, traces)
        keys = [item.key for item in task.items]
        rows = rows_of({key: [("1", True)] for key in keys})
        assert len(importance(rows, task)) == len(keys)
        with pytest.raises(SettingError, match="expected every place of the task, got none of"):
            importance(rows.iloc[:-1], task)


def test_rollouts_go_on_from_each_place(model, traces, tmp_path) -> None:
    """Greedy, a rollout is the trace itself; a sweep that was stopped goes on."""
    task = Resampling(TASK, traces)
    places = sum(len(trace.steps_in("thinking")) + 1 for trace in traces.values())
    assert len(task.items) == places
    greedy = Decoding(max_new_tokens=120, batch_size=4)
    described = Sweep(task, BASELINE, model=model, decoding=greedy)
    rows = described.run(tmp_path / "greedy.sqlite")
    for _, row in rows.iterrows():
        whole = traces[row["problem"].split("@")[0]]
        again = trace_of(model, row)
        assert torch.equal(again.token_ids, whole.token_ids)
        assert again.steps == whole.steps
    table = importance(rows)
    assert (table["accuracy"] == 1.0).all() and (table["importance"].dropna() == 0.0).all()
    again = described.run(tmp_path / "greedy.sqlite")
    assert again["hash"].tolist() == rows["hash"].tolist()


def test_seeds_are_rollouts(model, traces, tmp_path) -> None:
    task = Resampling(TASK, traces)
    warm = Decoding(max_new_tokens=60, temperature=2.0, batch_size=8)
    sweep = Sweep(task, BASELINE, model=model, decoding=warm, seeds=range(3))
    rows = sweep.run(tmp_path / "warm.sqlite")
    assert len(rows) == 3 * len(task.items)
    assert set(importance(rows)["n"]) == {3}
    first = rows[rows["problem"] == task.items[0].key]
    assert first["response"].nunique() > 1


def test_forced_answers(model, traces, tmp_path) -> None:
    """Each place is closed at once; what the reasoner then says need not be right."""
    own = "\n\nThe answer is \\boxed{"  # as the reasoner ends its summaries
    task = Resampling(TASK, traces, forced=True, tokenizer=model, text=own)
    short = Decoding(max_new_tokens=12, batch_size=8)
    rows = Sweep(task, BASELINE, model=model, decoding=short).run(tmp_path / "forced.sqlite")
    table = importance(rows)
    assert (table["n"] == 1).all()
    answered = rows["answer"].dropna()
    assert len(answered) > 1 and answered.str.isdigit().all()
    for _, row in rows.iterrows():
        assert "</think>\n\nThe answer is \\boxed{" in row["response"]


def test_one_is_never_taken_for_another(model, traces) -> None:
    plain, forced = Resampling(TASK, traces), Resampling(TASK, traces, forced=True, tokenizer=model)
    fewer = Resampling(TASK, dict(list(traces.items())[:1]))
    assert len({task.digest for task in (plain, forced, fewer)}) == 3
    item = plain.items[0]
    assert plain.content(item, 0) != forced.content(item, 0)
    with pytest.raises(SettingError, match="traces of the task's items, by their keys, got"):
        Resampling(TASK, {"nobody": next(iter(traces.values()))})
    with pytest.raises(SettingError, match="expected tokenizer= to force answers with"):
        Resampling(TASK, traces, forced=True)
