"""The ten errors that users meet: each page quotes what is really said."""

import copy
import re
import warnings

import pytest
import torch
from pages import DOCS, blocks, page

from stepflow_tl import (
    OddsEqualBridge,
    StepFlow,
    StepMomentum,
    Sweep,
    Trace,
    WordProblems,
    generate,
    grid,
    load_model,
    step_saliency,
)
from stepflow_tl.tasks.strategies import Decoding

PAGES = sorted(path.name for path in (DOCS / "errors").glob("*.md") if path.stem != "index")
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has")
ASK = {"max_new_tokens": 8, "chat": False, "format": "plain"}


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


def model_not_found(model, trace, folder):
    load_model("some-lab/some-model")


def out_of_memory(model, trace, folder):
    with model.hooks(fwd_hooks=[("blocks.2.hook_resid_post", failing(CUDA))]):
        generate(model, ["Why?"] * 6, **ASK)


def context(model, trace, folder):
    generate(model, "Why?", **ASK | {"max_new_tokens": 1_000_000})


def no_chat_template(model, trace, folder):
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = None
    generate(model, "Why?", tokenizer=tokenizer)


def no_delimiter(model, trace, folder):
    Trace.from_text(model, "Why? Because it is so.", format="think")


def thinking_never_closed(model, trace, folder):
    cut = Trace.from_text(model, "Why?<think>It is so. Because it has more. So it")
    step_saliency(model, cut, objective="summary")


def not_finite(model, trace, folder):
    def broken(x, hook):
        return x * float("nan")

    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", broken)]):
        step_saliency(model, trace)


def never_fired(model, trace, folder):
    with StepFlow(StepMomentum()).attach(model):
        generate(model, "Why?", **ASK)


def fused_refused(model, trace, folder):
    with StepFlow(OddsEqualBridge()).attach(model):
        step_saliency(model, trace, backend="fused")


def other_store(model, trace, folder):
    for seed in (1, 2):
        problems = WordProblems(n=1, difficulties=(1,), seed=seed)
        decoding = Decoding(max_new_tokens=2, chat=False, format="plain")
        settings = grid(OddsEqualBridge, tau_max=[0.0])
        Sweep(problems, settings, model, decoding=decoding).run(folder / "s.sqlite")


HAPPENS = {
    f"{happens.__name__.replace('_', '-')}.md": happens
    for happens in (
        model_not_found,
        out_of_memory,
        context,
        no_chat_template,
        no_delimiter,
        thinking_never_closed,
        not_finite,
        never_fired,
        fused_refused,
        other_store,
    )
}


def test_ten_pages_and_all_are_listed():
    assert sorted(HAPPENS) == PAGES
    assert len(PAGES) == 10
    listed = re.findall(r"\]\(([\w-]+\.md)\)", page("errors/index.md"))
    assert sorted(listed) == PAGES


@pytest.mark.parametrize("name", PAGES)
def test_what_happened_why_and_what_to_do(name):
    heads = re.findall(r"^## (.*)$", page(f"errors/{name}"), re.MULTILINE)
    assert heads == ["What happened", "Why", "What to do"]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", HAPPENS)
def test_the_quoted_message_is_what_is_said(name, qwen2, trace, tmp_path):
    (quoted,) = blocks(page(f"errors/{name}"), "text")
    kind, _, message = quoted.strip().partition(": ")
    with pytest.raises(Exception) as caught, warnings.catch_warnings():
        warnings.simplefilter("error")
        HAPPENS[name](qwen2, trace, tmp_path)
    assert type(caught.value).__name__ == kind
    pattern = ".+".join(map(re.escape, message.split("…")))
    assert re.fullmatch(pattern, str(caught.value), re.DOTALL), str(caught.value)
