"""Everything once, on real weights."""

import json
import multiprocessing
import os
import signal
import time
import warnings

import pytest
import torch
from helpers import cached, encode, hooked_of, teacher_forced
from recount import counted, plain_pattern

from stepflow_tl import (
    OddsEqualBridge,
    StepFlow,
    StepMomentum,
    Sweep,
    Trace,
    diagnose,
    generate,
    grid,
    load_model,
    step_saliency,
)
from stepflow_tl.decoding import Decoding
from stepflow_tl.interventions import InterventionWarning
from stepflow_tl.models.gguf import read_gguf
from stepflow_tl.models.view import view
from stepflow_tl.saliency import token_saliency
from stepflow_tl.sweep import Store, resume
from stepflow_tl.tasks import WordProblems

FLOW = StepFlow(OddsEqualBridge(tau_max=0.4, layers="shallow"), StepMomentum(alpha=0.5))
NEAR = dict(atol=2e-3, rtol=1e-4)  # logits of about 20

close = torch.testing.assert_close


def _agree(mine, theirs):
    """The largest difference, in parts of the largest value."""
    return float((mine - theirs).abs().max() / theirs.abs().max())


def test_it_has_learned_english(real, record_property):
    """Weights that were read wrongly (a permuted head, a norm's offset) cost many nats."""
    text = (
        "The sun rises in the east and sets in the west. Water freezes at zero degrees, and it "
        "boils at one hundred degrees. The capital of France is Paris."
    )
    tokens = torch.tensor([[real.trace.token_ids[0], *encode(real.model.tokenizer, text)]])
    loss = torch.nn.functional.cross_entropy(
        teacher_forced(real.model, tokens)[0, :-1], tokens[0, 1:]
    )
    record_property("nats", float(loss))
    assert loss < 3.0


def test_the_tokens_say_the_text(real):
    assert real.trace.text == real.prompt + real.trace.response
    thinking = [step.text.strip() for step in real.trace.steps_in("thinking")]
    assert thinking[:2] == ["Tom starts with 3 pens.", "Then he buys 4 more pens."]
    # where the tokenizer splits a delimiter, what comes before its last token stays with the step
    assert thinking[2].removesuffix("\n</think") == "So he has 3 + 4 = 7 pens now."
    assert len(thinking) == 3
    assert [step.text.strip() for step in real.trace.steps_in("summary")] == [
        "Tom has \\boxed{7} pens.",
        "That is the answer.",
    ]
    assert real.trace.answer == "7"


def test_a_chat_is_answered(real):
    chat = bool(real.model.tokenizer.chat_template)
    question = "What is the capital of France?"
    asked = question if chat else f"Question: {question}\nAnswer:"
    trace = generate(real.model, asked, max_new_tokens=24, chat=chat)
    assert "Paris" in trace.response
    assert trace.steps[0].text.strip() == asked
    alone = read_plain(real)
    theirs = alone.generate(
        trace.tokens[:, : trace.prompt_length], max_new_tokens=24, do_sample=False
    )
    assert trace.token_ids.tolist() == theirs[0].tolist()[: len(trace)]


PLAIN = {}


def read_plain(real):
    """The plain decoder of the same file; read once."""
    if real.name not in PLAIN:
        PLAIN[real.name] = read_gguf(real.path, torch.float32, {})
        PLAIN[real.name][0].tokenizer = PLAIN[real.name][1]
    return PLAIN[real.name][0]


