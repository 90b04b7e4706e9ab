"""Loading models, and all that differs between the model classes.

This is the one place that knows the hook names and shapes of `TransformerBridge` (3.x, 4.x) and
`HookedTransformer` (3.x), and where a plain Hugging Face model keeps the same. Everything else
asks here:

==================== ============================= =============================================
hook                 shape                         note
==================== ============================= =============================================
``hook_embed``       [batch, pos, d_model]
``hook_resid_pre``   [batch, pos, d_model]
``attn.hook_rot_q``  [batch, pos, head, d_head]
``attn.hook_rot_k``  [batch, pos, kv_head, d_head]
``attn.hook_q``      [batch, pos, head, d_head]    of fused projections (Phi-3, GPT-NeoX, GPT-2),
``attn.hook_k``      [batch, pos, kv_head, d_head] whose bridge leaves ``hook_rot_q`` and
``attn.hook_cos``    [#batch, pos, d_rotary]       ``hook_rot_k`` unused: these three and
``attn.hook_sin``    [#batch, pos, d_rotary]       ``hook_sin`` tell as much
``attn.hook_v``      [batch, pos, kv_head, d_head] under a KV cache: the new positions only
``attn.hook_attn_scores`` [batch, head, query, key]
``attn.hook_pattern``  [batch, head, query, key]   under a KV cache: all cached keys
``attn.hook_z``      [batch, pos, head, d_head]
``hook_resid_post``  [batch, pos, d_model]
==================== ============================= =============================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stepflow_tl.errors import ModelError
from stepflow_tl.models.huggingface import (
    attention_module,
    decoder_layers,
    huggingface_model,
    is_huggingface,
    text_config,
)
from stepflow_tl.models.precision import DTYPES
from stepflow_tl.models.weights import weights_in_order
from stepflow_tl.reasoner import WEIGHTS

SiteName = Literal[
    "embed",
    "resid_pre",
    "q",
    "k",
    "cos",
    "sin",
    "rot_q",
    "rot_k",
    "v",
    "attn_scores",
    "pattern",
    "z",
    "resid_post",
]


_OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "dense", "c_proj")  # in transformers' decoders
_HOOK_DICTS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hook_name(site: SiteName, layer: int | None = None) -> str:
    """Name of a hook point; the same in both model classes."""
    if layer is None:
        return f"hook_{site}"
    prefix = "" if site.startswith("resid") else "attn."
    return f"blocks.{layer}.{prefix}hook_{site}"


def model_name(model: Any) -> str:
    """Name of a model, for records: the last part of a local folder's path."""
    if is_huggingface(model):
        name = str(model.name_or_path or type(model).__name__)
    else:
        name = str(getattr(model.cfg, "model_name", "unknown"))
    if Path(name) == WEIGHTS:
        return "reasoner"
    return Path(name).name if Path(name).is_dir() else name


def weights_hash(model: Any) -> str:
    """SHA-256 over the names, types, shapes and bytes of all parameters: 16 hex digits.

    Of a quantised model also over whatever else its layers save: scales, code books.
    """
    digest = hashlib.sha256()
    for name, tensor in weights_in_order(model):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        data: Any = tensor.flatten().view(torch.uint8).numpy()
        digest.update(data)
    return digest.hexdigest()[:16]


def is_exact(model: Any) -> bool:
    """Whether all parameters are float32 or wider: a row's batch hardly changes its text."""
    return all(p.dtype in (torch.float32, torch.float64) for p in model.parameters())


def n_layers(model: Any) -> int:
    """Number of layers."""
    if is_huggingface(model):
        return int(text_config(model).num_hidden_layers)
    return int(model.cfg.n_layers)


def n_heads(model: Any) -> int:
    """Number of query heads of a layer."""
    if is_huggingface(model):
        return int(text_config(model).num_attention_heads)
    return int(model.cfg.n_heads)


def tokenizer_of(model: Any) -> Any:
    """The model's tokenizer.

    Raises:
        ModelError: It has none.
    """
    if getattr(model, "tokenizer", None) is None:
        raise ModelError(
            "the model has no tokenizer: set model.tokenizer, load it with one, or pass tokenizer= "
            "where that is taken"
        )
    return model.tokenizer


def attention_window(model: Any, layer: int) -> int | None:
    """Number of keys a query of this layer sees at most, its own included; None for all."""
    original = huggingface_model(model)
    if original is None:
        types = getattr(model.cfg, "attn_types", None)
        local = types is not None and types[layer] == "local"
        return int(model.cfg.window_size) if local else None
    config = text_config(original)
    window = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return None
    types = getattr(config, "layer_types", None)
    return int(window) if types is None or types[layer] == "sliding_attention" else None


