"""Where steps start: small cases by hand, whole texts cut by hand, and what holds of any text.

"‖" marks a boundary; white space around it may lie on either side.
"""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from helpers import DATA, ROOT, cut
from hypothesis import given
from hypothesis import strategies as st

from stepflow_tl.tasks.word_problems import make_problems
from stepflow_tl.traces.cutters import CUTTERS, new_cutter
from stepflow_tl.traces.cutting import Cutting, StepCutter
from stepflow_tl.traces.fragments import is_fragment

BENCHMARKS = ROOT / "benchmarks"
NAMES = list(CUTTERS)
WORDS = re.compile(r" ?\w+|'\w+| ?[^\s\w]+\n*|\s*\n+|\s+(?!\S)|\s")
CHARACTERS = re.compile(r"(?s:.)")


def shown(steps: list[str]) -> str:
    return "‖".join(step.strip() for step in steps)


def check(marked: str, cutter: Cutting, pieces: re.Pattern[str]) -> None:
    """A text is cut where it is marked."""
    tokens = pieces.findall(marked.replace("‖", ""))
    assert shown(cut(tokens, cutter)) == shown(marked.split("‖"))


PLAIN = {
    "stops": "Tom has three pens. ‖Does he buy four? ‖He surely does! ‖So he has seven.",
    "no space after the stop": "We open main.py and then utils.test.js here. ‖It is 3.14 or "
    ".5 now.",
    "decimals": "The price of it is 3.14 dollars. ‖Two of them cost 6.28 dollars.",
    "i.e. and e.g.": "We need the total, i.e. the sum, e.g. 5 or B, and add up vs. 7, cf. Eq. 2.",
    "titles": "We ask Dr. Smith and Mrs. Brown, St. Mary and Prof. Lee. ‖They know.",
    "milliseconds are no title": "The whole loop takes 5 ms. ‖Then it stops.",
    "No. before a digit": "The answer to it is no. ‖Now see No. 7 and Sec. 4 of vol. 3, Fig. 2.",
    "approx.": "The root is approx. 3 and then approx. Two would be less. ‖So be it.",
    "initials": "The proof is by J. Smith and by D. E. Knuth as well. ‖It is short.",
    "a capital as a value": "We conclude that x = N. ‖Because of that we stop.",
    "a small variable": "Now we solve it for x. ‖Then we put it into y. ‖x is seven.",
    "a lower-case sentence": "We know that n is even. ‖n must be two. ‖so it is prime.",
    "etc.": "Pens, books etc. are left out here, taxes etc. ‖We go on.",
    "a.m.": "They met at 9 a.m. and left at 5 p.m. on Monday. ‖Good for them.",
    "list": "We know about them:\n‖- The first is even\n‖- The second is odd\n‖* The third is both",
    "numbered list": "Here is what we do:\n‖1. Count all pens.\n‖2. Divide by two\n‖10) Stop there",
    "letters": "Here is what we do:\n‖(a) Count all pens,\n‖(b) divide by two",
    "a list of clauses": "We do all this:\n‖1. first count the pens,\n‖2. then divide "
    "by two,\n‖- end",
    "run-in labels": "The next thing is this.\n‖**Step 12.** Count the "
    "pens.\n‖Example 14. Take two.",
    "lines without a stop": "User wants a short answer\n‖No need for a table\n‖We give both",
    "a line that goes on": "The sum of the pens\nand of the books,\nTom said, is\n= 5 + "
    "2\n+ 7\n) now",
    "a line after a comma": "If the number is even,\nTom divides it by two.",
    "blank lines": "This has no stop\n\n‖and goes on, \n \n‖= 5 and more,\n\n\n‖- and more",
    "fragments": "Good. OK. Now we count the pens. ‖No!\n\nThat is wrong. ‖12.\n\nThe end is here.",
    "digits are no sentence": "12345678901234567890. Then we count. ‖So it is.",
    "inline mathematics": "Let $a. B! C$ and \\(x. Y? Z\\) be sets. ‖Then $5. A$ ends. "
    "‖$x$ is one.",
    "a stop inside mathematics": "We find that $x = 5.$ ‖Then \\(y = 6.\\) ‖So $z$, $y.$ and "
    "so on.",
    "display mathematics": "So we get\n$$x = 5. Y\n= 7. $$\n‖Then it\n\\[a. B\n= c. D\\]\n‖Then so",
    "display that goes on": "So we get\n\\[\nx = 5.\n\\]\nwhich is odd,\n$$x = 7$$\nand so on",
    "quotations in Japanese": "彼は「そうですかもしれない。」と言った。‖それから彼は家に帰った。",
    "other stops": "यह एक वाक्य है। ‖यह दूसरा है वाक्य।",
    "environments": "So we get\n\\begin{align}\nx &= 5. Y\\\\\n\\begin{cases}a. B\\end{cases}\n"
    "&= 7.\n\\end{align}\n‖Then it ends \\textbf{here.} ‖So it is.",
    "displays in a row": "So we get here\n\\[x = 5\\]\n‖\\[y = 16\\]\n‖It is done.",
    "mathematics left open": "We take $x and then\nstop. But no\n\n‖The next one. ‖Here "
    "it is \\[ x\n\n‖It ends.",
    "row ends in LaTeX": "We see that\n‖X = 5 \\\\\nY = 6\n‖Then it ends.",
    "money": "It costs $5. ‖Tom pays $20 and $3 back. ‖It is $7.50! ‖Then US$5 or 5$. ‖Yes, it is.",
    "money and mathematics": "It costs $5. ‖Let $x$ be. ‖Take $3 of $x. Y$ now. ‖Then stop.",
    "money on two lines": "The pens cost $5\n‖The books $x. Y$ cost. ‖That is all.",
    "escaped dollars": "It costs \\$x. ‖Then we pay \\$y. ‖So it is.",
    "numbers in dollars": "We take $5 + 3$ and $2x.$ ‖So that is $7$. ‖Done with it.",
    "inline code": "We call `a. B` and ``x`. Y`` here. ‖Then `f()`. ‖`g` is left.",
    "code left open": "We call `a. B and\nC. D then\n\n‖The next one. ‖Then so on.",
    "fenced code": "Here it is:\n```python\nx = 1. \n\nY = 2\n```\n‖It works now. ‖And so on.",
    "longer fences": "Here it is:\n````\n```\nA. B\n```\n\nC. D\n````\n‖It works here.",
    "dollars in code": "We set `$HOME` first. ‖Then `$PATH`. ‖It "
    "works now.\n‖```\n$x\n```\n‖It does it. ‖So.",
    "factorials": "We get 5! / 3! ways, n! is (n-1)! times n, and 4! = 24, 3! 2. "
    "‖Then it is 5! ‖So yes.",
    "words are no factorial": "That is really wrong! ‖We do it again. ‖Oh no! no and no. ‖So.",
    "closing quotes": 'He said "It is done." ‖Then he left (for good.) ‖They too *did.* ‖So it is.',
    "quotes that go on": 'He asked "Is it even?" and (was it?) left “at once!” he said. ‖So it is.',
    "headings": "It is done here.\n\n‖### Step 1: Count them\n\n‖# Plan\nWe "
    "count all.\n‖## Step 2: Divide",
    "tables": "Here is a table:\n\n‖| a. B | c? D |\n|---|---|\n| Yes. It "
    "is. | No! It |\n\n‖It is done.",
    "a value between bars": "It is less than one.\n‖|x| is at least 0. ‖So |x| < 1 is "
    "true. ‖Then so.",
    "quoted lines": "The text says this here:\n‖> It is even.\n‖> It is odd\n> "
    "Is it?\n\n‖We do not know.",
    "Chinese": "我们先来计算钢笔。‖然后加起来！‖这样对吗？‖他说：“再想一想。”"
    "‖于是我们再算（见图2。）‖没有了",
    "Chinese fragments": "好的。我们先来计算。‖等等，不对！‖没错。所以是七支。",
    "mixed": "那就是 x = 5. ‖Then we go on. ‖这个对吗? ‖对的没有错!‖因为5！= "
    "120，n!的值是1.5吗?‖是的。",
    "full-width": "It is done here｡‖So it is.",
    "what cannot be told": "And so on ... or ...5 and ... N of them, e.g.... we go "
    "on…\n\n‖So it is.",
}
"""Cut in the same places whether the tokens are words or characters."""

