import pytest
from helpers import encode
from hypothesis import given
from hypothesis import strategies as st

from stepflow_tl import generate, load_model
from stepflow_tl.decoding.budget import ForcedRow, Forcing, Plans, ThinkingBudget
from stepflow_tl.tasks.word_problems import make_problem
from stepflow_tl.traces.formats import AUTO_FORMAT, HARMONY, PLAIN, THINK, Format
from stepflow_tl.traces.reader import TraceReader
from stepflow_tl.traces.tokens import end_token_ids

END, CLOSE, WORD = 9, 8, 1  # the end token, </think>, and any other


class Numbers:
    """A tokenizer of numbers: </think> is 8, <think> 0, a line break 7, "Wait" is 5 and 6."""

    eos_token_id = END
    all_special_ids = (END,)
    texts = ("<think>", "one ", "two ", "three ", "four ", "Wa", "it ", "\n", "</think>", "")

    def __init__(self) -> None:
        self.added_tokens_decoder: dict = {}

    def decode(self, ids, **_):
        return "".join(self.texts[i] for i in ids)


class Given(Plans):
    """A plan that is known."""

    def __init__(self, **settings) -> None:
        self.budget = ThinkingBudget(**settings)

    def of(self, form: Format) -> Forcing:
        return Forcing(
            budget=self.budget,
            closing=(7, CLOSE, 7),
            wait=(5, 6),
            enders=frozenset({CLOSE, END}),
        )


def forced(*, prompt=(0,), form: Format = THINK, **settings) -> tuple[ForcedRow, TraceReader]:
    reader = TraceReader(Numbers(), form, prompt_length=len(prompt), end_ids=frozenset({END}))
    for token in prompt:
        reader.push(token)
    return ForcedRow(Given(**settings), reader), reader


def written(chosen: list[int], **settings) -> list[int]:
    """What is written where a model chooses these tokens."""
    row, reader = forced(**settings)
    tokens = []
    for token in chosen:
        tokens.append(row.next(token))
        reader.push(tokens[-1])
    return tokens


def thinking_of(tokens: list[int]) -> list[int]:
    """The tokens before the thinking ends."""
    ends = [i for i, token in enumerate(tokens) if token in (CLOSE, END)]
    return tokens[: ends[0]] if ends else tokens


def test_long_thinking_is_cut():
    assert written([1, 1, 1, 1, 2, 2, 2, 2], most=3) == [1, 1, 1, 7, CLOSE, 7, 2, 2]


def test_thinking_that_ends_in_time_is_left_alone():
    chosen = [1, 1, CLOSE, 2, 2, 2, END]
    assert written(chosen, most=3) == chosen
    assert written([1, CLOSE, 2, CLOSE, END], least=1, most=9) == [1, CLOSE, 2, CLOSE, END]


@pytest.mark.parametrize("early", [CLOSE, END])
def test_short_thinking_is_prolonged(early):
    chosen = [1, early, 1, 1, early, 2, END]
    assert written(chosen, least=4) == [1, 5, 6, 1, early, *chosen[5:]]
    assert written([early, 3, early, 3, early, 2], least=4) == [5, 6, 5, 6, early, 2]


def test_what_is_forced_comes_whole():
    """A wait or a closing is not interrupted by what the model chooses meanwhile."""
    assert written([CLOSE, END, END, END], least=3) == [5, 6, 5, 6]
    assert written([1, END, END, END, END], most=1) == [1, 7, CLOSE, 7, END]


@pytest.mark.parametrize("prompt", [(0, CLOSE), (0, 7, CLOSE, 7, 7)])
@pytest.mark.parametrize("form", [THINK, AUTO_FORMAT])
def test_a_prompt_that_has_closed_the_thinking_leaves_nothing_to_force(prompt, form):
    chosen = [1, 2, 1, 2, END]
    for settings in ({"most": 2}, {"least": 9}, {"least": 2, "most": 3}):
        assert written(chosen, prompt=prompt, form=form, **settings) == chosen


def test_a_response_of_which_no_thinking_is_expected_is_left_alone_until_it_opens():
    chosen = [1, 2, 1, 2, END]
    assert written(chosen, prompt=(3,), form=AUTO_FORMAT, most=2) == chosen
    assert written([0, 1, 1, 1, 1, 2], prompt=(3,), form=AUTO_FORMAT, most=3) == [
        0,
        1,
        1,
        7,
        CLOSE,
        7,
    ]


@given(
    chosen=st.lists(st.sampled_from([WORD, 2, 7, CLOSE, END]), min_size=1, max_size=40),
    least=st.integers(0, 12),
    more=st.one_of(st.none(), st.integers(0, 12)),
)
def test_the_budget_is_kept(chosen, least, more):
    most = None if more is None else max(1, least + more)
    tokens = written(chosen, least=least, most=most)
    thinking = thinking_of(tokens)
    assert len(tokens) == len(chosen)
    if len(thinking) < len(tokens):
        assert len(thinking) >= least
    if most is not None:
        assert len(thinking) <= max(most, least + 1) + 1  # a wait is finished, and a 7 leads
    if least == 0 and len(thinking) < (most or len(chosen)):
        assert tokens == chosen


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"least": -1}, "got least=-1, most=None"),
        ({"most": 0}, "most >= 1 .*got least=0, most=0"),
        ({"least": 5, "most": 4}, "got least=5, most=4"),
        ({"wait": ""}, "expected wait to be some text, got ''"),
    ],
)
def test_bad_budgets_are_explained(settings, message):
    with pytest.raises(ValueError, match=message):
        ThinkingBudget(**settings)


