import pytest
import torch

from stepflow_tl import token_saliency
from stepflow_tl.analysis import sink_shares
from stepflow_tl.analysis.sinks import SHARES
from stepflow_tl.errors import StepMapError
from stepflow_tl.traces.tokens import FRAME


def test_shares_are_those_counted_row_by_row(qwen2, trace):
    attention = token_saliency(qwen2, trace, rule="attention")
    table = sink_shares(attention, trace)
    assert table["layer"].tolist() == list(range(len(attention)))
    for layer, pattern in enumerate(attention):
        expected = dict.fromkeys(SHARES, 0.0)
        queries = range(trace.prompt_length, len(trace))
        for query in queries:
            for key in range(query + 1):
                name = ("question", "thinking", "summary")[trace.segment_of_token[key]]
                if int(trace.step_of_token[key]) == FRAME:
                    name = "frame"
                name = "first_token" if key == 0 else name
                expected[name] += float(pattern[query, key]) / len(queries)
        assert table.loc[layer, list(SHARES)].to_dict() == pytest.approx(expected, rel=1e-4)


def test_shares_sum_to_one_where_rows_do_not(trace):
    attention = 0.3 * torch.rand(2, len(trace), len(trace)).tril()
    table = sink_shares(attention, trace)
    assert table[list(SHARES)].sum(axis=1).tolist() == pytest.approx([1.0, 1.0])


def test_what_does_not_fit_is_named(qwen2, trace):
    with pytest.raises(StepMapError, match="expected patterns of the trace's"):
        sink_shares(torch.ones(2, 3, 3), trace)