BY_WORDS = {
    "ellipses": "It is a distractor... ‖Actually, it is... I think. ‖Let me see… ‖Wait a bit.",
    "points": "Take the foot D. ‖Then BD is a line to A. ‖So AC is one, says A. Clark. ‖We see.",
    "dotted capitals": "We live in the U.S. ‖The weather in the U.S. Senate is good.",
    "variables": "We know that here\n‖x = 7 and then\n‖y = 8 but\na = 9",
    "a display or not": "We know that here\n‖$x$ is even and\n‖\\(y\\) too:\n\\[y = "
    "2\\]\n‖`z` is odd",
}
BY_CHARACTERS = {
    "ellipses": "It is a distractor... Actually, it is... I think. ‖Let me see… Wait a bit.",
    "points": "Take the foot D. Then BD is a line to A. So AC is one, says A. Clark. ‖We see.",
    "dotted capitals": "We live in the U.S. The weather in the U.S. Senate is good.",
    "variables": "We know that here\nx = 7 and then\ny = 8 but\na = 9",
    "a display or not": "We know that here\n$x$ is even and\n\\(y\\) too:\n\\[y = 2\\]\n‖It is odd",
}


@pytest.mark.parametrize("pieces", [WORDS, CHARACTERS], ids=["words", "characters"])
@pytest.mark.parametrize("name", PLAIN)
def test_sentences(name: str, pieces: re.Pattern[str]) -> None:
    check(PLAIN[name], "sentence", pieces)


