"""lm-evaluation-harness runs under StepFlow, and scores what the package itself scores."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from harness import write_task
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from stepflow_tl import Decoding, Grid, Intervention, StepFlow, Sweep, generate, load_model
from stepflow_tl.errors import SettingError
from stepflow_tl.integrations.lm_eval import StepFlowLM
from stepflow_tl.tasks import Item
from stepflow_tl.tasks.word_problems import make_problems

PROBLEMS = make_problems(6, 6, seed=2026, split="test", reach="any")
COMMAND = "from stepflow_tl.cli import main; main()"
EASY = make_problems(2, 2, seed=2026, split="test")


@pytest.fixture(scope="module", autouse=True)
def quiet_cache(tmp_path_factory):
    """Data sets are prepared in a folder of the test's own."""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_task(tmp_path_factory.mktemp("tasks"), PROBLEMS)


@pytest.fixture(scope="module")
def evaluate(folder):
    """Evaluate the local task: results with samples."""

    def call(model_args: str | dict[str, Any], task: Path | None = None, **settings: Any) -> Any:
        return simple_evaluate(
            model="stepflow-tl",
            model_args=model_args,
            tasks=["words"],
            task_manager=TaskManager(include_path=str(task or folder), include_defaults=False),
            **{"apply_chat_template": True, "batch_size": 6, "bootstrap_iters": 0} | settings,
        )

    return call


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The same problems in a sweep of the package's own."""
    sweep = Sweep(
        PROBLEMS,
        Grid.of({"paper": StepFlow.paper()}),
        decoding=Decoding(max_new_tokens=300, batch_size=6),
    )
    return sweep.run(tmp_path_factory.mktemp("sweep") / "store.sqlite")


def graded(results: Any) -> list[list[str]]:
    """What was graded of each problem, in order, sample by sample."""
    samples = sorted(results["samples"]["words"], key=lambda sample: sample["doc_id"])
    return [sample["resps"][0] for sample in samples]


def summary(response: str) -> str:
    """What follows the thinking of a response."""
    return response.partition("</think>")[2].removesuffix("<|end_of_sentence|>").lstrip()


def score(results: Any) -> float:
    return results["results"]["words"]["exact_match,boxed"]


@pytest.fixture
def lm() -> StepFlowLM:
    return StepFlowLM(pretrained="reasoner", batch_size=2)


def ask(lm: StepFlowLM, text: str, repeats: int = 1, **settings: Any) -> list[str]:
    request = Instance(
        request_type="generate_until",
        doc={},
        arguments=(lm.apply_chat_template([{"role": "user", "content": text}]), settings),
        idx=0,
        metadata=("words", 0, repeats),
    )
    return lm.generate_until([request] * repeats, disable_tqdm=True)


@pytest.mark.parametrize(
    ("model_args", "setting"),
    [
        ("pretrained=reasoner,oeb_tau=0.15,smi_alpha=0.06", "paper"),
        ("pretrained=reasoner", "paper"),
        ({"pretrained": "reasoner", "oeb_tau": 0, "smi_alpha": 0}, "baseline"),
        ("pretrained=reasoner,preset=none", "baseline"),
    ],
)
@pytest.mark.slow
def test_scores_and_texts_are_those_of_a_sweep(evaluate, swept, model_args, setting):
    results = evaluate(model_args)
    keys = [Item.of(problem.question, "6").key for problem in PROBLEMS]
    rows = swept[swept["setting"] == setting].set_index("problem").loc[keys]
    assert graded(results) == [[summary(response)] for response in rows["response"]]
    right = [a == str(p.answer) for a, p in zip(rows["answer"], PROBLEMS, strict=True)]
    assert 0 < sum(right) < len(right)  # else the scores would say nothing
    assert score(results) == sum(right) / len(right)
    facts = results["config"]["stepflow"]
    assert facts["responses"] == len(PROBLEMS)
    acted = {line["intervention"] for line in facts["ledger"] if line["rows_changed"]}
    injected = {line["intervention"] for line in facts["ledger"] if line["injections"]}
    if setting == "baseline":
        assert (facts["fired"], facts["ledger"], facts["interventions"]) == (0, [], [])
    else:
        assert (acted, injected) == ({"OddsEqualBridge"}, {"StepMomentum"})
        assert facts["fired"] > 100
        assert [item["type"] for item in facts["interventions"]] == sorted(acted | injected)
    json.dumps(results["config"]["stepflow"], allow_nan=False)


def test_zero_strength_is_the_plain_model(lm):
    plain = StepFlowLM(pretrained="reasoner", oeb_tau=0, smi_alpha=0)
    assert plain.flow == StepFlow() and lm.flow == StepFlow.paper()
    question = EASY[0].question
    trace = generate(load_model("reasoner"), question, max_new_tokens=300)
    assert ask(plain, question, max_gen_toks=300, until=[]) == [summary(trace.response)]