def score_scale(model: Any, layer: int) -> float:
    """Factor between q . k and the attention scores of a layer."""
    attention = model.blocks[layer].attn
    original = getattr(attention, "original_component", None)
    if original is None:
        return 1.0 / float(attention.attn_scale)
    scaling = getattr(original, "scaling", None)
    return float(scaling) if scaling is not None else float(original.head_dim) ** -0.5


def query_key_sites(model: Any, layer: int) -> tuple[SiteName, ...]:
    """Sites at which a layer shows what its scores are made of: queries, keys, maybe rotations.

    Queries and keys after the rotary embedding; or those before it, with the cosines and sines
    of the embedding, where query, key and value are one projection and the bridge shows no others.

    Raises:
        ModelError: It shows neither.
    """
    attention = model.blocks[layer].attn
    fused = hasattr(attention, "split_qkv_matrix")
    rotations: tuple[SiteName, ...] = ("cos", "sin")
    shown = [site for site in rotations if hook_name(site, layer) in model.hook_dict]
    sites: tuple[SiteName, ...] = ("q", "k", *shown) if fused else ("rot_q", "rot_k")
    missing = [site for site in sites if hook_name(site, layer) not in model.hook_dict]
    latent = hasattr(getattr(attention, "original_component", None), "kv_lora_rank")
    normed = hasattr(attention, "q_norm") or hasattr(attention, "k_norm")
    if missing or latent or (fused and normed):
        raise no_queries_and_keys(model, layer)
    return sites


def no_queries_and_keys(model: Any, layer: int) -> ModelError:
    """The error for a layer that does not show what its scores are made of."""
    return ModelError(
        f"expected the attention of layer {layer} to show its queries and keys at "
        f"{hook_name('rot_q', layer)} and {hook_name('rot_k', layer)}, got no such pair from a "
        f"{type(model.blocks[layer].attn).__name__}: pass backend='fused', or an objective other "
        "than 'token'"
    )


def score_softcap(model: Any, layer: int) -> float | None:
    """Bound of a layer's soft-capped attention scores; None where they are not capped."""
    attention = model.blocks[layer].attn
    original = getattr(attention, "original_component", None)
    if original is None:
        cap = getattr(model.cfg, "attn_scores_soft_cap", -1.0)
        return float(cap) if cap is not None and cap > 0 else None
    cap = getattr(original, "attn_logit_softcapping", None)
    return float(cap) if cap is not None else None


def heads_to_residual(
    model: Any, layer: int, z: Float[Tensor, "rows head d_head"]
) -> Float[Tensor, "rows d_model"]:
    """What per-head outputs add to the residual stream: z W_O, summed over heads, no bias."""
    if is_huggingface(model):
        attention = attention_module(decoder_layers(model)[layer])
        names = [name for name in _OUTPUT_PROJECTIONS if hasattr(attention, name)]
        if not names:
            raise ModelError(
                f"expected the output projection of {type(attention).__name__} to be one of "
                f"{list(_OUTPUT_PROJECTIONS)}: attach to a TransformerBridge (load_model)"
            )
        projection = getattr(attention, names[0])
    else:
        attention = model.blocks[layer].attn
        if getattr(attention, "original_component", None) is None:
            weight: Tensor = attention.W_O
            return torch.einsum("rhd,hdm->rm", z.to(weight.dtype), weight)
        projection = getattr(attention.o, "original_component", attention.o)
    flat = z.flatten(1)
    dtype = getattr(getattr(projection, "weight", None), "dtype", flat.dtype)
    flat = flat.to(dtype) if dtype in DTYPES.values() else flat  # else the weights are packed
    result: Tensor = projection(flat) - projection(torch.zeros_like(flat))
    return result


def is_hooked(model: Any) -> bool:
    """Whether this is a `HookedTransformer`."""
    return huggingface_model(model) is None


def padding_takes_positions(model: Any) -> bool:
    """Whether a padded batch may not be wider than the model's context.

    The masks of a `HookedTransformer` end there, and a bridge counts rows without padding through,
    also behind their end, into learned position embeddings.
    """
    return is_hooked(model) or (not is_huggingface(model) and hasattr(model, "pos_embed"))


