"""Generative tasks of lm-evaluation-harness under StepFlow: the model ``stepflow-tl``.

    stepflow-tl lm-eval --model stepflow-tl --tasks gsm8k --apply_chat_template
        --model_args pretrained=NAME,oeb_tau=0.15,smi_alpha=0.06

is lm-evaluation-harness's own command, with this model registered. Its releases up to 0.4.13 take
no model from another package; later ones find this one by its entry point, and
``lm_eval --model stepflow-tl ...`` is then enough. In Python, importing this module registers it.
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import jinja2
import lm_eval.models  # noqa: F401  its own models first: they are listed only while none is
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from torch.cuda import is_available as has_cuda
from tqdm.auto import tqdm

from stepflow_tl.decoding.generation import generate_each
from stepflow_tl.decoding.settings import PAPER_MAX_NEW_TOKENS, Decoding
from stepflow_tl.errors import SettingError
from stepflow_tl.integrations.settings import decoding_of, flow_of, plain_number, precision
from stepflow_tl.interventions import Run, StepFlow
from stepflow_tl.models.loading import load_model
from stepflow_tl.models.view import view
from stepflow_tl.sweep.grid import to_spec
from stepflow_tl.traces.chat import prompt_token_ids
from stepflow_tl.traces.formats import AUTO, named_format
from stepflow_tl.traces.trace import Trace
from stepflow_tl.version import __version__

NAME = "stepflow-tl"
logger = logging.getLogger("lm_eval.stepflow_tl")  # below its logger, whose level users set


@register_model(NAME)
class StepFlowLM(TemplateLM):  # type: ignore[misc]
    """A model that answers under StepFlow.

    Its model arguments are those of `__init__`. The interventions are the paper's, unless
    `preset` or single settings say otherwise; ``oeb_tau=0,smi_alpha=0`` and ``preset=none`` are the
    plain model.

    Attributes:
        tokenizer: The model's tokenizer.
        flow: What is attached while it answers.
        runs: What the interventions did, one run per call of `generate_until`.
        traces: Number of responses so far.
        unclosed: How many of them never closed their thinking.
    """

    def __init__(
        self,
        pretrained: str = "",
        *,
        flow: StepFlow | None = None,
        preset: str | None = "",
        oeb_tau: float | int | None = None,
        oeb_layers: Any = None,
        smi_alpha: float | int | None = None,
        smi_layers: Any = None,
        smi_window: int | str | None = None,
        format: str = "auto",
        think_end_token: str | int | None = "auto",
        chat_template_args: Mapping[str, Any] | None = None,
        enable_thinking: bool | None = None,
        dtype: str | None = None,
        device: str | None = None,
        device_map: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        batch_size: int | str = 1,
        max_length: int | None = None,
        max_gen_toks: int | None = None,
        seed: int | None = None,
        **unknown: Any,
    ) -> None:
        """Load the model.

        Args:
            pretrained: ``reasoner``, a Hugging Face name, or a local folder.
            flow: What to attach, in Python; None for what the settings below say.
            preset: ``paper`` (default), ``release``, ``digest`` or ``none``, which the harness may
                read as None.
            oeb_tau: OEB's tau_max, in place of the paper's 0.15.
            oeb_layers: OEB's layers: a band, a fraction, a number, ``0-6`` or a list.
            smi_alpha: SMI's alpha, in place of the paper's 0.06.
            smi_layers: SMI's layers.
            smi_window: SMI's window: a number of tokens, or ``step``.
            format: How the model writes its reasoning.
            think_end_token: Graded is what follows the last of it, as a text or a token id;
                ``auto`` for what follows the thinking, ``none`` to grade the thinking, too.
            chat_template_args: What else the chat template takes.
            enable_thinking: The same, by the name that Qwen3's template has for it.
            dtype: Precision of the weights: float32 (default), bfloat16, float16, or ``auto`` for
                the checkpoint's own.
            device: Where to.
            device_map: How to spread it over devices.
            revision: Of the checkpoint.
            trust_remote_code: Let the checkpoint bring code of its own.
            batch_size: Responses decoded together. See `stepflow_tl.generate`.
            max_length: Longest prompt and response together; None for what the model was made for.
            max_gen_toks: Longest response, where a task has no limit of its own.
            seed: Of sampling; None for the harness's ``--seed``.
            **unknown: Refused by name.

        Raises:
            SettingError: An argument is unknown, missing, or out of range.
            ValueError: The model cannot be loaded.
        """
        super().__init__()
        if unknown:
            names = [name for name in inspect.signature(StepFlowLM).parameters if name != "unknown"]
            raise SettingError(
                f"unknown model argument {sorted(unknown)}: expected some of {names}"
            )
        if not pretrained:
            raise SettingError("expected --model_args pretrained=NAME, got none")
        settings = {
            "preset": preset,
            "oeb_tau": oeb_tau,
            "oeb_layers": oeb_layers,
            "smi_alpha": smi_alpha,
            "smi_layers": smi_layers,
            "smi_window": smi_window,
        }
        beside = [name for name, value in settings.items() if value not in (None, "")]
        if flow is not None and beside:
            raise SettingError(f"expected flow= or settings of its own, got {beside} beside it")
        self.flow = flow_of(**settings) if flow is None else flow
        self.batch_size = plain_number("batch_size", batch_size)
        self._longest = None if max_gen_toks is None else plain_number("max_gen_toks", max_gen_toks)
        self._seed = seed
        self._options = dict(chat_template_args or {})
        if enable_thinking is not None:
            self._options["enable_thinking"] = enable_thinking
        spread = {"device_map": device_map, "revision": revision}
        if device_map is not None or (str(device).startswith("cuda") and not has_cuda()):
            device = None  # the harness names cuda:0 wherever its user names none
        boot: dict[str, Any] = {name: v for name, v in spread.items() if v is not None}
        if trust_remote_code:
            boot["trust_remote_code"] = True
        self._model = load_model(
            pretrained, device=device, dtype=precision(dtype, pretrained, revision), **boot
        )
        self.tokenizer = view(self._model).tokenizer
        self._format = named_format(format)
        self._think_end = self._delimiter(think_end_token)
        self._specials = [str(t) for t in self.tokenizer.added_tokens_decoder.values() if t.special]
        longest = view(self._model).context_length
        self._max_length = longest if max_length is None else plain_number("max_length", max_length)
        self._device = next(self._model.parameters()).device
        self.runs: list[Run] = []
        self.traces = 0
        self.unclosed = 0

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer under StepFlow.

        Repeats of a request are samples of it, each with random numbers of its own. Stop strings
        end a response outside its thinking; thinking is then left out.

        Raises:
            SettingError: A prompt leaves no room for a response, or a task asks for a way of
                decoding that there is none of here.
        """
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        wanted = {key: self._decoding(requests, members) for key, members in groups.items()}
        answers: dict[int, str] = {}
        with (
            self.flow.attach(self._model, format=self._format) as run,
            tqdm(total=len(requests), desc="Under StepFlow", disable=disable_tqdm) as bar,
        ):
            self.runs.append(run)
            for key, members in groups.items():
                for done in self._answer(requests, members, wanted[key]):
                    answers |= done
                    bar.update(len(done))
        if self.unclosed:
            logger.warning(
                "%d of %d responses never closed their thinking", self.unclosed, self.traces
            )
        logger.info("%d responses, %d actions of StepFlow", len(requests), run.actions)
        for line in repr(run.ledger).splitlines():
            logger.info("%s", line)
        return [answers[i] for i in range(len(requests))]

    def _decoding(self, requests: Sequence[Instance], members: Sequence[int]) -> dict[str, Any]:
        """What `generate` is called with for requests that share their settings."""
        limit, settings = decoding_of(normalize_gen_kwargs(requests[members[0]].args[1], 0))
        longest = max(len(self.tok_encode(requests[i].args[0])) for i in members)
        return {"max_new_tokens": self._room(longest, limit or self._longest), **settings}

    def _room(self, prompt: int, limit: int | None) -> int:
        """Tokens that a response may have after the longest prompt."""
        room = None if self._max_length is None else self._max_length - prompt
        if room is not None and room < (limit or 1):
            raise SettingError(
                f"expected prompt and response within max_length={self._max_length} tokens, got a "
                f"prompt of {prompt} and max_gen_toks={limit}: set --gen_kwargs max_gen_toks, or "
                "fewer examples in the prompt"
            )
        return limit or min(room or PAPER_MAX_NEW_TOKENS, PAPER_MAX_NEW_TOKENS)

    def _answer(
        self, requests: Sequence[Instance], members: Sequence[int], decoding: dict[str, Any]
    ) -> Iterator[dict[int, str]]:
        """Answers by the number of their request, prompt by prompt, as they are finished."""
        places: dict[str, list[int]] = {}
        for i in members:
            places.setdefault(requests[i].args[0], []).append(i)
        samples = Counter({text: len(where) for text, where in places.items()})
        greedy = decoding["temperature"] == 0.0
        for count in sorted({1} if greedy else set(samples.values())):
            asked = [text for text in places if greedy or samples[text] == count]
            settings = Decoding(
                seed=torch.initial_seed() if self._seed is None else self._seed,
                batch_size=self.batch_size,
                format=self._format,
                chat=False,
                **decoding,
            )
            of_text: dict[int, dict[int, Trace]] = {}
            with closing(generate_each(self._model, asked, settings, samples=count)) as traces:
                for number, sample, trace in traces:
                    found = of_text.setdefault(number, {})
                    found[sample] = trace
                    if len(found) < count:
                        continue
                    done: dict[int, str] = {}
                    for place, i in enumerate(places[asked[number]]):
                        done[i] = self._graded(found[place % count], decoding["stop"])
                        self.cache_hook.add_partial("generate_until", requests[i].args, done[i])
                    del of_text[number]
                    yield done

    def _graded(self, trace: Trace, stop: Sequence[str]) -> str:
        """The part of a response that a task's filters see, as the harness's own models cut it."""
        self.traces += 1
        self.unclosed += trace.unclosed
        if self._think_end == AUTO:
            text, end = trace.parts.answer if trace.closed else trace.response, None
        else:
            text, end = trace.response, self._think_end
        text = str(postprocess_generated_text(text, list(stop), end))
        for special in self._specials:
            text = text.replace(special, "")
        return text

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        """Refused: an answer that is only scored is not reasoned for.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"expected a generative task (output_type: generate_until), got {len(requests)} "
            "requests for likelihoods: StepFlow acts on thinking that is written, and where given "
            "texts are scored none is"
        )

    loglikelihood_rolling = loglikelihood
    _loglikelihood_tokens = loglikelihood

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the model's prompt; a system message that it does not take is dropped.

        Raises:
            SettingError: The tokenizer has no chat template.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise SettingError(
                "the tokenizer has no chat template: expected one for --apply_chat_template"
            )
        settings = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
            **self._options,
        }
        try:
            return str(self.tokenizer.apply_chat_template(chat_history, **settings))
        except jinja2.TemplateError:
            others = [message for message in chat_history if message["role"] != "system"]
            if len(others) == len(chat_history):
                raise
            logger.warning("the chat template takes no system message: it is left out")
            return str(self.tokenizer.apply_chat_template(others, **settings))

    @property
    def tokenizer_name(self) -> str:
        """Tells cached prompts of different tokenizers apart."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids of a prompt, as `generate_until` runs them."""
        return prompt_token_ids(self.tokenizer, string, chat=False)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness keeps beside its results: what intervened, and what it did."""
        ledger = [
            {name: None if value != value else value for name, value in line.items()}
            for run in self.runs
            for line in run.ledger.to_dataframe().to_dict("records")
        ]
        parameters = sum(p.numel() for p in self._model.parameters())
        return {
            "model_num_parameters": parameters,
            "stepflow": {
                "version": __version__,
                "model": view(self._model).name,
                "format": self._format.name,
                "interventions": to_spec(self.flow),
                "responses": self.traces,
                "unclosed": self.unclosed,
                "fired": sum(run.actions for run in self.runs),
                "ledger": ledger,
            },
        }

    def _delimiter(self, given: str | int | None) -> str | None:
        """The text after which a response is graded; None to grade all of it."""
        if given == AUTO:
            return AUTO  # what follows the thinking, as the reader of the response finds it
        if given is None or str(given).lower() == "none":
            return None
        if isinstance(given, int) or given.isdigit():
            return str(self.tokenizer.decode([int(given)], skip_special_tokens=False))
        return given


def main(arguments: Sequence[str]) -> None:
    """Run lm-evaluation-harness's command line, where this model is known.

    Args:
        arguments: What ``lm_eval`` takes.
    """
    from lm_eval.__main__ import cli_evaluate

    before = sys.argv
    sys.argv = ["lm_eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