@pytest.mark.parametrize("name", BY_WORDS)
def test_what_only_a_word_decides_is_no_boundary_for_characters(name: str) -> None:
    check(BY_WORDS[name], "sentence", WORDS)
    check(BY_CHARACTERS[name], "sentence", CHARACTERS)


@pytest.mark.parametrize(
    ("cutter", "marked"),
    [
        (
            "sentence",
            "One two three four. ‖Five it is\n‖Six seven eight. ‖Nine, ten?\n\n‖Eleven pens. ‖End.",
        ),
        (
            "full_stop",
            "One two three four. ‖Five it is\nSix seven eight. ‖Nine, ten?\n\nEleven pens. ‖End.",
        ),
        (
            "anchors",
            "One two three four. ‖Five it is\nSix seven eight. ‖Nine, ten?\n\n‖Eleven pens. ‖End.",
        ),
        (
            "paragraph",
            "One two three four. Five it is\nSix seven eight. Nine, ten?\n\n‖Eleven pens. End.",
        ),
        (
            "line",
            "One two three four. Five it is\n‖Six seven eight. Nine, ten?\n\n‖Eleven pens. End.",
        ),
        (
            "none",
            "One two three four. Five it is\nSix seven eight. Nine, ten?\n\nEleven pens. End.",
        ),
    ],
)
def test_cutters_differ_as_named(cutter: Cutting, marked: str) -> None:
    check(marked, cutter, WORDS)


@pytest.mark.parametrize(
    "marked",
    [
        "I ask the Dr. ‖Smith, why? ‖Is it so? It is! ‖Good. And on.\n\n‖Then\nwe see, e.g. ‖this",
        "The sum is even\n\n‖It is.\n\nIt is odd.‖\nIt is.\tNot",
    ],
)
def test_anchors_cut_as_thought_anchors_does(marked: str) -> None:
    check(marked, "anchors", WORDS)
    check(marked, "anchors", CHARACTERS)


def test_full_stops_cut_where_white_space_alone_follows() -> None:
    assert cut(["It is done here.", " ", "So", ".", "\n"], "full_stop") == [
        "It is done here.",
        " So.\n",
    ]


@pytest.mark.parametrize("cutter", ["sentence", "anchors", "paragraph", "line"])
def test_white_space_alone_starts_no_step(cutter: Cutting) -> None:
    tokens = ["It is done here.", "\n\n", " ", "", "So", " be", " it"]
    assert cut(tokens, cutter) == ["It is done here.\n\n ", "So be it"]


@pytest.mark.parametrize("cutter", ["sentence", "anchors", "paragraph", "line"])
def test_a_boundary_inside_a_token_cuts_at_the_next(cutter: Cutting) -> None:
    tokens = ["It is done here.", "\n\nSo be", " it all,", " here.\n\nThen", " it", " ends."]
    assert cut(tokens, cutter) == [
        "It is done here.",
        "\n\nSo be it all, here.\n\nThen",
        " it ends.",
    ]