@pytest.mark.slow
def test_the_command_line_runs_a_task(folder, tmp_path):
    arguments = ["--model", "stepflow-tl", "--tasks", "words", "--include_path", folder]
    arguments += ["--model_args", "pretrained=reasoner,oeb_tau=0.15,smi_alpha=0.06"]
    arguments += ["--apply_chat_template", "--batch_size", "3", "--limit", "3", "--log_samples"]
    arguments += ["--output_path", tmp_path / "out"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "lm-eval", *map(str, arguments)],
        env=os.environ | offline,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "stepflow-tl ({'pretrained': 'reasoner'" in done.stdout
    assert "exact_match" in done.stdout
    assert "3 responses" in done.stderr and "OddsEqualBridge" in done.stderr
    (results,) = (tmp_path / "out").rglob("results_*.json")
    facts = json.loads(results.read_text())["config"]["stepflow"]
    assert facts["responses"] == 3
    assert facts["fired"] > 0
    (samples,) = (tmp_path / "out").rglob("samples_words_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(lines) == 3
    assert all("</think>" not in line["resps"][0][0] for line in lines)


def test_the_harness_finds_it_by_an_entry_point():
    entry = EntryPoint(
        "stepflow-tl", "stepflow_tl.integrations.lm_eval:StepFlowLM", "lm_eval.models"
    )
    assert entry.load() is StepFlowLM is get_model("stepflow-tl")
    assert get_model("hf").__name__ == "HFLM"  # its own models are still there


@pytest.mark.slow
def test_samples_differ_and_come_again(evaluate, tmp_path):
    sampled = {"until": [], "max_gen_toks": 60, "do_sample": True, "temperature": 2.0}
    task = write_task(tmp_path, EASY[:2], repeats=3, generation_kwargs=sampled)
    whole = "pretrained=reasoner,think_end_token=none"
    one = graded(evaluate(whole, task, torch_random_seed=1))
    assert all(len(set(samples)) == 3 for samples in one)
    assert graded(evaluate(whole, task, torch_random_seed=1, batch_size=1)) == one
    assert graded(evaluate(whole, task, torch_random_seed=2)) != one
    assert graded(evaluate(f"{whole},seed=1", task, torch_random_seed=2)) == one


def test_greedy_repeats_are_decoded_once(lm):
    texts = ask(lm, EASY[0].question, repeats=3, max_gen_toks=300, until=[])
    assert len(texts) == 3 and len(set(texts)) == 1
    assert lm.runs[0].forwards <= 300


def test_stop_strings_end_the_answer_and_not_the_thinking(lm):
    question = EASY[0].question
    (whole,) = ask(lm, question, max_gen_toks=200)
    (cut,) = ask(lm, question, max_gen_toks=200, until=["\\boxed", " has "])
    assert cut == whole.split("\\boxed")[0].split(" has ")[0]
    assert cut
    assert lm.runs[1].forwards < lm.runs[0].forwards


@pytest.mark.parametrize("token", ["</think>", "id", "none"])
@pytest.mark.slow
def test_where_the_thinking_ends_can_be_said(lm, token):
    given = str(lm.tokenizer.convert_tokens_to_ids("</think>")) if token == "id" else token
    other = StepFlowLM(pretrained="reasoner", think_end_token=given)
    (answer,) = ask(lm, EASY[0].question, max_gen_toks=200)
    (text,) = ask(other, EASY[0].question, max_gen_toks=200)
    if token == "none":
        assert text.split("</think>")[-1].lstrip() == answer != text
    else:
        assert text == answer


def test_unclosed_thinking_is_counted(lm):
    (text,) = ask(lm, EASY[0].question, max_gen_toks=20)
    assert text  # as the harness's own models: all that there is
    assert lm.get_model_info()["stepflow"]["unclosed"] == 1


def test_conversations_become_prompts(lm):
    turns = [
        {"role": "system", "content": "Be brief. "},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
        {"role": "user", "content": "And?"},
    ]
    text = lm.apply_chat_template(turns)
    assert text.endswith("<|User|>And?<|Assistant|><think>\n")
    assert text.index("Be brief.") < text.index("Why?") < text.index("So.")
    prefilled = [*turns, {"role": "assistant", "content": "It is"}]
    assert lm.apply_chat_template(prefilled, add_generation_prompt=False).endswith("It is")
    assert lm.tok_encode(text)[0] == lm.tokenizer.bos_token_id != lm.tok_encode(text)[1]
    assert lm.chat_template(True) == lm.tokenizer.chat_template
    assert lm.tokenizer_name


def test_examples_and_a_system_message_reach_the_prompt(evaluate, tmp_path):
    task = write_task(tmp_path, EASY[:2], fewshot_split="test", doc_to_target="{{answer}}")
    limited = {"until": [], "max_gen_toks": 5}
    results = evaluate(
        "pretrained=reasoner,preset=none",
        task,
        num_fewshot=1,
        fewshot_as_multiturn=True,
        system_instruction="Answer well.",
        gen_kwargs=limited,
        limit=1,
    )
    (sample,) = results["samples"]["words"]
    prompt = sample["arguments"][0][0]
    assert "Answer well." in prompt
    assert prompt.count("<|User|>") == 2 and prompt.endswith("<think>\n")


def test_a_template_without_system_messages_is_asked_without(lm, caplog):
    lm.tokenizer = load_model("reasoner").tokenizer
    lm.tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}"
        "{% endif %}{{ m['content'] }}{% endfor %}"
    )
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "Why?"}]
    assert lm.apply_chat_template(turns) == "Why?"
    lm.tokenizer.chat_template = None
    with pytest.raises(SettingError, match="has no chat template: expected one"):
        lm.apply_chat_template(turns)