def test_a_plan_in_tokens(tokenizer):
    plan = ThinkingBudget(least=2, most=5, wait="So").plan(tokenizer, THINK, frozenset({3}))
    (close,) = encode(tokenizer, "</think>")
    assert plan.closing == tuple(encode(tokenizer, "\n</think>\n\n"))
    assert plan.wait == tuple(encode(tokenizer, "So"))
    assert plan.enders == {close, 3}


def test_formats_that_cannot_be_forced_are_refused(tokenizer, split_tokenizer):
    with pytest.raises(ValueError, match="format 'plain' has none"):
        ThinkingBudget(most=5).plan(tokenizer, PLAIN, frozenset())
    with pytest.raises(ValueError, match="delimiter that begins with a token of its own"):
        ThinkingBudget(least=5).plan(split_tokenizer, THINK, frozenset())
    split = ThinkingBudget(most=5).plan(split_tokenizer, THINK, frozenset())
    assert len(split.closing) > 1
    with pytest.raises(ValueError, match="token of its own"):
        ThinkingBudget(least=5).plan(tokenizer, HARMONY, frozenset())


def test_a_delimiter_of_several_tokens_is_seen_and_written(split_tokenizer):
    budget = ThinkingBudget(most=12)
    delimiter = encode(split_tokenizer, "</think>")
    word = encode(split_tokenizer, "Tom")[0]
    for chosen, expected in (
        ([*delimiter, *[word] * 15], None),
        ([word] * 40, [*[word] * 12, *budget.plan(split_tokenizer, THINK, frozenset()).closing]),
    ):
        prompt = encode(split_tokenizer, "Why?<think>")
        reader = TraceReader(split_tokenizer, THINK, prompt_length=len(prompt))
        row = ForcedRow(Plans(budget, split_tokenizer, frozenset()), reader)
        for token in prompt:
            reader.push(token)
        tokens = []
        for token in chosen:
            tokens.append(row.next(token))
            reader.push(tokens[-1])
        assert reader.closed
        assert tokens == [*(expected or ()), *chosen[len(expected or ()) :]]


def test_a_wait_that_the_tokenizer_cannot_write_is_refused(tokenizer, monkeypatch):
    class Deaf:
        def __call__(self, text, **_):
            return {"input_ids": [] if text == "Wait" else [1]}

        def get_added_vocab(self):
            return {"</think>": 1}

    with pytest.raises(ValueError, match="wait.*'Wait'.*no token"):
        ThinkingBudget(least=3).plan(Deaf(), THINK, frozenset())


@pytest.fixture(scope="module")
def reasoner():
    return load_model("reasoner")


QUESTIONS = [make_problem(seed, 1).question for seed in (1, 2)]


def test_the_reasoner_is_cut_and_answers(reasoner):
    plain = generate(reasoner, QUESTIONS, max_new_tokens=150)
    assert all(len(trace.thinking) > 25 for trace in plain)
    cut = generate(reasoner, QUESTIONS, max_new_tokens=60, budget=ThinkingBudget(most=10))
    for trace, free in zip(cut, plain, strict=True):
        start = trace.prompt_length
        assert trace.response.index("</think>") > 0
        assert trace.token_ids[start : start + 10].tolist() == (
            free.token_ids[start : start + 10].tolist()
        )
        assert len(trace.summary) > 0


def test_the_reasoner_is_prolonged(reasoner):
    (plain,) = generate(reasoner, QUESTIONS[:1], max_new_tokens=150)
    length = plain.token_ids.tolist().index(encode(reasoner.tokenizer, "</think>")[0])
    length -= plain.prompt_length
    (more,) = generate(
        reasoner, QUESTIONS[:1], max_new_tokens=150, budget=ThinkingBudget(least=length + 5)
    )
    assert more.response.startswith(plain.response[: plain.response.index("</think>")] + "Wait")
    ids = more.token_ids[more.prompt_length :].tolist()
    ends = [i for i, token in enumerate(ids) if token in end_token_ids(reasoner)]
    closes = [
        i for i, token in enumerate(ids) if token == encode(reasoner.tokenizer, "</think>")[0]
    ]
    assert all(i >= length + 5 for i in [*ends, *closes])


def test_a_budget_is_the_same_in_any_batch(reasoner):
    budget = ThinkingBudget(least=12, most=20)
    ask = {"max_new_tokens": 40, "budget": budget}
    together = generate(reasoner, QUESTIONS, batch_size=2, **ask)
    assert together == generate(reasoner, QUESTIONS, batch_size=1, **ask)
    own = Format(name="own", thinking_open="<think>", summary_open="</think>")
    assert generate(reasoner, QUESTIONS, format=own, **ask)