@pytest.mark.parametrize("cutter", NAMES)
def test_a_boundary_waits_until_the_next_token_may_cut(cutter: Cutting) -> None:
    state = new_cutter(cutter)
    state.open("It is done here.\n\n")
    assert not state.push("Then", may_cut=False)
    assert not state.push("\n", may_cut=False)
    assert state.push(" it") is (cutter != "none")
    assert not state.push(" ends")


def test_a_step_opened_anew_knows_nothing_of_the_one_before() -> None:
    state = new_cutter("sentence")
    state.open("```\nIt is done. Then ")
    state.open("It is done here.")
    assert state.push(" Then")
    state.open("It is done here.")
    state.open("Then")
    assert not state.push(" it")


def test_a_token_that_ends_inside_a_character_joins_the_open_step() -> None:
    tokens = ["我们先来", "", "算一下。", "", "", "好", "了"]
    assert cut(tokens, "sentence") == ["我们先来算一下。", "好了"]


def test_a_callable_sees_the_open_step() -> None:
    seen = []

    def at_bars(step: str, token: str) -> bool:
        seen.append((step, token))
        return step.endswith("|")

    assert cut(["a", "b|", "c", "d"], at_bars) == ["ab|", "cd"]
    assert seen == [("a", "b|"), ("ab|", "c"), ("c", "d")]
    state = new_cutter(at_bars)
    state.open("|")
    assert not state.push("a|", may_cut=False)
    assert state.push("b")


class EveryThird(StepCutter):
    def open(self, token: str) -> None:
        self.count = 1

    def push(self, token: str, may_cut: bool = True) -> bool:
        self.count = self.count % 3 + 1
        return self.count == 1


def test_a_class_of_ones_own_is_made_anew_for_each_segment() -> None:
    assert cut(list("abcdefg"), EveryThird) == ["abc", "def", "g"]
    assert new_cutter(EveryThird) is not new_cutter(EveryThird)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_cutter_is_refused() -> None:
    message = "unknown cutter 'word': expected one of ['sentence', 'full_stop', 'anchors', "
    with pytest.raises(ValueError, match=re.escape(message) + ".*or a callable"):
        new_cutter("word")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Good.", True),
        ("a" * 9, True),
        ("a" * 10, False),
        ("1" * 20 + ".", True),
        ("我们来", True),
        ("我们来算", False),
        ("好，等等。", True),
        ("", True),
    ],
)
def test_fragments(text: str, expected: bool) -> None:
    assert is_fragment(text) is expected
    assert is_fragment(f"  {text}\n") is expected


LETTERS = 'aB n!5.?$`\\()[]|\n\n*"-,=。！好… >#'
TOKENS = st.lists(st.text(alphabet=LETTERS, min_size=0, max_size=6), min_size=1, max_size=60)
ANY_TOKENS = st.lists(st.text(max_size=5), min_size=1, max_size=30)


@pytest.mark.parametrize("cutter", NAMES)
@given(tokens=TOKENS | ANY_TOKENS, data=st.data())
def test_a_prefix_is_cut_as_in_the_whole_and_no_text_is_lost(
    cutter: Cutting, tokens: list[str], data: st.DataObject
) -> None:
    whole = list(_starts(tokens, cutter))
    size = data.draw(st.integers(1, len(tokens)))
    assert list(_starts(tokens[:size], cutter)) == whole[:size]
    assert "".join(cut(tokens, cutter)) == "".join(tokens)


def _starts(tokens: list[str], cutter: Cutting) -> Iterator[bool]:
    state = new_cutter(cutter)
    state.open(tokens[0])
    yield True
    for token in tokens[1:]:
        yield state.push(token)


@given(TOKENS)
def test_a_step_of_sentences_is_no_fragment_but_for_the_last(tokens: list[str]) -> None:
    steps = cut(["".join(tokens)[:1] or "a", *"".join(tokens)[1:]], "sentence")
    assert not any(is_fragment(step) for step in steps[:-1])