def run_cached(
    model: Any,
    tokens: Int[Tensor, "batch new"],
    attention_mask: Int[Tensor, "batch pos"],
    cache: Any | None,
) -> tuple[Float[Tensor, "batch new vocab"], Any]:
    """One forward pass against a KV cache.

    Args:
        model: Either model class.
        tokens: The new tokens.
        attention_mask: 1 for real tokens, over all positions so far.
        cache: What the last call returned; None to begin.

    Returns:
        Logits of the new tokens, and the cache to pass on.
    """
    if is_huggingface(model):
        position = (attention_mask.cumsum(-1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
        output = model(
            input_ids=tokens,
            attention_mask=attention_mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        )
        return output.logits, output.past_key_values
    if not is_hooked(model):
        logits, cache = model(
            tokens,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
            return_type="logits_and_cache",
        )
        return logits, cache
    if cache is None:
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        cache = TransformerLensKeyValueCache.init_cache(model.cfg, tokens.device, tokens.shape[0])
    logits = model(
        tokens,
        attention_mask=attention_mask[:, -tokens.shape[1] :],
        past_kv_cache=cache,
        return_type="logits",
    )
    return logits, cache


def decode(
    model: Any,
    tokens: Int[Tensor, "batch new"],
    attention_mask: Int[Tensor, "batch pos"],
    cache: Any | None,
) -> tuple[Float[Tensor, "batch vocab"], Any]:
    """One forward pass of cached decoding: `run_cached`, of which only the last logits count.

    Args:
        model: Either model class.
        tokens: The new tokens: the left-padded prompts first, then one token a row.
        attention_mask: 1 for real tokens, over all positions so far.
        cache: What the last call returned; None to begin.

    Returns:
        Logits that predict the next token, and the cache to pass on.
    """
    logits, cache = run_cached(model, tokens, attention_mask, cache)
    return logits[:, -1], cache


def detach_cache(cache: Any) -> None:
    """Cut the keys and values of a KV cache off the graph that computed them."""
    for layer in getattr(cache, "layers", None) or cache.entries:
        names = ("keys", "values") if hasattr(layer, "keys") else ("past_keys", "past_values")
        for name in names:
            setattr(layer, name, getattr(layer, name).detach())


@contextmanager
def only_hooks(model: Any, hooks: Sequence[tuple[str, Callable[..., Any]]]) -> Iterator[None]:
    """The model with these forward hooks and no other, whatever hooks live on it.

    For a forward pass inside a forward pass: hooks of the outer one (trackers, caches, saliency)
    must not take the inner one for theirs. On leaving every hook is back in its place. Hooks on
    other modules than TransformerLens's hook points and the embedding stay.
    """
    points = {id(point): point for point in model.hook_dict.values()}.values()
    aside = [(point, name, getattr(point, name)) for point in points for name in _HOOK_DICTS]
    embedding = embedding_module(model)
    aside.append((embedding, "_forward_pre_hooks", embedding._forward_pre_hooks))
    for block in model.blocks:  # a bridge's outer pass may be told to stop early: not this one
        if getattr(block, "_stop_at_layer_idx", None) is not None:
            aside.append((block, "_stop_at_layer_idx", block._stop_at_layer_idx))
    try:
        for module, name, held in aside:
            setattr(module, name, type(held)() if name != "_stop_at_layer_idx" else None)
        with model.hooks(fwd_hooks=list(hooks)):
            yield
    finally:
        for module, name, held in aside:
            setattr(module, name, held)


def hooks_on(model: Any) -> list[str]:
    """Names of the hook points that carry hooks, and "embed" for a tracker; none on a plain model.

    Hooks on other modules than TransformerLens's hook points and the embedding are not seen.
    """
    if is_huggingface(model):
        return []
    names = {id(point): name for name, point in reversed(model.hook_dict.items())}
    points = {id(point): point for point in model.hook_dict.values()}
    found = [
        names[i]
        for i, point in points.items()
        if any(getattr(point, hooks) for hooks in _HOOK_DICTS)
    ]
    return found + (["embed"] if embedding_module(model)._forward_pre_hooks else [])


def embedding_module(model: Any) -> nn.Module:
    """The module that token ids enter first."""
    module: nn.Module = model.get_input_embeddings() if is_huggingface(model) else model.embed
    return module


def input_device(model: Any) -> torch.device:
    """Where token ids go: the device that the embedding works on, wherever its weights are kept."""
    embedding = embedding_module(model)
    for module in (embedding, getattr(embedding, "original_component", None)):
        at = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if at is not None:
            return torch.device(at)
    return next(embedding.parameters()).device


def pad_token_id(model: Any, tokenizer: Any | None = None) -> int:
    """Id to pad prompts with; masked out, so that any would do."""
    tokenizer = tokenizer_of(model) if tokenizer is None else tokenizer
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0
