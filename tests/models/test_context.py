"""How many positions a model has, and that nothing runs beyond them without a word."""

import re
from types import SimpleNamespace

import pytest
from helpers import HAS_HOOKED, encode, hooked_from

from stepflow_tl import Decoding, OddsEqualBridge, Trace, generate, step_saliency
from stepflow_tl.errors import GenerationError, StepMapError
from stepflow_tl.models.context import context_length_of
from stepflow_tl.models.loading import load_model
from stepflow_tl.models.view import view
from stepflow_tl.tasks.strategies import Plain

QUESTION = "Tom has 3 pens. He buys 4 more."


def config(positions, rope=None):
    """A decoder's configuration."""
    return SimpleNamespace(max_position_embeddings=positions, rope_parameters=rope)


def scaled(kind, factor, before):
    return {"rope_type": kind, "factor": factor, "original_max_position_embeddings": before}


@pytest.mark.parametrize(
    ("positions", "rope", "length"),
    [
        (2048, None, 2048),
        (None, None, None),
        (2048, {"rope_type": "default", "rope_theta": 1e6}, 2048),
        (4096, {"rope_type": "linear", "factor": 4.0}, 16384),
        (8192, {"rope_type": "dynamic", "factor": 2.0}, 16384),
        # Qwen2.5 with YaRN; DeepSeek-V3 and GPT-OSS, which write the length after it
        (32768, scaled("yarn", 4.0, 32768), 131072),
        (163840, scaled("yarn", 40, 4096), 163840),
        (131072, scaled("yarn", 32.0, 4096), 131072),
        # Llama 3.1, Phi-3, Gemma 3
        (131072, scaled("llama3", 8.0, 8192), 131072),
        (131072, scaled("longrope", 32.0, 4096), 131072),
        (131072, {"full_attention": {"rope_type": "linear", "factor": 8.0}}, 131072),
    ],
)
def test_the_length_is_what_scaling_allows(positions, rope, length):
    assert context_length_of(config(positions, rope)) == length


@pytest.fixture(scope="module", params=["gpt2", "llama", *(["hooked"] if HAS_HOOKED else [])])
def short(request, tiny_folder):
    """A model of 40 positions."""
    kind = "qwen2" if request.param == "hooked" else request.param
    folder = tiny_folder(kind, max_position_embeddings=40, eos_token_id=None)
    return hooked_from(folder) if request.param == "hooked" else load_model(folder)


def test_the_length_of_each_model_class(short):
    assert view(short).context_length == 40


def test_what_does_not_fit_is_refused_before_decoding(short):
    size = len(encode(short.tokenizer, QUESTION))
    message = f"within the 40 positions .* of {size} tokens and max_new_tokens=30, {size + 30} in"
    with pytest.raises(GenerationError, match=message):
        generate(short, QUESTION, max_new_tokens=30, chat=False)
    longer = QUESTION * 4
    size = len(encode(short.tokenizer, longer))
    with pytest.raises(GenerationError, match=f"within the 40 positions .* prompt of {size} "):
        generate(short, [QUESTION, longer], max_new_tokens=2, chat=False)
    trace = Trace.from_token_ids(
        short, encode(short.tokenizer, longer), prompt_length=10, format="plain"
    )
    with pytest.raises(StepMapError, match=f"within the 40 positions .*, got {size} tokens"):
        step_saliency(short, trace)


def test_responses_are_cut_to_what_fits_and_say_so(short):
    """In a batch as alone; a prompt that fills the context has an empty response."""
    prompts = ["Why?", QUESTION, QUESTION * 4, "Tom has"]
    ask = {"max_new_tokens": 60, "chat": False, "fit": True}
    together = generate(short, prompts, **ask)
    assert together == generate(short, prompts, batch_size=1, **ask)
    sizes = [len(encode(short.tokenizer, prompt)) for prompt in prompts]
    assert [len(trace) for trace in together] == [max(40, size) for size in sizes]
    assert [trace.metadata.get("cut") for trace in together] == ["context"] * 4
    assert together[2].response == "" and not together[2].ended
    (whole,) = generate(short, prompts[:1], **{**ask, "max_new_tokens": 10})
    assert "cut" not in whole.metadata
    assert together[0].token_ids.tolist()[: len(whole)] == whole.token_ids.tolist()
    shown = step_saliency(short, together[0]).scores
    assert shown.isfinite().all()


def test_strategies_cut(short):
    (attempt,) = Plain().solve(
        short,
        [QUESTION],
        Decoding(max_new_tokens=500, chat=False, format="plain"),
        same_answer=str.__eq__,
    )
    assert (len(attempt.trace), attempt.trace.metadata["cut"]) == (40, "context")


def test_interventions_act_to_the_last_position(short):
    from stepflow_tl import StepFlow

    ask = {"max_new_tokens": 60, "chat": False, "fit": True, "format": "plain"}
    with StepFlow(OddsEqualBridge(tau_max=0.5, layers="all")).attach(short) as run:
        trace = generate(short, QUESTION, **ask)
    assert len(trace) == 40
    assert run.actions > 0


def test_the_message_says_what_can_be_done(short):
    message = "pass a smaller max_new_tokens, or fit=True to cut the response to the "
    with pytest.raises(GenerationError, match=re.escape(message)):
        generate(short, QUESTION, max_new_tokens=39, chat=False)
