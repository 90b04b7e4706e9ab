import base64
import json
import os
import pickle
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow_tl.tasks import BenchmarkError, code_tests
from stepflow_tl.tasks.code_tests import pickled_text, read_tests

TESTS = [{"input": "1", "output": "2", "testtype": "stdin"}]


def packed(content: object, protocol: int = 4) -> str:
    """As LiveCodeBench keeps private tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(content, protocol))).decode()


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm-was-done",)


class Builder:
    def __reduce__(self):
        return str, ("[]",)


@given(text=st.text(), protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_a_string_is_read_from_any_pickle(text, protocol):
    assert pickled_text(pickle.dumps(text, protocol)) == text


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("content", [Harm(), Builder(), ["[]"], {"a": "b"}, 3, None, ("a", "b")])
def test_nothing_else_is_read_and_nothing_is_run(content, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BenchmarkError, match=r"opcode|found \d in it"):
        pickled_text(pickle.dumps(content, protocol))
    with pytest.raises(BenchmarkError):
        read_tests([packed(content, protocol)], None)
    assert not list(tmp_path.iterdir())


def test_the_refusal_names_the_opcode():
    with pytest.raises(BenchmarkError, match="refused a pickle with the opcode .*never unpickled"):
        pickled_text(pickle.dumps(Harm()))


@given(data=st.binary())
def test_any_bytes_are_refused_or_text(data):
    try:
        assert isinstance(pickled_text(data), str)
    except BenchmarkError as error:
        assert "pickle" in str(error)


def test_public_and_private_tests_are_joined():
    more = [{"input": "é", "output": "ê", "testtype": "stdin"}]
    expected = (("1", "é"), ("2", "ê"), None)
    for private in (packed(json.dumps(more)), json.dumps(more)):
        assert read_tests([json.dumps(TESTS), private], None) == expected
    assert read_tests([json.dumps(TESTS), packed("")], None) == (("1",), ("2",), None)


def test_functional_tests_know_their_function():
    tests = json.dumps([{"input": "[1]", "output": "1", "testtype": "functional"}])
    assert read_tests([tests], "f") == (("[1]",), ("1",), "f")
    assert read_tests([tests], None) == (("[1]",), ("1",), None)  # as a script
    with pytest.raises(BenchmarkError, match=r"2 of \['functional', 'stdin'\]"):
        read_tests([tests, json.dumps(TESTS)], "f")
    plain = json.dumps([{"input": "[1]", "output": "1"}])
    assert read_tests([plain], "f")[2] == "f"
    assert read_tests([plain], None)[2] is None


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("", "expected tests, all of one testtype, stdin or functional, got 0 of"),
        ("[]", "got 0 of"),
        ("[1", "expected tests as JSON, got '\\[1'"),
        ("[1]", "tests such as .*got 1"),
        ('[{"input": 1, "output": "2"}]', "tests such as .*'input': 1"),
        ('[{"input": "1"}]', "tests such as"),
        ('[{"input": "1", "output": "2", "testtype": "x"}]', r"got 1 of \['x'\]"),
        ("{}", "compressed as LiveCodeBench does, got '{}'"),
        ("AAAA", "compressed as LiveCodeBench does, got 'AAAA'"),
        ("[" * 100_000, "expected tests as JSON"),
        (packed("3"), "expected a list of tests, got 3"),
        (packed("[")[:-8] + "AAAAAAA=", "LiveCodeBench|whole tests"),
    ],
    ids=lambda text: text[:20],
)
def test_other_cells_are_explained(cell, message):
    with pytest.raises(BenchmarkError, match=message):
        read_tests([cell], None)


def test_tests_that_would_fill_the_memory_are_refused(monkeypatch):
    monkeypatch.setattr(code_tests, "LARGEST_TESTS", 1000)
    with pytest.raises(BenchmarkError, match="at most 1000 bytes"):
        read_tests([packed("[" + " " * 5000 + "]")], None)
