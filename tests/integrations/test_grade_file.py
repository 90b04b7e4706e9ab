"""Other people's outputs, graded and held against their scores."""

import pytest
from helpers import DATA

from stepflow_tl.integrations.grade_file import Fields, audit_file
from stepflow_tl.tasks import BenchmarkError
from stepflow_tl.tasks.tables import rows_of_file

ROWS = [
    {"kind": "math", "response": r"\boxed{x = 12{,}345}", "gold": "12345", "score": True},
    {"kind": "math", "response": r"\boxed{1}", "gold": r"\frac{R}{r}", "score": True},
    {"kind": "number", "response": "It is 18.", "gold": "So.\n#### 18", "score": 0.0},
    {"kind": "number", "response": r"\boxed{3\pi}", "gold": 3, "score": "1"},
    {"kind": "choice", "response": "Answer: C", "gold": "(C)", "score": None},
    {"kind": "choice", "response": "Answer: C", "gold": "D", "options": ["a", "b", "c", "d"]},
]
CODE = {
    "kind": "code",
    "response": "```python\nprint(int(input()) + 1)\n```",
    "gold": {"inputs": ["1\n"], "outputs": ["2\n"]},
    "score": "false",
}


def test_disagreements_come_first(written):
    audit = audit_file(written(*ROWS))
    assert [row.grade.correct for row in audit.rows] == [True, False, True, False, True, False]
    assert [row.score for row in audit.rows] == [True, True, False, True, None, None]
    assert [row.row for row in audit.disagreements] == [3, 2, 4]  # accepted here first
    text = audit.text()
    assert text.index("row 3 (number): right here, wrong there") == 0
    assert "agreement with the stored score: 1 of 4, 0.250 [" in text
    assert "right only here: 1, right only there: 2" in text
    assert "  because  the last box holds '1', which is not the gold '\\\\frac{R}{r}'" in text
    assert "math: right 1 of 2, 0.500 [" in text and "  wrong     1  another value" in text


def test_only_some_are_shown(written):
    text = audit_file(written(*ROWS)).text(limit=1)
    assert "... and 2 more disagreements" in text and "row 2 (math)" not in text
    assert "row" not in audit_file(written(*ROWS)).text(limit=0).partition("agreement")[0].replace(
        "and 3 more disagreements", ""
    )


def test_code_is_run_only_where_it_may(written):
    path = written(CODE)
    with pytest.raises(BenchmarkError, match="mine.jsonl, row 1: grading code runs what the model"):
        audit_file(path)
    audit = audit_file(path, allow_code_execution=True)
    assert audit.disagreements == audit.rows and audit.rows[0].grade.rule == "the tests"


def test_fields_may_lie_within_others(written):
    row = {"resps": [[r"\boxed{5}"]], "doc": {"answer": "5"}, "exact_match": 1.0, "a.b": "x"}
    fields = Fields(response="resps.0.0", gold="doc.answer", score="exact_match")
    audit = audit_file(written(row), kind="math", fields=fields)
    assert audit.rows[0].grade.correct and not audit.disagreements
    assert audit_file(written(row), kind="math", fields=Fields(response="a.b", gold="a.b")).rows


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"response": "x", "kind": "math"}, r"row 2: expected 'gold', found none among \["),
        ({"gold": "1", "kind": "math"}, "expected 'response', found none"),
        ({"response": 1, "gold": "1", "kind": "math"}, "text in 'response', got 1"),
        ({"response": "x", "gold": "1"}, "expected 'kind', found none"),
        ({"response": "x", "gold": "1", "kind": "maths"}, "one of .*, got maths"),
        ({"response": "x", "gold": None, "kind": "math"}, "text in 'gold', got None"),
        ({"response": "x", "gold": "", "kind": "math"}, "a gold answer of 1 to 2000"),
        ({"response": "x", "gold": "many", "kind": "number"}, "a gold answer such as '18'"),
        ({"response": "x", "gold": "AB", "kind": "choice"}, "a letter from A to Z, got 'AB'"),
        ({"response": "x", "gold": "A", "kind": "choice", "options": "4"}, "number or a list"),
        ({"response": "x", "gold": "1", "kind": "math", "score": "maybe"}, "true, false or a"),
        ({"response": "x", "gold": "1", "kind": "math", "score": []}, "true, false or a number"),
        ({"response": "x", "gold": [1], "kind": "code"}, "tests such as"),
        ({"response": "x", "gold": "{", "kind": "code"}, "row 2"),
        ([1], "row 2: expected columns by name"),
    ],
)
def test_a_wrong_row_is_named_or_skipped(written, row, says):
    path = written(ROWS[0], row)
    with pytest.raises(BenchmarkError, match=says):
        audit_file(path, allow_code_execution=True)
    audit = audit_file(path, allow_code_execution=True, on_error="skip")
    assert len(audit.rows) == 1 and len(audit.skipped) == 1
    assert "skipped 1 rows: mine.jsonl, row 2: " in audit.text()