def _cut_at_full_stops(step: str, token: str) -> bool:
    """The first rule of the package, frozen: published numbers were computed with it."""
    if token.strip() == "" and "\n" in token:
        return False
    leading = token[: len(token) - len(token.lstrip())]
    tail = step[-64:]
    for end in re.finditer(r"\.(?=\s)", tail + leading):
        text = step[: len(step) - len(tail) + end.end()].strip()
        if len(text) >= 15 and not text.rstrip(".").isdigit():
            return True
    return False


@given(TOKENS | ANY_TOKENS | st.lists(st.sampled_from(["a", " ", ".", ". ", "\n", " 12", "b. c"])))
def test_full_stops_are_cut_as_they_always_were(tokens: list[str]) -> None:
    steps = ["It"]
    for token in tokens:
        if _cut_at_full_stops(steps[-1], token):
            steps.append(token)
        else:
            steps[-1] += token
    assert cut(["It", *tokens], "full_stop") == steps


@pytest.mark.parametrize(
    "unit", ["a", "1", "`", "$", "\\", "word ", "a.b", "| ", "\n", "好", "5. "]
)
@pytest.mark.slow
def test_the_state_is_bounded(unit: str) -> None:
    state = new_cutter("sentence")
    state.open("Once upon a time ")
    for _ in range(20_000):
        state.push(unit)
    assert _held(state) < 5_000


def _held(thing: object) -> int:
    """Characters of all text in an object and the objects that it holds."""
    if isinstance(thing, str):
        return len(thing)
    return sum(_held(value) for value in getattr(thing, "__dict__", {}).values())


@pytest.mark.parametrize("cutter", NAMES)
@pytest.mark.slow
def test_a_long_step_takes_no_more_work_per_token_than_a_short_one(cutter: Cutting) -> None:
    def calls(tokens: int) -> int:
        state = new_cutter(cutter)
        state.open("once")
        count = 0

        def note(frame: object, event: str, argument: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            for _ in range(tokens):
                state.push(" and, so")
        finally:
            sys.setprofile(None)
        return count

    assert calls(4_000) < 4.1 * calls(1_000)


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("cutters")


HAND_CUT = sorted(path.stem for path in (DATA / "hand_cut").glob("*.txt"))


@pytest.mark.parametrize("pieces", ["words", "characters"])
@pytest.mark.parametrize("name", HAND_CUT)
def test_texts_cut_by_hand(bench: ModuleType, name: str, pieces: str) -> None:
    marked = bench.hand_cut()[name]
    found = bench.boundaries(bench.steps_of(marked.text, "sentence", pieces))
    hits = len(found & marked.boundaries)
    assert hits / len(found) >= 0.95
    assert hits / len(marked.boundaries) >= 0.92


@pytest.mark.parametrize(("pieces", "recall"), [("words", 0.98), ("characters", 0.97)])
def test_all_texts_cut_by_hand(bench: ModuleType, pieces: str, recall: float) -> None:
    hits = found = expected = 0
    for marked in bench.hand_cut().values():
        boundaries = bench.boundaries(bench.steps_of(marked.text, "sentence", pieces))
        hits += len(boundaries & marked.boundaries)
        found += len(boundaries)
        expected += len(marked.boundaries)
    assert expected > 180
    assert hits / found >= 0.98
    assert hits / expected >= recall


def test_the_benchmark_reads_published_folders(bench: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "correct" / "problem_1"
    folder.mkdir(parents=True)
    text = "<think>\\nWe count them all.\\nIt is seven. And so</think>"
    (folder / "base_solution.json").write_text(f'{{"full_cot": "{text}"}}')
    (folder / "chunks_labeled.json").write_text(
        '[{"chunk": "We count them all."}, {"chunk": "It is seven."}]'
    )
    texts = dict(bench.published(tmp_path))
    assert texts["correct/problem_1"].boundaries == {15}
    assert "| all | 1 | 1.000 / 1.000 / 1 |" in bench.table(texts, "words")


@pytest.mark.parametrize("pieces", [WORDS, CHARACTERS], ids=["words", "characters"])
def test_the_reasoners_thinking_is_cut_into_its_steps(pieces: re.Pattern[str]) -> None:
    for problem in make_problems(20, 4, seed=0, split="test"):
        tokens = pieces.findall(problem.thinking)
        steps = [step.text for step in problem.solution]
        assert [step.strip() for step in cut(tokens, "sentence")] == steps
        assert [step.strip() for step in cut(tokens, "full_stop")] == steps