def test_maps_of_both_backends_agree(real, record_property):
    kinds = [("attention_x_gradient", "token"), ("signed", "sequence"), ("attention", "token")]
    for rule, objective in kinds:
        options = {"rule": rule, "objective": objective}
        if rule == "attention":
            options = {"rule": rule}
        if rule == "signed":  # which has no shares
            options["pool"] = "mean"
        hooked, fused = (
            step_saliency(real.model, real.trace, backend=backend, **options).scores
            for backend in ("hooks", "fused")
        )
        assert hooked.abs().max() > 0
        record_property(f"maps {rule} {objective}", _agree(fused, hooked))
        assert _agree(fused, hooked) < 1e-5
    tokens = [
        token_saliency(real.model, real.trace, rule="signed", backend=backend)
        for backend in ("hooks", "fused")
    ]
    assert _agree(*tokens) < 1e-5
    table = diagnose(step_saliency(real.model, real.trace))
    assert len(table) == view(real.model).n_layers
    assert table["lock_in"].between(0, 1).all()


@pytest.fixture(scope="module")
def repaired(real):
    """Logits of one pass under StepFlow, and its ledger."""
    with FLOW.attach(real.model) as run:
        logits = teacher_forced(real.model, real.trace.tokens)
    plain = teacher_forced(real.model, real.trace.tokens)
    assert not torch.equal(plain, logits)
    return logits, run.ledger.to_dataframe()


def test_cached_is_uncached(real, repaired, record_property):
    logits, table = repaired
    for chunks in ([real.trace.prompt_length], [7, real.trace.prompt_length]):
        with FLOW.attach(real.model) as run:
            again = cached(real.model, real.trace.tokens, chunks)
        record_property("cached", _agree(again, logits))
        close(again, logits, **NEAR)
        mine = run.ledger.to_dataframe()
        assert mine[["rows_seen", "rows_changed", "injections"]].equals(
            table[["rows_seen", "rows_changed", "injections"]]
        )


def test_stepflow_in_the_plain_decoder_is_stepflow_on_the_bridge(real, repaired, record_property):
    logits, table = repaired
    plain = read_plain(real)
    with FLOW.attach(plain) as run, torch.no_grad():
        mine = plain(real.trace.tokens, use_cache=False).logits
    record_property("plain decoder", _agree(mine, logits))
    close(mine, logits, **NEAR)
    counts = ["rows_seen", "rows_changed", "injections"]
    assert run.ledger.to_dataframe()[counts].equals(table[counts])


def test_stepflow_in_a_hooked_transformer(real, repaired, record_property):
    try:
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError:
        pytest.skip("not supported: transformer-lens 4 has no HookedTransformer")
    plain = read_plain(real)
    if plain.config.model_type != "llama":
        pytest.skip(f"not supported: no conversion of {plain.config.model_type} is tried here")
    model = hooked_of(plain, plain.tokenizer, real.path.name)
    with FLOW.attach(model) as run:
        mine = teacher_forced(model, real.trace.tokens)
    record_property("HookedTransformer", _agree(mine, repaired[0]))
    close(mine, repaired[0], **NEAR)
    counts = ["rows_seen", "rows_changed", "injections"]
    assert run.ledger.to_dataframe()[counts].equals(repaired[1][counts])
    hooked = step_saliency(model, real.trace, backend="hooks").scores
    assert _agree(hooked, step_saliency(real.model, real.trace).scores) < 1e-4


def test_the_ledger_is_recounted(real, record_property):
    """Rows seen, changed, and the bridge's mass, by hand from the patterns; injections by steps."""
    trace, model = real.trace, real.model
    rows = (len(trace.thinking) + len(trace.summary)) * view(model).n_heads
    for layer in (0, 3, view(model).n_layers - 1):
        flow = StepFlow(OddsEqualBridge(tau_max=0.4, layers=layer), StepMomentum(layers=layer))
        with flow.attach(model) as run:
            teacher_forced(model, trace.tokens)
        table = run.ledger.to_dataframe().set_index("intervention")
        window = view(model).attention_window(layer)
        changed, before = counted(plain_pattern(model, trace, layer), trace, window, 0.4)
        bridge = table.loc["OddsEqualBridge"]
        assert bridge.rows_seen == rows
        assert bridge.rows_changed == changed
        assert bridge.bridge_mass_before == pytest.approx(before, rel=1e-4)
        assert table.loc["StepMomentum"].injections == len(trace.steps_in("thinking")) - 1
        record_property(f"layer {layer}", f"{changed} of {rows} rows, as counted")