def test_settings_that_cannot_be(written, unchecked):
    with pytest.raises(BenchmarkError, match="on_error 'raise' or 'skip', got 'ignore'"):
        audit_file(written(*ROWS), on_error="ignore")
    with pytest.raises(BenchmarkError, match="kind to be one of .*, got 'maths'"):
        audit_file(written(*ROWS), kind="maths")
    with pytest.raises(BenchmarkError, match="expected rows to grade, found none"):
        audit_file(written())


def test_what_a_model_wrote_cannot_act_on_a_terminal(written):
    row = {"kind": "math", "response": "\\boxed{\x1b[2J\n5}", "gold": "\x1b]0;x\x07", "score": 1}
    text = audit_file(written(row)).text()
    assert "\x1b" not in text and "\x07" not in text


@pytest.mark.slow
def test_recorded_cases_are_graded_as_expected():
    """Cases of every kind; each says why it is right or wrong."""
    audit = audit_file(
        DATA / "grading.jsonl", fields=Fields(score="expected"), allow_code_execution=True
    )
    assert len(audit.rows) >= 184
    assert audit.text() and [(row.row, row.grade.reason) for row in audit.disagreements] == []


REFUSED = {
    "math-matrix-vector-13": "a number times a matrix",
    "math-repeating-mixed-base-17": "a base in words",
    "math-complex-17": "cis",
    "math-calculus-25": "y' and dy/dx",
    "math-negated-8": "a set without a number, as an inequation",
    "math-builder-11": "a set without a number, as a union",
    "math-relations-6": "|x| < 3 as two bounds",
    "math-floors-points-4": "an identity of whole numbers only",
    "math-floors-points-16": "an identity of whole numbers only",
    "math-names-of-equations-14": "the name of an argument",
    "math-names-of-equations-25": "a product of vectors in another order",
    "math-names-of-equations-29": "an angle by its points from the other side",
    "math-names-of-equations-34": "unit vectors in bold and with hats",
    "math-money-units-22": "a newton by base units",
    "math-money-units-44": "minutes of an angle",
    "math-array-5": "a determinant",
    "math-unread-by-hand-6": "a sum with a variable bound",
    "math-more-forms-7": "a ratio that is not reduced",
    "math-more-forms-11": "a double factorial",
    "math-slow-1": "a set of many sets",
    "number-shapes-41": "a sentence in a box",
    "number-box2-15": "a number to another base",
    "number-box2-19": "\\choose",
    "choice-deny-2": "not B but C",
    "choice-deny-36": "an insertion between verb and letter",
    "choice-words-pronoun-6": "the answer I get",
    "choice-right2-72": "a statement called by a letter",
    "choice-right2-107": "Spanish",
    "choice-right2-108": "German",
}
"""Right answers that are refused, and what is not read in them."""


@pytest.mark.slow
def test_nothing_wrong_is_accepted_and_what_is_refused_is_known():
    """Some 2100 cases, made by others than the graders' authors to break them."""
    path = DATA / "grading_adversarial.jsonl.gz"
    audit = audit_file(path, fields=Fields(score="expected"), allow_code_execution=True)
    names = [row["id"] for _, row in rows_of_file(path)]
    differ = {names[row.row - 1]: row.grade for row in audit.disagreements}
    assert [(name, grade.reason) for name, grade in differ.items() if grade.correct] == []
    assert set(differ) <= set(REFUSED)
