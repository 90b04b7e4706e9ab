"""Settings as command lines write them: texts and numbers for what Python has objects for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from stepflow_tl.decoding.settings import Decoding
from stepflow_tl.errors import ModelError, SettingError
from stepflow_tl.interventions import OddsEqualBridge, StepFlow, StepMomentum
from stepflow_tl.interventions.flow import PRESETS
from stepflow_tl.models.layers import LayerSpec
from stepflow_tl.reasoner import WEIGHTS

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "top_k": (0, -1, None),
    "min_p": (0, 0.0, None),
    "repetition_penalty": (1, 1.0, None),
    "presence_penalty": (0, 0.0, None),
    "frequency_penalty": (0, 0.0, None),
}
"""Ways of decoding that `generate` does not have, and the values at which they do nothing."""


def decoding_of(settings: Mapping[str, Any]) -> tuple[int | None, dict[str, Any]]:
    """What `generate` takes of a task's settings.

    Args:
        settings: `until`, `max_gen_toks`, `do_sample`, and what else a task names.

    Returns:
        Tokens that the task allows a response, None where it does not say; and `temperature`,
        `top_p` and `stop`.

    Raises:
        SettingError: It names a way of decoding that there is none of here.
        ValueError: A setting is out of range.
    """
    rest = dict(settings)
    stop = [text for text in rest.pop("until") if text]
    limit = int(rest.pop("max_gen_toks"))
    temperature, top_p = rest.pop("temperature", None), rest.pop("top_p", None)
    sampled = rest.pop("do_sample")
    for name, value in rest.items():
        if value not in _NEUTRAL.get(name, ()):
            raise SettingError(
                f"generation setting {name}={value!r} is unknown to this model: expected until, "
                "max_gen_toks, do_sample, temperature and top_p"
            )
    if not sampled:
        return limit or None, {"temperature": 0.0, "top_p": 1.0, "stop": stop}
    drawn = Decoding(
        temperature=1.0 if temperature is None else float(temperature),
        top_p=1.0 if top_p is None else float(top_p),
    )
    chosen = {"temperature": drawn.temperature, "top_p": drawn.top_p}
    return limit or None, {**chosen, "stop": stop}


def flow_of(
    *,
    preset: str | None = "",
    oeb_tau: float | int | None = None,
    oeb_layers: Any = None,
    smi_alpha: float | int | None = None,
    smi_layers: Any = None,
    smi_window: int | str | None = None,
) -> StepFlow:
    """The StepFlow of a preset, or the paper's with settings of its own; None is the paper's.

    Interventions of zero strength are left out.

    Args:
        preset: "paper", "release", "digest", "none" (or None); "" for none of these.
        oeb_tau: OEB's tau_max.
        oeb_layers: OEB's layers.
        smi_alpha: SMI's alpha.
        smi_layers: SMI's layers.
        smi_window: SMI's window.

    Raises:
        SettingError: The preset is unknown, or stands beside single settings.
        ValueError: A setting is out of range.
    """
    bridge = {
        "tau_max": _strength("oeb_tau", oeb_tau),
        "layers": layers_of("oeb_layers", oeb_layers),
    }
    momentum = {
        "alpha": _strength("smi_alpha", smi_alpha),
        "layers": layers_of("smi_layers", smi_layers),
        "window": smi_window,
    }
    preset = "none" if preset is None else preset
    if preset and preset not in (*PRESETS, "none"):
        raise SettingError(f"unknown preset {preset!r}: expected one of {[*PRESETS, 'none']}")
    if preset and any(v is not None for v in (*bridge.values(), *momentum.values())):
        raise SettingError(
            f"expected preset={preset}, which fixes all settings, or single ones, got both"
        )
    if preset == "none":
        return StepFlow()
    if preset:
        return StepFlow.preset(preset)
    items = (
        OddsEqualBridge(**_given(bridge)),
        StepMomentum(**_given(momentum)),
    )
    return StepFlow(*(item for item in items if not item.is_neutral))


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _strength(name: str, value: float | int | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SettingError(f"expected {name} to be a number, got {value!r}")
    return float(value)


def layers_of(name: str, given: Any) -> LayerSpec | None:
    """Layers as a command line names them: ``0-6`` is a range, everything else as in Python."""
    if isinstance(given, str) and (span := re.fullmatch(r"(\d+)-(\d+)", given)):
        first, last = map(int, span.groups())
        if last < first:
            raise SettingError(f"expected {name} such as 0-6, got {given!r}")
        return range(first, last + 1)
    layers: LayerSpec | None = given
    return layers


def plain_number(name: str, value: Any) -> int:
    """A whole number from 1 on, given as a number or a text.

    Raises:
        SettingError: It is none.
    """
    text = str(value)
    if isinstance(value, bool) or not text.isdigit() or int(text) < 1:
        raise SettingError(f"expected {name} to be a whole number >= 1, got {value!r}")
    return int(text)


def precision(name: str | None, model: str, revision: str | None = None) -> torch.dtype | None:
    """The type of a model's weights.

    Args:
        name: Its name; ``auto`` for the checkpoint's own, None for the default.
        model: The checkpoint.
        revision: Of the checkpoint.

    Raises:
        SettingError: There is no such type.
        ModelError: ``auto``, and the checkpoint does not say.
    """
    if name is None:
        return None
    if name == "auto":
        return _checkpoint_precision(model, revision)
    if name not in DTYPES:
        raise SettingError(f"unknown dtype {name!r}: expected 'auto' or one of {list(DTYPES)}")
    found: torch.dtype = DTYPES[name]
    return found


def _checkpoint_precision(model: str, revision: str | None) -> torch.dtype | None:
    from transformers import AutoConfig

    source = str(WEIGHTS) if model == "reasoner" else model
    try:
        config = AutoConfig.from_pretrained(source, revision=revision or "main")
    except (OSError, ValueError) as error:
        raise ModelError(f"no configuration of {model!r} could be read: {error}") from error
    dtype: torch.dtype | None = getattr(config.get_text_config(), "dtype", None)
    return dtype