def _sweep(real):
    return Sweep(
        WordProblems(n=3, difficulties=(1,)),
        grid(OddsEqualBridge, tau_max=[0.4]),
        model=real.path,
        decoding=Decoding(
            max_new_tokens=6, batch_size=1, chat=bool(real.model.tokenizer.chat_template)
        ),
    )


def _run(sweep, path):
    torch.set_num_threads(1)
    sweep.run(path)


def test_a_sweep_that_is_killed_goes_on(real, tmp_path):
    path = tmp_path / "killed.sqlite"
    child = multiprocessing.get_context("spawn").Process(target=_run, args=(_sweep(real), path))
    child.start()
    while child.is_alive() and not _stored(path):
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    kept = _stored(path)
    assert 0 < kept < 6
    rows = resume(path)
    assert len(rows) == 6
    loaded = Sweep(**{**vars(_sweep(real)), "model": real.model})
    whole = loaded.run(tmp_path / "whole.sqlite")
    texts = [table.sort_values(["arm", "problem"])["response"].tolist() for table in (rows, whole)]
    assert texts[0] == texts[1]


def _stored(path):
    try:
        return int(Store(path).counts()["done"].sum())
    except (OSError, ValueError):
        return 0


def test_lm_eval_on_three_items(real, tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    import stepflow_tl.integrations.lm_eval  # noqa: F401  which names the model to the harness

    folder = tmp_path / "task"
    folder.mkdir()
    asked = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid"}
    lines = [
        {"question": f"Question: What is the capital of {land}?\nAnswer:", "answer": city}
        for land, city in asked.items()
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "task.yaml").write_text(
        "task: capitals\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\n"
        "test_split: test\noutput_type: generate_until\n"
        "doc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\n"
        'generation_kwargs: {until: ["\\n"], max_gen_toks: 12, do_sample: false}\n'
        "filter_list: [{name: word, filter: [{function: regex, "
        "regex_pattern: '(Paris|Rome|Madrid)'}, {function: take_first}]}]\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterventionWarning)
        results = simple_evaluate(
            model="stepflow-tl",
            model_args={"pretrained": str(real.path), "preset": "paper"},
            tasks=["capitals"],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            apply_chat_template=bool(real.model.tokenizer.chat_template),
            batch_size=3,
            bootstrap_iters=0,
        )
    assert len(results["samples"]["capitals"]) == 3
    assert results["results"]["capitals"]["exact_match,word"] >= 2 / 3


def test_figures_and_pages(real, tmp_path):
    import circuitsvis as cv
    import matplotlib as mpl

    mpl.use("Agg")
    from stepflow_tl.plots import figure_step_flow, save_figure
    from stepflow_tl.plots.notebook import Offline

    maps = step_saliency(real.model, real.trace)
    maps.band("shallow").normalize("row").plot()
    (picture,) = save_figure(
        figure_step_flow({real.name: maps}), tmp_path / "flow", formats=["png"]
    )
    assert picture.stat().st_size > 10_000
    seen = maps.scores.sum(0)[-1][real.trace.step_of_token.clamp_min(0)]
    page = Offline(cv.tokens.colored_tokens(list(real.trace.token_texts), seen)).page
    assert "\\u2039" in page  # of <think>, which no page may take for markup


def test_a_saved_trace_and_map_come_back(real, tmp_path):
    real.trace.save(tmp_path / "trace.safetensors")
    assert Trace.load(tmp_path / "trace.safetensors") == real.trace


def test_a_model_from_the_plain_decoder(real):
    """A user's own decoder, as `hf_model`."""
    model = load_model("mine", hf_model=read_plain(real), tokenizer=real.model.tokenizer)
    close(
        teacher_forced(model, real.trace.tokens),
        teacher_forced(real.model, real.trace.tokens),
        **NEAR,
    )
