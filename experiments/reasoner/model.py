"""The reasoner's network: how it is built, moved, scored and written."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from experiments.reasoner.lessons import IGNORED, encode, micro_batches, problem_pieces
from stepflow_tl.tasks.word_problems.sentences import NAMES
from stepflow_tl.tasks.word_problems.world import make_problems

MATRIX_RATE = 6e-3
OTHER_RATE = 1e-2
_PLACES = {",": "look-up", "Ġhas": "amount", "Ġ": "carry", "+": "operand", "=": "result"}


def build_model(tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    """Return the untrained model: 8 layers, 4 query and 2 key-value heads, nothing planted.

    The query and key biases start away from zero, so that under rotary positions every head starts
    with some preference for a distance; the output matrices start small.
    """
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        initializer_range=0.09,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.bias", "k_proj.bias")):
                parameter.normal_(std=0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(0.5)
    return model


def build_optimizers(model: Qwen2ForCausalLM) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices and AdamW for embeddings, norms and biases."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(
            matrices, lr=MATRIX_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def masked_loss(
    model: Qwen2ForCausalLM, ids: Tensor, labels: Tensor, *, device: str
) -> tuple[Tensor, int]:
    """Return the summed negative log-likelihood of the labeled tokens, and how many they are.

    Args:
        model: The model in training.
        ids: Token ids, right-padded, [batch, pos].
        labels: The same, or `IGNORED`, [batch, pos].
        device: Where the model lives.
    """
    ids, labels = ids.to(device), labels.to(device)[:, 1:]
    with torch.autocast(device, dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        wanted = labels != IGNORED
        logits = model.lm_head(hidden[wanted])
    loss = torch.nn.functional.cross_entropy(logits.float(), labels[wanted], reduction="sum")
    return loss, int(wanted.sum())


@torch.no_grad()
def teacher_forced(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, difficulty: int, *, device: str
) -> dict[str, float]:
    """Return the share of right tokens by what precedes them, on 48 problems of the test split.

    Args:
        model: The model in training.
        tokenizer: Its tokenizer.
        difficulty: Number of operations of the problems.
        device: Where the model lives.
    """
    problems = make_problems(48, difficulty, seed=1, split="test")
    sequences = [encode(tokenizer, problem_pieces(problem)) for problem in problems]
    places = {tokenizer.convert_tokens_to_ids(token): place for token, place in _PLACES.items()}
    people = {tokenizer.convert_tokens_to_ids(f"Ġ{name}") for name in NAMES}
    owns, stop = tokenizer.convert_tokens_to_ids(["Ġfor", ".Ċ"])
    right: dict[str, list[bool]] = {}
    for ids, labels in micro_batches(sequences, tokens=4096, pad=tokenizer.pad_token_id):
        with torch.autocast(device, dtype=torch.bfloat16):
            best = model(input_ids=ids.to(device), use_cache=False).logits.argmax(-1).cpu()
        for row, col in (labels[:, 1:] != IGNORED).nonzero().tolist():
            place = places.get(int(ids[row, col]))
            if place == "look-up" and int(ids[row, col - 1]) not in people:
                continue
            if int(ids[row, col]) in people and int(ids[row, col - 1]) == owns:
                place = "stop" if int(labels[row, col + 1]) == stop else "go on"
            if place is not None:
                right.setdefault(place, []).append(bool(best[row, col] == labels[row, col + 1]))
    return {place: round(sum(hits) / len(hits), 3) for place, hits in right.items()}


def export(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the weights in 16 bit, the configuration and the tokenizer, in Hugging Face format."""
    rounded = Qwen2ForCausalLM(model.config).to(torch.float16)
    rounded.load_state_dict(model.state_dict())
    rounded.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
