import datetime
import json

import pytest
from helpers import DATA, byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from stepflow_tl.errors import GenerationError
from stepflow_tl.tasks import STYLES, Benchmark, Style, grading, rendered_prompt, style_for
from stepflow_tl.tasks.prompts import as_style
from stepflow_tl.traces.chat import Chat, prompt_text, prompt_token_ids

FILES = DATA / "benchmarks"
BOX = r"Please reason step by step, and put your final answer within \boxed{}."

HARMONY = (
    "{%- if reasoning_effort is not defined %}{%- set reasoning_effort = 'medium' %}{%- endif %}"
    "<|start|>system<|message|>Current date: {{ strftime_now('%Y-%m-%d') }}\n"
    "Reasoning: {{ reasoning_effort }}<|end|>"
    "{%- for message in messages %}<|start|>{{ message.role }}<|message|>{{ message.content }}"
    "<|end|>{%- endfor %}{%- if add_generation_prompt %}<|start|>assistant{%- endif %}"
)
"""In the manner of GPT-OSS."""

LLAMA = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}{%- endif %}"
    "Today Date: {{ date_string }}\n{{ messages[0].content }}"
)
"""In the manner of Llama 3.2 and 3.3."""


@pytest.mark.parametrize(
    ("model", "style"),
    [
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "r1"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "r1"),
        ("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", "r1"),
        ("/models/R1-Distill-Qwen-32B", "r1"),
        ("Qwen/QwQ-32B", "qwq"),
        ("Qwen/Qwen3-8B", "qwen3"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3-instruct"),
        ("Qwen/Qwen3-4B-Thinking-2507", "qwen3"),
        ("Qwen/Qwen2.5-72B-Instruct", "qwen-instruct"),
        ("Qwen/Qwen2.5-Math-7B-Instruct", "qwen-instruct"),
        ("meta-llama/Meta-Llama-3-70B-Instruct", "llama-instruct"),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama-instruct"),
        ("openai/gpt-oss-20b", "gpt-oss"),
        ("unsloth/gpt-oss-20b-BF16", "gpt-oss"),
        ("google/gemma-3-4b-it", "default"),
        ("reasoner", "default"),
    ],
)
def test_a_name_says_the_style(model, style):
    assert style_for(model).name == style


def test_a_folder_says_it_by_its_configuration(tmp_path):
    for model_type, style in (("gpt_oss", "gpt-oss"), ("qwen3_moe", "qwen3"), ("qwen2", "default")):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        assert style_for(tmp_path).name == style
    for broken in ("{", "[]", '{"model_type": [1]}'):
        (tmp_path / "config.json").write_text(broken)
        assert style_for(tmp_path).name == "default"


def test_every_style_says_where_it_is_from():
    for name, style in STYLES.items():
        assert style.name == name
        assert style.source
        assert "\n" not in style.math + style.choice + style.code


def test_a_question_is_asked_as_the_cards_say():
    for style in STYLES.values():
        assert style.ask("math", "1+1?") == style.ask("number", "1+1?") == f"1+1?\n{BOX}"
    asked = STYLES["qwq"].ask("choice", "Which?", ["one", "two"])
    assert asked == (
        "Which?\n\n(A) one\n(B) two\n\nPlease show your choice in the `answer` field with only the "
        'choice letter, e.g., `"answer": "C"`.'
    )
    assert r"the letter of your final answer within \boxed{}" in STYLES["r1"].ask(
        "choice", "Which?", ["one", "two"]
    )


def test_code_is_asked_as_livecodebench_does():
    plain = STYLES["r1"].ask("code", "Print 1.")
    assert "### Question:\nPrint 1.\n\n### Format: Read the inputs from stdin" in plain
    assert "```python\n# YOUR CODE HERE\n```" in plain
    starter = "class Solution:\n    def f(self):\n        "
    started = STYLES["r1"].ask("code", "Print 1.", starter=starter)
    assert "use the following starter code" in started
    assert f"```python\n{starter}\n```" in started
    assert "stdin" not in started and "YOUR CODE" not in started
    assert plain.count("```python") == started.count("```python") == 1


@given(question=st.text(min_size=1), options=st.lists(st.text(), min_size=2, max_size=26))
def test_what_is_asked_is_never_formatted(question, options):
    for style in STYLES.values():
        for kind in ("math", "code", "choice"):
            assert question in style.ask(kind, question, options)