def test_only_generative_tasks_run(evaluate, tmp_path):
    task = write_task(
        tmp_path,
        PROBLEMS[:1],
        output_type="multiple_choice",
        doc_to_choice=["1", "2"],
        doc_to_target=0,
        generation_kwargs=None,
        filter_list=None,
        metric_list=[{"metric": "acc"}],
    )
    with pytest.raises(NotImplementedError, match=r"expected a generative task .* got 2 requests"):
        evaluate("pretrained=reasoner", task)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau": 0.15}, r"unknown model argument \['tau'\]: expected some of \['pretrained', "),
        ({"pretrained": ""}, "expected --model_args pretrained=NAME, got none"),
        ({"preset": "best"}, "unknown preset 'best': expected one of"),
        ({"preset": "paper", "oeb_tau": 0.1}, "expected preset=paper, which fixes all"),
        ({"oeb_tau": 2}, r"tau_max in \[0, 1\], got 2.0"),
        ({"oeb_tau": "much"}, "expected oeb_tau to be a number, got 'much'"),
        ({"batch_size": "auto"}, "expected batch_size to be a whole number >= 1, got 'auto'"),
        ({"max_length": 0}, "expected max_length to be a whole number >= 1, got 0"),
        ({"dtype": "int3"}, "unknown dtype 'int3': expected 'auto' or one of"),
        ({"pretrained": "no/such"}, "no model 'no/such'"),
        ({"format": "prose"}, "unknown format 'prose'"),
    ],
)
def test_wrong_model_arguments_are_named(arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        StepFlowLM(**{"pretrained": "reasoner", **arguments})


def test_what_cannot_be_decoded_is_refused_before_anything_is(lm):
    question = EASY[0].question
    with pytest.raises(SettingError, match="generation setting top_k=5 is unknown to this model"):
        ask(lm, question, top_k=5)
    assert ask(lm, question, max_gen_toks=60, num_beams=1, top_k=0)
    with pytest.raises(SettingError, match=r"within max_length=2048 tokens, got a prompt of \d+"):
        ask(lm, question, max_gen_toks=2048)
    assert len(lm.runs) == 1
    assert lm._room(48, None) == 2000 and StepFlowLM._room(lm, 48, 7) == 7


def test_layers_and_precision_are_as_the_command_line_writes_them():
    lm = StepFlowLM(
        pretrained="reasoner", oeb_layers="0-3", smi_layers=-0.5, smi_window="step", dtype="auto"
    )
    bridge, momentum = lm.flow.interventions
    assert bridge.layers == range(4)
    assert (momentum.layers, momentum.window) == (-0.5, "step")
    assert str(next(lm._model.parameters()).dtype) == "torch.float16"


@dataclass(frozen=True, kw_only=True)
class Halve(Intervention):
    """h' = h / 2: an intervention of a user's own."""

    layers: Any = "deep"
    site = "resid_post"

    def edit(self, stream: Any, at: Any) -> Any:
        return stream / 2, {"rows_changed": stream.shape[0]}


def test_an_intervention_of_ones_own():
    lm = StepFlowLM("reasoner", flow=StepFlow(Halve()))
    ask(lm, EASY[0].question, max_gen_toks=20, until=[])
    assert lm.runs[-1].ledger.total("Halve", "rows_changed") > 0
    with pytest.raises(SettingError, match=r"flow= or settings.*got \['preset'\] beside it"):
        StepFlowLM("reasoner", flow=StepFlow(), preset="paper")