@pytest.mark.parametrize("style", STYLES.values(), ids=list(STYLES))
def test_a_style_is_known_by_its_name(style, unchecked):
    assert style.describe() == style.name
    assert as_style(style.name) is style
    changed = Style(**{**vars(style), "math": "Go."})
    again = as_style(json.loads(json.dumps(changed.describe())))
    assert again == changed
    assert hash(again) == hash(changed)


@pytest.mark.parametrize("style", STYLES.values(), ids=list(STYLES))
def test_the_grader_reads_what_a_style_asks_for(style):
    asked = style.ask("choice", "Which?", ["one", "two", "three", "four"])
    answer = r"\boxed{C}" if r"\boxed{}" in asked else '"answer": "C"'
    for said in (answer, f"So it is this:\n\n```json\n{{{answer}}}\n```"):
        assert grading.grade_choice(said, "C", 4).correct, said
    assert r"\boxed{}" in style.math
    assert grading.grade_math(r"\boxed{\frac{1}{2}}", "0.5").correct


def test_effort_is_said_through_the_template(tokenizer_with):
    tokenizer = tokenizer_with(HARMONY)
    task = Benchmark(name="aime25", path=FILES / "aime25.jsonl")
    for name, effort in (("gpt-oss", "medium"), ("gpt-oss-low", "low"), ("gpt-oss-high", "high")):
        text = rendered_prompt(tokenizer, task, task.items[0], chat=STYLES[name].chat)
        assert f"Reasoning: {effort}<|end|><|start|>user<|message|>Find" in text
        assert text.endswith(f"{BOX}<|end|><|start|>assistant")


@pytest.fixture
def tokenizer_with():
    def make(template):
        tokenizer = byte_tokenizer(whole_markers=True)
        tokenizer.chat_template = template
        return tokenizer

    return make


def test_a_prompt_is_the_same_tomorrow(tokenizer_with):
    today = f"{datetime.date.today():%Y-%m-%d}"
    harmony, llama = tokenizer_with(HARMONY), tokenizer_with(LLAMA)
    assert f"Current date: {today}" in prompt_text(harmony, "Why?")
    assert "Current date: 2025-08-05\n" in prompt_text(harmony, "Why?", chat=STYLES["gpt-oss"].chat)
    chat = STYLES["llama-instruct"].chat
    assert prompt_text(llama, "Why?", chat=chat).startswith("Today Date: 26 Jul 2024\nWhy?")
    ids = prompt_token_ids(llama, "Why?", chat=chat)
    assert llama.decode(ids) == "Today Date: 26 Jul 2024\nWhy?"


@pytest.mark.parametrize(
    "form", ["%Y-%m-%d", "%d %b %Y", "%A, %-d. %B %y", "%H:%M", "%j", "100%", "%m/%d/%Y"]
)
def test_a_date_is_written_as_the_clock_would(form, tokenizer_with):
    template = (
        "  {%- macro inner() %}{{ 'On ' + strftime_now(" + repr(form) + ") }}{% endmacro %}\n"
        "{{ inner() }}{% if strftime_now is defined %} {{ messages[0].content }}{% endif %}"
    )
    expected = f"On {datetime.datetime(2024, 7, 6).strftime(form)} Why?"
    assert prompt_text(tokenizer_with(template), "Why?", chat=Chat(date="2024-07-06")) == expected


@pytest.mark.parametrize("template", ["\nA\n", "  {% if true %}A{% endif %}", "{{ 'A' }}\n", "A"])
def test_a_date_changes_nothing_else(template, tokenizer_with):
    tokenizer = tokenizer_with(template)
    dated = prompt_text(tokenizer, "Why?", chat=Chat(date="2024-07-06"))
    assert dated == prompt_text(tokenizer, "Why?")


@pytest.mark.parametrize("date", ["today", "2025-13-01", "", 5])
def test_a_date_that_is_none_is_refused(date, unchecked):
    with pytest.raises(GenerationError, match="expected a date such as '2025-08-05', got"):
        Chat(date=date)


def test_a_date_as_yaml_reads_it(unchecked):
    assert Chat(date=datetime.date(2025, 8, 5)) == Chat(date="2025-08-05")
